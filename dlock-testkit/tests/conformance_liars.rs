//! The suite can fail: backends that lie, each in one way, are told by the case that is there for it.
#![allow(missing_docs)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    BackendError, Capabilities, Check, Claim, Cursor, ErrorKind, FencingToken, Finding, Granted, Hint, Holder, Inspection,
    Interference, Key, LockBackend, Metadata, Ownership, Place, Release, Renewal, Session, SessionId, SessionRequest, Standing,
    Together, Woken,
};
use dlock_testkit::conformance::{CASES, Harness, Hook, Hooked, InMemory, Ledger, NotShown, Outcome, Sent, UnderWay};
use dlock_testkit::memory::Memory;

/// What a backend gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// It declares shared locks and refuses them.
    DeclaresWhatItRefuses,
    /// It answers an amendment that it does not declare.
    AnswersWhatItDoesNotDeclare,
    /// It calls contention an error.
    ContentionIsAnError,
    /// It says "held" whoever asks.
    GrantsToAll,
    /// It counts grants by claim, not by key.
    TokensOfItsOwn,
    /// It forgets that it released, and says so again.
    ReleasesTwice,
    /// A release of any claim frees the key of the last one.
    ReleasesByKey,
    /// It takes silence of a session for life.
    RenewsTheDead,
    /// A wait returns at once.
    Polls,
    /// A wait never returns.
    NeverWakes,
    /// It makes upper and lower case one.
    IgnoresCase,
    /// It cuts long metadata off.
    CutsMetadata,
    /// It finds no interference.
    AuditsNothing,
    /// It takes a lost reply for a failure that was surely not applied.
    TakesSilenceForNo,
    /// It finds itself fit while nothing is answered.
    SaysThatAllIsWell,
}

#[derive(Debug)]
struct Liar {
    inner: Arc<dyn LockBackend>,
    capabilities: Capabilities,
    lie: Lie,
    counted: AtomicU64,
    last: Mutex<Option<Claim>>,
}

impl Liar {
    fn new(inner: Arc<dyn LockBackend>, lie: Lie) -> Self {
        let mut capabilities = inner.capabilities().clone();
        match lie {
            Lie::DeclaresWhatItRefuses => capabilities.shared = true,
            Lie::AnswersWhatItDoesNotDeclare => capabilities.amends = false,
            _ => {}
        }
        Self { inner, capabilities, lie, counted: AtomicU64::new(1000), last: Mutex::default() }
    }

    fn is(&self, lie: Lie) -> bool {
        self.lie == lie
    }

    fn bent(&self, claim: &Claim) -> Claim {
        let mut bent = claim.clone();
        if self.is(Lie::IgnoresCase) {
            bent.key = Key::new(claim.key.as_str().to_lowercase()).unwrap();
        }
        if self.is(Lie::CutsMetadata) && serde_json::to_vec(&claim.metadata.as_deref()).unwrap().len() > 60_000 {
            bent.metadata = None;
        }
        bent
    }
}

#[async_trait]
impl LockBackend for Liar {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn open(&self, request: &SessionRequest) -> Result<Session, BackendError> {
        self.inner.open(request).await
    }

    async fn renew(&self, session: &SessionId) -> Result<Renewal, BackendError> {
        match self.inner.renew(session).await? {
            Renewal::Gone if self.is(Lie::RenewsTheDead) => Ok(Renewal::Renewed { ttl: Duration::from_secs(60) }),
            renewal => Ok(renewal),
        }
    }

    async fn audit(&self, session: &SessionId, claims: &[Granted]) -> Result<Vec<Interference>, BackendError> {
        let found = self.inner.audit(session, claims).await?;
        Ok(if self.is(Lie::AuditsNothing) { Vec::new() } else { found })
    }

    async fn close(&self, session: &SessionId) -> Result<(), BackendError> {
        self.inner.close(session).await
    }

