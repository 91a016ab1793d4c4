use super::*;

const TTL: Duration = Duration::from_secs(2);

/// What is found in lines of worker n's acquisition n; where none says that a lock was wanted, it was just before it was held.
fn found(lines: &[(u64, u8, Event)], strikes: &[Strike]) -> Proof {
    let mut history = History::default();
    let asked = |op: &Op| lines.iter().any(|(.., event)| matches!(event, Event::Wants { op: asked, .. } if asked == op));
    for (at, client, event) in lines {
        if let Event::Held { op, .. } = event
            && !asked(op)
        {
            history.push(*at - 1, Some(*client), wants(*op));
        }
        history.push(*at, Some(*client), event.clone());
    }
    prove(Store::Etcd, &BTreeMap::from([("k".to_owned(), history)]), strikes, TTL)
}

fn wants(op: Op) -> Event {
    Event::Wants { op, tries: false }
}

fn held(op: Op, token: u64) -> Event {
    Event::Held { op, token }
}

fn lost(op: Op, reason: Reason) -> Event {
    Event::Lost { op, reason }
}

#[test]
fn holders_that_take_turns_are_fine_and_the_closest_call_is_told() {
    let proof = found(
        &[
            (1, 1, wants(1)),
            (2, 1, held(1, 7)),
            (5, 1, lost(1, Reason::Expired)),
            (3, 2, wants(2)),
            (9, 2, held(2, 8)),
            (11, 2, Event::Releasing { op: 2 }),
        ],
        &[],
    );
    assert_eq!(proof.violations, [""; 0]);
    assert_eq!((proof.held, proof.closest), (2, Some(Duration::from_micros(4))));
}

#[test]
fn a_holder_that_believes_beyond_the_next_ones_grant_is_a_violation() {
    let lines = [(2, 1, held(1, 7)), (6, 2, held(2, 8)), (9, 1, lost(1, Reason::Expired)), (9, 2, Event::Releasing { op: 2 })];
    let proof = found(&lines, &[]);
    assert_eq!(proof.violations.len(), 1, "{:?}", proof.violations);
    assert!(proof.violations[0].contains("believed in token 7"), "{:?}", proof.violations);
}

#[test]
fn who_stood_still_is_excused_until_it_goes_on_and_no_longer() {
    let lines = |paused: u8, told| {
        [
            (2, 1, held(1, 7)),
            (3, paused, Event::Paused { until: 7_000_000 }),
            (6_000_000, 2, held(2, 8)),
            (6_000_009, 2, Event::Releasing { op: 2 }),
            (7_000_020, paused, Event::Paused { until: 9_000_000 }),
            (told, 1, lost(1, Reason::Expired)),
        ]
    };
    let excused = found(&lines(1, 9_000_100), &[]);
    assert_eq!((excused.violations.len(), excused.stood_still), (0, 1));
    assert_eq!(found(&lines(1, 9_100_000), &[]).violations.len(), 1);
    assert_eq!(found(&lines(2, 9_000_100), &[]).violations.len(), 1);
}

#[test]
fn a_pause_that_was_over_before_excuses_nobody() {
    let lines = [
        (2, 1, held(1, 7)),
        (3, 1, Event::Paused { until: 5 }),
        (6, 2, held(2, 8)),
        (9, 1, lost(1, Reason::Expired)),
        (9, 2, Event::Releasing { op: 2 }),
    ];
    let proof = found(&lines, &[]);
    assert_eq!((proof.violations.len(), proof.longest_hiccup), (1, Duration::from_micros(2)));
    let stop = Strike { kind: Kind::PauseWorker, from: 3, until: 5, client: Some(1), key: None };
    assert_eq!(found(&lines, &[stop]).longest_hiccup, Duration::ZERO);
}

#[test]
fn an_operators_act_excuses_the_holder_that_it_concerns() {
    let act = |client| Strike { kind: Kind::EndSession, from: 3, until: 5, client: Some(client), key: None };
    let lines = [(2, 1, held(1, 7)), (6, 2, held(2, 8)), (9, 1, lost(1, Reason::SessionGone)), (9, 2, Event::Releasing { op: 2 })];
    let excused = found(&lines, &[act(1)]);
    assert_eq!((excused.violations.len(), excused.after_interference), (0, 1));
    assert_eq!(excused.longest_after_interference, Duration::from_micros(3));
    assert_eq!(found(&lines, &[act(2)]).violations.len(), 1);
}

#[test]
fn an_act_that_came_before_its_holder_was_told_of_the_grant_excuses_it() {
    let act = |until| Strike { kind: Kind::EndSession, from: 3, until, client: Some(1), key: None };
    let lines = [
        (4, 1, wants(1)),
        (6, 2, held(2, 8)),
        (7, 1, held(1, 7)),
        (9, 1, lost(1, Reason::SessionGone)),
        (9, 2, Event::Releasing { op: 2 }),
    ];
    assert_eq!(found(&lines, &[act(5)]).after_interference, 1);
    assert_eq!(found(&lines, &[act(3)]).violations.len(), 1);
}

