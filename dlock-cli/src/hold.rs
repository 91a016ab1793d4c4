//! `dlock hold`: a lock until Ctrl-C.

use std::time::Duration;

use dlock::LockGuard;
use serde::Serialize;
use tokio::time::Instant;

use crate::args::Hold;
use crate::exit::{Exit, Failure};
use crate::signals::Signals;
use crate::speak::{Speaker, note};
use crate::store::Store;
use crate::wanted::{Asked, ask, check, keep, leave, reach};

/// What is said of a lock that is held.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "event")]
    what: &'static str,
    key: &'a str,
    token: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Waits for the lock and holds it until a signal asks to end.
pub async fn hold(store: &Store, hold: &Hold, speaker: Speaker, quiet: bool) -> Result<Exit, Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::from_error(Exit::CONFIGURATION, &error))?;
    let locker = store.locker(hold.lock.ttl)?.build().map_err(|options| Failure::from_error(Exit::USAGE, &options))?;
    check(&hold.lock, &locker)?;
    if let Some(ended) = reach(&locker, store.url()?, &mut signals).await {
        return ended;
    }
    let ended = match ask(&hold.lock, Duration::ZERO, &locker, quiet, &mut signals).await {
        Ok(Asked::Held(guard)) => until_told(guard, hold, speaker, quiet, &mut signals).await,
        Ok(Asked::Signalled(number)) => Ok(Exit::of_signal(number)),
        Err(failure) => Err(failure),
    };
    leave(&locker).await;
    ended
}

async fn until_told(guard: LockGuard, hold: &Hold, speaker: Speaker, quiet: bool, signals: &mut Signals) -> Result<Exit, Failure> {
    let (since, key, token) = (Instant::now(), hold.lock.key.as_str(), guard.token().map(dlock::FencingToken::get));
    let with_token = token.map_or(String::new(), |token| format!(", token {token}"));
    let told = Event { what: "held", key, token, reason: None };
    let mut said = speaker.say_soon(&told, format!("holding {key}{with_token}; Ctrl-C gives it back"));
    let mut unsaid = true;
    let ended = loop {
        tokio::select! {
            biased;
            reason = guard.lost() => {
                let event = Event { what: "lost", key, token, reason: Some(reason.to_string()) };
                if !unsaid && speaker.is_json() {
                    let _ = speaker.say(&event, "");
                }
                break Err(Failure::new(Exit::LOST, format!("the lock {key} was lost: {reason}")));
            }
            _ = signals.end() => break Ok(Exit::OK),
            outcome = &mut said, if unsaid => match outcome {
                Ok(()) => unsaid = false,
                Err(failure) => break Err(failure),
            },
        }
    };
    if let (true, Some(least)) = (ended.is_ok(), hold.lock.hold_at_least) {
        keep(&guard, since, least, quiet, signals).await;
    }
    if let Err(unknown) = guard.release().await {
        note(unknown);
    } else if ended.is_ok() && !quiet && !speaker.is_json() {
        note(format_args!("gave {key} back"));
    }
    ended
}
