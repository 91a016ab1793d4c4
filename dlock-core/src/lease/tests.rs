use super::*;

const TTL: Duration = Duration::from_secs(15);

fn at(millis: u64) -> Moment {
    Moment::from_origin(Duration::from_millis(millis))
}

fn step(lease: &mut Lease, event: LeaseEvent, millis: u64) -> LeaseStep {
    lease.step(event, at(millis), Chance::MIDDLE)
}

fn todo(action: LeaseAction, millis: u64) -> LeaseStep {
    LeaseStep::Do { action, until: at(millis) }
}

fn action(step: LeaseStep) -> LeaseAction {
    match step {
        LeaseStep::Do { action, .. } => action,
        LeaseStep::Done(end) => panic!("done: {end:?}"),
    }
}

fn opened() -> Lease {
    let mut lease = Lease::new(TTL, 2);
    assert_eq!(step(&mut lease, LeaseEvent::Started, 1_000), todo(LeaseAction::Open, 3_000));
    assert_eq!(action(step(&mut lease, LeaseEvent::Opened { ttl: TTL }, 1_900)), LeaseAction::Rest);
    lease
}

/// The moment a resting lease wants to renew.
fn due(lease: &mut Lease, millis: u64) -> u64 {
    match step(lease, LeaseEvent::Started, millis) {
        LeaseStep::Do { action: LeaseAction::Rest, until } => until.since_origin().as_millis() as u64 + 1,
        other => panic!("not resting: {other:?}"),
    }
}

#[test]
fn belief_counts_from_before_the_request_was_sent() {
    assert_eq!(opened().believed_until(), Some(at(1_000 + 15_000 - 150)));
}

#[test]
fn a_renewal_is_due_after_a_third_of_the_ttl_give_or_take_a_tenth() {
    for (chance, expected) in [(Chance(0), 5_500), (Chance(u32::MAX), 6_500)] {
        let mut lease = Lease::new(TTL, 2);
        lease.step(LeaseEvent::Started, at(1_000), chance);
        let step = lease.step(LeaseEvent::Opened { ttl: TTL }, at(1_100), chance);
        assert_eq!(step, todo(LeaseAction::Rest, expected));
    }
}

#[test]
fn an_answered_renewal_moves_the_deadline_to_its_own_sending() {
    let mut lease = opened();
    let due = due(&mut lease, 2_000);
    assert_eq!(step(&mut lease, LeaseEvent::Elapsed, due), todo(LeaseAction::Renew, due + 2_000));
    step(&mut lease, LeaseEvent::Renewed { ttl: TTL }, due + 1_500);
    assert_eq!(lease.believed_until(), Some(at(due + 15_000 - 150)));
    assert_eq!(lease.health(), Health::Sound);
}

#[test]
fn a_hung_renewal_is_dropped_and_another_goes_out() {
    let mut lease = opened();
    let due = due(&mut lease, 2_000);
    step(&mut lease, LeaseEvent::Elapsed, due);
    let LeaseStep::Do { action: LeaseAction::Rest, until } = step(&mut lease, LeaseEvent::Elapsed, due + 2_000) else {
        panic!("no pause after a hung renewal")
    };
    assert_eq!(lease.health(), Health::Suspect);
    let again = until.since_origin().as_millis() as u64 + 1;
    assert!(again <= due + 2_102, "{again}");
    assert_eq!(action(step(&mut lease, LeaseEvent::Elapsed, again)), LeaseAction::Renew);
}

#[test]
fn silence_is_loss_before_the_store_forgets() {
    let mut lease = opened();
    let mut now = 2_000;
    let deadline = lease.believed_until().unwrap();
    loop {
        match step(&mut lease, LeaseEvent::Elapsed, now) {
            LeaseStep::Do { action: LeaseAction::Settle, until } => {
                assert_eq!(until, at(now).max(lease.lapses_at()));
                break;
            }
            LeaseStep::Do { until, .. } => {
                assert!(until <= deadline, "an action outlasts belief");
                now = u64::try_from(until.since_origin().as_nanos().div_ceil(1_000_000)).unwrap();
            }
            LeaseStep::Done(end) => panic!("{end:?}"),
        }
    }
    assert_eq!(lease.health(), Health::Over(Some(Loss::Expired)));
    assert_eq!(at(now), deadline);
    assert!(lease.lapses_at() > deadline);
}