#[test]
fn a_leader_that_stood_still_excuses_who_held_before_it_woke() {
    let freeze = |kind, until| Strike { kind, from: 3, until, client: None, key: None };
    let lines =
        [(4, 1, held(1, 7)), (9, 2, held(2, 8)), (12, 1, lost(1, Reason::SessionGone)), (13, 2, Event::Releasing { op: 2 })];
    let excused = found(&lines, &[freeze(Kind::FreezeLeader, 8)]);
    assert_eq!((excused.violations.len(), excused.after_early_end), (0, 1));
    assert_eq!(found(&lines, &[freeze(Kind::FreezeFollower, 8)]).violations.len(), 1);
    let later = lines.map(|(at, client, event)| (at + AFTERMATH, client, event));
    assert_eq!(found(&later, &[freeze(Kind::FreezeLeader, 8)]).violations.len(), 0);
    assert_eq!(found(&later, &[Strike { from: 1, ..freeze(Kind::FreezeLeader, 2) }]).violations.len(), 1);
}

#[test]
fn an_operators_act_excuses_nobody_for_ever() {
    let act = Strike { kind: Kind::DeleteKey, from: 3, until: 5, client: None, key: Some("k".to_owned()) };
    let lines =
        [(2, 1, held(1, 7)), (6, 2, held(2, 8)), (9, 2, Event::Releasing { op: 2 }), (4_000_007, 1, lost(1, Reason::KeyDeleted))];
    assert_eq!(found(&lines, &[act]).violations.len(), 1);
}

#[test]
fn who_is_told_before_another_with_a_lower_token_has_overtaken_it() {
    let lines = [
        (2, 1, held(1, 7)),
        (3, 1, Event::Releasing { op: 1 }),
        (4, 2, held(2, 9)),
        (5, 2, Event::Releasing { op: 2 }),
        (6, 3, held(3, 8)),
        (7, 3, Event::Releasing { op: 3 }),
    ];
    let proof = found(&lines, &[]);
    assert_eq!(proof.overtaken, 1);
    assert!(proof.violations.iter().any(|it| it.contains("believed in token 8")), "{:?}", proof.violations);
}

#[test]
fn a_token_below_an_earlier_holders_is_a_violation() {
    let lines = [
        (1, 1, wants(1)),
        (2, 1, held(1, 7)),
        (3, 1, Event::Releasing { op: 1 }),
        (4, 2, wants(2)),
        (5, 2, held(2, 6)),
        (6, 2, Event::Releasing { op: 2 }),
    ];
    let proof = found(&lines, &[]);
    assert!(proof.violations.iter().any(|it| it.contains("granted token 6 after token 7")), "{:?}", proof.violations);
}

#[test]
fn a_release_that_was_answered_although_another_held_the_lock_is_a_violation() {
    let lines = [
        (1, 1, wants(1)),
        (2, 1, held(1, 7)),
        (3, 1, Event::Releasing { op: 1 }),
        (4, 2, wants(2)),
        (5, 2, held(2, 8)),
        (6, 2, Event::Releasing { op: 2 }),
        (7, 2, Event::Released { op: 2, outcome: Outcome::Released }),
        (8, 3, wants(3)),
        (9, 3, Event::Refused { op: 3, why: Refusal::Busy }),
        (10, 3, wants(4)),
        (11, 3, held(4, 9)),
        (12, 3, Event::Releasing { op: 4 }),
        (13, 3, Event::Released { op: 4, outcome: Outcome::Released }),
        (14, 1, Event::Released { op: 1, outcome: Outcome::Released }),
    ];
    let proof = found(&lines, &[]);
    assert_eq!(proof.violations.len(), 1, "{:?}", proof.violations);
    assert!(proof.violations[0].contains("no order"), "{:?}", proof.violations);
}

#[test]
fn a_fence_that_goes_back_is_a_violation() {
    let wrote = |token| Event::Wrote { op: 1, token, accepted: true };
    assert_eq!(found(&[(1, 1, wrote(7)), (2, 1, wrote(6))], &[]).violations.len(), 1);
}

#[test]
fn a_key_that_nobody_gets_any_more_is_a_violation() {
    assert_eq!(found(&[(1, 1, Event::Healed)], &[]).violations.len(), 1);
}

#[test]
fn a_holding_ends_with_its_process() {
    let lines = [(2, 1, held(1, 7)), (4, 1, Event::Crashed), (6, 2, held(2, 8)), (9, 2, Event::Releasing { op: 2 })];
    assert_eq!(found(&lines, &[]).violations, [""; 0]);
}
