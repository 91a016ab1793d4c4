//! `dlock elect`: a candidate, or an observer.

use dlock::{Leader, Metadata};
use serde::Serialize;

use crate::args::Elect;
use crate::exit::{Exit, Failure};
use crate::holder::Person;
use crate::signals::Signals;
use crate::speak::{Speaker, harmless};
use crate::store::Store;
use crate::waiting::{Waited, told};
use crate::wanted::{leave, reach};

/// The name under which a leader's value stands in its metadata.
const VALUE: &str = "value";

#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "event")]
    what: &'static str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<Person>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl<'a> Event<'a> {
    fn new(what: &'static str, name: &'a str) -> Self {
        Self { what, name, token: None, leader: None, reason: None }
    }
}

/// Campaigns and leads until a signal asks to end, or observes.
pub async fn elect(store: &Store, elect: &Elect, speaker: Speaker, quiet: bool) -> Result<Exit, Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::from_error(Exit::CONFIGURATION, &error))?;
    let locker = store.locker(elect.ttl)?.build().map_err(|options| Failure::from_error(Exit::USAGE, &options))?;
    if elect.observe {
        return tokio::select! {
            biased;
            _ = signals.end() => Ok(Exit::OK),
            ended = observe(&locker, &elect.name, speaker) => ended,
        };
    }
    if let Some(ended) = reach(&locker, store.url()?, &mut signals).await {
        return ended;
    }
    let ended = lead(&locker, elect, speaker, quiet, &mut signals).await;
    leave(&locker).await;
    ended
}

async fn lead(
    locker: &dlock::Locker,
    elect: &Elect,
    speaker: Speaker,
    quiet: bool,
    signals: &mut Signals,
) -> Result<Exit, Failure> {
    let name = elect.name.as_str();
    let mut election = locker.election(name);
    if let Some(value) = &elect.value {
        election = election.metadata(VALUE, value);
    }
    let term = match told(election.campaign(), locker, name, quiet, signals).await {
        Waited::Done(term) => term?,
        Waited::Signalled(number) => return Ok(Exit::of_signal(number)),
    };
    let token = term.token().map(dlock::FencingToken::get);
    let with_token = token.map_or(String::new(), |token| format!(", token {token}"));
    let elected = Event { token, ..Event::new("elected", name) };
    let mut said = speaker.say_soon(&elected, format!("elected to lead {name}{with_token}; Ctrl-C resigns"));
    let mut unsaid = true;
    let ended = loop {
        tokio::select! {
            biased;
            reason = term.lost() => {
                if !unsaid && speaker.is_json() {
                    let _ = speaker.say(&Event { token, reason: Some(reason.to_string()), ..Event::new("lost", name) }, "");
                }
                break Err(Failure::new(Exit::LOST, format!("the lead of {name} was lost: {reason}")));
            }
            _ = signals.end() => break Ok(Exit::OK),
            outcome = &mut said, if unsaid => match outcome {
                Ok(()) => unsaid = false,
                Err(failure) => break Err(failure),
            },
        }
    };
    if let Err(unknown) = term.resign().await {
        crate::speak::note(unknown);
    }
    ended
}

async fn observe(locker: &dlock::Locker, name: &str, speaker: Speaker) -> Result<Exit, Failure> {
    let mut leaders = locker.election(name).observe()?;
    while let Some(leader) = leaders.next().await {
        match leader {
            Leader::Elected(holder) => {
                let person = Person::of(&holder);
                let value = holder
                    .published
                    .metadata()
                    .and_then(|metadata: &Metadata| metadata.get(VALUE))
                    .map_or(person.raw.clone(), |value| Some(value.to_owned()));
                let token = person.token.map_or(String::new(), |token| format!(", token {token}"));
                let with_value = value.map_or(String::new(), |value| format!(": {}", harmless(&value)));
                let text = format!("{} leads {name}{token}{with_value}", harmless(&person.name()));
                speaker.say(&Event { token: person.token, leader: Some(person), ..Event::new("elected", name) }, text)?;
            }
            Leader::Vacant => speaker.say(&Event::new("vacant", name), format_args!("nobody leads {name}"))?,
            Leader::Unknown { cause, .. } => {
                let reason = cause.map_or("the store does not answer".to_owned(), |cause| cause.to_string());
                speaker.say(
                    &Event { reason: Some(reason.clone()), ..Event::new("unknown", name) },
                    format_args!("it is not known who leads {name}: {}", harmless(&reason)),
                )?;
            }
            _ => {}
        }
    }
    Ok(Exit::OK)
}