#[test]
fn errors_before_the_deadline_lose_nothing() {
    let mut lease = opened();
    let mut now = due(&mut lease, 2_000);
    for _ in 0..6 {
        assert_eq!(action(step(&mut lease, LeaseEvent::Elapsed, now)), LeaseAction::Renew);
        let LeaseStep::Do { until, .. } = step(&mut lease, LeaseEvent::Failed(ErrorKind::Ambiguous), now + 1) else {
            panic!("ended by an error")
        };
        now = until.since_origin().as_millis() as u64 + 1;
    }
    step(&mut lease, LeaseEvent::Elapsed, now);
    step(&mut lease, LeaseEvent::Renewed { ttl: TTL }, now + 1);
    assert_eq!(lease.health(), Health::Sound);
}

#[test]
fn an_answer_after_the_deadline_does_not_revive() {
    let mut lease = opened();
    let due = due(&mut lease, 2_000);
    step(&mut lease, LeaseEvent::Elapsed, due);
    let late = step(&mut lease, LeaseEvent::Renewed { ttl: TTL }, 15_850);
    assert_eq!(action(late), LeaseAction::Settle);
    assert_eq!(lease.health(), Health::Over(Some(Loss::Expired)));
}

#[test]
fn an_open_answered_after_its_own_ttl_is_never_believed() {
    let mut lease = Lease::new(TTL, 2);
    step(&mut lease, LeaseEvent::Started, 1_000);
    let late = step(&mut lease, LeaseEvent::Opened { ttl: TTL }, 17_000);
    assert_eq!(action(late), LeaseAction::Settle);
    assert_eq!(lease.believed_until(), None);
}

#[test]
fn a_late_answer_to_a_dropped_renewal_is_ignored() {
    let mut lease = opened();
    let due = due(&mut lease, 2_000);
    step(&mut lease, LeaseEvent::Elapsed, due);
    step(&mut lease, LeaseEvent::Elapsed, due + 2_000);
    let before = lease.believed_until();
    step(&mut lease, LeaseEvent::Renewed { ttl: TTL }, due + 2_010);
    assert_eq!(lease.believed_until(), before);
}

#[test]
fn the_stores_word_ends_belief_at_once_and_needs_no_close() {
    let mut lease = opened();
    assert_eq!(action(step(&mut lease, LeaseEvent::Gone, 2_000)), LeaseAction::Settle);
    assert_eq!(lease.health(), Health::Over(Some(Loss::SessionGone)));
    assert_eq!(step(&mut lease, LeaseEvent::Settled, 2_001), LeaseStep::Done(LeaseEnd::Closed));
}

#[test]
fn a_disturbance_renews_at_once() {
    let mut lease = opened();
    assert_eq!(action(step(&mut lease, LeaseEvent::Disturbed, 2_500)), LeaseAction::Renew);
}

#[test]
fn leaving_closes_until_it_is_answered_or_lapsed() {
    let mut lease = opened();
    assert_eq!(action(step(&mut lease, LeaseEvent::Left, 2_000)), LeaseAction::Close);
    assert_eq!(action(step(&mut lease, LeaseEvent::Failed(ErrorKind::Transient), 2_001)), LeaseAction::Rest);
    assert_eq!(action(step(&mut lease, LeaseEvent::Elapsed, 3_000)), LeaseAction::Close);
    assert_eq!(step(&mut lease, LeaseEvent::Closed, 3_001), LeaseStep::Done(LeaseEnd::Closed));
    assert_eq!(lease.health(), Health::Over(None));

    let mut lease = opened();
    step(&mut lease, LeaseEvent::Left, 2_000);
    assert_eq!(lease.lapses_at(), at(31_000));
    assert_eq!(step(&mut lease, LeaseEvent::Elapsed, 31_000), LeaseStep::Done(LeaseEnd::Lapsed));
}

