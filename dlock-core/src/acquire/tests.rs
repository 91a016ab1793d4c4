use super::*;

const BUSY: Standing = Standing::Busy { holder: None, cursor: Cursor(7) };
const QUEUED: Standing = Standing::Waiting { cursor: Cursor(7), ahead: Some(1), holder: None };

fn at(millis: u64) -> Moment {
    Moment::from_origin(Duration::from_millis(millis))
}

fn acquisition(place: Place, deadline: Option<u64>) -> Acquire {
    let mut acquire = Acquire::new(AcquirePlan {
        place,
        retry: RetryPolicy::default().jitter_percent(0),
        deadline: deadline.map(at),
        attempt: Duration::from_secs(2),
        longest_wait: Duration::from_secs(60),
    });
    assert_eq!(action(&mut acquire, AcquireEvent::Started, 0), AcquireAction::AwaitSession);
    assert_eq!(action(&mut acquire, AcquireEvent::SessionReady, 0), AcquireAction::Claim);
    acquire
}

fn action(acquire: &mut Acquire, event: AcquireEvent, millis: u64) -> AcquireAction {
    match acquire.step(event, at(millis), Chance::MIDDLE) {
        AcquireStep::Do { action, .. } => action,
        AcquireStep::Done(verdict) => panic!("done: {verdict:?}"),
    }
}

fn verdict(acquire: &mut Acquire, event: AcquireEvent, millis: u64) -> Verdict {
    match acquire.step(event, at(millis), Chance::MIDDLE) {
        AcquireStep::Do { action, .. } => panic!("not done: {action:?}"),
        AcquireStep::Done(verdict) => verdict,
    }
}

fn woken(hint: Hint) -> AcquireEvent {
    AcquireEvent::Woken { cursor: Cursor(9), hint }
}

fn held() -> Standing {
    Standing::Held { token: FencingToken::new(3).unwrap() }
}

#[test]
fn a_free_key_takes_one_claim() {
    let mut acquire = acquisition(Place::Queue, None);
    let verdict = verdict(&mut acquire, AcquireEvent::Answered(held()), 1);
    assert_eq!(verdict, Verdict::Held { token: FencingToken::new(3).unwrap() });
}

#[test]
fn a_try_whose_refusal_was_lost_ends_when_it_is_asked_again() {
    let mut acquire = acquisition(Place::Try, None);
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 2_000), AcquireAction::Pause);
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 2_100), AcquireAction::Claim);
    assert_eq!(verdict(&mut acquire, AcquireEvent::Answered(Standing::ClaimGone), 2_110), Verdict::Busy);
}

#[test]
fn a_try_that_finds_the_key_busy_leaves_nothing() {
    let mut acquire = acquisition(Place::Try, None);
    assert_eq!(verdict(&mut acquire, AcquireEvent::Answered(BUSY), 1), Verdict::Busy);
    assert!(!acquire.owes_release());
}

#[test]
fn a_wake_that_promises_claims_at_once_and_one_that_does_not_waits_on() {
    let mut acquire = acquisition(Place::Queue, None);
    assert_eq!(action(&mut acquire, AcquireEvent::Answered(BUSY), 1), AcquireAction::Wait { cursor: Cursor(7) });
    let still = woken(Hint::StillHeld { holder: None });
    assert_eq!(action(&mut acquire, still, 5_000), AcquireAction::Wait { cursor: Cursor(9) });
    assert_eq!(action(&mut acquire, woken(Hint::MaybeFree), 6_000), AcquireAction::Claim);
}

#[test]
fn a_kept_place_is_confirmed_and_not_claimed_again() {
    let mut acquire = acquisition(Place::Queue, None);
    assert_eq!(action(&mut acquire, AcquireEvent::Answered(QUEUED), 1), AcquireAction::Wait { cursor: Cursor(7) });
    assert!(acquire.owes_release());
    assert_eq!(action(&mut acquire, woken(Hint::MaybeFree), 50), AcquireAction::Confirm { cursor: Cursor(9) });
}

#[test]
fn jitter_comes_only_after_a_lost_race() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Answered(BUSY), 1);
    assert_eq!(action(&mut acquire, woken(Hint::MaybeFree), 100), AcquireAction::Claim);
    action(&mut acquire, AcquireEvent::Answered(BUSY), 101);
    assert_eq!(action(&mut acquire, woken(Hint::MaybeFree), 200), AcquireAction::Pause);
}

