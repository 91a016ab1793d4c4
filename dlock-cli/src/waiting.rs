//! Waiting for a lock, and telling who has it meanwhile.

use std::future::Future;
use std::time::{Duration, Instant};

use dlock::Inspection;

use crate::contender::{Contender, age};
use crate::output::{harmless, note, tell};
use crate::session::Session;
use crate::terminal::is_ours;

/// How a wait ended.
#[derive(Debug)]
pub enum Waited<T> {
    /// It is over.
    Done(T),
    /// This signal came first.
    Interrupted(i32),
}

/// Who waits gets to know nothing before.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// So often a terminal is told anew.
const TERMINAL_INTERVAL: Duration = Duration::from_secs(1);
/// So often it is looked who holds the lock, when there is no terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(15);

/// Awaits `lock`, and says on standard error whom it waits for: on a terminal in one line that changes, elsewhere once for each holder.
pub async fn announce<T>(lock: impl Future<Output = T>, key: &str, session: &mut Session) -> Waited<T> {
    let (locker, output) = (session.locker.clone(), session.output);
    tokio::pin!(lock);
    let mut line = Line { terminal: is_ours(rustix::stdio::stderr()), shown: false, last: None };
    let telling = async {
        if output.is_quiet() {
            return std::future::pending::<()>().await;
        }
        let since = Instant::now();
        tokio::time::sleep(FIRST_DELAY).await;
        loop {
            let inspection = locker.inspect(key).await;
            line.show(key, inspection.as_ref().ok(), locker.owner(), since.elapsed());
            tokio::time::sleep(if line.terminal { TERMINAL_INTERVAL } else { LOG_INTERVAL }).await;
        }
    };
    tokio::select! {
        biased;
        outcome = &mut lock => Waited::Done(outcome),
        number = session.signals.end() => Waited::Interrupted(number),
        () = telling => unreachable!("telling goes on for ever"),
    }
}

struct Line {
    terminal: bool,
    shown: bool,
    last: Option<String>,
}

impl Line {
    fn show(&mut self, key: &str, inspection: Option<&Inspection>, me: &str, waited: Duration) {
        let whom = inspection.map_or_else(|| "the store does not answer".to_owned(), |seen| whom(seen, me, self.terminal));
        if !self.terminal {
            if self.last.as_ref() != Some(&whom) {
                note(format_args!("waiting for {key}: {whom}"));
                self.last = Some(whom);
            }
            return;
        }
        if !is_ours(rustix::stdio::stderr()) {
            // It was put into the background meanwhile.
            return;
        }
        let text = harmless(&format!("dlock: waiting for {key} for {} s: {whom}", waited.as_secs()));
        let width = rustix::termios::tcgetwinsize(rustix::stdio::stderr()).map_or(0, |size| usize::from(size.ws_col));
        // A terminal that does not tell its width is taken for a usual one.
        let width = if width < 20 { 80 } else { width };
        let text: String = text.chars().take(width - 1).collect();
        tell(format!("\r\x1b[2K{text}"));
        self.shown = true;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.shown && is_ours(rustix::stdio::stderr()) {
            tell("\r\x1b[2K".to_owned());
        }
    }
}

/// Who holds it, for how long, and how many are ahead.
fn whom(seen: &Inspection, me: &str, with_time: bool) -> String {
    let holder = seen.holders.first().map(Contender::of);
    let mut text = match &holder {
        None => "nobody holds it just now".to_owned(),
        Some(holder) => {
            let held_for = holder.since.as_deref().and_then(age).filter(|_| with_time);
            let held_for = held_for.map_or(String::new(), |age| format!(" for {age}"));
            let others = if seen.holders.len() > 1 { format!(" and {} more", seen.holders.len() - 1) } else { String::new() };
            format!("held by {}{others}{held_for}", holder.name())
        }
    };
    let place = seen.waiters.as_ref().and_then(|waiters| waiters.iter().position(|waiter| waiter.owner() == Some(me)));
    match place {
        None => {}
        Some(0) => text.push_str(", and we are next"),
        Some(ahead) => text.push_str(&format!(", and {ahead} more ahead of us")),
    }
    text
}
