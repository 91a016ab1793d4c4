//! What the `Locker` must show on every backend: what the backend's own conformance suite cannot see, since it knows no timeouts,
//! guards or elections.
//!
//! The cases take any [`Harness`](dlock_testkit::conformance::Harness), so they run on the store in memory in virtual time and on a
//! real server in real time from one source: [`locker_suite!`](crate::locker_suite!) makes a test of each.

mod contention;
mod election;
mod holding;
mod leftovers;
mod loss;
mod process;
mod taking;

use std::future::Future;
use std::time::Duration;

use dlock::Locker;
use dlock_testkit::conformance::{Case, Line, Stage};
use tokio::time::{Instant, sleep};

/// Every case, in the order of the groups.
pub const CASES: &[Case] = crate::locker_cases! { dlock_testkit::case_list };

/// Makes a test of every case of the `Locker`, and `the_report`, as [`conformance!`](dlock_testkit::conformance!) does for a
/// backend.
#[macro_export]
macro_rules! locker_suite {
    (#[$test:meta] $harness:expr) => {
        $crate::locker_cases! { dlock_testkit::suite [#[$test]] [$harness] [dlock_sim::suite::CASES] }
    };
}

/// The names of all cases, handed to another macro.
#[doc(hidden)]
#[macro_export]
macro_rules! locker_cases {
    ($kit:ident::$callback:ident $($given:tt)*) => {
        $kit::$callback! { $($given)*
            taking {
                a_free_lock_is_taken_held_and_given_back,
                a_lock_is_held_past_its_ttl,
                a_try_finds_it_taken_here_without_a_call_and_elsewhere_with_one,
                a_try_takes_a_free_lock,
                a_waiter_elsewhere_gets_it_at_once_with_a_greater_token,
                a_wait_ends_in_time_and_names_the_holder,
                time_at_the_gate_counts,
                a_wait_can_be_cancelled,
                a_request_that_was_cancelled_before_takes_nothing,
                whoever_holds_a_lock_and_asks_again_waits_for_itself,
                locks_of_different_keys_do_not_wait_for_one_another,
                two_guards_of_one_request_never_share_an_identity,
                concurrent_acquisitions_share_one_session,
                run_gives_back_and_tells_the_value,
                run_does_not_begin_without_the_lock,
                metadata_and_holder_are_there_for_others_to_read,
                bad_input_is_refused_before_anything_is_sent,
            }
            contention {
                a_hundred_tasks_are_never_inside_together,
                many_lockers_are_never_inside_together,
                no_update_is_lost_under_the_lock,
                any_order_of_taking_and_giving_back_leaves_nothing,
                a_handover_within_a_process_costs_two_calls,
                whoever_waits_asks_once,
                many_turns_of_one_process_let_another_in,
            }
            holding {
                a_lock_is_not_held_longer_than_at_most,
                a_lock_is_not_given_back_earlier_than_at_least,
                stop_before_tells_ahead_of_the_deadline,
                check_for_knows_how_much_is_left,
                a_release_is_no_loss_and_ends_belief,
            }
            loss {
                silence_is_loss_before_the_store_forgets,
                a_frozen_store_is_loss_at_the_local_deadline,
                one_hung_renewal_costs_nothing,
                late_success_does_not_bring_a_lost_lock_back,
                loss_is_told_before_the_successors_grant,
                an_ended_session_is_told,
                a_deleted_key_is_told,
                a_release_by_force_is_told,
                interference_with_one_lock_costs_no_other,
                guarded_work_is_dropped_at_the_loss,
                run_drops_the_work_on_loss,
                asking_whether_it_is_lost_never_blocks,
                errors_for_less_than_the_deadline_lose_nothing,
                a_holder_that_stood_still_knows_before_it_writes,
                a_late_release_frees_no_successor,
                a_waiter_whose_session_dies_goes_on_with_another,
                a_waiter_behind_a_silent_holder_is_granted,
            }
            leftovers {
                an_acquisition_dropped_at_any_poll_leaves_nothing,
                a_waiting_acquisition_dropped_at_any_poll_leaves_nothing,
                a_lost_reply_to_an_opening_costs_nothing,
                a_lost_reply_to_a_claim_costs_nothing,
                a_lost_reply_to_a_renewal_costs_nothing,
                a_lost_reply_to_a_release_costs_nothing,
                a_claim_under_way_past_its_own_release_never_takes_effect,
                a_release_under_way_never_frees_a_successor,
                a_dropped_guard_is_given_back,
                a_guard_dropped_outside_a_runtime_is_given_back,
                a_guard_dropped_by_a_panic_is_given_back,
                what_was_dropped_while_cut_off_is_given_back,
                failed_attempts_leave_no_sessions,
                a_locker_that_is_dropped_takes_its_session_along,
                shutdown_gives_back_what_is_let_go_and_reports_what_is_not,
                a_clean_shutdown_leaves_no_session_and_delays_nobody,
                a_release_that_is_not_answered_is_unknown_and_says_when_it_lapses,
                a_store_that_fails_is_told_as_the_cause,
                a_key_used_for_something_else_is_told,
            }
            election {
                one_leads_and_the_next_takes_over_when_it_resigns,
                of_many_candidates_one_leads_at_a_time,
                a_silent_leader_is_replaced,
                lead_works_term_after_term_until_it_breaks,
                a_lost_term_drops_the_work_and_campaigns_again,
                a_leader_that_continues_lets_another_in,
                a_campaign_is_cancelled_and_a_term_that_began_goes_on,
                shutdown_ends_leading,
                a_proclamation_is_read_by_others_and_the_term_stays,
                a_lost_reply_to_a_proclamation_is_found_out,
                an_observer_is_told_of_leaders_proclamations_and_vacancies,
                an_observer_is_told_of_a_silent_leaders_end,
                an_observer_knows_nothing_while_the_store_is_out_of_reach,
                a_bad_name_and_a_reserved_entry_are_refused,
            }
            process {
                another_process_holds_and_gives_back,
                a_killed_process_loses_its_lock,
                a_waiter_gets_the_lock_of_a_process_that_is_killed_meanwhile,
            }
        }
    };
}

/// A locker, and the line behind which its store is.
struct Party {
    locker: Locker,
    line: Line,
}

impl Party {
    /// With a session that no case outlives.
    async fn new(stage: &Stage) -> Self {
        Self::with_ttl(stage, stage.long_ttl()).await
    }

    async fn with_ttl(stage: &Stage, ttl: Duration) -> Self {
        let line = Line::new(stage.harness().client().await);
        let locker = Locker::builder(line.clone()).ttl(ttl).name(stage.prefix().trim_end_matches('/')).build().unwrap();
        Self { locker, line }
    }
}

async fn locker(stage: &Stage) -> Locker {
    Party::new(stage).await.locker
}

/// A ttl within which silence is loss while a case watches.
fn brief(stage: &Stage) -> Duration {
    stage.short_ttl() * 2
}

async fn brief_locker(stage: &Stage) -> Locker {
    Party::with_ttl(stage, brief(stage)).await.locker
}

/// A ttl that renewals outlive while a case watches, also on a machine that stands still for a while.
async fn steady(stage: &Stage) -> Duration {
    if stage.in_virtual_time().await { brief(stage) } else { brief(stage) * 3 }
}

async fn steady_locker(stage: &Stage) -> Locker {
    Party::with_ttl(stage, steady(stage).await).await.locker
}

/// By when others have heard of it that a session of this ttl fell silent.
async fn lapsed(stage: &Stage, ttl: Duration) -> Duration {
    ttl * stage.harness().client().await.capabilities().lapses_within_ttls + stage.patience().await
}

/// The name of a key of this stage.
fn key(stage: &Stage, name: &str) -> String {
    stage.key(name).to_string()
}

/// How many hold a key, as a locker sees it.
async fn holders(locker: &Locker, key: &str) -> usize {
    locker.inspect(key).await.expect("a look must be answered").holders.len()
}

/// Waits until nobody holds a key, and fails when that takes longer than this.
async fn assert_free_within(limit: Duration, locker: &Locker, key: &str) {
    within(limit, "free", async || holders(locker, key).await == 0).await;
}

/// Waits until something becomes so, and fails when it does not within the limit.
async fn within<F: Future<Output = bool>>(limit: Duration, what: &str, mut so: impl FnMut() -> F) {
    let began = Instant::now();
    while !so().await {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
