//! How locks are laid out in etcd's keys, and what a key says.
//!
//! | what | key |
//! |---|---|
//! | the line of a lock | everything under `KEY/` that has no further `/` |
//! | an exclusive claim's entry in it | `KEY/LEASE.SEAT`, the lease attached, in hexadecimal; the seat is a decimal number, see [`notes`](crate::notes) |
//! | that of a claim of a session that was opened elsewhere | `KEY/LEASE.CLAIM`, in 32 hexadecimal digits |
//! | a shared claim's | the same with `.s` at its end |
//! | that of a claim of one of `N` permits | the same with `.pN` at its end, in decimal |
//! | what a released claim leaves behind if a copy of it may be under way | `KEY`, NUL, `LEASE.CLAIM`, the lease attached |
//!
//! Whose claim an entry is says its value.
//!
//! Go's `concurrency` package and `etcdctl` put `KEY/LEASE` into the same line, and whatever else
//! stands there counts as exclusive. No key of dlock contains a NUL.

use std::fmt;
use std::io::Write as _;
use std::ops::Range;

use dlock_core::{Claim, ClaimId, FencingToken, Holder, Key, Metadata, Mode, Publication, Published, SessionId};
use etcd_client::KeyValue;

/// A lease, which is what a session is in etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lease(pub(crate) i64);

impl Lease {
    /// The lease that a session drawn by the caller becomes: etcd has room for 63 of its bits.
    pub(crate) fn drawn(id: &SessionId) -> Option<Self> {
        let bits = u128::from_str_radix(id.as_str(), 16).ok()?;
        let low = (bits as u64).cast_signed() & i64::MAX;
        (low != 0).then_some(Self(low))
    }

    /// The lease of a session; `None` for an id that no session of ours can have.
    pub(crate) fn of(session: &SessionId) -> Option<Self> {
        let id = session.as_str();
        // As it is shown: nothing else that reads as the number is an id of ours.
        let is_shown_so = id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) && !id.starts_with('0');
        let lease = Self(u64::from_str_radix(id, 16).ok()?.cast_signed());
        is_shown_so.then_some(lease)
    }

    pub(crate) fn session(self) -> SessionId {
        SessionId::new(self.to_string())
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Where the keys of locks stand.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) namespace: String,
}

impl Layout {
    /// All that stands in the line of a lock, and in those of locks whose names are longer by a segment.
    pub(crate) fn line(&self, key: &Key) -> Range<Vec<u8>> {
        let start = self.name(key, format_args!("/"));
        let end = prefix_end(&start);
        start..end
    }

    /// The entry of a claim, by what tells it from others of its session.
    pub(crate) fn entry(&self, lease: Lease, key: &Key, mode: Mode, seat: &dyn fmt::Display) -> Vec<u8> {
        match mode {
            Mode::Shared => self.name(key, format_args!("/{lease}.{seat}.s")),
            Mode::Permits(all) => self.name(key, format_args!("/{lease}.{seat}.p{all}")),
            _ => self.name(key, format_args!("/{lease}.{seat}")),
        }
    }

    /// What stands behind the name of a lock, in one piece of memory.
    fn name(&self, key: &Key, rest: fmt::Arguments<'_>) -> Vec<u8> {
        /// A lease, a claim's id, and what separates them.
        const REST: usize = 64;
        let mut name = Vec::with_capacity(self.namespace.len() + key.as_str().len() + REST);
        name.extend_from_slice(self.namespace.as_bytes());
        name.extend_from_slice(key.as_str().as_bytes());
        name.write_fmt(rest).expect("memory takes whatever is written");
        name
    }

    /// All entries of a session in the line of a key.
    pub(crate) fn of_session(&self, lease: Lease, key: &Key) -> Range<Vec<u8>> {
        let start = self.name(key, format_args!("/{lease}."));
        let end = prefix_end(&start);
        start..end
    }

    /// What is left behind where a copy of the claim may still be under way.
    pub(crate) fn tombstone(&self, lease: Lease, claim: &Claim) -> Vec<u8> {
        self.name(&claim.key, format_args!("\0{lease}.{}", claim.id))
    }

