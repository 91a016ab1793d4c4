//! What tickets are called, and how they are read: keys that end in a slash, as no lock's key does.

use std::collections::HashMap;

use dlock_core::{Claim, ClaimId, Holder, Key, Mode, SessionId};

use super::notes::Awaited;
use crate::wire::{Entry, LOCK_FLAGS};

/// The flags of a ticket that waits, and of an exclusive one that holds and stood behind nobody: its lock stands on the key itself.
pub(crate) const WAITS: u64 = LOCK_FLAGS;
/// The flags of a ticket on which a shared lock or a permit stands.
pub(crate) const HOLDS: u64 = LOCK_FLAGS + 1;
/// The flags of an exclusive ticket that others stood ahead of, once its claim came to the key: none of those is left.
pub(crate) const FIRST: u64 = LOCK_FLAGS + 2;

const LINE: &str = "/.dlock";
const UNDONE: &str = "/.dlock-undone";

/// How the names of all tickets for a key begin. Those of a lock named `KEY/.dlock` and below begin so too.
pub(crate) fn line(key: &Key) -> String {
    format!("{key}{LINE}/")
}

/// The ticket of a claim.
pub(crate) fn ticket(session: &SessionId, claim: &Claim) -> String {
    named(session, &claim.key, claim.id, &mode(claim.mode))
}

/// The ticket by which an exclusive claim came to its key.
pub(crate) fn ticket_of_holder(session: &SessionId, key: &Key, claim: ClaimId) -> String {
    named(session, key, claim, "")
}

fn named(session: &SessionId, key: &Key, claim: ClaimId, mode: &str) -> String {
    format!("{key}{LINE}/{session}.{claim}{mode}/")
}

/// What is left behind where a copy of the claim may still be under way.
pub(crate) fn tombstone(session: &SessionId, claim: &Claim) -> String {
    format!("{}{UNDONE}/{session}.{}/", claim.key, claim.id)
}

fn mode(mode: Mode) -> String {
    match mode {
        Mode::Shared => ".s".to_owned(),
        Mode::Permits(all) => format!(".p{all}"),
        _ => String::new(),
    }
}

/// A place in the line of a key.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    pub(crate) entry: Entry,
    pub(crate) mode: Mode,
    pub(crate) claim: ClaimId,
}

impl Ticket {
    /// A ticket, and the key that it is for. Without its session it is none: somebody took it away by force.
    pub(crate) fn read(entry: Entry) -> Option<(Key, Self)> {
        let (line, place) = entry.key.strip_suffix('/')?.rsplit_once('/')?;
        let key = Key::new(line.strip_suffix(LINE)?).ok()?;
        let mut parts = place.splitn(3, '.');
        let session = parts.next()?;
        let claim = parts.next()?.parse().ok()?;
        let mode = match parts.next() {
            Some("s") => Mode::Shared,
            Some(permits) => permits.strip_prefix('p').and_then(|all| all.parse().ok()).map_or(Mode::Exclusive, Mode::Permits),
            None => Mode::Exclusive,
        };
        let held = entry.holder_session() == Some(session);
        held.then_some((key, Self { entry, mode, claim }))
    }

    pub(crate) fn name(&self) -> &str {
        &self.entry.key
    }

    /// As one to wait for.
    pub(crate) fn awaited(&self) -> Awaited {
        Awaited { ticket: self.name().to_owned(), created: self.entry.create_index }
    }

    /// Whether a shared lock or a permit stands on it.
    pub(crate) fn holds(&self) -> bool {
        self.entry.flags == HOLDS
    }

    /// Who waits; the number of the grant is not known yet.
    pub(crate) fn waiter(&self) -> Holder {
        let mut waiter = self.entry.holder();
        waiter.token = None;
        waiter
    }
}

/// A key and its line, as of one moment.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) key: Option<Entry>,
    /// First come first.
    pub(crate) line: Vec<Ticket>,
}

impl Seen {
    /// Sorts out what a transaction brought. What it shows twice counts as it is shown last, which is with its value.
    pub(crate) fn read(key: &Key, entries: Vec<Entry>) -> Self {
        let mut entries: HashMap<String, Entry> = entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        let own = entries.remove(key.as_str());
        let tickets = entries.into_values().filter_map(Ticket::read).filter(|(of, _)| of == key);
        let mut line: Vec<Ticket> = tickets.map(|(_, ticket)| ticket).collect();
        line.sort_by_key(|ticket| ticket.entry.create_index);
        Self { key: own, line }
    }

