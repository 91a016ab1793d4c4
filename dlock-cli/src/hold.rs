//! `dlock hold`: a lock until Ctrl-C.

use std::time::Duration;

use dlock::LockGuard;
use tokio::time::Instant;

use crate::acquire::{Acquired, acquire, check, keep};
use crate::args::Hold;
use crate::event::Event;
use crate::exit::{Exit, Failure};
use crate::output::{Output, note, with_token};
use crate::session::Session;
use crate::store::Store;

/// Waits for the lock and holds it until a signal asks to end.
pub async fn hold(store: &Store, hold: &Hold, output: Output) -> Result<Exit, Failure> {
    let mut session = Session::new(store, hold.lock.ttl, output)?;
    check(&hold.lock, &session.locker)?;
    if let Some(ended) = session.reach().await {
        return ended;
    }
    let ended = match acquire(&hold.lock, Duration::ZERO, &mut session).await {
        Ok(Acquired::Held(guard)) => until_told(guard, hold, &mut session).await,
        Ok(Acquired::Interrupted(number)) => Ok(Exit::of_signal(number)),
        Err(failure) => Err(failure),
    };
    session.close().await;
    ended
}

async fn until_told(guard: LockGuard, hold: &Hold, session: &mut Session) -> Result<Exit, Failure> {
    let (since, key, token) = (Instant::now(), hold.lock.key.as_str(), guard.token().map(dlock::FencingToken::get));
    let output = session.output;
    let event = |what| Event::new(what, key).token(token);
    let said = output.say_soon(&event("held"), format!("holding {key}{}; Ctrl-C gives it back", with_token(token)));
    if let Some(reason) = session.stay(&guard, said).await? {
        if output.is_json() {
            session.say_at_last(output.say_soon(&event("lost").reason(&reason), String::new())).await;
        }
        return Err(Failure::new(Exit::LOST, format!("the lock {key} was lost: {reason}")));
    }
    if let Some(least) = hold.lock.hold_at_least {
        keep(&guard, since, least, session).await;
    }
    match guard.release().await {
        Err(unknown) => note(unknown),
        Ok(_) if output.is_json() => session.say_at_last(output.say_soon(&event("released"), String::new())).await,
        Ok(_) => output.note(format_args!("gave {key} back")),
    }
    Ok(Exit::OK)
}
