//! Who holds a lock or waits for it, as people and programs read it.

use std::collections::BTreeMap;
use std::time::Duration;

use dlock::{Holder, Metadata, Published};
use serde::Serialize;

/// A holder or waiter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contender {
    /// `host/pid/name`, where it said so.
    pub owner: Option<String>,
    /// The machine.
    pub host: Option<String>,
    /// The process there.
    pub pid: Option<u32>,
    /// The fencing token of an exclusive grant, where the store tells it.
    pub token: Option<u64>,
    /// Since when, by the clock of the holder; when a waiter began to wait.
    pub since: Option<String>,
    /// What it published besides.
    pub metadata: BTreeMap<String, String>,
    /// What another program published, if it is not of that form.
    pub raw: Option<String>,
    /// The session at the store.
    pub session: Option<String>,
    /// The claim, if dlock made it.
    pub claim: Option<String>,
}

impl Contender {
    /// What the store tells of it.
    pub fn of(holder: &Holder) -> Self {
        let owner = holder.owner().map(str::to_owned);
        let mut parts = owner.as_deref().unwrap_or_default().splitn(3, '/');
        let (host, pid) =
            (parts.next().filter(|host| !host.is_empty()).map(str::to_owned), parts.next().and_then(|pid| pid.parse().ok()));
        let own = |name: &str| Metadata::RESERVED.contains(&name);
        let entries = holder.published.metadata().into_iter().flat_map(Metadata::iter);
        let raw = match &holder.published {
            Published::Raw(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            Published::Metadata(_) => None,
        };
        Self {
            host,
            pid,
            owner,
            token: holder.token.map(dlock::FencingToken::get),
            since: holder.acquired_at().map(str::to_owned),
            metadata: entries.filter(|(name, _)| !own(name)).map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            raw,
            session: holder.session.as_ref().map(ToString::to_string),
            claim: holder.claim().map(|claim| claim.to_string()),
        }
    }

    /// What the store tells of one who waits: the number of its claim is no token.
    pub fn waiting(waiter: &Holder) -> Self {
        Self { token: None, ..Self::of(waiter) }
    }

    /// How people call it.
    pub fn name(&self) -> String {
        match (&self.owner, &self.session) {
            (Some(owner), _) => owner.clone(),
            (None, Some(session)) => format!("another program (session {session})"),
            (None, None) => "an unnamed holder".to_owned(),
        }
    }

    /// What it published, in one line.
    pub fn published(&self) -> String {
        let entries = self.metadata.iter().map(|(name, value)| format!("{name}={value}"));
        entries.chain(self.raw.clone()).collect::<Vec<_>>().join(" ")
    }
}

/// How long ago a moment was, if it is one and has passed.
pub fn age(since: &str) -> Option<String> {
    let since: jiff::Timestamp = since.parse().ok()?;
    let passed = jiff::Timestamp::now().duration_since(since);
    let seconds = u64::try_from(passed.as_secs()).ok()?;
    Some(humantime::format_duration(Duration::from_secs(seconds)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(metadata: &str) -> Holder {
        Holder::new(Published::Metadata(serde_json::from_str(metadata).unwrap()))
    }

    #[test]
    fn an_owner_is_a_host_a_process_and_a_name() {
        let person = Contender::of(&holder(r#"{"owner":"web-1/42/dlock","lockAcquisitionTime":"2026-01-02T03:04:05Z","a":"b"}"#));
        assert_eq!(
            (person.host.as_deref(), person.pid, person.since.as_deref()),
            (Some("web-1"), Some(42), Some("2026-01-02T03:04:05Z"))
        );
        assert_eq!(person.published(), "a=b");
    }

    #[test]
    fn who_said_nothing_has_no_name() {
        let person = Contender::of(&holder("{}"));
        assert_eq!((person.owner.as_deref(), person.host.as_deref(), person.pid), (None, None, None));
        assert_eq!(person.name(), "an unnamed holder");
    }

    #[test]
    fn what_is_no_metadata_is_shown_as_it_is() {
        let person = Contender::of(&Holder::new(Published::Raw(b"by hand".to_vec())));
        assert_eq!((person.raw.as_deref(), person.published().as_str()), (Some("by hand"), "by hand"));
    }
}
