//! Several keys in one transaction, and a grant as a condition for the transactions of others.

use dlock_core::{BackendError, Claim, ErrorKind, FencingToken, Ownership, SessionId, Together};
use serde_json::{Value, json};

use crate::classify::{Asked, Needs, excerpt};
use crate::guarded::{Look, Shared, guard_op, without_index};
use crate::notes::{ClaimState, Known};
use crate::wire::{LOCK_FLAGS, Op, TxnError, encode_value};

/// So many keys are taken at once: each takes two of the 64 operations that Consul has in a transaction.
pub(crate) const MOST: usize = 32;

/// The operations for the front of a transaction of one's own (`PUT /v1/txn`): it is refused unless the grant is the present one.
///
/// Other operations follow in the same array, at most 62 of them, and the token that sends it must be able to read the lock's key. The
/// transaction goes to the datacenter of the lock; in a namespace or partition, each operation needs its `Namespace` or `Partition` as well.
pub fn consul_operations(ownership: &Ownership) -> [Value; 2] {
    let Ownership { key, session, revision, .. } = ownership;
    [
        json!({"KV": {"Verb": "check-session", "Key": key, "Session": session.as_str()}}),
        json!({"KV": {"Verb": "check-index", "Key": key, "Index": revision}}),
    ]
}

/// What one transaction brought.
enum Attempted {
    Held(Vec<FencingToken>),
    SessionGone,
    /// Consul grants this one to nobody for a while.
    Delayed(usize),
    /// These are to be looked at.
    Refused(Vec<usize>),
}

impl Shared {
    /// Takes the keys of all these claims, if all are free. Keys of which nothing is known count as absent first; what exists is looked at.
    pub(crate) async fn claim_all(&self, session: &SessionId, claims: &[Claim]) -> Result<Together, BackendError> {
        let mut guards: Vec<Known> = claims.iter().map(|claim| self.notes().key(&claim.key).unwrap_or(Known::Absent)).collect();
        // An earlier copy without an answer may have been applied: look before other guards are sent.
        let unanswered = claims.iter().any(|claim| self.notes().claim(claim.id).is_some());
        let mut unlooked = unanswered.then(|| (0..claims.len()).collect::<Vec<_>>());
        for _ in 0..3 {
            let refused = match unlooked.take() {
                Some(all) => all,
                None => match self.attempt_all(session, claims, &guards).await? {
                    Attempted::Held(tokens) => return Ok(Together::Held { tokens }),
                    Attempted::SessionGone => return Ok(Together::SessionGone),
                    Attempted::Delayed(claim) => return Ok(Together::Busy { claim, holder: None }),
                    Attempted::Refused(refused) => refused,
                },
            };
            let (mut tokens, mut taken) = (Vec::new(), None);
            for place in refused {
                let claim = &claims[place];
                match self.look(session, &claim.key, claim.id).await? {
                    Look::Free(known) => guards[place] = known,
                    Look::Taken { holder, .. } => taken = taken.or(Some((place, holder))),
                    Look::Ours { index, token } => {
                        self.granted(session, claim, token, index);
                        tokens.push(token);
                    }
                }
            }
            if tokens.len() == claims.len() {
                return Ok(Together::Held { tokens });
            }
            if !tokens.is_empty() {
                // An earlier copy was applied, and something was taken away since: each is to be found out by itself.
                return Err(BackendError::new(ErrorKind::Ambiguous, "claiming several keys: some of them are held already"));
            }
            if let Some((claim, holder)) = taken {
                return Ok(Together::Busy { claim, holder: Some(*holder) });
            }
        }
        Err(BackendError::new(ErrorKind::Transient, "claiming several keys: they changed again and again"))
    }

    async fn attempt_all(&self, session: &SessionId, claims: &[Claim], guards: &[Known]) -> Result<Attempted, BackendError> {
        let Some(first) = claims.first() else { return Ok(Attempted::Held(Vec::new())) };
        let asked = Asked { what: "claiming several keys", writes: true, needs: Needs::KeyWrite(first.key.as_str()) };
        let values: Vec<String> = claims.iter().map(|claim| encode_value(claim.publication())).collect();
        let mut ops = Vec::new();
        let mut unfenced_before = Vec::new();
        for ((claim, guard), value) in claims.iter().zip(guards).zip(&values) {
            ops.push(guard_op(claim.key.as_str(), *guard));
            ops.push(Op::lock(claim.key.as_str(), session, value, LOCK_FLAGS));
            let mut notes = self.notes();
            notes.note(claim.id, session, ClaimState::Sent(*guard));
            unfenced_before.push(*guard == Known::Absent && notes.sent_unfenced(claim.id, session));
        }
        let answer = self.txn(asked, &ops).await;
        let answered = answer.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::Ambiguous);
        if answered {
            for ((claim, guard), before) in claims.iter().zip(guards).zip(unfenced_before) {
                if *guard == Known::Absent && !before {
                    self.notes().take_unfenced(claim.id);
                }
            }
        }
        let errors = match answer {
            Ok(Ok(entries)) => {
                // One transaction is one change: every key has the same index.
                let index = entries.last().map_or(0, |entry| entry.modify_index);
                let token = FencingToken::new(index).ok_or_else(without_index)?;
                for claim in claims {
                    self.granted(session, claim, token, index);
                }
                return Ok(Attempted::Held(vec![token; claims.len()]));
            }
            Ok(Err(errors)) => errors,
            Err(error) if error.kind() == ErrorKind::Ambiguous => return Err(error),
            Err(error) => {
                self.forget_all(claims);
                return Err(error);
            }
        };
        self.forget_all(claims);
        let says = |text: &str| errors.iter().find(|error| error.says(text));
        let place = |error: &TxnError| error.op_index / 2;
        if says("invalid session").is_some() {
            Ok(Attempted::SessionGone)
        } else if let Some(refused) = says("missing session").or_else(|| says("failed session lookup")) {
            let message = format!("claiming several keys: Consul answered {}", excerpt(&refused.what));
            Err(BackendError::new(ErrorKind::Invalid, message))
        } else if let Some(delayed) = says("due to lock delay") {
            Ok(Attempted::Delayed(place(delayed)))
        } else {
            let mut refused: Vec<usize> = errors.iter().map(place).filter(|place| *place < claims.len()).collect();
            refused.dedup();
            Ok(Attempted::Refused(refused))
        }
    }

    /// None of these has anything.
    fn forget_all(&self, claims: &[Claim]) {
        let mut notes = self.notes();
        for claim in claims {
            notes.drop_claim(claim.id);
            notes.forget(&claim.key);
        }
    }
}