#[test]
fn what_can_never_be_opened_is_refused_and_what_can_is_asked_again() {
    let mut lease = Lease::new(TTL, 2);
    step(&mut lease, LeaseEvent::Started, 0);
    assert_eq!(action(step(&mut lease, LeaseEvent::Failed(ErrorKind::Transient), 1)), LeaseAction::Rest);
    assert_eq!(action(step(&mut lease, LeaseEvent::Elapsed, 1_000)), LeaseAction::Open);
    let refused = step(&mut lease, LeaseEvent::Failed(ErrorKind::Denied), 1_001);
    assert_eq!(refused, LeaseStep::Done(LeaseEnd::Refused(ErrorKind::Denied)));
}

#[test]
fn a_process_that_slept_past_everything_still_tells_its_guards() {
    let mut lease = opened();
    assert_eq!(action(step(&mut lease, LeaseEvent::Elapsed, 100_000)), LeaseAction::Settle);
}

#[test]
fn nothing_is_sent_before_the_moment_that_is_asked_for() {
    let mut lease = Lease::new(TTL, 2).not_before(at(700));
    assert_eq!(step(&mut lease, LeaseEvent::Started, 0), todo(LeaseAction::Rest, 700));
    assert_eq!(lease.health(), Health::Opening);
    assert_eq!(step(&mut lease, LeaseEvent::Elapsed, 700), todo(LeaseAction::Open, 2_700));
    let mut late = Lease::new(TTL, 2).not_before(at(700));
    assert_eq!(step(&mut late, LeaseEvent::Started, 800), todo(LeaseAction::Open, 2_800));
}

#[test]
fn every_reason_of_a_loss_is_in_the_list() {
    // A new reason does not compile here until it has a place in the list.
    let place = |loss: Loss| match loss {
        Loss::Expired => 0,
        Loss::SessionGone => 1,
        Loss::KeyDeleted => 2,
        Loss::TakenOver => 3,
        Loss::HeldTooLong => 4,
        Loss::Shutdown => 5,
        Loss::Released => 6,
    };
    assert_eq!(Loss::ALL.iter().copied().map(place).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn the_margin_is_a_hundredth_of_the_ttl_and_no_less_than_fifty_milliseconds() {
    assert_eq!(Lease::margin(Duration::from_secs(60)), Duration::from_millis(600));
    assert_eq!(Lease::margin(Duration::from_secs(1)), Lease::LEAST_MARGIN);
}

#[test]
fn an_attempt_takes_a_sixth_of_the_ttl_within_its_bounds() {
    assert_eq!(Lease::attempt(Duration::from_secs(6)), Duration::from_secs(1));
    assert_eq!(Lease::attempt(Duration::from_secs(60)), Lease::LONGEST_ATTEMPT);
    assert_eq!(Lease::attempt(Duration::from_millis(6)), Duration::from_millis(10));
}

#[test]
fn a_lease_asks_for_the_ttl_it_was_made_with_and_believes_nothing_before_the_answer() {
    let mut lease = Lease::new(TTL, 2);
    step(&mut lease, LeaseEvent::Started, 1_000);
    assert_eq!(lease.requested(), TTL);
    assert_eq!(lease.believed_until(), None);
    assert_eq!(lease.health(), Health::Opening);
}

#[test]
fn every_loss_is_told_in_words_of_its_own() {
    let losses =
        [Loss::Expired, Loss::SessionGone, Loss::KeyDeleted, Loss::TakenOver, Loss::HeldTooLong, Loss::Shutdown, Loss::Released];
    let told: std::collections::BTreeSet<_> = losses.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), losses.len(), "{told:?}");
    assert!(Loss::KeyDeleted.to_string().contains("deleted"));
}