    /// All keys that locks whose names start so can have.
    pub(crate) fn under(&self, prefix: &str) -> Range<Vec<u8>> {
        let start = format!("{}{prefix}", self.namespace).into_bytes();
        // The end of everything is spelled as NUL, and so is its beginning.
        let start = if start.is_empty() { vec![0] } else { start };
        let end = if start == [0] { vec![0] } else { prefix_end(&start) };
        start..end
    }

    /// The name of the lock in whose line an entry of ours or of Go's stands.
    pub(crate) fn lock_of(&self, entry: &Entry) -> Option<Key> {
        let name = std::str::from_utf8(&entry.key).ok()?.strip_prefix(self.namespace.as_str())?;
        let (lock, place) = name.rsplit_once('/')?;
        let lease = place.split('.').next()?;
        // Any program may keep keys under leases; only those of locks are named after them.
        (entry.lease != 0 && lease == Lease(entry.lease).to_string()).then(|| Key::new(lock).ok())?
    }
}

/// Whether a key is that of an entry in the line that starts so. Those with a further `/` stand in lines of longer names, and those with a NUL are
/// what released claims of longer names left behind.
pub(crate) fn is_in(key: &[u8], line: &[u8]) -> bool {
    key.strip_prefix(line).is_some_and(|place| !place.contains(&b'/') && !place.contains(&0))
}

/// The first key after all those that start so.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// A key as etcd shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    /// Zero without one.
    pub(crate) lease: i64,
    /// The revision at which it was made.
    pub(crate) created: i64,
    /// The revision at which it was last written.
    pub(crate) written: i64,
    /// Empty where only keys were asked for.
    pub(crate) value: Vec<u8>,
}

impl From<&KeyValue> for Entry {
    fn from(kv: &KeyValue) -> Self {
        Self {
            key: kv.key().to_vec(),
            lease: kv.lease(),
            created: kv.create_revision(),
            written: kv.mod_revision(),
            value: kv.value().to_vec(),
        }
    }
}

impl Entry {
    /// Whether it stands in the line that starts so, and not in one of a longer name.
    pub(crate) fn is_in(&self, line: &[u8]) -> bool {
        is_in(&self.key, line)
    }

    /// What the claim behind it asks for, by its name.
    pub(crate) fn mode(&self) -> Mode {
        let place = self.key.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let mode = std::str::from_utf8(place).ok().and_then(|place| place.splitn(3, '.').nth(2));
        match mode {
            Some("s") => Mode::Shared,
            Some(permits) => permits.strip_prefix('p').and_then(|all| all.parse().ok()).map_or(Mode::Exclusive, Mode::Permits),
            None => Mode::Exclusive,
        }
    }

    /// Whose it is, if dlock made it.
    pub(crate) fn claim(&self) -> Option<ClaimId> {
        serde_json::from_slice::<Metadata>(&self.value).ok()?.get(Metadata::CLAIM)?.parse().ok()
    }

    /// The number of its grant.
    pub(crate) fn token(&self) -> Option<FencingToken> {
        token(self.created)
    }

    pub(crate) fn holder(&self) -> Holder {
        let published = match serde_json::from_slice::<Metadata>(&self.value) {
            Ok(metadata) => Published::Metadata(metadata),
            Err(_) => Published::Raw(self.value.clone()),
        };
        let mut holder = Holder::new(published);
        holder.session = (self.lease != 0).then(|| Lease(self.lease).session());
        holder.token = self.token();
        holder
    }
}

/// The number of the grant of an entry that was made at this revision.
pub(crate) fn token(created: i64) -> Option<FencingToken> {
    FencingToken::new(created.try_into().ok()?)
}

