//! `dlock elect`: a candidate, or an observer.

use dlock::{Election, Leader, Metadata};

use crate::args::Elect;
use crate::contender::Contender;
use crate::event::Event;
use crate::exit::{Exit, Failure};
use crate::output::{Output, harmless, note, with_token};
use crate::session::Session;
use crate::store::Store;
use crate::waiting::{Waited, announce};

/// The name under which a leader's value stands in its metadata.
const VALUE: &str = "value";

/// Campaigns and leads until a signal asks to end, or observes.
pub async fn elect(store: &Store, elect: &Elect, output: Output) -> Result<Exit, Failure> {
    let mut session = Session::new(store, elect.ttl, output)?;
    dlock::Key::new(&elect.name).map_err(|error| Failure::from_error(Exit::USAGE, &error))?;
    if elect.observe {
        let election = session.locker.election(&elect.name);
        return tokio::select! {
            biased;
            _ = session.signals.end() => Ok(Exit::OK),
            ended = observe(&election, &elect.name, output) => ended,
        };
    }
    if let Some(ended) = session.reach().await {
        return ended;
    }
    let ended = lead(elect, &mut session).await;
    session.close().await;
    ended
}

async fn lead(elect: &Elect, session: &mut Session) -> Result<Exit, Failure> {
    let name = elect.name.as_str();
    let mut election = session.locker.election(name);
    if let Some(value) = &elect.value {
        election = election.metadata(VALUE, value);
    }
    for (entry, value) in &elect.metadata {
        election = election.metadata(entry, value);
    }
    if let Some(most) = elect.wait {
        election = election.wait_at_most(most);
    }
    let term = match announce(election.campaign(), name, session).await {
        Waited::Done(term) => term?,
        Waited::Interrupted(number) => return Ok(Exit::of_signal(number)),
    };
    let token = term.token().map(dlock::FencingToken::get);
    let (output, event) = (session.output, |what| Event::new(what, name).token(token));
    let said = output.say_soon(&event("elected"), format!("elected to lead {name}{}; Ctrl-C resigns", with_token(token)));
    if let Some(reason) = session.stay(&term, said).await? {
        if output.is_json() {
            session.say_at_last(output.say_soon(&event("lost").reason(&reason), String::new())).await;
        }
        return Err(Failure::new(Exit::LOST, format!("the lead of {name} was lost: {reason}")));
    }
    match term.resign().await {
        Err(unknown) => note(unknown),
        Ok(_) if output.is_json() => session.say_at_last(output.say_soon(&event("resigned"), String::new())).await,
        Ok(_) => output.note(format_args!("resigned from {name}")),
    }
    Ok(Exit::OK)
}

async fn observe(election: &Election, name: &str, output: Output) -> Result<Exit, Failure> {
    let mut leaders = election.observe()?;
    while let Some(leader) = leaders.next().await {
        match leader {
            Leader::Elected(holder) => {
                let leader = Contender::of(&holder);
                let metadata = holder.published.metadata();
                let value = metadata.and_then(|metadata: &Metadata| metadata.get(VALUE)).or(leader.raw.as_deref());
                let value = value.map_or(String::new(), |value| format!(": {}", harmless(value)));
                let text = format!("{} leads {name}{}{value}", harmless(&leader.name()), with_token(leader.token));
                output.say(&Event::new("elected", name).holder(leader), text)?;
            }
            Leader::Vacant => output.say(&Event::new("vacant", name), format_args!("nobody leads {name}"))?,
            Leader::Unknown { cause, .. } => {
                let reason = cause.map_or("the store does not answer".to_owned(), |cause| cause.to_string());
                let text = format!("it is not known who leads {name}: {}", harmless(&reason));
                output.say(&Event::new("unknown", name).reason(&reason), text)?;
            }
            _ => {}
        }
    }
    Ok(Exit::OK)
}