#[test]
fn a_lease_that_is_abandoned_lapses_and_stays_ended() {
    let mut lease = opened();
    assert_eq!(step(&mut lease, LeaseEvent::Abandoned, 2_000), LeaseStep::Done(LeaseEnd::Lapsed));
    assert_eq!(lease.health(), Health::Over(Some(Loss::Shutdown)));

    let mut lease = opened();
    step(&mut lease, LeaseEvent::Left, 2_000);
    step(&mut lease, LeaseEvent::Closed, 2_001);
    assert_eq!(step(&mut lease, LeaseEvent::Abandoned, 2_002), LeaseStep::Done(LeaseEnd::Closed));
    assert_eq!(lease.health(), Health::Over(None));
}

#[test]
fn a_lease_that_is_left_before_it_was_opened_is_left_to_lapse() {
    let mut lease = Lease::new(TTL, 2);
    step(&mut lease, LeaseEvent::Started, 0);
    assert_eq!(step(&mut lease, LeaseEvent::Left, 1), LeaseStep::Done(LeaseEnd::Lapsed));
    assert_eq!(lease.health(), Health::Over(None));
}

#[test]
fn opens_that_fail_are_asked_again_after_growing_pauses() {
    let (mut lease, longest) = (Lease::new(TTL, 2), Chance(u32::MAX));
    lease.step(LeaseEvent::Started, at(0), longest);
    let mut now = 0;
    for pause in [100, 200, 400, 800, 1_000, 1_000] {
        let paused = lease.step(LeaseEvent::Failed(ErrorKind::Transient), at(now), longest);
        assert_eq!(paused, todo(LeaseAction::Rest, now + pause));
        assert_eq!(lease.step(LeaseEvent::Elapsed, at(now + pause - 1), longest), paused);
        now += pause;
        assert_eq!(lease.step(LeaseEvent::Elapsed, at(now), longest), todo(LeaseAction::Open, now + 2_000));
    }
}

#[test]
fn pauses_stay_within_a_twelfth_of_the_ttl_and_are_at_least_five_milliseconds() {
    let failed = LeaseEvent::Failed(ErrorKind::Transient);
    for (chance, pause) in [(Chance(u32::MAX), 50), (Chance(0), 5)] {
        let mut lease = Lease::new(Duration::from_millis(600), 2);
        lease.step(LeaseEvent::Started, at(0), chance);
        assert_eq!(lease.step(failed, at(0), chance), todo(LeaseAction::Rest, pause));
    }
}

#[test]
fn an_open_goes_on_until_its_time_is_up_and_is_then_asked_again() {
    let mut lease = Lease::new(TTL, 2);
    let opening = step(&mut lease, LeaseEvent::Started, 0);
    assert_eq!(opening, todo(LeaseAction::Open, 2_000));
    assert_eq!(step(&mut lease, LeaseEvent::Elapsed, 1_999), opening);
    for event in [LeaseEvent::Elapsed, LeaseEvent::Disturbed] {
        assert_eq!(action(step(&mut lease.clone(), event, 2_000)), LeaseAction::Rest, "{event:?}");
    }
}

#[test]
fn a_renewal_goes_on_until_its_time_is_up_and_then_makes_the_lease_suspect() {
    let mut lease = opened();
    let due = due(&mut lease, 2_000);
    let renewing = step(&mut lease, LeaseEvent::Elapsed, due);
    assert_eq!(step(&mut lease, LeaseEvent::Elapsed, due + 1_999), renewing);
    assert_eq!(lease.health(), Health::Sound);
    for event in [LeaseEvent::Elapsed, LeaseEvent::Disturbed] {
        let mut lease = lease.clone();
        assert_eq!(action(step(&mut lease, event, due + 2_000)), LeaseAction::Rest, "{event:?}");
        assert_eq!(lease.health(), Health::Suspect);
    }
}

#[test]
fn a_renewal_goes_out_at_the_moment_it_is_due() {
    let mut lease = Lease::new(TTL, 2);
    lease.step(LeaseEvent::Started, at(0), Chance(0));
    let resting = lease.step(LeaseEvent::Opened { ttl: TTL }, at(1), Chance(0));
    assert_eq!(resting, todo(LeaseAction::Rest, 4_500));
    assert_eq!(lease.step(LeaseEvent::Elapsed, at(4_499), Chance(0)), resting);
    assert_eq!(lease.step(LeaseEvent::Elapsed, at(4_500), Chance(0)), todo(LeaseAction::Renew, 6_500));
}