/// What is kept as the value of an entry.
pub(crate) fn json(publication: Publication<'_>) -> Vec<u8> {
    serde_json::to_vec(&publication).expect("a map of strings is always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(namespace: &str) -> Layout {
        Layout { namespace: namespace.to_owned() }
    }

    fn entry(key: &str, lease: i64) -> Entry {
        Entry { key: key.as_bytes().to_vec(), lease, created: 7, written: 7, value: Vec::new() }
    }

    #[test]
    fn a_drawn_session_becomes_a_lease_and_is_found_by_its_own_id() {
        let lease = Lease::drawn(&SessionId::from_bits(u128::MAX)).unwrap();
        assert_eq!(lease, Lease(i64::MAX));
        assert_eq!(lease.session().as_str(), "7fffffffffffffff");
        assert_eq!(Lease::of(&lease.session()), Some(lease));
        assert_eq!(Lease::drawn(&SessionId::from_bits(1 << 64)), None, "etcd takes zero for \"choose one\"");
        assert_eq!(Lease::drawn(&SessionId::new("no number")), None);
        assert_eq!(Lease::of(&SessionId::new("0")), None, "what hangs on no lease never lapses");
    }

    #[test]
    fn ids_of_other_forms_are_those_of_no_lease() {
        for id in ["", "07", "+7", "7F", "no number", "0000000000000000000000000000000007"] {
            assert_eq!(Lease::of(&SessionId::new(id)), None, "{id}");
        }
        assert_eq!(Lease::of(&SessionId::new("ffffffffffffffff")), Some(Lease(-1)), "etcd's leases may be negative");
    }

    #[test]
    fn a_line_holds_its_entries_and_not_those_of_longer_names() {
        let line = layout("").line(&Key::new("a").unwrap());
        assert_eq!(line, b"a/".to_vec()..b"a0".to_vec());
        assert!(entry("a/7f.1", 0x7f).is_in(&line.start));
        assert!(entry("a/7f", 0x7f).is_in(&line.start), "one of Go's");
        assert!(!entry("a/b/7f.1", 0x7f).is_in(&line.start));
        assert!(!entry("ab/7f.1", 0x7f).is_in(&line.start));
        assert!(!entry("a/b\x007f.1", 0x7f).is_in(&line.start), "left behind by a claim of a/b");
    }

    #[test]
    fn what_a_claim_asks_for_is_read_from_its_entry() {
        let permits = |all| Mode::Permits(std::num::NonZeroU32::new(all).unwrap());
        for mode in [Mode::Exclusive, Mode::Shared, permits(1), permits(u32::MAX)] {
            let key = Key::new("a.s/b.p3").unwrap();
            let name = String::from_utf8(layout("t/").entry(Lease(0x7f), &key, mode, &9)).unwrap();
            assert_eq!(entry(&name, 0x7f).mode(), mode, "{name}");
        }
        for foreign in ["a/7f", "a/7f.1.x", "a/7f.1.p0", "a/7f.1.p", "a/7f.1.s.s", "a/7f.1.p99999999999"] {
            assert_eq!(entry(foreign, 0x7f).mode(), Mode::Exclusive, "{foreign}");
        }
    }

    #[test]
    fn entries_of_locks_are_known_by_the_lease_in_their_names() {
        let layout = layout("team/");
        let key = |name| Some(Key::new(name).unwrap());
        assert_eq!(layout.lock_of(&entry("team/orders/42/7f.1", 0x7f)), key("orders/42"));
        assert_eq!(layout.lock_of(&entry("team/orders/42/7f", 0x7f)), key("orders/42"));
        for other in ["orders/42/7f", "team/7f", "team/orders/42/80", "team/orders/42\x007f.1", "team/orders//7f"] {
            assert_eq!(layout.lock_of(&entry(other, 0x7f)), None, "{other}");
        }
        assert_eq!(layout.lock_of(&entry("team/orders/42/0", 0)), None);
    }

    #[test]
    fn ranges_end_after_all_that_starts_alike() {
        assert_eq!(prefix_end(b"a/"), b"a0");
        assert_eq!(prefix_end(&[b'a', 0xFF]), b"b");
        assert_eq!(prefix_end(&[0xFF]), [0]);
        assert_eq!(layout("").under(""), vec![0]..vec![0]);
        assert_eq!(layout("t/").under("x"), b"t/x".to_vec()..b"t/y".to_vec());
    }
}
