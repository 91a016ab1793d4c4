//! Fair mode: claims stand in line by tickets beside the key of their lock.
//!
//! A claim's ticket is a key of its own, held by the session and deleted with it, and the order of the tickets is that of their making. An
//! exclusive claim that is first locks the key itself, as everybody does who knows nothing of tickets; a shared one or a permit that has
//! room marks its ticket. Both go out conditional on the ticket as it was seen, so that nothing of a claim has any effect once its ticket is
//! gone. The ticket does not come again: a claim that may still be under way when it is released leaves a tombstone behind, without whose
//! absence it gets none.

mod line;
mod notes;
mod tickets;
mod undo;
mod wait;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dlock_core::{
    BackendError, Cause, Claim, ErrorKind, FencingToken, Granted, Holder, Inspection, Interference, Key, Metadata, Mode, Place,
    Release, SessionId, Standing,
};

use crate::api::BATCH;
use crate::classify::{Asked, Needs};
use crate::guarded::{Shared, conflict, without_index};
use crate::notes::{ClaimState, Known};
use crate::wire::{Entry, LOCK_FLAGS, Op, encode_value};
use line::Ours;
use notes::{Awaits, Notes};
use tickets::{HOLDS, Ticket, ticket_of_holder};

/// The largest published metadata: whoever enters a line is shown that of all who stand in it.
pub(crate) const METADATA_BYTES: usize = 16 * 1024;

/// Locks with a line.
#[derive(Debug)]
pub(crate) struct Fair {
    shared: Arc<Shared>,
    notes: Mutex<Notes>,
}

impl Fair {
    pub(crate) fn on(shared: Arc<Shared>) -> Self {
        Self { shared, notes: Mutex::default() }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the names of all tickets for a key begin.
    pub(crate) fn line(key: &Key) -> String {
        tickets::line(key)
    }

    /// What the lock of a claim stands on: the key, or the ticket.
    pub(crate) fn stands_on(session: &SessionId, claim: &Claim) -> String {
        match claim.mode {
            Mode::Exclusive => claim.key.as_str().to_owned(),
            _ => tickets::ticket(session, claim),
        }
    }

    pub(crate) fn session_gone(&self, session: &SessionId) {
        self.shared.notes().drop_session(session);
        self.notes().drop_session(session);
    }

    fn is_there(&self, key: &Key) -> bool {
        let known = self.notes().there(key);
        known.unwrap_or_else(|| self.shared.notes().guess(key).is_none())
    }

    fn learn(&self, key: &Key, there: bool) {
        let mut notes = self.notes();
        if notes.there(key).is_none() {
            self.shared.notes().met(key, there);
        }
        notes.learn(key, there);
    }

    pub(crate) async fn claim(&self, session: &SessionId, claim: &Claim, place: Place) -> Result<Standing, BackendError> {
        let ours = Ours::new(session, claim);
        if self.notes().is_withdrawn(claim.id) {
            // A withdrawal without an answer is made sure of first: it would take away what is granted now.
            self.withdraw(&ours).await?;
            return Ok(Standing::ClaimGone);
        }
        let standing = self.enter(&ours, place).await;
        match &standing {
            // What is refused leaves nothing.
            Err(error) if !error.kind().is_passing() => {
                let sent = self.notes().claim(claim.id).is_some();
                if sent && let Err(left) = self.withdraw(&ours).await {
                    return Err(BackendError::new(ErrorKind::Ambiguous, left.message().to_owned()).caused_by(left));
                }
            }
            Err(error) if error.kind() == ErrorKind::Ambiguous => {}
            Ok(Standing::Busy { .. } | Standing::ClaimGone) | Err(_) => self.notes().left_nothing(claim.id),
            Ok(_) => {}
        }
        standing
    }

    pub(crate) async fn confirm(&self, session: &SessionId, claim: &Claim) -> Result<Standing, BackendError> {
        let ours = Ours::new(session, claim);
        let note = self.notes().claim(claim.id).cloned();
        let guessed = note.and_then(|note| {
            let guard = match note.awaits {
                Awaits::Nothing => None,
                // Nobody comes ahead of the first in line: once the key is seen free it is asked for at once.
                Awaits::Key => self.shared.notes().key(&claim.key),
                // The last one ahead left: it is first, and the key is its own once it is free. A release gives the key back in the very transaction
                // that deletes the ticket, so that both have one index; a key that has another is not its own for that reason.
                Awaits::Tickets(_) => note.left_at.map(Known::At),
            };
            guard.map(|guard| (note.index, guard))
        });
        if let Some((index, guard)) = guessed {
            if let Some(standing) = self.come_to(&ours, index, guard, false).await? {
                return Ok(standing);
            }
            self.notes().guessed_wrong(claim.id);
        }
        let seen = self.look_as("looking for the place in line", &claim.key).await?;
        self.stand(&ours, seen).await
    }

    pub(crate) async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        self.withdraw(&Ours::new(session, claim)).await
    }

