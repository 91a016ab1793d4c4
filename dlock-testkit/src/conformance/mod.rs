//! The properties that every backend must show, written once against `dyn LockBackend`.
//!
//! An author of a backend implements [`Harness`] for the store, and lets [`conformance!`](crate::conformance!) make a named test of
//! every case, and one more, `the_report`, that prints what became of all of them.
//!
//! ```text
//! // tests/conformance.rs of a backend
//! dlock_testkit::conformance! { #[tokio::test] MyHarness::start().await }
//! ```
//!
//! - What the backend **declares** is exercised; what it does not declare must be **refused** with `Unsupported`. Such a case ends
//!   as "not claimed".
//! - What the harness **cannot do** to the store is told: a case that lacks a hook fails, unless the harness says by
//!   [`missing_hooks_allowed`](Harness::missing_hooks_allowed) that this store cannot have it; then it ends as "not shown".
//! - A case has no other end: it passes, fails, or answers why it has shown nothing, and the report counts each.
//!
//! Cases use keys and owners of their own, so harnesses may share one store. A suite of one's own is made of the same parts: see
//! [`suite!`](crate::suite!).

mod ability;
mod as_permits;
mod cases;
mod harness;
#[cfg(feature = "memory")]
mod in_memory;
mod line;
#[cfg(all(feature = "servers", feature = "proxy"))]
mod on_consul;
#[cfg(all(feature = "servers", feature = "proxy"))]
mod on_etcd;
mod report;
mod stage;

use std::pin::pin;
use std::time::Duration;

pub use ability::Ability;
pub use as_permits::AsPermits;
pub use cases::CASES;
pub use harness::{Harness, Hook, Hooked, SecondProcess, Sent, UnderWay};
#[cfg(feature = "memory")]
pub use in_memory::InMemory;
pub use line::Line;
#[cfg(all(feature = "servers", feature = "proxy"))]
pub use on_consul::OnConsul;
#[cfg(all(feature = "servers", feature = "proxy"))]
pub use on_etcd::OnEtcd;
pub use report::{Case, CaseFuture, Ledger, NotShown, Outcome, Report, Shown};
pub use stage::{Client, Stage};

/// Polls a future so many times, a while apart, and drops it; its output, if that was enough.
pub async fn poll_times<T>(polls: u32, apart: Duration, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx))).await;
        if let std::task::Poll::Ready(output) = polled {
            return Some(output);
        }
        tokio::time::sleep(apart).await;
    }
    None
}

/// The outputs of all of these, which are polled together.
pub(crate) async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut under_way: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, output) in &mut under_way {
            if output.is_none()
                && let std::task::Poll::Ready(ready) = future.as_mut().poll(cx)
            {
                *output = Some(ready);
            }
        }
        if under_way.iter().all(|(_, output)| output.is_some()) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    under_way.into_iter().filter_map(|(_, output)| output).collect()
}

