//! `dlock hold`: a lock until Ctrl-C.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::args::Hold;
use crate::exit::{Exit, Failure};
use crate::signals::Signals;
use crate::speak::Speaker;
use crate::store::Store;
use crate::wanted::{Asked, ask, check, leave, reach};

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
    if let Some(number) = reach(&locker, store.url()?, &mut signals).await? {
        return Ok(Exit::of_signal(number));
    }
    let asked = ask(&hold.lock, Duration::ZERO, &locker, quiet, &mut signals).await;
    let ended = match asked {
        Ok(Asked::Held(guard)) => {
            let (since, key, token) = (Instant::now(), hold.lock.key.as_str(), guard.token().map(dlock::FencingToken::get));
            let with_token = token.map_or(String::new(), |token| format!(", token {token}"));
            let said = speaker.say(
                &Event { what: "held", key, token, reason: None },
                format_args!("holding {key}{with_token}; Ctrl-C gives it back"),
            );
            let until = hold.lock.hold_at_least.map(|least| since + least);
            let outcome = tokio::select! {
                biased;
                reason = guard.lost(), if said.is_ok() => {
                    let event = Event { what: "lost", key, token, reason: Some(reason.to_string()) };
                    if speaker.is_json() {
                        speaker.say(&event, "")?;
                    }
                    Err(Failure::new(Exit::LOST, format!("the lock {key} was lost: {reason}")))
                }
                _ = signals.end(), if said.is_ok() => Ok(Exit::OK),
                () = std::future::ready(()), if said.is_err() => Ok(Exit::OK),
            };
            if let (Ok(_), Some(until)) = (&outcome, until)
                && Instant::now() < until
            {
                crate::speak::note(format_args!(
                    "{key} stays locked for another {} s; Ctrl-C again gives it back now",
                    (until - Instant::now()).as_secs() + 1
                ));
                tokio::select! {
                    biased;
                    _ = guard.lost() => {}
                    _ = signals.end() => {}
                    () = tokio::time::sleep_until(until) => {}
                }
            }
            if let Err(unknown) = guard.release().await {
                crate::speak::note(unknown);
            } else if outcome.is_ok() && !quiet && !speaker.is_json() {
                crate::speak::note(format_args!("gave {key} back"));
            }
            said.and(outcome)
        }
        Ok(Asked::Signalled(number)) => Ok(Exit::of_signal(number)),
        Err(failure) => Err(failure),
    };
    leave(&locker).await;
    ended
}