    /// An exclusive claim has its key and its ticket, others have their ticket alone.
    pub(crate) async fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        let mut found = Vec::new();
        for batch in claims.chunks(BATCH / 2) {
            let asked = Asked { what: "looking after held keys", writes: false, needs: Needs::KeysRead };
            let names = batch.iter().flat_map(|granted| {
                let ticket = tickets::ticket(session, &granted.claim);
                let is_exclusive = granted.claim.mode == Mode::Exclusive;
                let key = is_exclusive.then(|| (granted.claim.id, granted.claim.key.as_str().to_owned(), None));
                // A ticket on which a lock stands is known by its index: one that a late copy makes anew has the same session.
                let index = (!is_exclusive).then(|| self.index_of(granted));
                key.into_iter().chain([(granted.claim.id, ticket, index)])
            });
            let names: Vec<_> = names.collect();
            let ops = names.iter().map(|(_, name, index)| match index {
                Some(index) => Op::check_index(name, *index),
                None => Op::check_session(name, session),
            });
            let ops: Vec<_> = ops.collect();
            let Err(errors) = self.shared.txn(asked, &ops).await? else { continue };
            let mut causes = BTreeMap::new();
            for error in errors {
                let Some((claim, name, index)) = names.get(error.op_index) else { continue };
                let gone = error.says("doesn't exist");
                // An amendment that was not answered may have moved it.
                if !gone && index.is_some() && self.is_held(name, session).await? {
                    continue;
                }
                causes.entry(*claim).or_insert(if gone { Cause::KeyDeleted } else { Cause::TakenOver });
            }
            found.extend(causes.into_iter().map(|(claim, cause)| Interference { claim, cause }));
        }
        Ok(found)
    }

    /// The index at which a ticket of ours stands, as far as is known.
    fn index_of(&self, granted: &Granted) -> u64 {
        match self.shared.notes().claim(granted.claim.id).map(|note| note.state) {
            Some(ClaimState::Held { index, .. }) => index,
            _ => granted.token.get(),
        }
    }

    /// Whether a lock of this session stands on a ticket.
    async fn is_held(&self, ticket: &str, session: &SessionId) -> Result<bool, BackendError> {
        let asked = Asked { what: "looking after held keys", writes: false, needs: Needs::KeysRead };
        let Ok(entries) = self.shared.txn(asked, &[Op::get(ticket)]).await? else { return Ok(false) };
        Ok(entries.iter().any(|entry| entry.holder_session() == Some(session.as_str()) && entry.flags == HOLDS))
    }

    pub(crate) async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError> {
        let seen = self.look_as("looking at the key", key).await?;
        let mut inspection = Inspection::default();
        let of_key = seen.key.as_ref().filter(|entry| entry.holder_session().is_some() || !entry.is_lock());
        inspection.holders.extend(of_key.map(Entry::holder));
        let has_key = |ticket: &Ticket| {
            of_key
                .is_some_and(|entry| entry.holder_session() == ticket.entry.holder_session() && entry.claim() == Some(ticket.claim))
        };
        let (holding, waiting): (Vec<_>, Vec<_>) =
            seen.line.iter().filter(|ticket| !has_key(ticket)).partition(|ticket| ticket.holds());
        inspection.holders.extend(holding.into_iter().map(|ticket| ticket.entry.holder()));
        inspection.waiters = Some(waiting.into_iter().map(Ticket::waiter).collect());
        Ok(inspection)
    }

    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, BackendError> {
        let entries = {
            let _permit = self.shared.watches.short.acquire().await;
            self.shared.api.list_keys(prefix).await?
        };
        let mut held = Vec::new();
        for entry in entries {
            if let Some((key, ticket)) = Ticket::read(entry.clone()) {
                if ticket.holds() && key.as_str().starts_with(prefix) {
                    held.push((key, entry.create_index, entry.holder()));
                }
            } else if let Some(key) = Key::new(&entry.key).ok().filter(|_| entry.is_lock() && entry.holder_session().is_some()) {
                held.push((key, 0, entry.holder()));
            }
        }
        held.sort_by(|(one, first, _), (other, second, _)| (one, first).cmp(&(other, second)));
        Ok(held.into_iter().map(|(key, _, holder)| (key, holder)).collect())
    }

    pub(crate) async fn evict(&self, key: &Key, token: FencingToken) -> Result<bool, BackendError> {
        let asked = Asked { what: "releasing by force", writes: true, needs: Needs::LineWrite(key.as_str()) };
        let seen = self.look_as("looking at the key", key).await?;
        if let Some(ticket) = seen.line.iter().find(|ticket| ticket.holds() && ticket.entry.token() == Some(token)) {
            let ops = [Op::check_index(ticket.name(), ticket.entry.modify_index), Op::delete(ticket.name())];
            return Ok(self.shared.txn(asked, &ops).await?.is_ok());
        }
        let Some(entry) = seen.key else { return Ok(false) };
        if !entry.is_lock() {
            return Err(conflict(key, entry.flags));
        }
        let (Some(session), true) = (entry.holder_session(), entry.token() == Some(token)) else { return Ok(false) };
        let (session, value) = (SessionId::new(session), entry.value.clone().unwrap_or_default());
        let ticket = entry.claim().map(|claim| ticket_of_holder(&session, key, claim));
        let mut ops =
            vec![Op::check_index(key.as_str(), entry.modify_index), Op::unlock(key.as_str(), &session, &value, LOCK_FLAGS)];
        ops.extend(ticket.as_deref().map(Op::delete));
        Ok(self.shared.txn(asked, &ops).await?.is_ok())
    }

    /// Of a claim whose lock stands on its ticket.
    pub(crate) async fn amend_ticket(&self, session: &SessionId, claim: &Claim, amended: Metadata) -> Result<bool, BackendError> {
        let (ours, mut published) = (Ours::new(session, claim), amended);
        for _ in 0..3 {
            let seen = self.look_as("changing the metadata", &claim.key).await?;
            let own = seen.place(&ours.ticket).map(|place| &seen.line[place]);
            let Some(own) = own.filter(|own| own.holds()) else { return Ok(false) };
            let token = self.shared.notes().token(claim.id).or_else(|| own.entry.token()).ok_or_else(without_index)?;
            // The write moves the index, by which the grant is known to others.
            published.set_token(token, session);
            let value = encode_value(&published);
            let asked = Self::asked("changing the metadata", true, &ours);
            let ops = [Op::check_session(&ours.ticket, session), Op::cas(&ours.ticket, own.entry.modify_index, &value, HOLDS)];
            if let Ok(entries) = self.shared.txn(asked, &ops).await? {
                let index = entries.last().map_or(own.entry.modify_index, |entry| entry.modify_index);
                self.shared.notes().amended(claim.id, published, index);
                return Ok(true);
            }
        }
        Err(BackendError::new(ErrorKind::Transient, "changing the metadata: the ticket changed again and again"))
    }
}

/// A copy of a claim on its way; counts as never answered unless it is told otherwise.
struct Copy<'a> {
    fair: &'a Fair,
    claim: &'a Claim,
    answered: bool,
}

impl<'a> Copy<'a> {
    fn sent(fair: &'a Fair, ours: &Ours<'a>) -> Self {
        fair.notes().sent(ours.session, ours.claim.id);
        Self { fair, claim: ours.claim, answered: false }
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        self.fair.notes().done(self.claim.id, self.answered);
    }
}
