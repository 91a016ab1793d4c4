//! The line of one lock: how a claim gets its entry into it, and how the entry stands.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(dlock_planted)]
use dlock_core::planted::Bug;
use dlock_core::{
    BackendError, Capabilities, Claim, ClaimId, Cursor, ErrorKind, FencingToken, Key, Mode, Place, Release, Standing,
};
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, SortOrder, Txn, TxnOp};
use tokio::sync::Notify;

use crate::ahead::{Ahead, foreign, no_conflict, window};
use crate::api::{Api, Found, Refusal, Reply, by_creation, unexpected};
use crate::classify::{Asked, is_full};
use crate::notes::{ClaimNote, Notes};
use crate::stream::Streams;
use crate::wire::{Layout, Lease, token};

/// What all clones of a backend share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) api: Api,
    pub(crate) layout: Layout,
    pub(crate) capabilities: Capabilities,
    pub(crate) notes: Mutex<Notes>,
    /// Told when a claim was granted.
    pub(crate) granted: Notify,
    pub(crate) streams: Streams,
}

/// A claim of ours, and where it stands in etcd.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ours<'a> {
    pub(crate) lease: Lease,
    pub(crate) claim: &'a Claim,
    /// The name of its entry.
    pub(crate) entry: &'a [u8],
}