#[test]
fn an_unanswered_claim_is_asked_again_and_stays_owed_even_when_the_answer_is_busy() {
    let mut acquire = acquisition(Place::Queue, None);
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 2_000), AcquireAction::Pause);
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 2_050), AcquireAction::Claim);
    action(&mut acquire, AcquireEvent::Answered(BUSY), 2_051);
    assert!(acquire.owes_release(), "the first copy may still be under way");
}

#[test]
fn what_was_surely_not_applied_is_not_owed() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Failed(ErrorKind::Transient), 1);
    assert_eq!(verdict(&mut acquire, AcquireEvent::Stopped, 2), Verdict::Stopped);
    assert!(!acquire.owes_release());
}

#[test]
fn stopping_while_a_claim_is_under_way_owes_its_release() {
    let mut acquire = acquisition(Place::Queue, None);
    assert_eq!(verdict(&mut acquire, AcquireEvent::Stopped, 1), Verdict::Stopped);
    assert!(acquire.owes_release());
}

#[test]
fn the_deadline_ends_every_action() {
    let mut acquire = acquisition(Place::Queue, Some(1_000));
    let step = acquire.step(AcquireEvent::Answered(BUSY), at(1), Chance::MIDDLE);
    assert!(matches!(step, AcquireStep::Do { until, .. } if until == at(1_000)));
    assert_eq!(verdict(&mut acquire, AcquireEvent::Elapsed, 1_000), Verdict::TimedOut);
}

#[test]
fn a_grant_that_arrives_at_the_deadline_is_a_grant() {
    let mut acquire = acquisition(Place::Queue, Some(1_000));
    assert!(matches!(verdict(&mut acquire, AcquireEvent::Answered(held()), 1_000), Verdict::Held { .. }));
}

#[test]
fn refusals_end_it_and_passing_errors_do_not() {
    let mut acquire = acquisition(Place::Queue, None);
    assert_eq!(action(&mut acquire, AcquireEvent::Failed(ErrorKind::Overloaded), 1), AcquireAction::Pause);
    let mut acquire = acquisition(Place::Queue, None);
    let conflict = verdict(&mut acquire, AcquireEvent::Failed(ErrorKind::Conflict), 1);
    assert_eq!(conflict, Verdict::Failed(ErrorKind::Conflict));
}

#[test]
fn a_lost_session_means_a_new_one_and_the_old_claim_undone() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Answered(QUEUED), 1);
    assert_eq!(action(&mut acquire, AcquireEvent::SessionLost, 2), AcquireAction::AwaitSession);
    assert!(acquire.owes_release());
    assert_eq!(action(&mut acquire, AcquireEvent::SessionReady, 3), AcquireAction::Claim);
    action(&mut acquire, AcquireEvent::Answered(BUSY), 4);
    assert!(!acquire.owes_release());
}

#[test]
fn a_session_that_the_store_forgot_owes_nothing() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Elapsed, 2_000);
    action(&mut acquire, AcquireEvent::Elapsed, 2_050);
    let next = action(&mut acquire, AcquireEvent::Answered(Standing::SessionGone), 2_051);
    assert_eq!(next, AcquireAction::AwaitSession);
    assert!(!acquire.owes_release());
}

#[test]
fn a_store_that_returns_at_once_is_not_asked_in_a_hot_loop() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Answered(BUSY), 1);
    let still = || woken(Hint::StillHeld { holder: None });
    for _ in 0..2 {
        assert_eq!(action(&mut acquire, still(), 2), AcquireAction::Wait { cursor: Cursor(9) });
    }
    assert_eq!(action(&mut acquire, still(), 2), AcquireAction::Pause);
}

#[test]
fn a_delayed_claim_is_undone_when_it_is_given_up() {
    let delayed = AcquireEvent::Answered(Standing::Delayed { at_most: Duration::from_secs(15) });
    let mut acquire = acquisition(Place::Queue, None);
    assert_eq!(action(&mut acquire, delayed.clone(), 0), AcquireAction::Pause);
    assert_eq!(verdict(&mut acquire, AcquireEvent::Stopped, 1), Verdict::Stopped);
    assert!(acquire.owes_release());
    let mut acquire = acquisition(Place::Try, None);
    assert_eq!(verdict(&mut acquire, delayed, 0), Verdict::Busy);
    assert!(acquire.owes_release());
}

