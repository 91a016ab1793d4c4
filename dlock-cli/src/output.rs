//! What is said, and where: results on standard output, everything else on standard error. Neither can make the process fail.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use serde::Serialize;

use crate::exit::{Exit, Failure};

/// One line to who runs this, soon: nobody is kept waiting by a terminal that is not read. Nothing in it steers the terminal.
pub fn note(message: impl Display) {
    tell(format!("dlock: {}\n", harmless(&message.to_string())));
}

/// Something on standard error as it is, soon; left out if what was said before is not read.
pub fn tell(text: String) {
    match &*VOICE {
        Some(voice) => _ = voice.try_send(Said::Text(text)),
        // Without a thread there is nothing better.
        None => _ = io::stderr().lock().write_all(text.as_bytes()),
    }
}

/// Waits until all was written that was said, but not longer than this for a reader that does not read.
pub fn flush(at_most: Duration) {
    let (done, heard) = sync_channel(1);
    if let Some(voice) = &*VOICE
        && voice.try_send(Said::All(done)).is_ok()
    {
        let _ = heard.recv_timeout(at_most);
    }
}

/// What is logged goes the same way.
pub struct Logged;

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        tell(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Said {
    Text(String),
    /// Everything before was written.
    All(SyncSender<()>),
}

/// Who writes to standard error, and may be kept waiting for it. The thread ends with the process.
static VOICE: LazyLock<Option<SyncSender<Said>>> = LazyLock::new(|| {
    let (voice, said) = sync_channel(256);
    let speak = move || {
        for said in said {
            match said {
                Said::Text(text) => _ = io::stderr().lock().write_all(text.as_bytes()),
                Said::All(done) => _ = done.try_send(()),
            }
        }
    };
    std::thread::Builder::new().name("stderr".to_owned()).spawn(speak).ok().map(|_| voice)
});

/// Has the thread that writes to standard error started, while there are threads to be had.
pub fn start() {
    LazyLock::force(&VOICE);
}

/// Where results go, and in which form.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    quiet: bool,
    colours: bool,
}

impl Output {
    /// As was asked for; colours only on a terminal that has them, and not if `NO_COLOR` is set.
    pub fn new(json: bool, quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, quiet, colours: !json && io::stdout().is_terminal() && !dumb && !unwanted }
    }

    /// One line to who runs this, unless only errors are wanted.
    pub fn note(self, message: impl Display) {
        if !self.quiet {
            note(message);
        }
    }

    /// Whether only errors are wanted on standard error.
    pub fn is_quiet(self) -> bool {
        self.quiet
    }

    /// Whether results are for programs to read.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// One result: as a line of JSON, or as text.
    pub fn say(self, result: &impl Serialize, text: impl Display) -> Result<(), Failure> {
        if self.json {
            let json = serde_json::to_string(result).map_err(|error| Failure::from_error(Exit::CONFIGURATION, &error))?;
            return line(json);
        }
        line(text)
    }

    /// One result, by a thread of its own: whoever holds a lock is not kept waiting by a reader.
    pub fn say_soon<R: Serialize>(self, result: &R, text: String) -> impl Future<Output = Result<(), Failure>> + use<R> {
        let json = self.json.then(|| serde_json::to_string(result)).transpose();
        let text = json.map(|json| json.unwrap_or(text)).map_err(|error| Failure::from_error(Exit::CONFIGURATION, &error));
        let written = tokio::task::spawn_blocking(move || line(text?));
        async move { written.await.unwrap_or(Ok(())) }
    }

    /// Something good.
    pub fn good(self, text: &str) -> String {
        self.coloured("32", text)
    }

    /// Something to look at.
    pub fn doubtful(self, text: &str) -> String {
        self.coloured("33", text)
    }

    /// Something bad.
    pub fn bad(self, text: &str) -> String {
        self.coloured("31", text)
    }

    /// What the eye is to find.
    pub fn strong(self, text: &str) -> String {
        self.coloured("1", text)
    }

    fn coloured(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// One line on standard output. Ends the command without a word when nobody reads any more.
pub fn line(text: impl Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::nobody_reads()),
        Err(error) => Err(Failure::new(Exit::CONFIGURATION, format!("cannot write the result: {error}"))),
    }
}

/// Rows in columns as wide as they must be; the first row is the heading.
pub fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// A token, behind what it belongs to.
pub fn with_token(token: Option<u64>) -> String {
    token.map_or(String::new(), |token| format!(", token {token}"))
}

/// Text from elsewhere, for a person's terminal: nothing in it moves the cursor or changes colours.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["KEY".to_owned(), "HOLDER".to_owned()], vec!["a/long/key".to_owned(), "x".to_owned()]];
        assert_eq!(table(&rows), ["KEY         HOLDER", "a/long/key  x"]);
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