/// Makes a test of every case, each on a harness of its own, and `the_report`; to be called at most once in a module.
///
/// Takes the attribute of a test and an expression for a harness, which may await: `conformance! { #[tokio::test]
/// MyHarness::start().await }`. The attribute may be left out: it defaults to `#[tokio::test]`.
#[macro_export]
macro_rules! conformance {
    (#[$test:meta] $harness:expr) => {
        $crate::conformance_cases! { suite [#[$test]] [$harness] [$crate::conformance::CASES] }
    };
    ($harness:expr) => {
        $crate::conformance! { #[tokio::test] $harness }
    };
}

/// Makes a test of every case of a suite, and `the_report`: `suite! { [#[tokio::test]] [harness] [CASES] group { case, } }`.
///
/// `CASES` is a `&'static [Case]` with a case `group::case` for every name that is given.
#[macro_export]
macro_rules! suite {
    ([#[$test:meta]] [$harness:expr] [$cases:expr] $($group:ident { $($case:ident,)+ })+) => {
        static LEDGER: $crate::conformance::Ledger = $crate::conformance::Ledger::new($cases);

        /// What a case starts from.
        async fn started() -> impl $crate::conformance::Harness + 'static {
            $harness
        }

        $(mod $group {
            #[allow(unused_imports)]
            use super::*;
            $($crate::suite! { @case [#[$test]] $group $case })+
        })+

        #[$test]
        async fn the_report() {
            let report = LEDGER.report(started).await;
            report.print();
            report.assert_conforming();
        }
    };
    (@case [#[$test:meta]] $group:ident $case:ident) => {
        #[$test]
        async fn $case() {
            LEDGER.show(concat!(stringify!($group), "::", stringify!($case)), started).await;
        }
    };
}

/// The list of cases of a suite, for a module that has a module for every group: `case_list! { group { case, } }`.
#[macro_export]
macro_rules! case_list {
    ($($group:ident { $($case:ident,)+ })+) => {
        &[$($($crate::conformance::Case {
            name: concat!(stringify!($group), "::", stringify!($case)),
            run: |stage| Box::pin($group::$case(stage)),
        },)+)+]
    };
}

/// The names of all cases, handed to another macro of this crate.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    ($callback:ident $($given:tt)*) => {
        $crate::$callback! { $($given)*
            claim {
                a_free_key_is_held_at_once,
                a_claim_asked_again_gets_the_same_token,
                a_claim_sent_twice_at_once_is_one_grant,
                a_claim_whose_reply_was_lost_is_found_out,
                a_client_that_remembers_nothing_finds_its_claim,
                a_claim_dropped_at_any_poll_is_undone_by_its_release,
                of_many_who_ask_at_once_one_is_granted,
                two_keys_of_one_session_are_two_locks,
                a_try_at_a_taken_key_is_busy_and_leaves_nothing,
                a_taken_key_is_waited_for_in_the_declared_order,
                whoever_finds_a_key_taken_is_told_by_whom,
                a_session_is_not_granted_a_key_twice_or_says_so,
                an_ended_session_is_told,
                an_unknown_session_is_told,
                a_key_left_by_a_dead_session_can_be_had,
                a_key_used_for_something_else_is_a_conflict_and_left_alone,
            }
            keys {
                keys_are_taken_verbatim,
                keys_differ_by_case,
                long_keys_differ_in_their_last_letter,
                the_longest_key_is_taken_and_one_byte_more_is_refused,
                nested_keys_do_not_block_one_another,
                keys_that_begin_alike_do_not_touch_one_another,
            }
            metadata {
                metadata_of_exactly_the_limit_is_taken,
                metadata_of_one_byte_more_is_refused,
                any_text_comes_back_as_it_was,
                a_claim_without_metadata_says_whose_it_is,
                reserved_names_say_what_the_claim_says,
            }
            modes {
                shared_claims_keep_out_exclusive_ones_only,
                a_waiting_exclusive_claim_stops_later_shared_ones,
                those_who_wait_to_share_are_let_in_together,
                permits_are_granted_up_to_their_number,
                whichever_permit_is_given_back_goes_to_the_first_in_line,
                one_of_many_permits_is_waited_for,
                permits_and_exclusive_claims_keep_one_another_out,
                permits_of_another_number_are_a_conflict,
                a_claim_beside_others_asked_again_is_one_grant,
                a_permit_claimed_too_late_has_no_effect,
                one_of_several_holders_is_evicted,
            }
            wait {
                a_release_ends_a_wait,
                a_wait_that_begins_after_the_release_ends_at_once,
                whoever_is_woken_by_a_release_is_granted,
                the_end_of_the_holders_session_ends_a_wait,
                a_wait_behind_a_silent_holder_ends_when_its_session_lapses,
                a_deletion_ends_a_wait,
                a_release_by_force_ends_a_wait,
                a_place_that_is_removed_while_waiting_is_told,
                the_end_of_the_waiters_own_session_ends_its_wait,
                a_wait_lasts_while_nothing_changes,
                a_wait_hears_nothing_of_other_keys,
                a_dropped_wait_changes_nothing,
            }
            queue {
                the_first_in_line_is_confirmed_and_no_other,
                a_place_is_never_made_by_asking,
                the_death_of_a_waiter_lets_nobody_past_the_holder,
                a_place_that_is_given_up_lets_those_behind_move_up,
                a_try_does_not_overtake_the_line,
                asking_again_keeps_the_place,
            }
            release {
                what_is_released_is_free,
                a_key_can_be_had_again_right_after_its_release,
                what_was_never_claimed_is_not_held,
                another_session_cannot_release_it,
                a_repeated_release_never_frees_a_successor,
                a_release_that_is_repeated_for_want_of_a_reply_never_frees_a_successor,
                a_release_after_the_expiry_never_frees_a_successor,
                a_release_after_one_by_force_never_frees_a_successor,
                a_late_release_never_frees_a_successor,
                a_claim_that_arrives_after_its_release_has_no_effect,
                a_claim_that_arrives_after_its_session_was_closed_has_no_effect,
                a_lost_reply_is_found_out,
                a_release_dropped_at_any_poll_is_ended_by_the_next,
                a_client_that_remembers_nothing_can_release,
                a_place_in_line_is_given_up,
                a_session_that_ended_took_its_claims_along,
                what_was_put_over_a_held_key_is_let_go,
            }
            tokens {
                every_grant_has_a_greater_one,
                a_deletion_does_not_set_them_back,
                the_end_of_a_session_does_not_set_them_back,
                a_release_by_force_does_not_set_them_back,
                an_expiry_does_not_set_them_back,
                a_restart_does_not_set_them_back,
            }
            session {
                a_renewed_session_keeps_what_it_has,
                a_silent_session_lapses_within_the_declared_time_and_not_before_its_ttl,
                a_late_renewal_brings_nothing_back,
                renewing_brings_no_released_claim_back,
                a_renewal_whose_reply_was_lost_can_be_repeated,
                a_session_whose_opening_was_not_answered_lapses,
                an_unknown_session_cannot_be_renewed,
                a_closed_session_has_nothing,
                a_closed_session_is_not_kept,
                the_end_of_one_session_is_not_that_of_another,
                what_is_gone_stays_gone,
                the_ends_of_the_ttl_range_are_granted,
                a_ttl_out_of_range_is_refused,
            }
            interference {
                an_audit_finds_nothing_where_nothing_happened,
                an_audit_tells_a_deleted_key,
                an_audit_tells_a_release_by_force,
                an_audit_tells_a_successor,
                an_audit_finds_each_of_many,
                a_watch_is_quiet_while_nothing_happens,
                a_watch_tells_of_a_deleted_key,
                a_watch_tells_of_a_release_by_force,
                a_watch_of_one_claim_costs_no_other,
                a_watch_tells_of_an_ended_session,
            }
            look {
                a_free_key_has_no_holder,
                a_holder_is_shown_with_its_metadata,
                a_look_changes_nothing_and_is_never_stale,
                those_in_line_are_shown_in_order,
                what_is_no_lock_is_shown_raw,
            }
            optional {
                amended_metadata_is_read_by_others_and_the_token_stays,
                only_a_holder_amends,
                what_was_amended_is_ended_by_its_token,
                a_late_amendment_never_undoes_a_later_one,
                a_late_amendment_never_touches_a_successor,
                an_amendment_that_does_not_fit_changes_nothing,
                held_keys_are_listed_by_prefix_in_order,
                a_listed_key_is_shown_with_its_holder,
                a_change_is_told,
                a_change_between_two_questions_is_told,
                only_the_present_grant_is_evicted,
                whoever_was_evicted_can_claim_again,
            }
            several {
                free_keys_are_taken_at_once,
                one_taken_key_refuses_all_and_leaves_nothing,
                claims_asked_again_get_the_same_tokens,
                claims_of_which_one_was_taken_away_are_not_called_refused,
                claims_whose_reply_was_lost_are_undone_one_by_one,
                claims_that_arrive_after_their_releases_have_no_effect,
                each_key_taken_at_once_is_in_the_way,
                very_many_keys_taken_some_at_once_are_all_listed,
                an_ended_session_takes_none_of_them,
                what_cannot_be_taken_at_once_is_refused,
                a_write_is_taken_from_the_present_holder_only,
                a_write_is_taken_after_an_amendment,
            }
            probe {
                a_sound_store_has_nothing_broken,
                a_store_out_of_reach_is_found_so,
                a_probe_leaves_nothing_behind,
            }
            faults {
                a_claim_into_a_cut_line_is_not_answered_and_undone_later,
                a_claim_at_a_frozen_store_is_not_answered_and_undone_later,
                a_failing_store_is_told_as_passing,
                a_restart_keeps_what_is_held_or_tells_that_it_is_gone,
            }
        }
    };
}
