//! Taking a claim out of line, and what it holds with it.

use dlock_core::{BackendError, ErrorKind, Mode, Release};

use super::Fair;
use super::line::{Ours, refused, says};
use crate::notes::{ClaimState, Known};
use crate::wire::{LOCK_FLAGS, Op, value_of};

impl Fair {
    /// Undoes what the claim has, and keeps out what is still under way of it.
    pub(super) async fn withdraw(&self, ours: &Ours<'_>) -> Result<Release, BackendError> {
        let claim = ours.claim;
        self.notes().withdrawing(claim.id);
        let note = self.shared.notes().claim(claim.id);
        let state = note.as_ref().map(|note| note.state);
        let (may_arrive, may_lock) = {
            let notes = self.notes();
            (notes.may_arrive(claim.id), claim.mode == Mode::Exclusive && notes.may_lock(claim.id))
        };
        if let (true, Some(ClaimState::Held { index, .. })) = (may_lock, state) {
            self.shared.notes().note(claim.id, ours.session, ClaimState::Releasing);
            let value = value_of(claim, note.as_ref().and_then(|note| note.amended.as_deref()));
            if self.give_back(ours, index, &value, may_arrive).await? {
                self.forget(ours);
                return Ok(Release::Released);
            }
        }
        // Without its ticket no copy of the claim can come to the key; what it has there already is found then.
        let had = self.leave(ours, may_arrive).await?;
        let released = if may_lock { self.let_go(ours, state).await? || had } else { had };
        self.forget(ours);
        Ok(if released { Release::Released } else { Release::NotHeld })
    }

    /// The key as it stands at `index`, and the ticket with it.
    async fn give_back(&self, ours: &Ours<'_>, index: u64, value: &str, may_arrive: bool) -> Result<bool, BackendError> {
        let key = ours.claim.key.as_str();
        let asked = Self::asked("releasing the key", true, ours);
        let mut ops = vec![Op::check_index(key, index), Op::unlock(key, ours.session, value, LOCK_FLAGS), Op::delete(&ours.ticket)];
        if may_arrive {
            ops.push(Op::lock(&ours.tombstone, ours.session, "", LOCK_FLAGS));
        }
        let Ok(entries) = self.shared.txn(asked, &ops).await? else { return Ok(false) };
        if let Some(entry) = entries.iter().rfind(|entry| entry.key == key) {
            self.shared.notes().learn(&ours.claim.key, Known::At(entry.modify_index));
        }
        Ok(true)
    }

    /// Gives up the ticket; whether there was one.
    async fn leave(&self, ours: &Ours<'_>, may_arrive: bool) -> Result<bool, BackendError> {
        let asked = Self::asked("releasing the key", true, ours);
        let fence = Op::lock(&ours.tombstone, ours.session, "", LOCK_FLAGS);
        for _ in 0..3 {
            let mut ops = vec![Op::check_session(&ours.ticket, ours.session), Op::delete(&ours.ticket)];
            if may_arrive {
                ops.push(fence);
            }
            let Err(errors) = self.shared.txn(asked, &ops).await? else { return Ok(true) };
            let Some(error) = errors.iter().find(|error| error.op_index == 0) else {
                // Without its session no copy of the claim has any effect, and its ticket went with it.
                return if says(&errors, "invalid session") { Ok(false) } else { Err(refused(asked, &errors)) };
            };
            if !error.says("doesn't exist") {
                // Somebody took it away by force and left the key.
                self.shared.txn(asked, &[Op::delete(&ours.ticket)]).await?.map_err(|errors| refused(asked, &errors))?;
            } else if !may_arrive {
                return Ok(false);
            }
            if !may_arrive {
                return Ok(false);
            }
            match self.shared.txn(asked, &[Op::check_not_exists(&ours.ticket), fence]).await? {
                Ok(_) => return Ok(false),
                Err(errors) if says(&errors, "invalid session") => return Ok(false),
                // A late copy got a ticket in between.
                Err(_) => {}
            }
        }
        Err(BackendError::new(ErrorKind::Transient, "releasing the key: the ticket came again and again"))
    }

    /// Gives back the key itself, if it is the claim's; whether it was.
    async fn let_go(&self, ours: &Ours<'_>, state: Option<ClaimState>) -> Result<bool, BackendError> {
        let claim = ours.claim;
        for _ in 0..3 {
            let Some(entry) = self.shared.read(&claim.key).await? else { return Ok(false) };
            let named = entry.claim();
            // A plain write leaves a key to its session and takes the claim's id away.
            let is_ours = named == Some(claim.id) || state.is_some() && named.is_none();
            if entry.holder_session() != Some(ours.session.as_str()) || !is_ours {
                // Our own release may have been applied without its answer: the value still tells whose grant was the last.
                let last = entry.holder_session().is_none() && named == Some(claim.id);
                return Ok(state == Some(ClaimState::Releasing) && last);
            }
            let value = entry.value.clone().unwrap_or_default();
            if self.shared.unlock(ours.session, claim, entry.modify_index, &value, entry.flags).await? {
                return Ok(true);
            }
        }
        Err(BackendError::new(ErrorKind::Transient, "releasing the key: it changed again and again"))
    }

    fn forget(&self, ours: &Ours<'_>) {
        self.shared.notes().drop_claim(ours.claim.id);
        self.notes().forget(ours.claim.id);
    }
}
