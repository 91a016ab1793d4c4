//! What became of each case, so that none can be missing without being told.
//!
//! A case runs once in a process: for its own test, or for the report, whichever asks first. The report asks for all of them, so it
//! is whole however the tests are filtered, ordered or spread over threads.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use super::ability::Ability;
use super::harness::{Harness, Hook};
use super::stage::Stage;

/// What a case answers when it has not failed.
pub type Shown = Result<(), NotShown>;

/// Why a case that did not fail has shown nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotShown {
    /// The store does not declare this, and refuses it as it must.
    NotClaimed(Ability),
    /// The harness lacks this hook.
    HookMissing {
        /// The hook.
        hook: Hook,
        /// Whether the harness says that it cannot have it.
        allowed: bool,
    },
}

/// A case of a suite.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its group and name, as its test is called: `claim::a_free_key_is_held_at_once`.
    pub name: &'static str,
    /// The case itself.
    pub run: for<'a> fn(&'a Stage) -> CaseFuture<'a>,
}

/// A case under way.
pub type CaseFuture<'a> = Pin<Box<dyn Future<Output = Shown> + 'a>>;

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The property was shown.
    Passed,
    /// It was not shown.
    NotShown(NotShown),
    /// It does not hold.
    Failed(String),
}

/// The cases of one suite on one harness, and what became of them in this process; made by [`suite!`](crate::suite).
#[derive(Debug)]
pub struct Ledger {
    cases: &'static [Case],
    entries: Mutex<Entries>,
    finished: Condvar,
}

#[derive(Debug)]
struct Entries {
    harness: Option<String>,
    /// `None` while a case runs.
    outcomes: BTreeMap<&'static str, Option<Outcome>>,
}

impl Ledger {
    /// No case was run yet.
    pub const fn new(cases: &'static [Case]) -> Self {
        let entries = Entries { harness: None, outcomes: BTreeMap::new() };
        Self { cases, entries: Mutex::new(entries), finished: Condvar::new() }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The test of one case: runs it unless the report has, and fails unless the property was shown, is not claimed, or lacks an
    /// allowed hook.
    pub async fn show<H: Harness + 'static>(&self, name: &str, harness: impl AsyncFnOnce() -> H) {
        self.show_on(name, boxed(harness())).await;
    }

    async fn show_on(&self, name: &str, harness: Starting<'_>) {
        let case = *self.cases.iter().find(|case| case.name == name).expect("tests are made from the list of cases");
        match self.outcome(case, harness).await {
            (_, Some(panic)) => resume_unwind(panic),
            (Outcome::Failed(message), None) => panic!("failed when the report ran it, see there: {message}"),
            (Outcome::NotShown(NotShown::HookMissing { hook, allowed: false }), None) => {
                panic!("not shown: the harness lacks the hook {hook}; write it, or list it in missing_hooks_allowed");
            }
            (Outcome::Passed | Outcome::NotShown(_), None) => {}
        }
    }

