//! What a leader proclaims and what observers are told, on a store that fails, hangs, or can do less.
#![allow(missing_docs)]

mod support;

use std::time::Duration;

use dlock::{AmendError, ErrorKind, InvalidOptions, Leader, LockError, Locker, Loss, Metadata, RetryPolicy};
use dlock_core::LockBackend;
use dlock_testkit::memory::{Call, Outage};
use support::plain::Plain;
use support::{TTL, key, locker, pass, secs, stores};
use tokio::time::{Instant, timeout};

fn metadata(name: &str, value: &str) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert(name, value).unwrap();
    metadata
}

/// What a leader is known by under this name.
fn says<'a>(leader: &'a Leader, name: &str) -> Option<&'a str> {
    leader.elected()?.published.metadata()?.get(name)
}

#[tokio::test(start_paused = true)]
async fn a_proclamation_is_read_by_others_and_the_term_stays() {
    for (memory, locker) in stores() {
        let term = locker.election("a").metadata("zone", "a").campaign().await.unwrap();
        term.proclaim(metadata("zone", "b")).await.unwrap();
        assert_eq!((term.check(), term.metadata().get("zone")), (Ok(()), Some("b")));
        let seen = support::locker(&memory).inspect("a").await.unwrap();
        assert_eq!(seen.holders[0].token, term.token());
        assert_eq!(seen.holders[0].published.metadata(), Some(&term.metadata()));
        assert_eq!(memory.control().grants(&key("a")).len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_proclaimed_is_refused_before_it_is_sent() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        let limit = memory.capabilities().limits.metadata_bytes;
        let refused = guard.amend(metadata("big", &"x".repeat(limit))).await.unwrap_err();
        assert!(matches!(refused, AmendError::Options(InvalidOptions::MetadataTooLarge { .. })), "{refused}");
        assert_eq!(memory.control().calls(Call::Amend), 0);
        let plain = Locker::new(Plain::new(memory.clone()));
        let guard = plain.lock("b").await.unwrap();
        assert!(matches!(guard.amend(Metadata::new()).await, Err(AmendError::Unsupported)));
        assert_eq!(memory.control().calls(Call::Amend), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_an_amendment_is_found_out() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        memory.control().lose_reply_of_next(Call::Amend);
        memory.control().fail_next(Call::Amend, ErrorKind::Transient);
        guard.amend(metadata("phase", "two")).await.unwrap();
        assert_eq!(memory.control().calls(Call::Amend), 3);
        assert_eq!(guard.metadata().get("phase"), Some("two"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_amendment_that_is_not_answered_is_unknown_within_five_seconds() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").metadata("phase", "one").await.unwrap();
        memory.control().outage(Some(Outage::Hanging));
        let began = Instant::now();
        let unknown = guard.amend(metadata("phase", "two")).await.unwrap_err();
        assert!(matches!(unknown, AmendError::Unknown { .. }), "{unknown}");
        assert!(began.elapsed() <= secs(5), "{:?}", began.elapsed());
        assert_eq!((guard.check(), guard.metadata().get("phase")), (Ok(()), Some("one")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_as_one_unless_an_attempt_before_it_may_have_been_applied() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        memory.control().fail_next(Call::Amend, ErrorKind::Denied);
        let refused = guard.amend(Metadata::new()).await.unwrap_err();
        assert!(matches!(&refused, AmendError::Store { cause, .. } if cause.kind() == ErrorKind::Denied), "{refused}");
        memory.control().lose_request_of_next(Call::Amend);
        memory.control().fail_next(Call::Amend, ErrorKind::Denied);
        let unknown = guard.amend(Metadata::new()).await.unwrap_err();
        assert!(matches!(&unknown, AmendError::Unknown { cause: Some(_), .. }), "{unknown}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_amends_what_was_taken_away_hears_of_it_at_once() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        memory.control().delete(&key("a"));
        assert!(matches!(guard.amend(Metadata::new()).await, Err(AmendError::NotHeld { .. })));
        assert_eq!(timeout(Duration::from_millis(100), guard.lost()).await, Ok(Loss::KeyDeleted));
        let lost = guard.amend(Metadata::new()).await.unwrap_err();
        assert!(matches!(&lost, AmendError::Lost(lost) if lost.reason == Loss::KeyDeleted), "{lost}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_amendment_ends_with_the_lock() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").hold_at_most(secs(2)).await.unwrap();
        memory.control().hang_next(Call::Amend);
        let began = Instant::now();
        let lost = guard.amend(Metadata::new()).await.unwrap_err();
        assert!(matches!(&lost, AmendError::Lost(lost) if lost.reason == Loss::HeldTooLong), "{lost}");
        assert_eq!(began.elapsed(), secs(2));
    }
}

#[tokio::test(start_paused = true)]
async fn an_amendment_given_up_half_way_never_undoes_the_next() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        let held = memory.control().hold_next(Call::Amend);
        assert!(timeout(Duration::from_millis(10), guard.amend(metadata("phase", "two"))).await.is_err());
        guard.amend(metadata("phase", "three")).await.unwrap();
        held.deliver();
        let seen = locker.inspect("a").await.unwrap();
        assert_eq!(seen.holders[0].published.metadata().and_then(|read| read.get("phase")), Some("three"));
        guard.release().await.unwrap();
        assert_eq!(memory.control().claims(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn amendments_of_one_lock_follow_one_another() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        memory.control().delay_next(Call::Amend, secs(1));
        let (held, later) = (guard.held(), guard.held());
        let first = tokio::spawn(async move { held.amend(metadata("phase", "two")).await });
        pass(Duration::from_millis(10)).await;
        later.amend(metadata("phase", "three")).await.unwrap();
        first.await.unwrap().unwrap();
        assert_eq!(guard.metadata().get("phase"), Some("three"));
    }
}

#[tokio::test(start_paused = true)]
async fn observers_are_told_who_leads_and_every_change() {
    for (memory, leader) in stores() {
        let mut leaders = locker(&memory).election("a").observe().unwrap();
        assert!(matches!(leaders.next().await, Some(Leader::Vacant)));
        let term = leader.election("a").metadata("zone", "a").campaign().await.unwrap();
        let elected = leaders.next().await.unwrap();
        assert_eq!((elected.token(), says(&elected, "zone")), (term.token(), Some("a")));
        assert_eq!(elected.elected().unwrap().owner(), Some(leader.owner()));
        term.proclaim(metadata("zone", "b")).await.unwrap();
        let proclaimed = leaders.next().await.unwrap();
        assert_eq!((proclaimed.token(), says(&proclaimed, "zone")), (term.token(), Some("b")));
        // Nothing more is told while nothing changes, however often the store is looked at.
        assert!(timeout(TTL * 4, leaders.next()).await.is_err());
        term.resign().await.unwrap();
        assert!(matches!(leaders.next().await, Some(Leader::Vacant)));
        // Who comes later is told at once.
        let term = leader.election("a").campaign().await.unwrap();
        let mut late = locker(&memory).election("a").observe().unwrap();
        assert_eq!(timeout(Duration::from_millis(1), late.next()).await.unwrap().unwrap().token(), term.token());
    }
}

#[tokio::test(start_paused = true)]
async fn observing_asks_only_when_there_may_be_news() {
    for (memory, leader) in stores() {
        let _term = leader.election("a").campaign().await.unwrap();
        let mut leaders = locker(&memory).election("a").observe().unwrap();
        leaders.next().await.unwrap();
        memory.control().reset_calls();
        assert!(timeout(TTL * 10 + secs(1), leaders.next()).await.is_err());
        assert_eq!((memory.control().calls(Call::Inspect), memory.control().calls(Call::Open)), (10, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_changes_hands_all_the_time_is_looked_at_ten_times_a_second() {
    for (memory, leader) in stores() {
        let mut leaders = locker(&memory).election("a").observe().unwrap();
        leaders.next().await.unwrap();
        let busy = tokio::spawn(async move {
            loop {
                leader.lock("a").await.unwrap().release().await.unwrap();
                pass(Duration::from_millis(1)).await;
            }
        });
        let watching = async { while leaders.next().await.is_some() {} };
        assert!(timeout(secs(10), watching).await.is_err());
        busy.abort();
        assert!(memory.control().calls(Call::Inspect) <= 102, "{}", memory.control().calls(Call::Inspect));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_five_seconds_leaves_nothing_known() {
    for (memory, leader) in stores() {
        let term = leader.election("a").campaign().await.unwrap();
        let mut leaders = locker(&memory).election("a").observe().unwrap();
        leaders.next().await.unwrap();
        let known = Instant::now();
        memory.control().outage(Some(Outage::Failing));
        // A waiting request learns of it when it is asked again.
        let Some(Leader::Unknown { since, cause }) = leaders.next().await else { panic!("it must be unknown") };
        assert_eq!((since, cause.map(|cause| cause.kind())), (known, Some(ErrorKind::Transient)));
        assert!(known.elapsed() >= secs(5) && known.elapsed() <= TTL + secs(5), "{:?}", known.elapsed());
        assert!(timeout(secs(60), leaders.next()).await.is_err(), "told once");
        memory.control().outage(None);
        drop(term);
        let known_again = timeout(secs(3), leaders.next()).await.unwrap().unwrap();
        assert!(!matches!(known_again, Leader::Unknown { .. }), "{known_again:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_leaves_nothing_known_within_a_ttl_and_five_seconds() {
    for (memory, leader) in stores() {
        let term = leader.election("a").campaign().await.unwrap();
        let mut leaders = locker(&memory).election("a").observe().unwrap();
        leaders.next().await.unwrap();
        let known = Instant::now();
        memory.control().outage(Some(Outage::Hanging));
        let Some(Leader::Unknown { since, cause: None }) = leaders.next().await else { panic!("it must be unknown") };
        assert_eq!((since, known.elapsed()), (known, TTL + secs(5)));
        memory.control().outage(None);
        let back = timeout(secs(8), leaders.next()).await.unwrap().unwrap();
        assert!(!matches!(back, Leader::Unknown { .. }), "{back:?}");
        drop(term);
    }
}

#[tokio::test(start_paused = true)]
async fn failures_that_pass_within_five_seconds_are_not_told() {
    for (memory, leader) in stores() {
        let term = leader.election("a").campaign().await.unwrap();
        let mut leaders = locker(&memory).election("a").observe().unwrap();
        leaders.next().await.unwrap();
        memory.control().fail_next(Call::Changed, ErrorKind::Transient);
        memory.control().fail_next(Call::Inspect, ErrorKind::Ambiguous);
        memory.control().hang_next(Call::Inspect);
        term.proclaim(metadata("zone", "b")).await.unwrap();
        let began = Instant::now();
        let told = leaders.next().await.unwrap();
        assert_eq!(says(&told, "zone"), Some("b"));
        assert!(began.elapsed() >= secs(2), "it went on through all three");
        term.proclaim(metadata("zone", "c")).await.unwrap();
        memory.control().outage(Some(Outage::Failing));
        assert!(timeout(secs(4), leaders.next()).await.is_err());
        memory.control().outage(None);
        let told = leaders.next().await.unwrap();
        assert_eq!(says(&told, "zone"), Some("c"));
    }
}

#[tokio::test(start_paused = true)]
async fn waits_that_fail_end_no_observation_whose_looks_are_answered() {
    for (memory, leader) in stores() {
        let term = leader.election("a").campaign().await.unwrap();
        let retry = RetryPolicy::fixed(Duration::from_millis(10)).attempts(3);
        let mut leaders = locker(&memory).election("a").retry(retry).observe().unwrap();
        assert!(leaders.next().await.unwrap().is(&term));
        for _ in 0..40 {
            memory.control().fail_next(Call::Changed, ErrorKind::Denied);
            // The question for a cursor before each look is answered.
            memory.control().delay_next(Call::Changed, Duration::from_millis(1));
        }
        memory.control().reset_calls();
        assert!(timeout(secs(10), leaders.next()).await.is_err());
        let looks = memory.control().calls(Call::Inspect);
        assert!((5..20).contains(&looks), "{looks}: fewer and fewer, and never none");
        term.proclaim(metadata("zone", "b")).await.unwrap();
        let told = timeout(secs(3), leaders.next()).await.unwrap().unwrap();
        assert_eq!((says(&told, "zone"), told.is(&term)), (Some("b"), true));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_at_once() {
    for (memory, _) in stores() {
        memory.control().fail_next(Call::Inspect, ErrorKind::Denied);
        let mut leaders = locker(&memory).election("a").observe().unwrap();
        let told = timeout(Duration::from_millis(1), leaders.next()).await.unwrap();
        assert!(matches!(told, Some(Leader::Unknown { cause: Some(cause), .. }) if cause.kind() == ErrorKind::Denied));
        assert!(matches!(leaders.next().await, Some(Leader::Vacant)), "it goes on asking");
    }
}

#[tokio::test(start_paused = true)]
async fn an_observation_ends_when_its_retry_policy_does() {
    for (memory, _) in stores() {
        memory.control().outage(Some(Outage::Failing));
        let retry = RetryPolicy::fixed(Duration::from_millis(10)).attempts(3);
        let mut leaders = locker(&memory).election("a").retry(retry).observe().unwrap();
        assert!(matches!(leaders.next().await, Some(Leader::Unknown { .. })));
        assert!(leaders.next().await.is_none());
        assert!(leaders.next().await.is_none());
        assert_eq!(memory.control().all_calls(), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn an_observation_ends_with_a_shutdown_and_not_with_the_last_locker() {
    for (memory, leader) in stores() {
        let observer = locker(&memory);
        let (mut one, mut other) = (observer.election("a").observe().unwrap(), locker(&memory).election("a").observe().unwrap());
        assert!(matches!(one.next().await, Some(Leader::Vacant)));
        assert!(matches!(other.next().await, Some(Leader::Vacant)));
        let ending = tokio::spawn(async move { one.next().await.is_none() && one.next().await.is_none() });
        pass(secs(1)).await;
        assert!(observer.shutdown(secs(1)).await.is_clean());
        assert!(timeout(Duration::from_millis(1), ending).await.unwrap().unwrap());
        let _term = leader.election("a").campaign().await.unwrap();
        assert!(matches!(other.next().await, Some(Leader::Elected(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_given_up_half_way_misses_nothing() {
    for (memory, leader) in stores() {
        let mut leaders = locker(&memory).election("a").observe().unwrap();
        leaders.next().await.unwrap();
        for zone in 0..50 {
            let term = leader.election("a").metadata("zone", zone.to_string()).campaign().await.unwrap();
            memory.control().delay_next(Call::Inspect, Duration::from_millis(30));
            let told = loop {
                if let Ok(told) = timeout(Duration::from_millis(7), leaders.next()).await {
                    break told.unwrap();
                }
            };
            assert_eq!((told.token(), says(&told, "zone")), (term.token(), Some(&*zone.to_string())));
            term.resign().await.unwrap();
            assert!(matches!(leaders.next().await, Some(Leader::Vacant)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_lock_leads_nobody() {
    for (memory, _) in stores() {
        memory.control().put_foreign(&key("a"), "by hand");
        let mut leaders = locker(&memory).election("a").observe().unwrap();
        assert!(matches!(leaders.next().await, Some(Leader::Vacant)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_long_ago_is_no_news() {
    for (memory, leader) in stores() {
        let term = leader.election("a").campaign().await.unwrap();
        let mut leaders = locker(&memory).election("a").observe().unwrap();
        memory.control().delay_next(Call::Inspect, Duration::from_millis(50));
        assert!(timeout(Duration::from_millis(10), leaders.next()).await.is_err());
        // Nobody asks for an hour; the answer came within the first second.
        term.resign().await.unwrap();
        pass(secs(3600)).await;
        assert!(matches!(leaders.next().await, Some(Leader::Vacant)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_tell_of_changes_is_looked_at_every_second() {
    for (memory, leader) in stores() {
        let mut leaders = Locker::new(Plain::new(memory.clone())).election("a").observe().unwrap();
        assert!(matches!(leaders.next().await, Some(Leader::Vacant)));
        let term = leader.election("a").campaign().await.unwrap();
        let told = timeout(secs(1), leaders.next()).await.unwrap().unwrap();
        assert_eq!(told.token(), term.token());
        memory.control().reset_calls();
        assert!(timeout(Duration::from_millis(9500), leaders.next()).await.is_err());
        assert_eq!((memory.control().calls(Call::Inspect), memory.control().calls(Call::Changed)), (9, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_name_or_option_is_told_before_anything_is_sent() {
    for (memory, locker) in stores() {
        assert!(matches!(locker.election("a//b").observe(), Err(LockError::Key(_))));
        let retry = RetryPolicy::fixed(Duration::ZERO);
        assert!(matches!(locker.election("a").retry(retry).observe(), Err(LockError::Options(_))));
        assert_eq!(memory.control().all_calls(), 0);
    }
}
