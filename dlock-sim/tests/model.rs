//! Every order of events within bounds: nothing promised is broken, and each planted mistake is found.
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use dlock_core::Place;
use dlock_sim::model::{Bounds, Bug, Walk};
use dlock_testkit::memory::Profile;
use stateright::{Checker, HasDiscoveries, Model};

const SHORT: Bounds = Bounds { horizon: Duration::from_millis(700), ..Bounds::CALM };

/// Walks all profiles to the end; every promise holds, and what gives them meaning is reached.
fn holds(bounds: Bounds) {
    for profile in ALL.iter().copied() {
        let began = Instant::now();
        let walk = Walk::new(profile, bounds).checker().threads(1).finish_when(HasDiscoveries::AnyFailures);
        let walked = walk.spawn_bfs().join();
        println!(
            "proof: model, {profile:?}: {} states, {} deep, walked to the end in {:.1?}",
            walked.unique_state_count(),
            walked.max_depth(),
            began.elapsed()
        );
        walked.assert_properties();
        assert!(walked.is_done());
    }
}

/// Walks with a mistake planted; this promise is broken, as a shortest path shows.
fn finds(bug: Bug, profiles: &[Profile], broken: &'static str, bounds: Bounds) {
    for profile in profiles {
        let walk = Walk::new(*profile, bounds).with(bug).checker().threads(1).finish_when(HasDiscoveries::AnyFailures);
        let walked = walk.spawn_bfs().join();
        let path = walked.discovery(broken).unwrap_or_else(|| panic!("{bug:?} was not found on {profile:?}"));
        println!("{profile:?}, {bug:?}: {} states, {:?}", walked.unique_state_count(), path.into_actions());
    }
}

const ALL: &[Profile] = &[Profile::Queue, Profile::Line, Profile::Slot];

#[test]
fn lost_messages_break_nothing() {
    holds(Bounds { lost: 1, drifts: 1, ..Bounds::CALM });
}

#[test]
fn slow_messages_break_nothing() {
    holds(Bounds { slow: 1, ..Bounds::CALM });
}

#[test]
fn repeated_messages_break_nothing() {
    holds(Bounds { wants: [2, 1], repeated: 1, ..SHORT });
}

#[test]
fn cancelled_acquisitions_leave_nothing() {
    holds(Bounds { cancels: 1, slow: 1, ..SHORT });
    holds(Bounds { wants: [2, 0], cancels: 1, slow: 1, lost: 1, ..SHORT });
    holds(Bounds { cancels: 1, slow: 1, place: Place::Try, ..SHORT });
}

#[test]
fn paused_clients_and_late_clocks_break_nothing() {
    holds(Bounds { pauses: 1, drifts: 1, horizon: Duration::from_secs(1), ..Bounds::CALM });
}

#[test]
fn slow_answers_and_late_clocks_break_nothing() {
    holds(Bounds { slow: 1, drifts: 1, ..SHORT });
}

#[test]
fn late_writes_are_refused() {
    holds(Bounds { pauses: 1, writes: 2, ..SHORT });
}

#[test]
fn an_operator_breaks_nothing_that_the_token_does_not_mend() {
    holds(Bounds { interventions: 1, slow: 1, ..SHORT });
    holds(Bounds { interventions: 1, cancels: 1, ..SHORT });
}

#[test]
fn a_deadline_dated_from_the_reply_is_found() {
    finds(Bug::DeadlineFromReply, ALL, "belief is never false", Bounds { slow: 1, pauses: 1, ..SHORT });
}

#[test]
fn a_missing_margin_is_found() {
    finds(Bug::NoMargin, ALL, "belief is never false", Bounds { pauses: 1, drifts: 1, ..SHORT });
}

#[test]
fn a_release_that_does_not_fence_is_found() {
    finds(Bug::UnfencedRelease, ALL, "what was undone stays undone", Bounds { cancels: 1, slow: 1, ..SHORT });
}

#[test]
fn a_release_by_session_is_found() {
    finds(Bug::ReleaseBySession, ALL, "belief is never false", Bounds { wants: [2, 0], repeated: 1, ..SHORT });
}

#[test]
fn a_cancelled_claim_that_is_not_undone_is_found() {
    finds(Bug::CancelWithoutUndo, ALL, "no orphan is renewed", Bounds { cancels: 1, ..SHORT });
}

#[test]
fn busy_taken_for_nothing_owed_is_found() {
    let bounds = Bounds { slow: 1, place: Place::Try, ..SHORT };
    finds(Bug::BusyMeansNothingOwed, &[Profile::Queue, Profile::Line], "no orphan is renewed", bounds);
}

#[test]
fn trust_in_a_keys_absence_is_found() {
    let bounds = Bounds { slow: 1, interventions: 1, ..SHORT };
    finds(Bug::TrustsAbsence, &[Profile::Slot], "what was undone stays undone", bounds);
}

#[test]
fn a_lost_wake_up_is_found() {
    finds(Bug::LostWakeUp, ALL, "whoever waits is moved", SHORT);
}

#[test]
fn a_resource_without_a_fence_is_found() {
    let bounds = Bounds { pauses: 1, writes: 2, ..SHORT };
    finds(Bug::NoFence, ALL, "the resource accepts nothing older than before", bounds);
}
