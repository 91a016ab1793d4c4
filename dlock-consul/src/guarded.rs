//! Guarded claims and guarded, fenced releases: what is asked of a key, and what the answers prove.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dlock_core::{BackendError, Capabilities, Claim, ClaimId, ErrorKind, FencingToken, Holder, Key, Release, SessionId};

use crate::api::Api;
use crate::classify::{Asked, Needs, excerpt};
use crate::config::SessionOptions;
use crate::notes::{ClaimState, Known, Notes};
use crate::watch::Watches;
use crate::wire::{Entry, LOCK_FLAGS, Op, TxnError, value_of};

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) api: Arc<Api>,
    pub(crate) capabilities: Capabilities,
    pub(crate) sessions: SessionOptions,
    pub(crate) notes: Mutex<Notes>,
    pub(crate) watches: Watches,
}

/// What a guarded claim brought.
pub(crate) enum Attempted {
    Held(FencingToken),
    SessionGone,
    Delayed,
    /// The guard failed or the key is taken: look.
    Refused,
}

/// What a look at a key says about a claim.
pub(crate) enum Look {
    /// It is ours already.
    Ours {
        index: u64,
        /// The number of the grant, which is before the index once the metadata was amended.
        token: FencingToken,
    },
    Taken {
        holder: Box<Holder>,
        index: u64,
    },
    Free(Known),
}