    async fn claim(&self, session: &SessionId, claim: &Claim, place: Place) -> Result<Standing, BackendError> {
        *self.last.lock().unwrap() = Some(claim.clone());
        let answer = self.inner.claim(session, &self.bent(claim), place).await;
        match answer {
            Err(error) if error.kind() == ErrorKind::Ambiguous && self.is(Lie::TakesSilenceForNo) => {
                Err(BackendError::new(ErrorKind::Transient, "surely not"))
            }
            Ok(Standing::Busy { .. }) if self.is(Lie::ContentionIsAnError) => Err(BackendError::new(ErrorKind::Transient, "taken")),
            Ok(Standing::Busy { .. } | Standing::Held { .. }) if self.is(Lie::GrantsToAll) => {
                Ok(Standing::Held { token: FencingToken::new(7).unwrap() })
            }
            Ok(Standing::Held { .. }) if self.is(Lie::TokensOfItsOwn) => {
                let number = self.counted.fetch_sub(1, Ordering::Relaxed);
                Ok(Standing::Held { token: FencingToken::new(number).unwrap() })
            }
            other => other,
        }
    }

    async fn wait(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Woken, BackendError> {
        match self.lie {
            Lie::Polls => Ok(Woken { cursor, hint: Hint::MaybeFree }),
            Lie::NeverWakes => std::future::pending().await,
            _ => self.inner.wait(session, &self.bent(claim), cursor).await,
        }
    }

    async fn confirm(&self, session: &SessionId, claim: &Claim, cursor: Cursor) -> Result<Standing, BackendError> {
        self.inner.confirm(session, claim, cursor).await
    }

    async fn release(&self, session: &SessionId, claim: &Claim) -> Result<Release, BackendError> {
        let last = self.last.lock().unwrap().clone().filter(|last| last.key == claim.key);
        let claim = last.filter(|_| self.is(Lie::ReleasesByKey)).unwrap_or_else(|| self.bent(claim));
        match self.inner.release(session, &claim).await? {
            Release::NotHeld if self.is(Lie::ReleasesTwice) => Ok(Release::Released),
            release => Ok(release),
        }
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, BackendError> {
        if self.is(Lie::IgnoresCase) {
            return self.inner.inspect(&Key::new(key.as_str().to_lowercase()).unwrap()).await;
        }
        self.inner.inspect(key).await
    }

    async fn disturbed(
        &self,
        session: &SessionId,
        granted: Option<&Granted>,
        cursor: Option<Cursor>,
    ) -> Result<Cursor, BackendError> {
        self.inner.disturbed(session, granted, cursor).await
    }

    async fn amend(&self, session: &SessionId, claim: &Claim, metadata: &Metadata) -> Result<bool, BackendError> {
        self.inner.amend(session, claim, metadata).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(Key, Holder)>, BackendError> {
        self.inner.list(prefix).await
    }

    async fn changed(&self, key: &Key, cursor: Option<Cursor>) -> Result<Cursor, BackendError> {
        self.inner.changed(key, cursor).await
    }

    async fn evict(&self, key: &Key, token: FencingToken) -> Result<bool, BackendError> {
        self.inner.evict(key, token).await
    }

    async fn claim_all(&self, session: &SessionId, claims: &[Claim]) -> Result<Together, BackendError> {
        self.inner.claim_all(session, claims).await
    }

    fn ownership(&self, session: &SessionId, granted: &Granted) -> Result<Ownership, BackendError> {
        self.inner.ownership(session, granted)
    }

    async fn probe(&self) -> Vec<Finding> {
        let found = self.inner.probe().await;
        if self.is(Lie::SaysThatAllIsWell) { vec![Finding::fine(Check::Reachable, "as ever")] } else { found }
    }
}

/// The harness of the store in memory, with liars for clients.
struct Lying {
    sound: InMemory,
    lie: Lie,
}

#[async_trait]
impl Harness for Lying {
    fn name(&self) -> String {
        format!("{:?}", self.lie)
    }

    async fn client(&self) -> Arc<dyn LockBackend> {
        Arc::new(Liar::new(self.sound.client().await, self.lie))
    }

    fn short_ttl(&self) -> Duration {
        self.sound.short_ttl()
    }

    fn long_ttl(&self) -> Duration {
        self.sound.long_ttl()
    }

    fn prompt(&self) -> Duration {
        self.sound.prompt()
    }

    async fn end_session(&self, session: &SessionId) -> Hooked {
        self.sound.end_session(session).await
    }

    async fn delete(&self, key: &Key) -> Hooked {
        self.sound.delete(key).await
    }

    async fn fail(&self) -> Hooked {
        self.sound.fail().await
    }

    fn lose_reply(&self, of: Sent) -> Hooked {
        self.sound.lose_reply(of)
    }

    fn hold(&self, what: Sent) -> Hooked<Box<dyn UnderWay>> {
        self.sound.hold(what)
    }
}

/// Runs the one case that is there for a lie.
async fn told(lie: Lie, name: &'static str) -> Outcome {
    let case = CASES.iter().position(|case| case.name == name).unwrap_or_else(|| panic!("there is no case {name}"));
    let ledger = Ledger::new(&CASES[case..=case]);
    let report = ledger.report(async || Lying { sound: InMemory::new("", Memory::slot()), lie }).await;
    report.outcomes()[0].1.clone()
}

#[tokio::test(start_paused = true)]
async fn every_lie_is_told_by_its_case() {
    let lies = [
        (Lie::DeclaresWhatItRefuses, "modes::shared_claims_keep_out_exclusive_ones_only"),
        (Lie::AnswersWhatItDoesNotDeclare, "optional::only_a_holder_amends"),
        (Lie::ContentionIsAnError, "claim::a_try_at_a_taken_key_is_busy_and_leaves_nothing"),
        (Lie::GrantsToAll, "claim::of_many_who_ask_at_once_one_is_granted"),
        (Lie::TokensOfItsOwn, "tokens::every_grant_has_a_greater_one"),
        (Lie::ReleasesTwice, "release::a_repeated_release_never_frees_a_successor"),
        (Lie::ReleasesByKey, "release::what_was_never_claimed_is_not_held"),
        (Lie::RenewsTheDead, "session::what_is_gone_stays_gone"),
        (Lie::Polls, "wait::a_wait_lasts_while_nothing_changes"),
        (Lie::NeverWakes, "wait::a_release_ends_a_wait"),
        (Lie::IgnoresCase, "keys::keys_differ_by_case"),
        (Lie::CutsMetadata, "metadata::metadata_of_exactly_the_limit_is_taken"),
        (Lie::AuditsNothing, "interference::an_audit_tells_a_deleted_key"),
        (Lie::TakesSilenceForNo, "claim::a_claim_whose_reply_was_lost_is_found_out"),
        (Lie::SaysThatAllIsWell, "probe::a_store_out_of_reach_is_found_so"),
    ];
    for (lie, case) in lies {
        let outcome = told(lie, case).await;
        assert!(matches!(outcome, Outcome::Failed(_)), "{lie:?} passes {case}: {outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_hook_is_told() {
    let outcome = told(Lie::AuditsNothing, "session::a_closed_session_is_not_kept").await;
    assert_eq!(outcome, Outcome::NotShown(NotShown::HookMissing { hook: Hook::Sessions, allowed: false }));
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "lacks the hook sessions")]
async fn a_missing_hook_fails_its_case_unless_it_is_allowed() {
    let harness = async || Lying { sound: InMemory::slot(), lie: Lie::AuditsNothing };
    Ledger::new(CASES).show("session::a_closed_session_is_not_kept", harness).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "2 do not conform")]
async fn a_report_fails_with_the_cases_that_fail() {
    let harness = async || Lying { sound: InMemory::slot(), lie: Lie::NeverWakes };
    let wait = CASES.iter().position(|case| case.name == "wait::a_release_ends_a_wait").unwrap();
    Ledger::new(&CASES[wait..wait + 2]).report(harness).await.assert_conforming();
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "take it off the list")]
async fn a_hook_that_is_allowed_to_be_missing_must_be_missing() {
    struct Modest(InMemory);

    #[async_trait]
    impl Harness for Modest {
        fn name(&self) -> String {
            self.0.name()
        }

        async fn client(&self) -> Arc<dyn LockBackend> {
            self.0.client().await
        }

        fn short_ttl(&self) -> Duration {
            self.0.short_ttl()
        }

        fn long_ttl(&self) -> Duration {
            self.0.long_ttl()
        }

        fn prompt(&self) -> Duration {
            self.0.prompt()
        }

        fn missing_hooks_allowed(&self) -> &[Hook] {
            &[Hook::Delete]
        }

        async fn delete(&self, key: &Key) -> Hooked {
            self.0.delete(key).await
        }
    }

    Ledger::new(CASES).show("tokens::a_deletion_does_not_set_them_back", async || Modest(InMemory::queue())).await;
}