#[test]
fn a_delay_at_the_store_is_waited_out_in_short_steps() {
    let mut acquire = acquisition(Place::Queue, None);
    let delayed = AcquireEvent::Answered(Standing::Delayed { at_most: Duration::from_secs(15) });
    let step = acquire.step(delayed, at(0), Chance(0));
    assert_eq!(step, AcquireStep::Do { action: AcquireAction::Pause, until: at(1_000) });
}

#[test]
fn what_is_decided_stays_decided() {
    let mut acquire = acquisition(Place::Queue, None);
    verdict(&mut acquire, AcquireEvent::Answered(held()), 1);
    assert!(matches!(verdict(&mut acquire, AcquireEvent::Stopped, 2), Verdict::Held { .. }));
}

#[test]
fn a_place_is_owed_without_anything_being_unanswered() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Answered(QUEUED), 1);
    assert!(acquire.owes_release());
    assert!(!acquire.is_unanswered());
}

#[test]
fn an_ambiguous_claim_is_unanswered_and_stays_so_when_the_next_was_surely_not_applied() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Failed(ErrorKind::Ambiguous), 1);
    assert!(acquire.is_unanswered());
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 51), AcquireAction::Claim);
    action(&mut acquire, AcquireEvent::Failed(ErrorKind::Transient), 52);
    assert!(acquire.is_unanswered());
}

#[test]
fn a_session_that_cannot_be_opened_ends_it_when_the_policy_or_the_store_says_so() {
    let needing = || {
        let retry = RetryPolicy::default().attempts(2);
        let mut acquire = Acquire::new(AcquirePlan {
            place: Place::Queue,
            retry,
            deadline: None,
            attempt: Duration::from_secs(2),
            longest_wait: Duration::from_secs(60),
        });
        action(&mut acquire, AcquireEvent::Started, 0);
        acquire
    };
    let failed = AcquireEvent::SessionFailed(ErrorKind::Transient);
    let mut acquire = needing();
    assert_eq!(action(&mut acquire, failed.clone(), 1), AcquireAction::AwaitSession);
    assert_eq!(verdict(&mut acquire, failed, 2), Verdict::Failed(ErrorKind::Transient));
    let denied = verdict(&mut needing(), AcquireEvent::SessionFailed(ErrorKind::Denied), 1);
    assert_eq!(denied, Verdict::Failed(ErrorKind::Denied));
}

#[test]
fn claims_that_fail_are_asked_again_after_growing_pauses_until_the_policy_ends_it() {
    let mut acquire = acquisition(Place::Queue, None);
    acquire.plan.retry = acquire.plan.retry.attempts(3);
    let failed = || AcquireEvent::Failed(ErrorKind::Transient);
    let mut now = 0;
    for pause in [50, 100] {
        let step = acquire.step(failed(), at(now), Chance::MIDDLE);
        assert_eq!(step, AcquireStep::Do { action: AcquireAction::Pause, until: at(now + pause) });
        now += pause;
        assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, now), AcquireAction::Claim);
    }
    assert_eq!(verdict(&mut acquire, failed(), now), Verdict::Failed(ErrorKind::Transient));
}

#[test]
fn an_answer_ends_the_row_of_failures() {
    let mut acquire = acquisition(Place::Queue, None);
    acquire.plan.retry = acquire.plan.retry.attempts(2);
    action(&mut acquire, AcquireEvent::Failed(ErrorKind::Transient), 0);
    action(&mut acquire, AcquireEvent::Elapsed, 50);
    action(&mut acquire, AcquireEvent::Answered(BUSY), 51);
    assert_eq!(action(&mut acquire, AcquireEvent::Failed(ErrorKind::Transient), 52), AcquireAction::Pause);
}

#[test]
fn a_wait_that_failed_goes_on_where_it_was() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Answered(QUEUED), 1);
    assert_eq!(action(&mut acquire, AcquireEvent::Failed(ErrorKind::Transient), 2), AcquireAction::Pause);
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 52), AcquireAction::Wait { cursor: Cursor(7) });
    assert_eq!(action(&mut acquire, woken(Hint::MaybeFree), 60), AcquireAction::Confirm { cursor: Cursor(9) });
}

#[test]
fn a_confirm_that_failed_or_hung_is_asked_again() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Answered(QUEUED), 1);
    let confirm = AcquireAction::Confirm { cursor: Cursor(9) };
    assert_eq!(action(&mut acquire, woken(Hint::MaybeFree), 100), confirm);
    assert_eq!(action(&mut acquire, AcquireEvent::Failed(ErrorKind::Ambiguous), 101), AcquireAction::Pause);
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 151), confirm);
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 2_151), AcquireAction::Pause);
    assert!(!acquire.is_unanswered(), "a confirm never creates a place");
}