#[test]
fn renewals_that_fail_are_asked_again_after_growing_pauses() {
    let (mut lease, longest) = (opened(), Chance(u32::MAX));
    let mut now = 2_000;
    step(&mut lease, LeaseEvent::Disturbed, now);
    for pause in [100, 200, 400] {
        let paused = lease.step(LeaseEvent::Failed(ErrorKind::Denied), at(now), longest);
        assert_eq!(paused, todo(LeaseAction::Rest, now + pause));
        now += pause;
        assert_eq!(lease.step(LeaseEvent::Elapsed, at(now), longest), todo(LeaseAction::Renew, now + 2_000));
    }
}

#[test]
fn a_disturbance_shortens_no_pause_after_a_failure() {
    let mut lease = opened();
    step(&mut lease, LeaseEvent::Disturbed, 2_000);
    let paused = step(&mut lease, LeaseEvent::Failed(ErrorKind::Transient), 2_001);
    assert_eq!(step(&mut lease, LeaseEvent::Disturbed, 2_002), paused);
}

#[test]
fn a_renewal_under_way_keeps_the_session_alive_at_the_store() {
    let mut lease = opened();
    assert_eq!(lease.lapses_at(), at(31_000));
    step(&mut lease, LeaseEvent::Disturbed, 3_000);
    assert_eq!(lease.lapses_at(), at(33_000));
}

#[test]
fn settling_lasts_until_it_is_said_or_the_session_has_lapsed() {
    let mut lease = opened();
    let settling = step(&mut lease, LeaseEvent::Gone, 2_000);
    assert_eq!(settling, todo(LeaseAction::Settle, 31_000));
    assert_eq!(step(&mut lease, LeaseEvent::Elapsed, 30_999), settling);
    for event in [LeaseEvent::Elapsed, LeaseEvent::Disturbed] {
        assert_eq!(step(&mut lease.clone(), event, 31_000), LeaseStep::Done(LeaseEnd::Lapsed), "{event:?}");
    }
}

#[test]
fn an_expired_session_is_closed_once_it_is_settled() {
    let mut lease = opened();
    assert_eq!(action(step(&mut lease, LeaseEvent::Elapsed, 15_850)), LeaseAction::Settle);
    assert_eq!(action(step(&mut lease, LeaseEvent::Settled, 15_851)), LeaseAction::Close);
    assert_eq!(step(&mut lease, LeaseEvent::Gone, 15_852), LeaseStep::Done(LeaseEnd::Closed));
    assert_eq!(lease.health(), Health::Over(Some(Loss::Expired)));
}

#[test]
fn closes_that_fail_or_hang_are_asked_again_after_growing_pauses() {
    let (mut lease, longest) = (opened(), Chance(u32::MAX));
    let closing = step(&mut lease, LeaseEvent::Left, 2_000);
    assert_eq!(closing, todo(LeaseAction::Close, 4_000));
    assert_eq!(lease.step(LeaseEvent::Elapsed, at(3_999), longest), closing);
    assert_eq!(lease.step(LeaseEvent::Elapsed, at(4_000), longest), todo(LeaseAction::Rest, 4_100));
    assert_eq!(lease.step(LeaseEvent::Elapsed, at(4_100), longest), todo(LeaseAction::Close, 6_100));
    let failed = lease.step(LeaseEvent::Failed(ErrorKind::Transient), at(4_200), longest);
    assert_eq!(failed, todo(LeaseAction::Rest, 4_400));
}

#[test]
fn a_close_that_is_never_answered_ends_when_the_session_has_lapsed() {
    let mut lease = opened();
    step(&mut lease, LeaseEvent::Left, 10_000);
    assert_eq!(step(&mut lease, LeaseEvent::Disturbed, 31_000), LeaseStep::Done(LeaseEnd::Lapsed));
}
