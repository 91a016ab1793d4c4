//! The cases that every backend must pass, written once against `dyn LockBackend`.
//!
//! An author of a backend implements [`Harness`] for the store, and lets [`contract!`](crate::contract) make a named test of every case. What
//! a backend declares is exercised; what it does not declare must be refused. No case is left out: a store that offers no lever for a
//! fault needs a proxy in front of it, such as [`FaultProxy`](crate::proxy::FaultProxy).
//!
//! ```text
//! // tests/contract.rs of a backend
//! dlock_testkit::contract! { #[tokio::test] MyHarness::start().await }
//! ```

pub mod claim;
pub mod confirm;
pub mod expiry;
pub mod interference;
pub mod look;
pub mod optional;
pub mod release;
pub mod tokens;
pub mod wait;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    Claim, ClaimId, FencingToken, Granted, Key, LockBackend, Metadata, Mode, Order, Place, SessionId, SessionRequest, Standing,
};

/// A store under test, and what can be done to it and to the requests on their way there.
#[async_trait]
pub trait Harness: Send + Sync {
    /// A new client of the store; clients share the store and nothing else.
    async fn client(&self) -> Arc<dyn LockBackend>;
    /// A ttl that the store accepts and a case can wait for.
    fn short_ttl(&self) -> Duration;
    /// A ttl that no case outlives.
    fn long_ttl(&self) -> Duration;
    /// How soon a client must hear of what happened at the store.
    fn prompt(&self) -> Duration;
    /// Ends a session as an operator would.
    async fn end_session(&self, session: &SessionId);
    /// Deletes a key as an operator would.
    async fn delete(&self, key: &Key);
    /// Takes the lock of a key from its holder as an operator would; the key stays.
    async fn release_by_force(&self, key: &Key);
    /// Puts something under a key that is no lock.
    async fn put_foreign(&self, key: &Key);
    /// The next such request is applied, and its reply lost.
    fn lose_reply(&self, of: Sent);
    /// The next such request is under way until it is told to arrive.
    fn hold(&self, what: Sent) -> Box<dyn UnderWay>;
}

/// A kind of request that changes who holds a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// One that may take the key.
    Claim,
    /// One that may free it.
    Release,
}

/// A request that is under way for as long as a case wants.
#[async_trait]
pub trait UnderWay: Send + Sync {
    /// Returns when it was sent.
    async fn sent(&self);
    /// Lets it arrive.
    async fn deliver(&self);
}

/// A client with an open session.
pub(crate) struct Client {
    pub(crate) backend: Arc<dyn LockBackend>,
    pub(crate) session: SessionId,
}

impl Client {
    pub(crate) async fn new(harness: &dyn Harness) -> Self {
        Self::with_ttl(harness, harness.long_ttl()).await
    }

    pub(crate) async fn with_ttl(harness: &dyn Harness, ttl: Duration) -> Self {
        let backend = harness.client().await;
        let session = open(&*backend, ttl).await;
        Self { backend, session }
    }

    /// Another session of the same client.
    pub(crate) async fn again(&self, harness: &dyn Harness) -> Self {
        let backend = Arc::clone(&self.backend);
        let session = open(&*backend, harness.long_ttl()).await;
        Self { backend, session }
    }

    pub(crate) async fn claim(&self, claim: &Claim, place: Place) -> Standing {
        self.backend.claim(&self.session, claim, place).await.expect("a claim must be answered")
    }

    pub(crate) async fn held(&self, claim: &Claim) -> FencingToken {
        match self.claim(claim, Place::Try).await {
            Standing::Held { token } => token,
            other => panic!("{} was not granted: {other:?}", claim.key),
        }
    }

    /// Releases, and says whether the claim had something.
    pub(crate) async fn release(&self, claim: &Claim) -> bool {
        match self.backend.release(&self.session, claim).await.expect("a release must be answered") {
            dlock_core::Release::Released | dlock_core::Release::Unfenced { had: true } => true,
            dlock_core::Release::NotHeld | dlock_core::Release::Unfenced { had: false } => false,
        }
    }

    pub(crate) async fn granted(&self, claim: &Claim) -> Granted {
        let token = self.held(claim).await;
        Granted { claim: Arc::new(claim.clone()), token }
    }

    pub(crate) async fn holders(&self, key: &Key) -> usize {
        self.backend.inspect(key).await.expect("a look must be answered").holders.len()
    }

    pub(crate) fn is_fifo(&self) -> bool {
        self.backend.capabilities().order == Order::Fifo
    }
}

pub(crate) async fn open(backend: &dyn LockBackend, ttl: Duration) -> SessionId {
    let request = SessionRequest { id: SessionId::from_bits(fastrand::u128(..)), ttl, owner: "host/1/contract".into() };
    let session = backend.open(&request).await.expect("a session must open");
    assert!(session.ttl >= ttl, "a store grants at least the ttl that was asked for, or refuses");
    session.id
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(name).expect("a good name")
}