impl Shared {
    pub(crate) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a request about this key needs.
    pub(crate) fn asked<'a>(&'a self, what: &'static str, writes: bool, key: &'a Key) -> Asked<'a> {
        Asked { what, writes, keys: Some((&self.layout.namespace, key.as_str())) }
    }

    /// The name of a claim's entry: as it is known here, or as the store has it if it may have been made elsewhere.
    pub(crate) async fn entry(&self, lease: Lease, claim: &Claim) -> Result<Vec<u8>, BackendError> {
        self.recall(lease, claim).await?;
        Ok(self.notes().entry(&self.layout, lease, claim))
    }

    /// The name of the entry of a claim that is about to be sent, which it keeps.
    pub(crate) async fn begin(&self, lease: Lease, claim: &Claim) -> Result<Vec<u8>, BackendError> {
        self.recall(lease, claim).await?;
        Ok(self.notes().begin(&self.layout, lease, claim))
    }

    /// Looks for the entry of a claim that may have been made elsewhere.
    async fn recall(&self, lease: Lease, claim: &Claim) -> Result<(), BackendError> {
        if !self.notes().may_have_forgotten(lease, claim.id) {
            return Ok(());
        }
        let asked = self.asked("looking for the claim", false, &claim.key);
        let (line, own) = (self.layout.line(&claim.key), self.layout.of_session(lease, &claim.key));
        let all = Box::pin(self.read_all(asked, &own.start, &own.end, SortOrder::Ascend)).await?;
        let found = all.into_iter().find(|entry| entry.claim() == Some(claim.id) && entry.is_in(&line.start));
        if let Some(found) = found {
            self.notes().found(lease, claim, found.key);
        }
        Ok(())
    }

    /// Puts the claim's entry into the line, or finds it there.
    #[allow(clippy::manual_async_fn)] // an `async fn` keeps room for its arguments twice
    pub(crate) fn enter(&self, ours: Ours<'_>, value: &[u8], place: Place) -> impl Future<Output = Result<Standing, BackendError>> {
        async move {
            match place {
                Place::Queue => self.queue(ours, value).await,
                Place::Try if ours.claim.mode == Mode::Exclusive => Box::pin(self.attempt(ours, value)).await,
                Place::Try => Box::pin(self.attempt_beside(ours, value)).await,
            }
        }
    }

    async fn queue(&self, ours: Ours<'_>, value: &[u8]) -> Result<Standing, BackendError> {
        let claim = ours.claim;
        let asked = self.asked("claiming the key", true, &claim.key);
        let line = self.layout.line(&claim.key);
        let txn = || {
            let nearest = by_creation(&line.end, SortOrder::Descend, window(claim.mode));
            let look = |options| TxnOp::get(line.start.as_slice(), Some(options));
            // The line is read before the entry stands in it: where nobody is ahead, etcd finds nothing to read and nothing to send. The nearest few
            // show who holds the key, unless more are ahead. To ask for the first apart would cost whoever is alone.
            let then = if claim.mode == Mode::Exclusive {
                vec![look(nearest), put(ours, value)]
            } else {
                let first = by_creation(&line.end, SortOrder::Ascend, 1);
                vec![look(nearest.with_keys_only()), look(first), put(ours, value)]
            };
            Txn::new().when(self.fresh(ours)).and_then(then)
        };
        let Some((mut reply, _copy)) = self.send(&asked, ours, &txn).await? else { return Ok(Standing::SessionGone) };
        if !reply.succeeded {
            return Box::pin(self.already(ours)).await.map_err(placed);
        }
        let created = reply.revision;
        let nearest = match reply.shown(asked) {
            // The grant is noted with the same revision.
            Ok(nearest) if nearest.count == 0 => return self.stands(ours, created, created, Ahead::nobody()),
            shown => {
                self.notes().entered(claim.id, created);
                shown?
            }
        };
        let first = if claim.mode == Mode::Exclusive { Found::default() } else { reply.next() };
        // Apart, as all that a free key does without: whoever asks for one is not to carry it along.
        let mut ahead = Box::pin(self.ahead(claim, nearest, first, true)).await.map_err(placed)?;
        if ahead.first.is_none() && !ahead.awaited.is_empty() {
            ahead.first = Box::pin(self.first(&claim.key)).await.map_err(placed)?;
        }
        self.stands(ours, created, reply.revision, ahead)
    }

    /// Takes the key if nobody is in line, and leaves nothing otherwise: a refused attempt writes nothing.
    async fn attempt(&self, ours: Ours<'_>, value: &[u8]) -> Result<Standing, BackendError> {
        let claim = ours.claim;
        let asked = self.asked("claiming the key", true, &claim.key);
        let line = self.layout.line(&claim.key);
        let txn = || {
            let first = by_creation(&line.end, SortOrder::Ascend, window(claim.mode));
            let mut otherwise = self.found_already(ours);
            otherwise.push(TxnOp::get(line.start.as_slice(), Some(first)));
            Txn::new().when(self.nobody(ours)).and_then([put(ours, value)]).or_else(otherwise)
        };
        let Some((mut reply, copy)) = self.send(&asked, ours, txn).await? else { return Ok(Standing::SessionGone) };
        let revision = reply.revision;
        if reply.succeeded {
            return self.stands(ours, revision, revision, Ahead::nobody());
        }
        let (own, tombstone, line_now) = (reply.next(), reply.next(), reply.next());
        if !own.entries.is_empty() || tombstone.count > 0 {
            return self.known(ours, &own, &tombstone).await;
        }
        if let Some(first) = self.head(&claim.key, line_now).await? {
            no_conflict(&claim.key, &first)?;
            return Ok(Standing::Busy { holder: Some(first.holder()), cursor: cursor(revision) });
        }
        // Only those of longer names stand under it, which no single condition can tell from a line of its own.
        drop(copy);
        self.pass_through(ours, value).await
    }

    /// Takes the key if those in line leave room, and leaves nothing otherwise: looks, and enters if nobody came since.
    async fn attempt_beside(&self, ours: Ours<'_>, value: &[u8]) -> Result<Standing, BackendError> {
        let claim = ours.claim;
        let asked = self.asked("claiming the key", true, &claim.key);
        let line = self.layout.line(&claim.key);
        // Under way from the first look on: until then no other claim may get its name.
        let mut looking_for = Copy::sent(self, &claim.id);
        looking_for.answered = true;
        for _ in 0..3 {
            let look = || {
                let nearest = by_creation(&line.end, SortOrder::Descend, window(claim.mode)).with_keys_only();
                let first = by_creation(&line.end, SortOrder::Ascend, 1);
                let mut look = self.found_already(ours);
                look.extend([TxnOp::get(line.start.as_slice(), Some(nearest)), TxnOp::get(line.start.as_slice(), Some(first))]);
                Txn::new().and_then(look)
            };
            let looking = Asked { writes: false, ..asked };
            let mut seen = self.api.txn(&looking, look).await?.map_err(|gone| unexpected(looking, gone))?;
            let (own, tombstone, nearest, first) = (seen.next(), seen.next(), seen.next(), seen.next());
            if !own.entries.is_empty() || tombstone.count > 0 {
                return self.known(ours, &own, &tombstone).await;
            }
            let ahead = self.ahead(claim, nearest, first, false).await?;
            if !ahead.awaited.is_empty() {
                let holder = ahead.first.map(|first| first.holder());
                return Ok(Standing::Busy { holder, cursor: cursor(seen.revision) });
            }
            let txn = || {
                let mut conditions = self.fresh(ours);
                let nobody_since = Compare::create_revision(line.start.as_slice(), CompareOp::Less, seen.revision + 1);
                conditions.push(nobody_since.with_range(line.end.as_slice()));
                Txn::new().when(conditions).and_then([put(ours, value)])
            };
            let Some((reply, _copy)) = self.send(&asked, ours, txn).await? else { return Ok(Standing::SessionGone) };
            if reply.succeeded {
                return self.stands(ours, reply.revision, reply.revision, Ahead::nobody());
            }
        }
        drop(looking_for);
        self.pass_through(ours, value).await
    }

    /// Enters the line, and leaves it again if there is no room: for a try that no single condition decides.
    async fn pass_through(&self, ours: Ours<'_>, value: &[u8]) -> Result<Standing, BackendError> {
        let standing = self.queue(ours, value).await?;
        let Standing::Waiting { holder, cursor, .. } = standing else { return Ok(standing) };
        self.withdraw(ours).await.map_err(placed)?;
        Ok(Standing::Busy { holder, cursor })
    }

    /// How an entry that was made at this revision stands, from one linearizable read; of an unknown revision, from one more.
    pub(crate) async fn stand(&self, ours: Ours<'_>, created: Option<i64>) -> Result<Standing, BackendError> {
        let Ours { lease, claim, entry } = ours;
        let asked = self.asked("looking for the place in line", false, &claim.key);
        let line = self.layout.line(&claim.key);
        let mut created = created;
        // The entry changes its revision only if somebody deletes it and a copy of the claim makes it anew.
        for _ in 0..3 {
            let known = created.unwrap_or(0);
            // Who holds an exclusive lock is asked for only where it turns out that another does.
            let shows_first = claim.mode != Mode::Exclusive;
            let txn = || {
                let otherwise = [TxnOp::get(entry, Some(GetOptions::new().with_keys_only()))];
                // Zero is the revision of what is not there.
                if known == 0 {
                    return Txn::new().and_then(otherwise);
                }
                let before = |options: GetOptions| options.with_max_create_revision((known - 1).max(1));
                let nearest = before(by_creation(&line.end, SortOrder::Descend, window(claim.mode))).with_keys_only();
                let mut then = vec![TxnOp::get(line.start.as_slice(), Some(nearest))];
                if shows_first {
                    let first = before(by_creation(&line.end, SortOrder::Ascend, 1));
                    then.push(TxnOp::get(line.start.as_slice(), Some(first)));
                }
                let same = Compare::create_revision(entry, CompareOp::Equal, known);
                Txn::new().when([same]).and_then(then).or_else(otherwise)
            };
            let mut reply = self.api.txn(&asked, txn).await?.map_err(|refusal| unexpected(asked, refusal))?;
            if known > 0 && reply.succeeded {
                let (nearest, shown) = (reply.next(), reply.next());
                let mut ahead = self.ahead(claim, nearest, shown, false).await?;
                if !shows_first && !ahead.awaited.is_empty() {
                    ahead.first = self.first(&claim.key).await?;
                }
                return self.stands(ours, known, reply.revision, ahead);
            }
            match reply.next().entries.first() {
                // Another claim has taken its seat.
                Some(_) if known > 0 && !self.notes().may_be_made_anew(claim.id) => return Ok(Standing::ClaimGone),
                Some(entry) => created = Some(entry.created),
                None if self.api.is_alive(lease).await? => return Ok(Standing::ClaimGone),
                None => {
                    self.notes().drop_lease(lease);
                    return Ok(Standing::SessionGone);
                }
            }
        }
        Err(BackendError::new(ErrorKind::Transient, "looking for the place in line: the entry was replaced again and again"))
    }

    /// Writes what others read into the entry of a claim that holds its key; `false` when it is not the entry of this grant any more.
    pub(crate) async fn rewrite(
        &self,
        Ours { lease, claim, entry }: Ours<'_>,
        token: FencingToken,
        value: &[u8],
    ) -> Result<bool, BackendError> {
        let asked = self.asked("changing the metadata", true, &claim.key);
        for _ in 0..3 {
            let read = || Txn::new().and_then([TxnOp::get(entry, Some(GetOptions::new().with_keys_only()))]);
            let mut reply =
                self.api.txn(&Asked { writes: false, ..asked }, read).await?.map_err(|refusal| unexpected(asked, refusal))?;
            let found = reply.next();
            let Some(now) = found.entries.first().filter(|entry| entry.token() == Some(token)) else { return Ok(false) };
            let txn = || {
                // A copy that arrives after a later one finds the entry written since.
                let same = Compare::mod_revision(entry, CompareOp::Equal, now.written);
                // A put without the lease would detach the entry from it.
                let put = TxnOp::put(entry, value, Some(PutOptions::new().with_lease(lease.0)));
                Txn::new().when([same]).and_then([put])
            };
            match self.api.txn(&asked, txn).await? {
                Ok(reply) if reply.succeeded => return Ok(true),
                Ok(_) => {}
                Err(Refusal::LeaseGone) => return Ok(false),
                Err(refusal) => return Err(unexpected(asked, refusal)),
            }
        }
        Err(BackendError::new(ErrorKind::Transient, "changing the metadata: the entry was written again and again"))
    }

    /// Takes the claim's entry out of the line, and keeps out what is still under way of it.
    pub(crate) async fn withdraw(&self, ours: Ours<'_>) -> Result<Release, BackendError> {
        let claim = ours.claim;
        let asked = self.asked("releasing the key", true, &claim.key);
        let (created, fenced) = {
            let mut notes = self.notes();
            (notes.releasing(claim.id), notes.may_arrive(claim.id))
        };
        if let Some(released) = self.delete(asked, ours, created).await? {
            return Ok(released);
        }
        Box::pin(self.withdraw_whatever(asked, ours, created, fenced)).await
    }

    /// The same of a claim whose entry is not known for sure.
    async fn withdraw_whatever(
        &self,
        asked: Asked<'_>,
        ours: Ours<'_>,
        created: Option<i64>,
        fenced: bool,
    ) -> Result<Release, BackendError> {
        let Ours { lease, claim, entry } = ours;
        // Whatever has the entry's name is this claim's, and no other claim ever gets that name. Unless another release of it was answered meanwhile: then
        // it has nothing, and the name may be another's by now.
        if !self.notes().spend(claim.id) && created.is_some() {
            return Ok(Release::NotHeld);
        }
        #[cfg(dlock_planted)]
        let fenced = fenced && !Bug::NoTombstone.is_on();
        let without_tombstone = || Txn::new().and_then([TxnOp::delete(entry, None)]);
        let txn = || {
            if !fenced {
                return without_tombstone();
            }
            let tombstone = self.layout.tombstone(lease, claim);
            let fence = TxnOp::put(tombstone, "", Some(PutOptions::new().with_lease(lease.0)));
            Txn::new().and_then([TxnOp::delete(entry, None), fence])
        };
        let answer = self.api.txn(&asked, txn).await;
        if fenced
            && let Err(full) = &answer
            && is_full(full)
        {
            // A full database takes deletions alone. What is held becomes free; the fence waits for room.
            self.api.txn(&asked, without_tombstone).await?.map_err(|refusal| unexpected(asked, refusal))?;
        }
        let mut reply = match answer? {
            Ok(reply) => reply,
            // No copy of the claim can take effect without its lease. Its entry went with it, unless somebody put something over it.
            Err(Refusal::LeaseGone) => {
                self.api.txn(&asked, without_tombstone).await?.map_err(|refusal| unexpected(asked, refusal))?
            }
            Err(refusal) => return Err(unexpected(asked, refusal)),
        };
        self.notes().forget(claim.id);
        Ok(if reply.next().count > 0 { Release::Released } else { Release::NotHeld })
    }

    /// Deletes the entry that was made at this revision, and no later one of its name; `None` where it is not known, or is not there.
    async fn delete(&self, asked: Asked<'_>, ours: Ours<'_>, created: Option<i64>) -> Result<Option<Release>, BackendError> {
        let Some(created) = created else { return Ok(None) };
        let entry = ours.entry;
        let txn = || {
            let same = Compare::create_revision(entry, CompareOp::Equal, created);
            Txn::new().when([same]).and_then([TxnOp::delete(entry, None)])
        };
        let reply = self.api.txn(&asked, txn).await?.map_err(|refusal| unexpected(asked, refusal))?;
        if !reply.succeeded {
            return Ok(None);
        }
        self.notes().forget(ours.claim.id);
        Ok(Some(Release::Released))
    }

    /// The conditions under which a claim may make its entry: there is none, and it was not released.
    pub(crate) fn fresh(&self, Ours { lease, claim, entry }: Ours<'_>) -> Vec<Compare> {
        vec![absent(entry.to_vec()), absent(self.layout.tombstone(lease, claim))]
    }

    /// The conditions under which a claim that makes its entry holds its key: nobody is in line, and it was not released.
    pub(crate) fn nobody(&self, Ours { lease, claim, .. }: Ours<'_>) -> Vec<Compare> {
        let line = self.layout.line(&claim.key);
        vec![absent(line.start).with_range(line.end), absent(self.layout.tombstone(lease, claim))]
    }

    /// What to read of a claim that may have been applied before.
    fn found_already(&self, Ours { lease, claim, entry }: Ours<'_>) -> Vec<TxnOp> {
        let tombstone = self.layout.tombstone(lease, claim);
        vec![
            TxnOp::get(entry, Some(GetOptions::new().with_keys_only())),
            TxnOp::get(tombstone, Some(GetOptions::new().with_count_only())),
        ]
    }

    /// How a claim stands that is not fresh, which is looked for apart: whoever asks once is not to carry that along. A copy of it counts as under
    /// way meanwhile, so that no other claim can have got its name.
    async fn already(&self, ours: Ours<'_>) -> Result<Standing, BackendError> {
        let known = self.notes().claim(ours.claim.id).and_then(ClaimNote::created);
        if known.is_some() {
            return self.stand(ours, known).await;
        }
        let asked = self.asked("looking for the claim", false, &ours.claim.key);
        let look = || Txn::new().and_then(self.found_already(ours));
        let mut reply = self.api.txn(&asked, look).await?.map_err(|gone| unexpected(asked, gone))?;
        let (own, tombstone) = (reply.next(), reply.next());
        self.known(ours, &own, &tombstone).await
    }

    /// How a claim stands that was applied before.
    async fn known(&self, ours: Ours<'_>, own: &Found, tombstone: &Found) -> Result<Standing, BackendError> {
        match own.entries.first() {
            Some(entry) if tombstone.count == 0 => {
                if entry.lease != ours.lease.0 {
                    return Err(foreign(&ours.claim.key, entry));
                }
                self.notes().entered(ours.claim.id, entry.created);
                self.stand(ours, Some(entry.created)).await.map_err(placed)
            }
            _ => Ok(Standing::ClaimGone),
        }
    }

    /// Sends what may make the claim's entry, and keeps account of whether it was answered; `None` when the session is gone. It counts as under way
    /// until what comes with the reply is dropped: until then its entry's name is no other claim's.
    #[allow(clippy::manual_async_fn)] // an `async fn` keeps room for its arguments twice
    fn send<'a>(
        &'a self,
        asked: &'a Asked<'a>,
        ours: Ours<'a>,
        txn: impl Fn() -> Txn,
    ) -> impl Future<Output = Result<Option<(Reply, Copy<'a>)>, BackendError>> {
        async move {
            let mut copy = Copy::sent(self, &ours.claim.id);
            let answer = self.api.txn(asked, &txn).await;
            if answer.as_ref().is_err_and(is_full) {
                self.notes().refused_for_room(ours.claim.id);
            }
            copy.answered = answer.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::Ambiguous || is_full(error));
            match answer? {
                Ok(reply) => Ok(Some((reply, copy))),
                Err(Refusal::LeaseGone) => {
                    self.notes().drop_lease(ours.lease);
                    Ok(None)
                }
                Err(refusal) => Err(unexpected(*asked, refusal)),
            }
        }
    }

    /// How an entry stands that has these ahead of it.
    fn stands(&self, ours: Ours<'_>, created: i64, revision: i64, ahead: Ahead) -> Result<Standing, BackendError> {
        if !ahead.awaited.is_empty() {
            self.notes().placed(ours.claim.id, created, ahead.awaited);
            let holder = ahead.first.map(|first| first.holder());
            return Ok(Standing::Waiting { cursor: cursor(revision), ahead: ahead.count, holder });
        }
        let Some(token) = token(created) else {
            return Err(BackendError::new(ErrorKind::Ambiguous, "claiming the key: etcd answered without a revision"));
        };
        self.notes().granted(ours.claim.id, created);
        self.granted.notify_waiters();
        Ok(Standing::Held { token })
    }
}