#[test]
fn a_wait_that_never_returns_asks_at_its_end() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Answered(QUEUED), 1);
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 60_001), AcquireAction::Confirm { cursor: Cursor(7) });
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Answered(BUSY), 1);
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 60_001), AcquireAction::Claim);
}

#[test]
fn time_that_is_not_up_changes_nothing() {
    let mut claiming = acquisition(Place::Queue, None);
    let mut waiting = acquisition(Place::Queue, None);
    action(&mut waiting, AcquireEvent::Answered(QUEUED), 0);
    let mut confirming = waiting.clone();
    action(&mut confirming, woken(Hint::MaybeFree), 0);
    let mut pausing = acquisition(Place::Queue, None);
    action(&mut pausing, AcquireEvent::Failed(ErrorKind::Transient), 0);
    for (acquire, up) in [(&mut claiming, 2_000), (&mut waiting, 60_000), (&mut confirming, 2_000), (&mut pausing, 50)] {
        let before = acquire.clone();
        let step = acquire.step(AcquireEvent::Elapsed, at(up - 1), Chance::MIDDLE);
        assert!(matches!(step, AcquireStep::Do { until, .. } if until == at(up)), "{step:?}");
        assert_eq!(*acquire, before);
    }
}

#[test]
fn races_lost_in_a_row_spread_the_rivals_over_at_most_twenty_milliseconds() {
    let mut acquire = acquisition(Place::Queue, None);
    let (latest, mut now) = (Chance(u32::MAX), 0);
    for spread in [0, 5, 10, 15, 20, 20] {
        action(&mut acquire, AcquireEvent::Answered(BUSY), now);
        now += 100;
        let mut step = acquire.step(woken(Hint::MaybeFree), at(now), latest);
        if spread > 0 {
            now += spread;
            assert_eq!(step, AcquireStep::Do { action: AcquireAction::Pause, until: at(now) });
            step = acquire.step(AcquireEvent::Elapsed, at(now), latest);
        }
        assert!(matches!(step, AcquireStep::Do { action: AcquireAction::Claim, .. }), "{step:?}");
    }
}

#[test]
fn wakes_that_come_early_in_a_row_are_answered_with_growing_pauses() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Answered(BUSY), 0);
    let still = || woken(Hint::StillHeld { holder: None });
    let mut now = 0;
    for pause in [0, 0, 50, 100, 200] {
        let step = acquire.step(still(), at(now), Chance(0));
        if pause > 0 {
            now += pause;
            assert_eq!(step, AcquireStep::Do { action: AcquireAction::Pause, until: at(now) });
            assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, now), AcquireAction::Wait { cursor: Cursor(9) });
        }
    }
}

#[test]
fn a_wait_of_twenty_milliseconds_is_no_early_wake() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Answered(BUSY), 0);
    for n in 1..=5 {
        let still = woken(Hint::StillHeld { holder: None });
        assert_eq!(action(&mut acquire, still, n * 20), AcquireAction::Wait { cursor: Cursor(9) });
    }
}

#[test]
fn a_place_that_was_taken_away_is_claimed_again() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Answered(QUEUED), 1);
    assert_eq!(action(&mut acquire, woken(Hint::ClaimGone), 50), AcquireAction::Claim);
    action(&mut acquire, AcquireEvent::Answered(QUEUED), 51);
    action(&mut acquire, woken(Hint::MaybeFree), 100);
    assert_eq!(action(&mut acquire, AcquireEvent::Answered(Standing::ClaimGone), 101), AcquireAction::Claim);
}

#[test]
fn a_claim_that_is_over_at_the_store_is_made_anew() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Failed(ErrorKind::Ambiguous), 0);
    let paused = acquire.clone();
    for (mut acquire, owes) in [(paused, true), (acquisition(Place::Queue, None), false)] {
        let now = if owes { 5_000 } else { 1 };
        if owes {
            assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 4_000), AcquireAction::Claim);
        }
        // The same id gets the same answer for ever.
        assert_eq!(action(&mut acquire, AcquireEvent::Answered(Standing::ClaimGone), now), AcquireAction::AwaitSession);
        assert_eq!(acquire.owes_release(), owes);
        assert_eq!(action(&mut acquire, AcquireEvent::SessionReady, now + 1), AcquireAction::Claim);
        assert!(!acquire.owes_release());
    }
}

