//! Signals to `dlock`.

use std::io;

use rustix::process::{getpid, kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that are passed on to a command, or end what `dlock` does; those that were to be ignored when it was started, as by `nohup`,
/// are left so.
#[derive(Debug)]
pub struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// From now on, they do not end the process by themselves. To be called inside a runtime.
    pub fn listen() -> io::Result<Self> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::window_change(),
            SignalKind::from_raw(suspend()),
        ];
        let ignored = ignored();
        let heard = kinds.into_iter().map(|kind| kind.as_raw_value()).filter(|number| ignored >> (number - 1) & 1 == 0);
        heard.map(|number| Ok((number, signal(SignalKind::from_raw(number))?))).collect::<io::Result<_>>().map(Self)
    }

    /// The number of the next that arrives. Free to drop: none is missed.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// The number of the next that asks to end. Stops, as is usual, for one that asks for that.
    pub async fn end(&mut self) -> i32 {
        loop {
            let number = self.next().await;
            if number == suspend() {
                let _ = kill_process(getpid(), rustix::process::Signal::STOP);
            }
            if asks_to_end(number) {
                return number;
            }
        }
    }
}

/// Ends this process, and all that share its group, as the keyboard would have, had a command not had the terminal.
#[allow(unsafe_code)]
pub fn end_as_by_keyboard(number: i32) {
    let (Ok(signal), Some(same)) = (nix::sys::signal::Signal::try_from(number), rustix::process::Signal::from_named_raw(number))
    else {
        return;
    };
    crate::output::flush(std::time::Duration::from_secs(1));
    // SAFETY: the default action runs none of our code; the handler that it replaces only notes that a signal came, and nobody awaits that any more.
    let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) };
    let _ = rustix::process::kill_current_process_group(same);
}

/// The signal by which the keyboard asks to stop for a while.
pub fn suspend() -> i32 {
    rustix::process::Signal::TSTP.as_raw()
}

/// Whether this signal asks to end also where it is passed on to a command. `HUP` asks many commands to read their settings anew.
pub fn asks_to_end_for_good(number: i32) -> bool {
    asks_to_end(number) && SignalKind::from_raw(number) != SignalKind::hangup()
}

/// Whether this signal asks to end.
fn asks_to_end(number: i32) -> bool {
    [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()]
        .contains(&SignalKind::from_raw(number))
}

/// The signals that are ignored now, one bit each, as Linux tells them; none elsewhere.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