    /// The closing report: runs every case that has not run yet, and tells what became of all.
    pub async fn report<H: Harness + 'static>(&self, harness: impl AsyncFn() -> H) -> Report {
        let mut outcomes = Vec::new();
        for case in self.cases {
            let (outcome, _) = self.outcome(*case, boxed(harness())).await;
            outcomes.push((case.name, outcome));
        }
        let harness = self.entries().harness.clone().unwrap_or_default();
        Report { harness, outcomes }
    }

    /// What became of a case; runs it if nobody did. With the panic, if it was run here and failed.
    async fn outcome(&self, case: Case, harness: Starting<'_>) -> (Outcome, Option<Box<dyn Any + Send>>) {
        if let Some(outcome) = self.begin(case.name) {
            return (outcome, None);
        }
        let running = Running { ledger: self, name: case.name };
        let shown = caught(async {
            let stage = Stage::on(harness.await);
            self.entries().harness = Some(stage.harness().name());
            (case.run)(&stage).await
        });
        let (outcome, panic) = match shown.await {
            Ok(Ok(())) => (Outcome::Passed, None),
            Ok(Err(not_shown)) => (Outcome::NotShown(not_shown), None),
            Err(panic) => (Outcome::Failed(message(&*panic)), Some(panic)),
        };
        running.finish(outcome.clone());
        (outcome, panic)
    }

    /// The outcome of a case, after waiting for whoever runs it; `None` if that is the caller's turn now.
    fn begin(&self, name: &'static str) -> Option<Outcome> {
        let mut entries = self.entries();
        loop {
            match entries.outcomes.get(name) {
                None => {
                    entries.outcomes.insert(name, None);
                    return None;
                }
                Some(Some(outcome)) => return Some(outcome.clone()),
                // Another test, on a thread and a runtime of its own.
                Some(None) => entries = self.finished.wait(entries).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// A harness that is being started: of no type of its own, so that what is around a case is compiled once and not for each.
type Starting<'a> = Pin<Box<dyn Future<Output = Box<dyn Harness>> + 'a>>;

fn boxed<'a, H: Harness + 'static>(harness: impl Future<Output = H> + 'a) -> Starting<'a> {
    Box::pin(async move { Box::new(harness.await) as Box<dyn Harness> })
}

/// A case that is being run; one that is dropped half-way has failed.
struct Running<'a> {
    ledger: &'a Ledger,
    name: &'static str,
}

impl Running<'_> {
    fn finish(self, outcome: Outcome) {
        self.ledger.entries().outcomes.insert(self.name, Some(outcome));
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut entries = self.ledger.entries();
        let entry = entries.outcomes.entry(self.name).or_default();
        entry.get_or_insert_with(|| Outcome::Failed("dropped before its end".to_owned()));
        self.ledger.finished.notify_all();
    }
}

/// The output of a future, or the panic of one of its polls.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, Box<dyn Any + Send>> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "it panicked".to_owned())
}

/// What became of every case of a suite on one harness.
#[derive(Clone, Debug)]
pub struct Report {
    harness: String,
    outcomes: Vec<(&'static str, Outcome)>,
}

impl Report {
    /// Every case with its outcome, in the order of the suite.
    pub fn outcomes(&self) -> &[(&'static str, Outcome)] {
        &self.outcomes
    }

    /// Prints it past the capture of the test runner: what was not shown must be seen although nothing failed.
    pub fn print(&self) {
        _ = writeln!(std::io::stdout(), "\n{self}");
    }

    /// Fails if a case failed, or was not shown for want of a hook that is not allowed to be missing.
    pub fn assert_conforming(&self) {
        let bad = |outcome: &Outcome| match outcome {
            Outcome::Failed(message) => Some(message.clone()),
            Outcome::NotShown(NotShown::HookMissing { hook, allowed: false }) => Some(format!("lacks the hook {hook}")),
            Outcome::Passed | Outcome::NotShown(_) => None,
        };
        let bad: Vec<_> = self.outcomes.iter().filter_map(|(name, outcome)| Some(format!("{name}: {}", bad(outcome)?))).collect();
        assert!(bad.is_empty(), "{}: {} do not conform:\n{}", self.harness, bad.len(), bad.join("\n"));
    }

    fn count(&self, which: impl Fn(&Outcome) -> bool) -> usize {
        self.outcomes.iter().filter(|(_, outcome)| which(outcome)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passed = self.count(|outcome| *outcome == Outcome::Passed);
        let not_claimed = self.count(|outcome| matches!(outcome, Outcome::NotShown(NotShown::NotClaimed(_))));
        let missing = self.count(|outcome| matches!(outcome, Outcome::NotShown(NotShown::HookMissing { .. })));
        let failed = self.count(|outcome| matches!(outcome, Outcome::Failed(_)));
        write!(
            f,
            "conformance of {}: {} cases, {passed} passed, {not_claimed} not claimed, {missing} not shown for want of a hook, \
             {failed} failed",
            self.harness,
            self.outcomes.len()
        )?;
        let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (name, outcome) in &self.outcomes {
            let reason = match outcome {
                Outcome::Passed => continue,
                Outcome::NotShown(NotShown::NotClaimed(ability)) => format!("not claimed and refused: {ability}"),
                Outcome::NotShown(NotShown::HookMissing { hook, allowed: true }) => format!("hook missing, as allowed: {hook}"),
                Outcome::NotShown(NotShown::HookMissing { hook, allowed: false }) => format!("HOOK MISSING: {hook}"),
                Outcome::Failed(_) => "FAILED".to_owned(),
            };
            reasons.entry(reason).or_default().push(name);
        }
        for (reason, names) in reasons {
            let mut line = String::new();
            for name in names {
                _ = write!(line, "\n    {name}");
            }
            write!(f, "\n  {reason}{line}")?;
        }
        Ok(())
    }
}