/// A new claim for a key.
pub(crate) fn claim_of(name: &str) -> Claim {
    let mut metadata = Metadata::new();
    metadata.insert("purpose", "contract").expect("no reserved name");
    Claim {
        id: ClaimId::from_bits(fastrand::u128(..)),
        key: key(name),
        mode: Mode::Exclusive,
        owner: "host/1/contract".into(),
        acquired_at: "2026-01-01T00:00:00Z".into(),
        metadata: Some(Arc::new(metadata)),
    }
}

/// Makes a test of every case, each on a harness of its own; to be called at most once in a module.
///
/// Takes the attribute of a test and an expression for a harness, which may await: `contract! { #[tokio::test] MyHarness::start().await }`.
#[macro_export]
macro_rules! contract {
    (#[$test:meta] $harness:expr) => {
        $crate::contract! { @groups [#[$test]] [$harness]
            claim {
                a_free_key_is_held_at_once,
                a_claim_asked_again_gets_the_same_token,
                a_claim_whose_reply_was_lost_is_found_out,
                a_try_at_a_taken_key_is_busy_and_leaves_nothing,
                a_taken_key_is_waited_for_in_the_declared_order,
                whoever_finds_a_key_taken_is_told_by_whom,
                a_session_is_not_granted_a_key_twice_or_says_so,
                an_unknown_session_is_told,
                a_key_used_for_something_else_is_a_conflict_and_left_alone,
                a_mode_that_is_not_declared_is_refused,
                what_does_not_fit_is_refused,
                keys_are_taken_verbatim,
            }
            wait {
                a_release_ends_a_wait,
                the_end_of_the_holders_session_ends_a_wait,
                a_deletion_ends_a_wait,
                a_wait_lasts_while_nothing_changes,
                a_dropped_wait_changes_nothing,
            }
            confirm {
                the_first_in_line_is_confirmed_and_no_other,
                a_place_is_never_made_by_asking,
            }
            release {
                what_is_released_is_free,
                what_was_never_claimed_is_not_held,
                a_repeated_release_never_frees_a_successor,
                a_late_release_never_frees_a_successor,
                a_claim_that_arrives_after_its_release_has_no_effect,
                a_lost_reply_is_found_out,
                a_place_in_line_is_given_up,
                a_session_that_ended_took_its_claims_along,
            }
            tokens {
                every_grant_has_a_greater_one,
                a_deletion_does_not_set_them_back,
                an_expiry_does_not_set_them_back,
            }
            expiry {
                a_renewed_session_keeps_what_it_has,
                a_silent_session_lapses_within_the_declared_time_and_not_before_its_ttl,
                a_closed_session_has_nothing,
                what_is_gone_stays_gone,
                a_ttl_out_of_range_is_refused,
            }
            interference {
                an_audit_finds_nothing_where_nothing_happened,
                an_audit_tells_a_deleted_key,
                an_audit_tells_a_forced_release,
                an_audit_tells_a_successor,
                a_watch_is_quiet_while_nothing_happens,
                a_watch_tells_of_a_deleted_key,
                a_watch_tells_of_an_ended_session,
            }
            look {
                a_free_key_has_no_holder,
                a_holder_is_shown_with_its_metadata,
                those_in_line_are_shown_in_order,
                what_is_no_lock_is_shown_raw,
            }
            optional {
                amended_metadata_is_read_by_others_and_the_token_stays,
                held_keys_are_listed_by_prefix_in_order,
                a_change_is_told,
                only_the_present_grant_is_evicted,
            }
        }
    };
    (@groups $test:tt $harness:tt $($group:ident { $($case:ident,)+ })+) => {
        $(mod $group {
            #[allow(unused_imports)]
            use super::*;
            $($crate::contract! { @case $test $harness $group $case })+
        })+
    };
    (@case [#[$test:meta]] [$harness:expr] $group:ident $case:ident) => {
        #[$test]
        async fn $case() {
            $crate::contract::$group::$case(&$harness).await;
        }
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_case_is_in_the_list() {
        let list = include_str!("mod.rs");
        let groups = [
            include_str!("claim.rs"),
            include_str!("wait.rs"),
            include_str!("confirm.rs"),
            include_str!("release.rs"),
            include_str!("tokens.rs"),
            include_str!("expiry.rs"),
            include_str!("interference.rs"),
            include_str!("look.rs"),
            include_str!("optional.rs"),
        ];
        let mut cases = 0;
        for line in groups.iter().flat_map(|group| group.lines()) {
            let Some(rest) = line.strip_prefix("pub async fn ") else { continue };
            let name = rest.split('(').next().unwrap();
            assert!(list.contains(&format!("                {name},\n")), "{name} is not in the list");
            cases += 1;
        }
        assert!(cases >= 30, "{cases}");
    }
}
