//! Several keys in one transaction.

use dlock_core::{BackendError, Claim, ErrorKind, Together};
use etcd_client::{SortOrder, Txn, TxnOp};

use crate::ahead::{no_conflict, window};
use crate::api::{Refusal, by_creation, unexpected};
use crate::classify::is_full;
use crate::line::{Copy, Ours, Shared, put};
use crate::wire::{Lease, token};

/// So many keys are taken at once: with two conditions and an operation for each, of which etcd has 128 in a transaction, and values of 16 KiB, all of which
/// stay far from the 1.5 MiB that etcd takes in a request.
pub(crate) const MOST: usize = 40;

impl Shared {
    /// Takes the keys of all these claims if nobody is in line for any of them.
    pub(crate) async fn claim_all(&self, lease: Lease, claims: &[Claim], values: &[Vec<u8>]) -> Result<Together, BackendError> {
        let Some(first) = claims.first() else { return Ok(Together::Held { tokens: Vec::new() }) };
        let asked = self.asked("claiming several keys", true, &first.key);
        let mut entries = Vec::new();
        for claim in claims {
            entries.push(self.begin(lease, claim).await?);
        }
        let ours: Vec<_> = claims.iter().zip(&entries).map(|(claim, entry)| Ours { lease, claim, entry }).collect();
        let (mut conditions, mut puts, mut looks) = (Vec::new(), Vec::new(), Vec::new());
        for (one, value) in ours.iter().zip(values) {
            let line = self.layout.line(&one.claim.key);
            conditions.extend(self.nobody(*one));
            puts.push(put(*one, value));
            looks.push(TxnOp::get(line.start, Some(by_creation(&line.end, SortOrder::Ascend, window(one.claim.mode)))));
        }
        let mut copies: Vec<_> = claims.iter().map(|claim| Copy::sent(self, &claim.id)).collect();
        let txn = || Txn::new().when(conditions.as_slice()).and_then(puts.as_slice()).or_else(looks.as_slice());
        let answer = self.api.txn(&asked, txn).await;
        let answered = answer.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::Ambiguous || is_full(error));
        for copy in &mut copies {
            copy.answered = answered;
        }
        if answer.as_ref().is_err_and(is_full) {
            for claim in claims {
                self.notes().refused_for_room(claim.id);
            }
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
            return self.all_granted(claims.iter().map(|claim| (claim, reply.revision)));
        }
        let (mut ours_first, mut refused) = (Vec::new(), None);
        for (place, Ours { claim, entry, .. }) in ours.iter().enumerate() {
            let Some(head) = self.head(&claim.key, reply.next()).await? else { continue };
            no_conflict(&claim.key, &head)?;
            if head.key == *entry {
                ours_first.push((*claim, head.created));
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
    fn all_granted<'a>(&self, entries: impl IntoIterator<Item = (&'a Claim, i64)>) -> Result<Together, BackendError> {
        let mut tokens = Vec::new();
        for (claim, created) in entries {
            let Some(token) = token(created) else {
                return Err(BackendError::new(ErrorKind::Ambiguous, "claiming several keys: etcd answered without a revision"));
            };
            self.notes().granted(claim.id, created);
            tokens.push(token);
        }
        self.granted.notify_waiters();
        Ok(Together::Held { tokens })
    }
}