#[test]
fn the_steps_of_a_delay_are_spread_by_at_most_a_quarter() {
    let mut acquire = acquisition(Place::Queue, None);
    let delayed = AcquireEvent::Answered(Standing::Delayed { at_most: Duration::from_secs(15) });
    let step = acquire.step(delayed, at(0), Chance(u32::MAX));
    assert_eq!(step, AcquireStep::Do { action: AcquireAction::Pause, until: at(750) });
}

#[test]
fn a_claim_that_is_queued_has_its_time_from_when_it_is_sent() {
    let mut acquire = acquisition(Place::Queue, None);
    for millis in [0, 1_900, 3_800] {
        assert_eq!(acquire.step(AcquireEvent::Queued, at(millis), Chance::MIDDLE), claiming_until(millis + 2_000));
    }
    assert_eq!(acquire.step(AcquireEvent::Sent, at(5_000), Chance::MIDDLE), claiming_until(7_000));
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 7_000), AcquireAction::Pause);
    assert!(acquire.owes_release() && acquire.is_unanswered());
}

fn claiming_until(millis: u64) -> AcquireStep {
    AcquireStep::Do { action: AcquireAction::Claim, until: at(millis) }
}

#[test]
fn a_claim_that_was_never_sent_leaves_nothing() {
    let endings = [
        (None, AcquireEvent::Elapsed, 2_000),
        (Some(500), AcquireEvent::Elapsed, 500),
        (None, AcquireEvent::Stopped, 1),
        (None, AcquireEvent::SessionLost, 1),
    ];
    for (deadline, ending, millis) in endings {
        let mut acquire = acquisition(Place::Queue, deadline);
        action(&mut acquire, AcquireEvent::Queued, 0);
        acquire.step(ending.clone(), at(millis), Chance::MIDDLE);
        assert!(!acquire.owes_release(), "{ending:?} with the deadline {deadline:?}");
    }
}

#[test]
fn an_unanswered_claim_stays_owed_while_its_next_copy_is_queued() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Elapsed, 2_000);
    action(&mut acquire, AcquireEvent::Elapsed, 2_100);
    action(&mut acquire, AcquireEvent::Queued, 2_100);
    assert_eq!(verdict(&mut acquire, AcquireEvent::Stopped, 2_200), Verdict::Stopped);
    assert!(acquire.owes_release());
}

#[test]
fn a_queue_in_which_nothing_moves_is_a_failed_attempt() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Queued, 0);
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 1_999), AcquireAction::Claim);
    assert_eq!(action(&mut acquire, AcquireEvent::Elapsed, 2_000), AcquireAction::Pause);
    assert!(!acquire.is_unanswered());
}

#[test]
fn a_confirm_that_is_queued_has_its_time_from_when_it_is_sent() {
    let mut acquire = acquisition(Place::Queue, None);
    action(&mut acquire, AcquireEvent::Answered(QUEUED), 0);
    let confirm = AcquireAction::Confirm { cursor: Cursor(9) };
    assert_eq!(action(&mut acquire, woken(Hint::MaybeFree), 100), confirm);
    for (event, millis) in [(AcquireEvent::Queued, 100), (AcquireEvent::Sent, 5_000)] {
        let until = at(millis + 2_000);
        assert_eq!(acquire.step(event, at(millis), Chance::MIDDLE), AcquireStep::Do { action: confirm, until });
    }
}

#[test]
fn a_place_that_was_taken_away_is_owed_until_the_next_claim_is_answered() {
    for confirms in [false, true] {
        let mut acquire = acquisition(Place::Queue, None);
        action(&mut acquire, AcquireEvent::Answered(QUEUED), 0);
        if confirms {
            action(&mut acquire, woken(Hint::MaybeFree), 100);
            action(&mut acquire, AcquireEvent::Answered(Standing::ClaimGone), 110);
        } else {
            action(&mut acquire, woken(Hint::ClaimGone), 110);
        }
        let mut given_up = acquire.clone();
        assert_eq!(action(&mut given_up, AcquireEvent::Queued, 120), AcquireAction::Claim);
        given_up.step(AcquireEvent::Stopped, at(130), Chance::MIDDLE);
        assert!(given_up.owes_release(), "confirms: {confirms}");
        action(&mut acquire, AcquireEvent::Answered(BUSY), 120);
        acquire.step(AcquireEvent::Stopped, at(130), Chance::MIDDLE);
        assert!(!acquire.owes_release(), "confirms: {confirms}");
    }
}