    /// Where in line this ticket stands.
    pub(crate) fn place(&self, ticket: &str) -> Option<usize> {
        self.line.iter().position(|other| other.name() == ticket)
    }

    /// The first of those who hold the key.
    pub(crate) fn holder(&self) -> Option<Holder> {
        let of_key = self.key.as_ref().filter(|entry| entry.holder_session().is_some());
        of_key.or_else(|| self.line.iter().find(|ticket| ticket.holds()).map(|ticket| &ticket.entry)).map(Entry::holder)
    }

    /// The latest index of all that is shown.
    pub(crate) fn index(&self) -> u64 {
        let shown = self.line.iter().map(|ticket| &ticket.entry).chain(&self.key);
        shown.map(|entry| entry.modify_index).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const SESSION: &str = "e5bd3b5b-a98a-4b71-a4be-8bf8d5d8ef5e";

    fn entry(key: &str, session: Option<&str>, created: u64) -> Entry {
        Entry {
            key: key.to_owned(),
            flags: WAITS,
            value: None,
            create_index: created,
            modify_index: created,
            session: session.map(str::to_owned),
        }
    }

    fn claim(key: &str, mode: Mode) -> Claim {
        let key = Key::new(key).unwrap();
        Claim { id: ClaimId::from_bits(7), key, mode, owner: "".into(), acquired_at: "".into(), metadata: None }
    }

    fn read(name: &str) -> Option<(Key, Mode, ClaimId)> {
        Ticket::read(entry(name, Some(SESSION), 1)).map(|(key, ticket)| (key, ticket.mode, ticket.claim))
    }

    #[test]
    fn a_ticket_tells_whose_it_is_and_for_what() {
        let permits = |all| Mode::Permits(NonZeroU32::new(all).unwrap());
        for mode in [Mode::Exclusive, Mode::Shared, permits(1), permits(u32::MAX)] {
            for key in ["a", "orders/42", "a/.dlock", "a.s/b.p3", "a/.dlock/b"] {
                let claim = claim(key, mode);
                let name = ticket(&SessionId::new(SESSION), &claim);
                assert_eq!(read(&name), Some((claim.key.clone(), mode, claim.id)), "{name}");
                assert!(name.starts_with(&line(&claim.key)));
                assert!(Key::new(&name).is_err(), "{name} could be the key of a lock");
            }
        }
    }

    #[test]
    fn other_keys_are_no_tickets() {
        let id = ClaimId::from_bits(7);
        for name in [
            format!("a/.dlock/{SESSION}.{id}"),
            format!("a/.dlock-undone/{SESSION}.{id}/"),
            format!("a/dlock/{SESSION}.{id}/"),
            format!("/.dlock/{SESSION}.{id}/"),
            format!("a/.dlock/{SESSION}/"),
            format!("a/.dlock/{SESSION}.x/"),
            format!("a/.dlock/other.{id}/"),
            "a/".to_owned(),
            "/".to_owned(),
        ] {
            assert_eq!(read(&name), None, "{name}");
        }
        let taken_away = entry(&ticket(&SessionId::new(SESSION), &claim("a", Mode::Shared)), None, 1);
        assert!(Ticket::read(taken_away).is_none());
    }

    #[test]
    fn a_tombstone_stands_in_no_line() {
        let claim = claim("a", Mode::Exclusive);
        let name = tombstone(&SessionId::new(SESSION), &claim);
        assert!(!name.starts_with(&line(&claim.key)) && Key::new(&name).is_err(), "{name}");
    }

    #[test]
    fn a_line_is_read_in_the_order_of_its_making_without_those_of_longer_names() {
        let id = |bits| ClaimId::from_bits(bits);
        let name = |key: &str, bits| format!("{key}/.dlock/{SESSION}.{}/", id(bits));
        let mut of_itself = entry(&name("a", 1), Some(SESSION), 9);
        of_itself.value = Some("e30=".to_owned());
        let entries = vec![
            entry(&name("a", 1), Some(SESSION), 9),
            entry("a", None, 3),
            of_itself,
            entry(&name("a", 2), Some(SESSION), 4),
            entry(&name("a/.dlock", 3), Some(SESSION), 5),
        ];
        let seen = Seen::read(&Key::new("a").unwrap(), entries);
        let line: Vec<_> = seen.line.iter().map(|ticket| ticket.claim).collect();
        assert_eq!(line, [id(2), id(1)]);
        assert!(seen.line[1].entry.value.is_some() && seen.key.is_some());
        assert_eq!((seen.place(&name("a", 1)), seen.index()), (Some(1), 9));
    }
}