/// A copy of a claim on its way; counts as never answered unless it is told otherwise.
pub(crate) struct Copy<'a> {
    shared: &'a Shared,
    claim: &'a ClaimId,
    pub(crate) answered: bool,
}

impl<'a> Copy<'a> {
    pub(crate) fn sent(shared: &'a Shared, claim: &'a ClaimId) -> Self {
        shared.notes().sent(*claim);
        Self { shared, claim, answered: false }
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        self.shared.notes().done(*self.claim, self.answered);
    }
}

fn absent(key: Vec<u8>) -> Compare {
    Compare::create_revision(key, CompareOp::Equal, 0)
}

pub(crate) fn put(Ours { lease, entry, .. }: Ours<'_>, value: &[u8]) -> TxnOp {
    TxnOp::put(entry, value, Some(PutOptions::new().with_lease(lease.0)))
}

/// An error after the claim got its entry: whatever it says of its own request, the claim has something.
fn placed(error: BackendError) -> BackendError {
    if error.kind() == ErrorKind::Conflict {
        return error;
    }
    BackendError::new(ErrorKind::Ambiguous, error.message().to_owned()).caused_by(error)
}

/// Where a wait goes on.
pub(crate) fn cursor(revision: i64) -> Cursor {
    Cursor(revision.unsigned_abs())
}
