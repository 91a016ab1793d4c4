//! Several keys in one transaction.

use dlock_core::{BackendError, Claim, ErrorKind, FencingToken, Together};
use etcd_client::{Compare, CompareOp, SortOrder, Txn, TxnOp};

use crate::ahead::{no_conflict, window};
use crate::api::{Refusal, by_creation, unexpected};
use crate::classify::is_full;
use crate::line::{Copy, Ours, Shared, put};
use crate::wire::Lease;

/// So many keys are taken at once: each takes three of the 128 conditions, and one of the 128 operations, that etcd has in a transaction.
pub(crate) const MOST: usize = 40;

impl Shared {
    /// Takes the keys of all these claims if nobody is in line for any of them.
    pub(crate) async fn claim_all(&self, lease: Lease, claims: &[Claim]) -> Result<Together, BackendError> {
        let Some(first) = claims.first() else { return Ok(Together::Held { tokens: Vec::new() }) };
        let asked = self.asked("claiming several keys", true, &first.key);
        let ours = |claim| Ours { lease, claim };
        let (mut conditions, mut puts, mut looks) = (Vec::new(), Vec::new(), Vec::new());
        for claim in claims {
            let (entry, line) = (self.layout.entry(lease, claim), self.layout.line(&claim.key));
            conditions.extend(self.fresh(ours(claim), &entry));
            conditions.push(Compare::create_revision(line.start.as_slice(), CompareOp::Equal, 0).with_range(line.end.as_slice()));
            puts.push(put(ours(claim), &entry));
            looks.push(TxnOp::get(line.start, Some(by_creation(&line.end, SortOrder::Ascend, window(claim.mode)))));
        }
        let mut copies: Vec<_> = claims.iter().map(|claim| Copy::sent(self, ours(claim))).collect();
        let answer = self.api.txn(asked, Txn::new().when(conditions).and_then(puts).or_else(looks)).await;
        let answered = answer.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::Ambiguous || is_full(error));
        for copy in &mut copies {
            copy.answered = answered;
        }
        drop(copies);
        let mut reply = match answer? {
            Ok(reply) => reply,
            Err(Refusal::LeaseGone) => {
                self.notes().drop_lease(lease);
                return Ok(Together::SessionGone);
            }
            Err(refusal) => return Err(unexpected(asked, refusal)),
        };
        if reply.succeeded {
            return self.all_granted(claims.iter().map(|claim| (ours(claim), reply.revision)));
        }
        let (mut ours_first, mut refused) = (Vec::new(), None);
        for (place, claim) in claims.iter().enumerate() {
            let Some(head) = self.head(&claim.key, reply.next()).await? else { continue };
            no_conflict(&claim.key, &head)?;
            if head.key == self.layout.entry(lease, claim) {
                ours_first.push((ours(claim), head.created));
            } else if refused.is_none() {
                refused = Some((place, head.holder()));
            }
        }
        if ours_first.len() == claims.len() {
            return self.all_granted(ours_first);
        }
        if !ours_first.is_empty() {
            // An earlier copy was applied, and something was taken away since: each is to be found out by itself.
            return Err(BackendError::new(ErrorKind::Ambiguous, "claiming several keys: some of them are held already"));
        }
        for claim in claims {
            self.notes().left_nothing(claim.id);
        }
        // Where nobody is in line, one of them was released before.
        let (claim, holder) = refused.map_or((0, None), |(place, holder)| (place, Some(holder)));
        Ok(Together::Busy { claim, holder })
    }

    /// The grants of entries that are first in their lines.
    fn all_granted<'a>(&self, entries: impl IntoIterator<Item = (Ours<'a>, i64)>) -> Result<Together, BackendError> {
        let mut tokens = Vec::new();
        for (ours, created) in entries {
            let Some(token) = u64::try_from(created).ok().and_then(FencingToken::new) else {
                return Err(BackendError::new(ErrorKind::Ambiguous, "claiming several keys: etcd answered without a revision"));
            };
            self.notes().granted(ours.claim.id, created, self.layout.entry(ours.lease, ours.claim));
            tokens.push(token);
        }
        self.granted.notify_waiters();
        Ok(Together::Held { tokens })
    }
}
