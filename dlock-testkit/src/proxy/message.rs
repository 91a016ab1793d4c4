//! Just enough HTTP/1.1 to tell one message from the next.

use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::fault::Seen;

/// One request or reply, to the byte.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    /// Where the body begins.
    head: usize,
}

impl Message {
    /// Reads one; `None` when the peer closed the connection between two.
    pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        let head = loop {
            if let Some(end) = find(&bytes, b"\r\n\r\n", 0) {
                break end + 4;
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return if bytes.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        };
        let mut message = Self { bytes, head };
        while !message.is_whole() {
            if stream.read_buf(&mut message.bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Some(message))
    }

    pub(super) fn head(&self) -> String {
        String::from_utf8_lossy(&self.bytes[..self.head]).into_owned()
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    fn is_whole(&self) -> bool {
        let head = self.head().to_ascii_lowercase();
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
        if header("transfer-encoding:").is_some_and(|coding| coding.contains("chunked")) {
            return self.has_last_chunk();
        }
        let length = header("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
        self.body().len() >= length
    }

    fn has_last_chunk(&self) -> bool {
        let body = self.body();
        let mut at = 0;
        while let Some(end) = find(body, b"\r\n", at) {
            let line = String::from_utf8_lossy(&body[at..end]).into_owned();
            let Ok(size) = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16) else { return true };
            if size == 0 {
                return body.len() >= end + 4;
            }
            at = end + 2 + size + 2;
        }
        false
    }

    pub(super) fn seen(&self) -> Seen {
        let head = self.head();
        let mut words = head.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        Seen { method, path, body: String::from_utf8_lossy(self.body()).into_owned(), bytes: self.body().to_vec() }
    }
}

fn find(bytes: &[u8], what: &[u8], from: usize) -> Option<usize> {
    bytes.get(from..)?.windows(what.len()).position(|window| window == what).map(|at| at + from)
}
