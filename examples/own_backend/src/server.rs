//! The wire: one request a connection, JSON in HTTP/1.1, so that any HTTP proxy can stand in between.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::store::{Ask, Store, Told};

/// A lock server; ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    file: PathBuf,
    store: Mutex<Store>,
    changed: Notify,
}

impl Server {
    /// Listens on a free port; remembers its last token in this file.
    pub async fn start(file: PathBuf) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let store = Mutex::new(Store::open(file.clone())?);
        let shared = Arc::new(Shared { file, store, changed: Notify::new() });
        // Aborted with the server; what it serves by then ends with the runtime.
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Forgets everything but its file, as a crash would.
    pub fn crash(&self) -> io::Result<()> {
        *self.shared.store() = Store::open(self.shared.file.clone())?;
        self.shared.changed.notify_waiters();
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, Arc::clone(&shared)));
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let ask: Ask = serde_json::from_slice(&body(&mut stream).await?)?;
    let json = serde_json::to_string(&shared.answer(&ask).await?)?;
    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}", json.len()).as_bytes()).await
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers now, or when a change or a lapse brings an answer.
    async fn answer(&self, ask: &Ask) -> io::Result<Told> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (answer, lapse) = {
                let mut store = self.store();
                (store.answer(ask, Instant::now())?, store.next_lapse())
            };
            if let Some(told) = answer {
                self.changed.notify_waiters();
                return Ok(told);
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = sleep_until(lapse.unwrap_or_else(Instant::now)), if lapse.is_some() => {}
            }
        }
    }
}

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) struct Failed {
    /// It may have arrived.
    pub(crate) sent: bool,
    pub(crate) error: io::Error,
}

/// Sends a request and reads its answer. May be dropped at any point; the request may arrive all the same.
pub(crate) async fn send(server: SocketAddr, ask: &Ask) -> Result<Told, Failed> {
    let failed = |sent| move |error| Failed { sent, error };
    let json = serde_json::to_string(ask).map_err(|error| Failed { sent: false, error: error.into() })?;
    let mut stream = TcpStream::connect(server).await.map_err(failed(false))?;
    let answered = async {
        stream.write_all(format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{json}", json.len()).as_bytes()).await?;
        serde_json::from_slice(&body(&mut stream).await?).map_err(io::Error::from)
    };
    answered.await.map_err(failed(true))
}

/// The body of the one message on this connection.
async fn body(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
            let length: usize = length.ok_or(io::ErrorKind::InvalidData)?;
            let mut body = bytes.split_off(end + 4);
            while body.len() < length {
                if stream.read_buf(&mut body).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            return Ok(body);
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