impl Shared {
    pub(crate) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transaction that counts against the connections for short requests.
    pub(crate) async fn txn(&self, asked: Asked<'_>, ops: &[Op<'_>]) -> Result<Result<Vec<Entry>, Vec<TxnError>>, BackendError> {
        let _permit = self.watches.short.acquire().await;
        let reply = self.api.txn(asked, ops).await?;
        Ok(reply.map(|results| results.into_iter().map(|result| result.kv).collect()))
    }

    pub(crate) async fn read(&self, key: &Key) -> Result<Option<Entry>, BackendError> {
        let _permit = self.watches.short.acquire().await;
        self.api.read_key(key).await
    }

    /// Reads the key from the leader; what is no lock is refused, not touched.
    pub(crate) async fn look(&self, session: &SessionId, key: &Key, id: ClaimId) -> Result<Look, BackendError> {
        let Some(entry) = self.read(key).await? else {
            self.notes().learn(key, Known::Absent);
            return Ok(Look::Free(Known::Absent));
        };
        if !entry.is_lock() {
            return Err(conflict(key, entry.flags));
        }
        let index = entry.modify_index;
        match entry.holder_session() {
            None => {
                self.notes().learn(key, Known::At(index));
                Ok(Look::Free(Known::At(index)))
            }
            // The session alone does not make it ours: an earlier claim of the same session may still be there.
            Some(holder) if holder == session.as_str() && entry.claim() == Some(id) => {
                let token = self.notes().token(id).or_else(|| entry.token()).ok_or_else(without_index)?;
                Ok(Look::Ours { index, token })
            }
            Some(_) => {
                self.notes().forget(key);
                Ok(Look::Taken { holder: Box::new(entry.holder()), index })
            }
        }
    }

    /// One guarded claim.
    pub(crate) async fn attempt(
        &self,
        session: &SessionId,
        claim: &Claim,
        value: &str,
        guard: Known,
    ) -> Result<Attempted, BackendError> {
        let key = claim.key.as_str();
        let asked = Asked { what: "claiming the key", writes: true, needs: Needs::KeyWrite(key) };
        let lock = Op::lock(key, session, value, LOCK_FLAGS);
        self.notes().note(claim.id, session, ClaimState::Sent(guard));
        let unfenced_before = guard == Known::Absent && self.notes().sent_unfenced(claim.id, session);
        let answer = self.txn(asked, &[guard_op(key, guard), lock]).await;
        let answered = answer.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::Ambiguous);
        if guard == Known::Absent && answered && !unfenced_before {
            self.notes().take_unfenced(claim.id);
        }
        let errors = match answer {
            Ok(Ok(entries)) => {
                let index = entries.last().map_or(0, |entry| entry.modify_index);
                let token = FencingToken::new(index).ok_or_else(without_index)?;
                self.granted(session, claim, token, index);
                return Ok(Attempted::Held(token));
            }
            Ok(Err(errors)) => errors,
            Err(error) => {
                if error.kind() != ErrorKind::Ambiguous {
                    self.notes().drop_claim(claim.id);
                }
                return Err(error);
            }
        };
        let says = |text: &str| errors.iter().any(|error| error.says(text));
        self.notes().drop_claim(claim.id);
        self.notes().forget(&claim.key);
        if says("invalid session") {
            Ok(Attempted::SessionGone)
        } else if says("due to lock delay") {
            Ok(Attempted::Delayed)
        } else if says("missing session") || says("failed session lookup") {
            let message = format!("claiming the key: Consul answered {}", excerpt(&errors[0].what));
            Err(BackendError::new(ErrorKind::Invalid, message))
        } else {
            Ok(Attempted::Refused)
        }
    }

    /// Notes that the claim holds its key, which stands at this index.
    pub(crate) fn granted(&self, session: &SessionId, claim: &Claim, token: FencingToken, index: u64) {
        let mut notes = self.notes();
        notes.note(claim.id, session, ClaimState::Held { token, index });
        // While we hold it the key is known to be ours; it is claimable again only after our release.
        notes.forget(&claim.key);
    }

    /// Makes sure that no copy of a claim that was guarded by `guard` can ever apply, by moving the index of the free key.
    async fn fence(&self, session: &SessionId, claim: &Claim, guard: Known, entry: Option<&Entry>) -> Result<bool, BackendError> {
        let key = claim.key.as_str();
        let asked = Asked { what: "undoing a claim", writes: true, needs: Needs::KeyWrite(key) };
        let value = entry.and_then(|entry| entry.value.clone()).unwrap_or_default();
        // The value is put back by the unlock; sent twice, a large one would not fit into a transaction.
        let ops = [guard_op(key, guard), Op::lock(key, session, "", LOCK_FLAGS), Op::unlock(key, session, &value, LOCK_FLAGS)];
        match self.txn(asked, &ops).await? {
            Ok(entries) => {
                if let Some(entry) = entries.last() {
                    self.notes().learn(&claim.key, Known::At(entry.modify_index));
                }
                Ok(true)
            }
            // Without its session no copy of the claim can apply either, and during a delay the leader lets none through.
            Err(errors) => Ok(errors.iter().any(|error| error.says("invalid session"))),
        }
    }

    /// Releases the key as it stands at `index`.
    pub(crate) async fn unlock(
        &self,
        session: &SessionId,
        claim: &Claim,
        index: u64,
        value: &str,
        flags: u64,
    ) -> Result<bool, BackendError> {
        let key = claim.key.as_str();
        let asked = Asked { what: "releasing the key", writes: true, needs: Needs::KeyWrite(key) };
        let ops = [Op::check_index(key, index), Op::unlock(key, session, value, flags)];
        let Ok(entries) = self.txn(asked, &ops).await? else { return Ok(false) };
        if let Some(entry) = entries.last()
            && entry.is_lock()
        {
            self.notes().learn(&claim.key, Known::At(entry.modify_index));
        }
        Ok(true)
    }

    /// Undoes what a claim has, and fences what may still be under way of it.
    pub(crate) async fn undo(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        let note = self.notes().claim(claim.id);
        let state = note.as_ref().map(|note| note.state);
        let value = value_of(claim, note.as_ref().and_then(|note| note.amended.as_deref()));
        if let Some(ClaimState::Held { index, .. }) = state {
            self.notes().note(claim.id, session, ClaimState::Releasing);
            if self.unlock(session, claim, index, &value, LOCK_FLAGS).await? {
                self.notes().drop_claim(claim.id);
                return Ok(Release::Released);
            }
        }
        // A plain write leaves a key to its session and takes the claim's id away: what was claimed is still ours, unless another claim's
        // id is there.
        let ours = |entry: &Entry| entry.claim() == Some(claim.id) || state.is_some() && entry.claim().is_none();
        // A failed check proves nothing: read, and act on what is there.
        for _ in 0..3 {
            let entry = self.read(&claim.key).await?;
            let free_at = match &entry {
                None => Some(Known::Absent),
                Some(entry) if entry.holder_session().is_none() => Some(Known::At(entry.modify_index)),
                Some(entry) if entry.holder_session() == Some(session.as_str()) && ours(entry) => {
                    let value = entry.value.clone().unwrap_or_default();
                    if self.unlock(session, claim, entry.modify_index, &value, entry.flags).await? {
                        self.notes().drop_claim(claim.id);
                        return Ok(Release::Released);
                    }
                    continue;
                }
                // Held by another grant: the index has moved past every guard of ours.
                Some(_) => None,
            };
            let foreign = entry.as_ref().is_some_and(|entry| !entry.is_lock());
            let may_arrive = match (state, free_at) {
                (_, None) => false,
                _ if foreign => false,
                (Some(ClaimState::Sent(guard)), Some(free_at)) => guard == free_at,
                // It was answered, so every copy of it was guarded by an index that is gone.
                (Some(ClaimState::Held { .. } | ClaimState::Releasing), _) => false,
                (None, Some(_)) => true,
            };
            let fenced = match free_at {
                Some(guard) if may_arrive => self.fence(session, claim, guard, entry.as_ref()).await?,
                _ => true,
            };
            if fenced {
                self.notes().drop_claim(claim.id);
                // Our own release may have been applied without its answer: the value still tells whose grant was the last.
                let ours = state == Some(ClaimState::Releasing) && entry.is_some_and(|entry| entry.claim() == Some(claim.id));
                return Ok(if ours { Release::Released } else { Release::NotHeld });
            }
        }
        Err(BackendError::new(ErrorKind::Transient, "releasing the key: it changed again and again"))
    }
}

pub(crate) fn guard_op(key: &str, guard: Known) -> Op<'_> {
    match guard {
        Known::Absent => Op::check_not_exists(key),
        Known::At(index) => Op::check_index(key, index),
    }
}

pub(crate) fn without_index() -> BackendError {
    BackendError::new(ErrorKind::Ambiguous, "claiming the key: the answer has no index")
}

pub(crate) fn conflict(key: &Key, flags: u64) -> BackendError {
    let message = format!("the key {key} exists with flags {flags}, so it is no lock; it was left alone, use another key");
    BackendError::new(ErrorKind::Conflict, message)
}
