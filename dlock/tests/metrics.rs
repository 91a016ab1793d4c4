//! What is measured, read from a recorder, on the store in memory in virtual time.
#![allow(missing_docs)]

mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;
use std::num::NonZeroUsize;
use std::time::Duration;

use dlock::{CancellationToken, ErrorKind, LockError, Locker, Metadata};
use dlock_testkit::memory::{Call, Control, Memory, Outage, Profile};
use metrics_util::CompositeKey;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use support::{TTL, key, locker, pass, secs};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// What a recorder has heard so far; its snapshots alone begin anew each time.
#[derive(Default)]
struct Board {
    recorder: DebuggingRecorder,
    heard: RefCell<Heard>,
}

#[derive(Default)]
struct Heard {
    /// Counters and gauges, by name and labels.
    numbers: BTreeMap<String, i64>,
    /// Histograms, by name and labels.
    durations: BTreeMap<String, Vec<f64>>,
    names: BTreeSet<String>,
    labels: BTreeSet<String>,
    /// What has no unit or no description.
    undescribed: BTreeSet<String>,
}

impl Board {
    fn listen(&self) {
        let mut heard = self.heard.borrow_mut();
        for (key, unit, description, value) in self.recorder.snapshotter().snapshot().into_vec() {
            let (name, series) = (key.key().name().to_owned(), series(&key));
            if unit.is_none() || description.is_none() {
                heard.undescribed.insert(name.clone());
            }
            heard.names.insert(name);
            heard.labels.extend(key.key().labels().map(|label| label.key().to_owned()));
            match value {
                DebugValue::Counter(more) => *heard.numbers.entry(series).or_default() += i64::try_from(more).unwrap(),
                DebugValue::Gauge(more) => *heard.numbers.entry(series).or_default() += more.into_inner() as i64,
                DebugValue::Histogram(more) => {
                    heard.durations.entry(series).or_default().extend(more.into_iter().map(f64::from));
                }
            }
        }
    }

    /// A counter or a gauge; none if it was never heard of.
    fn number(&self, series: &str) -> Option<i64> {
        self.listen();
        self.heard.borrow().numbers.get(series).copied()
    }

    /// What a histogram has, in seconds.
    fn durations(&self, series: &str) -> Vec<f64> {
        self.listen();
        self.heard.borrow().durations.get(series).cloned().unwrap_or_default()
    }

    /// The sum of all series of a counter with this label.
    fn sum(&self, name: &str, label: &str) -> i64 {
        self.listen();
        let heard = self.heard.borrow();
        heard
            .numbers
            .iter()
            .filter(|(series, _)| series.starts_with(name) && series.contains(label))
            .map(|(_, number)| number)
            .sum()
    }
}

/// `name{label=value,label=value}`
fn series(key: &CompositeKey) -> String {
    let labels: Vec<_> = key.key().labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
    if labels.is_empty() { key.key().name().to_owned() } else { format!("{}{{{}}}", key.key().name(), labels.join(",")) }
}

