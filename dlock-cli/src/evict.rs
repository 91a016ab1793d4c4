//! `dlock break`: a lock is taken away from whoever holds it.

use std::io::{self, BufRead, IsTerminal, Write};

use dlock::Holder;

use crate::contender::Contender;
use crate::event::Event;
use crate::exit::{Exit, Failure};
use crate::look::within;
use crate::output::{Output, harmless};
use crate::store::Store;

/// Takes the lock away from the holder that was shown, and from no other.
pub async fn evict(store: &Store, key: &str, yes: bool, output: Output) -> Result<Exit, Failure> {
    let backend = dlock::backend(store.url()?)?;
    let seen = store.unasked()?.inspect(key).await?;
    if seen.holders.is_empty() {
        return Err(Failure::new(Exit::BUSY, format!("nobody holds {key}")));
    }
    if let Some(foreign) = seen.holders.iter().find(|holder| is_foreign(holder)) {
        let who = harmless(&Contender::of(foreign).name());
        return Err(Failure::new(Exit::DENIED, format!("{key} is held by {who}, which is no lock of dlock's; it was left alone")));
    }
    if !yes && !confirmed(key, &seen.holders)? {
        return Err(Failure::new(Exit::BUSY, format!("{key} was left alone")));
    }
    let key_there = dlock::Key::new(key).map_err(|error| Failure::from_error(Exit::USAGE, &error))?;
    for holder in &seen.holders {
        let person = Contender::of(holder);
        let who = harmless(&person.name());
        let Some(token) = holder.token else {
            return Err(Failure::new(
                Exit::CONFIGURATION,
                format!("the store does not tell the grant of {who}, so it cannot be taken away"),
            ));
        };
        if !within(backend.evict(&key_there, token)).await?? {
            return Err(Failure::new(Exit::BUSY, format!("{who} no longer holds {key}; nothing was taken from it")));
        }
        output.say(&Event::new("broken", key).holder(person), format_args!("took {key} away from {who}, token {}", token.get()))?;
    }
    Ok(Exit::OK)
}

/// Whether something else than dlock, or a program that speaks its language, holds it.
fn is_foreign(holder: &Holder) -> bool {
    holder.claim().is_none()
}

fn confirmed(key: &str, holders: &[Holder]) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Exit::USAGE, "there is no terminal to ask at: use --yes"));
    }
    let names: Vec<_> = holders.iter().map(|holder| harmless(&Contender::of(holder).name())).collect();
    let _ = write!(io::stderr().lock(), "dlock: {key} is held by {}. Take it away? [y/N] ", names.join(", "));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::from_error(Exit::USAGE, &error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
