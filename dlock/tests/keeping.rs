//! What the keeper of a session sees to while other things happen at once.
#![allow(missing_docs)]

mod support;

use std::future::IntoFuture;
use std::ops::ControlFlow;
use std::time::Duration;

use dlock::{LockError, Locker, Loss};
use dlock_testkit::memory::{Call, Memory};
use support::{TTL, key, locker, pass, secs, stores};
use tokio::runtime::Builder;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn runtime() -> tokio::runtime::Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_held_for_long_is_not_given_away_by_a_shutdown() {
    for (memory, ours) in stores() {
        let other = locker(&memory);
        let guard = ours.lock("a").await.unwrap();
        pass(secs(295)).await;
        let shutdown = tokio::spawn(async move { ours.shutdown(secs(60)).await });
        // Past the moment at which a lock that is held for long is reported.
        for _ in 0..30 {
            pass(secs(1)).await;
            assert!(guard.check().is_err());
            assert!(other.try_lock("a").await.unwrap().is_none(), "given away under its guard");
        }
        drop(guard);
        assert!(shutdown.await.unwrap().is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_leaves_the_time_to_stop_until_the_real_end() {
    for (memory, ours) in stores() {
        let other = locker(&memory);
        let guard = ours.lock("a").hold_at_most(secs(60)).stop_before(secs(5)).await.unwrap();
        pass(ms(54_900)).await;
        let shutdown = tokio::spawn(async move { ours.shutdown(secs(60)).await });
        pass(ms(4_900)).await;
        assert!(guard.check().is_err());
        assert!(other.try_lock("a").await.unwrap().is_none(), "given away before its end");
        pass(ms(300)).await;
        assert!(other.try_lock("a").await.unwrap().is_some(), "kept past its end");
        drop(guard);
        assert!(shutdown.await.unwrap().is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn interference_is_told_although_audits_are_answered_sooner_than_renewals() {
    for (memory, locker) in stores() {
        let control = memory.control();
        let guard = locker.lock("a").await.unwrap();
        for _ in 0..1_000 {
            control.delay_next(Call::Renew, ms(20));
            control.delay_next(Call::Audit, ms(5));
        }
        let renewals = control.calls(Call::Renew);
        while control.calls(Call::Renew) == renewals {
            pass(ms(1)).await;
        }
        control.delete(&key("a"));
        let told = tokio::time::timeout(secs(1), guard.lost()).await;
        assert_eq!(told.unwrap(), Loss::KeyDeleted);
        let renewals = control.calls(Call::Renew);
        pass(TTL * 4).await;
        assert!(control.calls(Call::Renew) - renewals < 20, "{} renewals in four ttl", control.calls(Call::Renew) - renewals);
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_shutdown_is_not_clean_while_the_lock_is_at_the_store() {
    for (memory, locker) in stores() {
        let guard = locker.lock("a").await.unwrap();
        assert!(!locker.shutdown(secs(1)).await.is_clean());
        pass(secs(1)).await;
        let again = locker.shutdown(secs(1)).await;
        assert_eq!(memory.control().claims().len(), 1);
        assert!(!again.is_clean(), "{again:?}");
        pass(TTL * 2).await;
        assert_eq!(memory.control().claims(), []);
        assert!(locker.shutdown(secs(1)).await.is_clean());
        drop(guard);
    }
}

/// In real time: what it shows needs a runtime that is busy while time passes.
#[tokio::test]
async fn what_was_told_ahead_of_its_end_is_given_back_although_it_was_renewed() {
    let memory = Memory::queue();
    let control = memory.control();
    let locker = Locker::builder(memory.clone()).ttl(secs(9)).build().unwrap();
    let guard = locker.lock("a").stop_before(ms(4_350)).await.unwrap();
    control.delay_next(Call::Renew, ms(900));
    let renewals = control.calls(Call::Renew);
    while control.calls(Call::Renew) == renewals {
        tokio::time::sleep(ms(5)).await;
    }
    // The deadline comes before the keeper looks again, and the renewal is answered by then.
    std::thread::sleep(ms(2_000));
    assert!(guard.check().is_err());
    let given_back = async {
        while !control.claims().is_empty() {
            tokio::time::sleep(ms(20)).await;
        }
    };
    tokio::time::timeout(secs(30), given_back).await.expect("told, and held for ever");
    drop(guard);
}

#[test]
fn an_opening_under_way_when_its_runtime_ends_is_not_forgotten() {
    let memory = Memory::queue();
    let locker = Locker::builder(memory.clone()).ttl(TTL).build().unwrap();
    let opening = memory.control().hold_next(Call::Open);
    let one = runtime();
    one.block_on(async { assert!(locker.ready(ms(50)).await.is_err()) });
    drop(one);
    assert!(opening.is_under_way());
    let another = runtime();
    another.block_on(async {
        opening.deliver();
        locker.lock("a").await.unwrap().release().await.unwrap();
        let report = locker.shutdown(secs(3)).await;
        assert_eq!(memory.control().sessions().len(), 1);
        assert!(!report.is_clean(), "{report:?}");
    });
}

#[tokio::test(start_paused = true)]
async fn a_store_that_forgets_every_session_at_once_is_not_stormed() {
    for (memory, locker) in stores() {
        let control = memory.control();
        let mut waiting = Box::pin(locker.lock("a").into_future());
        for _ in 0..1_000 {
            control.delay_next(Call::Claim, ms(10));
        }
        let forgetting = async {
            loop {
                pass(ms(3)).await;
                for session in control.sessions() {
                    control.end_session(&session);
                }
            }
        };
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("acquired"),
            () = forgetting => {}
            () = pass(secs(5)) => {}
        }
        let opened = control.calls(Call::Open);
        assert!(opened < 30, "{opened} sessions in five seconds");
        // Once the store is itself again, so is the lock.
        let guard = tokio::time::timeout(secs(3), waiting).await.unwrap().unwrap();
        guard.release().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_term_is_given_up_before_the_next_campaign() {
    for (memory, ours) in stores() {
        let other = locker(&memory);
        let election = ours.election("a").hold_at_most(secs(10)).stop_before(secs(5));
        let mut terms = 0;
        let leading = election.lead(|_| {
            terms += 1;
            let first = terms == 1;
            async move {
                if first {
                    std::future::pending::<()>().await;
                }
                ControlFlow::Break(())
            }
        });
        let elsewhere = async {
            // Told at five seconds, and nobody works under it any more.
            pass(ms(5_010)).await;
            assert!(other.try_lock("a").await.unwrap().is_some(), "the lost term is kept");
        };
        let (led, ()) = tokio::join!(leading, elsewhere);
        led.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_try_that_is_granted_as_shutdown_begins_is_told_of_it() {
    for (memory, locker) in stores() {
        let control = memory.control();
        locker.ready(secs(1)).await.unwrap();
        control.delay_next(Call::Claim, ms(100));
        let mut trying = Box::pin(locker.try_lock("a").into_future());
        assert!(futures_util::poll!(&mut trying).is_pending());
        pass(ms(100)).await;
        // The answer is there; before it is heard, the shutdown begins.
        let mut shutdown = Box::pin(locker.shutdown(secs(3)));
        assert!(futures_util::poll!(&mut shutdown).is_pending());
        let tried = trying.await;
        assert!(matches!(tried, Err(LockError::ShutDown)), "{tried:?}");
        assert!(shutdown.await.is_clean());
    }
}

/// In real time: what it shows needs a runtime that is busy while time passes.
#[tokio::test]
async fn a_try_that_is_granted_after_its_sessions_deadline_tries_again() {
    for memory in [Memory::queue(), Memory::slot()] {
        let locker = Locker::builder(memory.clone()).ttl(secs(2)).build().unwrap();
        locker.ready(secs(10)).await.unwrap();
        memory.control().delay_next(Call::Claim, ms(50));
        memory.control().delay_next(Call::Release, ms(50));
        let mut trying = Box::pin(locker.try_lock("a").into_future());
        assert!(futures_util::poll!(&mut trying).is_pending());
        tokio::time::sleep(ms(10)).await;
        std::thread::sleep(ms(2_100));
        let guard = trying.await.unwrap().expect("nobody else holds it");
        assert!(guard.check().is_ok());
    }
}

/// In real time: what it shows needs a runtime that nobody drives.
#[test]
fn a_guard_dropped_after_its_keeper_was_replaced_is_given_back_at_once() {
    let (memory, one, another) = (Memory::queue(), runtime(), runtime());
    let locker = Locker::builder(memory.clone()).ttl(secs(15)).build().unwrap();
    let guard = one.block_on(async {
        let guard = locker.lock("a").await.unwrap();
        // Its keeper has seen to the grant, and sleeps.
        tokio::time::sleep(ms(50)).await;
        guard
    });
    // Longer than its keeper may be silent, and shorter than it is believed.
    std::thread::sleep(secs(8));
    another.block_on(async {
        assert!(tokio::time::timeout(ms(200), guard.lost()).await.is_err(), "lost");
        drop(guard);
        let given_back = async {
            while !memory.control().claims().is_empty() {
                tokio::time::sleep(ms(5)).await;
            }
        };
        // Before the keeper would look by itself.
        tokio::time::timeout(secs(4), given_back).await.expect("nobody was told of the release");
    });
}

/// In real time: what it shows needs a runtime that nobody drives.
#[test]
fn a_shutdown_notices_that_nobody_drives_a_keeper() {
    let (memory, one, another) = (Memory::queue(), runtime(), runtime());
    let locker = Locker::builder(memory.clone()).ttl(secs(3)).build().unwrap();
    let guard = one.block_on(async { locker.lock("a").await.unwrap() });
    another.block_on(async {
        drop(guard);
        let report = locker.shutdown(secs(30)).await;
        assert!(report.is_clean(), "{report:?}");
    });
    assert_eq!((memory.control().claims(), memory.control().sessions()), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn what_was_told_ahead_of_its_end_is_held_for_at_least_as_long_as_was_asked_for() {
    for (memory, ours) in stores() {
        let other = locker(&memory);
        let guard = ours.lock("a").hold_at_least(secs(120)).stop_before(secs(5)).await.unwrap();
        for _ in 0..3 {
            memory.control().delay_next(Call::Renew, secs(3));
        }
        pass(secs(10)).await;
        assert_eq!(guard.check().unwrap_err().reason, Loss::Expired);
        for _ in 0..10 {
            pass(secs(10)).await;
            assert!(other.try_lock("a").await.unwrap().is_none(), "given back too early");
        }
        pass(secs(11)).await;
        assert!(other.try_lock("a").await.unwrap().is_some(), "kept too long");
        drop(guard);
    }
}