/// Runs a test in virtual time; what it does on its runtime is heard by the board, and by no other.
fn recorded(test: impl AsyncFnOnce(&Board)) {
    let board = Board::default();
    let _recording = metrics::set_default_local_recorder(&board.recorder);
    runtime().block_on(async { timeout(secs(3600), test(&board)).await.expect("it ends") });
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

const HELD: &str = "dlock_locks_held{mode=exclusive}";
const SUSPECT: &str = "dlock_sessions_suspect";
const AT_GATE: &str = "dlock_gate_waiters";
const QUEUED: &str = "dlock_calls_queued";

fn wait(outcome: &str) -> String {
    format!("dlock_wait_seconds{{mode=exclusive,outcome={outcome}}}")
}

fn request(kind: &str, outcome: &str) -> String {
    format!("dlock_requests_total{{kind={kind},outcome={outcome}}}")
}

fn about(durations: &[f64], seconds: f64) -> bool {
    matches!(durations, [one] if (one - seconds).abs() < 0.1)
}

#[test]
fn a_lock_is_held_from_its_grant_until_it_is_given_back_or_dropped() {
    recorded(async |board| {
        let locker = locker(&Memory::queue());
        assert_eq!(board.number(HELD), Some(0), "shown before the first");
        let first = locker.lock("a").await.unwrap();
        let second = locker.lock("b").await.unwrap();
        assert_eq!((board.number(HELD), board.durations(&wait("acquired")).len()), (Some(2), 2));
        pass(secs(2)).await;
        first.release().await.unwrap();
        assert_eq!(board.number(HELD), Some(1));
        assert!(about(&board.durations("dlock_hold_seconds{mode=exclusive}"), 2.0));
        drop(second);
        assert_eq!(board.number(HELD), Some(0));
        assert_eq!(board.durations("dlock_hold_seconds{mode=exclusive}").len(), 2);
        assert_eq!(board.sum("dlock_locks_lost_total", ""), 0, "what is given back is not lost");
    });
}

#[test]
fn locks_that_are_shared_and_permits_have_series_of_their_own_without_their_number() {
    recorded(async |board| {
        let locker = locker(&Memory::queue());
        let guards =
            [locker.shared("a").await.unwrap(), locker.permits("b", 3).await.unwrap(), locker.permits("c", 7).await.unwrap()];
        assert_eq!(board.number("dlock_locks_held{mode=shared}"), Some(1));
        assert_eq!(board.number("dlock_locks_held{mode=permits}"), Some(2));
        assert_eq!(board.number(HELD), Some(0));
        drop(guards);
        assert_eq!(board.sum("dlock_locks_held", ""), 0);
        assert_eq!(board.durations("dlock_hold_seconds{mode=permits}").len(), 2);
        assert_eq!(board.durations("dlock_wait_seconds{mode=shared,outcome=acquired}").len(), 1);
    });
}

#[test]
fn several_locks_are_waited_for_once_and_held_each() {
    recorded(async |board| {
        let locker = locker(&Memory::queue());
        let guard = locker.lock_all(["a", "b", "c"]).await.unwrap();
        assert_eq!((board.number(HELD), board.durations(&wait("acquired")).len()), (Some(3), 1));
        assert_eq!((board.number(&request("claim_all", "held")), board.number(&request("claim", "held"))), (Some(1), None));
        drop(guard);
        let taken = locker.lock("b").await.unwrap();
        let waiting = locker.lock_all(["a", "b"]);
        assert!(timeout(secs(2), waiting.into_future()).await.is_err());
        assert!(about(&board.durations(&wait("abandoned")), 2.0));
        drop(taken);
        assert_eq!(board.number(HELD), Some(0));
    });
}

type Lose = fn(&Control);

#[test]
fn a_lock_that_is_lost_is_counted_by_its_reason_and_held_no_more_though_its_guard_lives() {
    recorded(async |board| {
        let ways: [(&str, Lose); 4] = [
            ("expired", |control| control.outage(Some(Outage::Hanging))),
            ("session_gone", |control| assert!(control.expire_session_of(&key("a")))),
            ("key_deleted", |control| control.delete(&key("a"))),
            ("taken_over", |control| assert!(control.release_by_force(&key("a")))),
        ];
        let lost = |reason| board.number(&format!("dlock_locks_lost_total{{reason={reason}}}"));
        for (reason, lose) in ways {
            let memory = Memory::slot();
            let locker = locker(&memory);
            assert_eq!(lost(reason), Some(0), "shown before the first");
            let guard = locker.lock("a").await.unwrap();
            pass(secs(1)).await;
            lose(&memory.control());
            guard.lost().await;
            assert_eq!((lost(reason), board.number(HELD)), (Some(1), Some(0)), "{reason}");
        }
        let locker = locker(&Memory::slot());
        let guard = locker.lock("a").hold_at_most(secs(3)).await.unwrap();
        guard.lost().await;
        assert_eq!((lost("held_too_long"), board.number(HELD)), (Some(1), Some(0)));
        let other = locker.lock("b").await.unwrap();
        locker.shutdown(Duration::ZERO).await;
        assert_eq!((lost("shutdown"), board.number(HELD)), (Some(1), Some(0)));
        drop((guard, other));
        assert_eq!(board.number(HELD), Some(0), "counted out once");
        assert_eq!(board.sum("dlock_locks_lost_total", ""), 6);
        assert_eq!(board.durations("dlock_hold_seconds{mode=exclusive}").len(), 6);
    });
}

#[test]
fn a_wait_lasts_until_it_is_known_what_became_of_it() {
    recorded(async |board| {
        let memory = Memory::queue();
        let (control, locker) = (memory.control(), locker(&memory));
        let elsewhere = control.hold_elsewhere(&key("a"), "another").unwrap();

        assert!(locker.try_lock("a").await.unwrap().is_none());
        assert!(about(&board.durations(&wait("busy")), 0.0));

        assert!(matches!(locker.lock("a").wait_at_most(secs(2)).await, Err(LockError::TimedOut { .. })));
        assert!(about(&board.durations(&wait("timed_out")), 2.0));

        let token = CancellationToken::new();
        let (cancelled, ()) = tokio::join!(locker.lock("a").cancel_on(token.clone()).into_future(), async {
            pass(secs(3)).await;
            token.cancel();
        });
        assert!(matches!(cancelled, Err(LockError::Cancelled { .. })));
        assert!(about(&board.durations(&wait("cancelled")), 3.0));

        assert!(timeout(secs(4), locker.lock("a").into_future()).await.is_err());
        assert!(about(&board.durations(&wait("abandoned")), 4.0));

        let (acquired, ()) = tokio::join!(locker.lock("a").into_future(), async {
            pass(secs(5)).await;
            elsewhere.release();
        });
        assert!(about(&board.durations(&wait("acquired")), 5.0));

        control.fail_next(Call::Claim, ErrorKind::Denied);
        assert!(matches!(locker.lock("b").await, Err(LockError::Store { .. })));
        assert!(about(&board.durations(&wait("failed")), 0.0));

        let (shut_down, _) = tokio::join!(locker.lock("a").into_future(), async {
            pass(secs(6)).await;
            drop(acquired);
            locker.shutdown(secs(1)).await
        });
        assert!(matches!(shut_down, Err(LockError::ShutDown)));
        assert!(about(&board.durations(&wait("shut_down")), 6.0));

        drop(locker.lock("a").into_future());
        assert!(locker.lock("").await.is_err());
        assert_eq!(board.durations(&wait("abandoned")).len(), 1, "what was not begun was not waited for");
    });
}

#[test]
fn who_waits_at_the_gate_is_counted_until_the_turn_comes_or_the_wait_is_dropped() {
    recorded(async |board| {
        let locker = locker(&Memory::queue());
        let first = locker.lock("a").await.unwrap();
        let mut waiting = Vec::new();
        for _ in 0..3 {
            waiting.push(tokio::spawn(locker.lock("a").into_future()));
        }
        pass(secs(1)).await;
        assert_eq!(board.number(AT_GATE), Some(3));
        waiting.remove(1).abort();
        pass(secs(1)).await;
        assert_eq!(board.number(AT_GATE), Some(2));
        assert!(locker.try_lock("a").await.unwrap().is_none());
        assert_eq!(board.number(AT_GATE), Some(2), "who only tries does not wait");
        drop(first);
        let second = waiting.remove(0).await.unwrap().unwrap();
        assert_eq!(board.number(AT_GATE), Some(1));
        drop(second);
        waiting.remove(0).await.unwrap().unwrap().release().await.unwrap();
        assert_eq!((board.number(AT_GATE), board.number(HELD)), (Some(0), Some(0)));
        assert_eq!(board.durations(&wait("abandoned")).len(), 1);
    });
}

#[test]
fn calls_are_queued_until_they_are_sent_or_given_up() {
    recorded(async |board| {
        let memory = Memory::builder(Profile::Queue).calls_in_flight(NonZeroUsize::new(2)).build();
        let (control, locker) = (memory.control(), locker(&memory));
        locker.ready(secs(1)).await.unwrap();
        assert_eq!(board.number(QUEUED), Some(0), "shown before the first");
        control.delay_next(Call::Claim, secs(1));
        let mut locking: Vec<_> = (0..4).map(|n| tokio::spawn(locker.lock(format!("{n}")).into_future())).collect();
        pass(Duration::from_millis(500)).await;
        assert_eq!(board.number(QUEUED), Some(3), "one claim is in flight");
        locking.pop().unwrap().abort();
        pass(Duration::from_millis(100)).await;
        assert_eq!(board.number(QUEUED), Some(2));
        pass(secs(1)).await;
        assert_eq!((board.number(QUEUED), board.number(HELD)), (Some(0), Some(3)));
    });
}

#[test]
fn a_session_is_suspect_from_a_late_renewal_until_it_is_renewed_or_lost() {
    recorded(async |board| {
        let memory = Memory::queue();
        let (control, locker) = (memory.control(), locker(&memory));
        let guard = locker.lock("a").await.unwrap();
        pass(secs(1)).await;
        assert_eq!(board.number(SUSPECT), Some(0), "shown before the first");
        control.outage(Some(Outage::Failing));
        pass(TTL / 2).await;
        assert_eq!((board.number(SUSPECT), board.number(HELD)), (Some(1), Some(1)));
        control.outage(None);
        pass(secs(2)).await;
        assert_eq!((board.number(SUSPECT), board.number(HELD)), (Some(0), Some(1)));
        control.outage(Some(Outage::Hanging));
        pass(secs(8)).await;
        assert_eq!(board.number(SUSPECT), Some(1));
        guard.lost().await;
        pass(secs(1)).await;
        assert_eq!(board.number(SUSPECT), Some(0));
        assert!(board.number(&request("renew", "transient")) > Some(0));
        assert!(board.number(&request("renew", "dropped")) > Some(0));
    });
}

#[test]
fn a_runtime_that_ends_with_everything_under_way_leaves_every_gauge_at_zero() {
    let board = Board::default();
    let _recording = metrics::set_default_local_recorder(&board.recorder);
    let memory = Memory::queue();
    let runtime = runtime();
    let (locker, guard) = runtime.block_on(async {
        let locker = locker(&memory);
        let guard = locker.lock("a").await.unwrap();
        drop(tokio::spawn(locker.lock("a").into_future()));
        memory.control().outage(Some(Outage::Failing));
        pass(TTL / 2).await;
        (locker, guard)
    });
    assert_eq!([HELD, SUSPECT, AT_GATE].map(|gauge| board.number(gauge)), [Some(1); 3]);
    drop(runtime);
    assert_eq!([SUSPECT, AT_GATE].map(|gauge| board.number(gauge)), [Some(0); 2], "nobody renews, nobody waits");
    drop((guard, locker));
    assert_eq!(board.number(HELD), Some(0));
}

#[test]
fn a_recorder_that_comes_late_is_not_told_of_an_end_without_a_beginning() {
    let board = Board::default();
    runtime().block_on(async {
        let locker = locker(&Memory::queue());
        let early = locker.lock("a").await.unwrap();
        let _recording = metrics::set_default_local_recorder(&board.recorder);
        let late = locker.lock("b").await.unwrap();
        assert_eq!(board.number(HELD), Some(1));
        drop((early, late));
        assert_eq!(board.number(HELD), Some(0));
    });
}

#[test]
fn every_request_that_the_store_sees_is_counted_by_kind() {
    recorded(async |board| {
        let memory = Memory::queue();
        let (control, locker) = (memory.control(), locker(&memory));
        everything(&memory, &locker).await;
        let kinds = [
            ("open", Call::Open),
            ("renew", Call::Renew),
            ("audit", Call::Audit),
            ("close", Call::Close),
            ("claim", Call::Claim),
            ("wait", Call::Wait),
            ("confirm", Call::Confirm),
            ("release", Call::Release),
            ("inspect", Call::Inspect),
            ("disturbed", Call::Disturbed),
            ("amend", Call::Amend),
            ("changed", Call::Changed),
        ];
        for (kind, call) in kinds {
            let counted = board.sum("dlock_requests_total", &format!("kind={kind},"));
            assert!(counted > 0, "{kind}");
            assert_eq!(counted, i64::try_from(control.calls(call)).unwrap(), "{kind}");
        }
    });
}

/// A day in the life of a locker.
async fn everything(memory: &Memory, locker: &Locker) {
    let control = memory.control();
    let guard = locker.lock("a").await.unwrap();
    let mut leaders = locker.election("a").observe().unwrap();
    leaders.next().await.unwrap();
    pass(TTL).await;
    let mut metadata = Metadata::default();
    metadata.insert("shift", "late").unwrap();
    guard.amend(metadata).await.unwrap();
    leaders.next().await.unwrap();
    guard.release().await.unwrap();
    let elsewhere = control.hold_elsewhere(&key("b"), "another").unwrap();
    assert!(locker.try_lock("b").await.unwrap().is_none());
    let (second, ()) = tokio::join!(locker.lock("b").into_future(), async {
        pass(secs(1)).await;
        elsewhere.release();
    });
    control.delete(&key("b"));
    second.unwrap().lost().await;
    locker.inspect("a").await.unwrap();
    drop(leaders);
    assert!(locker.shutdown(secs(5)).await.is_clean());
}

#[test]
fn a_request_is_counted_with_what_the_store_answered() {
    recorded(async |board| {
        let memory = Memory::queue();
        let (control, locker) = (memory.control(), locker(&memory));
        everything(&memory, &locker).await;
        let answered = [
            ("open", "ok"),
            ("renew", "ok"),
            ("audit", "ok"),
            ("audit", "interference"),
            ("close", "ok"),
            ("claim", "held"),
            ("claim", "busy"),
            ("claim", "waiting"),
            ("wait", "maybe_free"),
            ("confirm", "held"),
            ("release", "ok"),
            ("inspect", "ok"),
            ("amend", "ok"),
            ("changed", "ok"),
        ];
        for (kind, outcome) in answered {
            assert!(board.number(&request(kind, outcome)) > Some(0), "{kind} {outcome}");
        }

        let locker = support::locker(&memory);
        let failures = [
            ("transient", ErrorKind::Transient),
            ("ambiguous", ErrorKind::Ambiguous),
            ("denied", ErrorKind::Denied),
            ("invalid", ErrorKind::Invalid),
            ("conflict", ErrorKind::Conflict),
            ("overloaded", ErrorKind::Overloaded),
            ("unsupported", ErrorKind::Unsupported),
        ];
        for (outcome, kind) in failures {
            control.fail_next(Call::Inspect, kind);
            assert!(locker.inspect("a").await.is_err());
            assert_eq!(board.number(&request("inspect", outcome)), Some(1), "{outcome}");
        }
    });
}

#[test]
fn a_request_whose_limit_has_passed_is_counted_as_dropped() {
    recorded(async |board| {
        let memory = Memory::queue();
        let (control, locker) = (memory.control(), locker(&memory));
        control.hang_next(Call::Inspect);
        assert!(locker.inspect("a").await.is_err());
        assert_eq!(board.number(&request("inspect", "dropped")), Some(1));
        control.hang_next(Call::Claim);
        let guard = locker.lock("a").await.unwrap();
        assert_eq!(board.number(&request("claim", "dropped")), Some(1));
        assert_eq!(board.number(&request("claim", "held")), Some(1));
        drop(guard);
    });
}

#[test]
fn all_that_is_measured_is_described_and_documented_and_no_label_is_a_key() {
    recorded(async |board| {
        let memory = Memory::queue();
        everything(&memory, &locker(&memory)).await;
        board.listen();
        let heard = board.heard.borrow();
        assert_eq!(heard.names.len(), 8, "{:?}", heard.names);
        assert_eq!(heard.undescribed, BTreeSet::new());
        assert_eq!(heard.labels.iter().map(String::as_str).collect::<Vec<_>>(), ["kind", "mode", "outcome", "reason"]);
        for documents in [include_str!("../src/lib.rs"), include_str!("../../docs/metrics.md")] {
            for name in &heard.names {
                assert!(documents.contains(&format!("`{name}`")), "{name}");
            }
        }
        let manual = include_str!("../../docs/metrics.md");
        let values = heard.numbers.keys().chain(heard.durations.keys()).flat_map(|series| series.split(['{', ',', '}']));
        for value in values.filter_map(|label| Some(label.split_once('=')?.1)) {
            assert!(manual.contains(&format!("`{value}`")), "{value}");
        }
    });
}
