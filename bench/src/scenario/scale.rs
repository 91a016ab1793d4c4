//! Fleets of clients on the store in memory, in virtual time: what a store would be asked, and when.
//!
//! Every client is a process of its own to the store: a [`Locker`] with a session. The store answers at once, so that nothing but dlock's own pauses
//! spreads requests. What counts is what the store counts: a waiting request that is asked anew is another one. All draws come from one seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dlock::Locker;
use dlock_counts::{count, heap_in_use};
use dlock_testkit::memory::{Call, Control, Memory, Outage, Profile};
use tokio::time::{Instant, sleep, sleep_until};

use super::Plan;
use crate::Outcome;
use crate::progress;

/// Each client holds a lock of its own.
pub struct Fleet {
    /// How many.
    pub clients: usize,
    /// While they start, second by second.
    pub starting: Vec<Requests>,
    /// While they just hold.
    pub idle: Vec<Requests>,
    /// While the store refuses everything, and no session lapses.
    pub refused: Vec<Requests>,
    /// From then on.
    pub back: Vec<Requests>,
    /// As soon as the store has ended all sessions at once.
    pub burst: Requests,
    /// From that moment on, the burst included.
    pub lost: Vec<Requests>,
    /// Bytes of heap for each, with what it has at the store.
    pub heap: f64,
}

/// All clients want one lock.
pub struct Crowd {
    /// Like which store.
    pub profile: Profile,
    /// How many wait.
    pub waiters: usize,
    /// While it is handed on.
    pub seconds: Vec<Requests>,
    /// How often it was.
    pub handovers: usize,
}

/// What was asked of the store, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests([u64; KINDS.len()]);

/// What dlock asks for by itself.
const KINDS: [Call; 9] =
    [Call::Open, Call::Claim, Call::Wait, Call::Confirm, Call::Release, Call::Renew, Call::Audit, Call::Disturbed, Call::Close];
const SECOND: Duration = Duration::from_secs(1);
/// A fleet starts within so long.
const START: u32 = 60;
/// For so many seconds it then just holds: two rounds of renewals.
const IDLE: usize = 10;
/// For so many seconds the store refuses everything: as long as another leader is elected.
const REFUSED: usize = 3;
/// For so many seconds it is watched once the store is back: one round.
const BACK: usize = 5;
/// For so many seconds it is watched after the loss: three rounds.
const LOST: usize = 16;
/// What is asked within so long is asked at once.
const BURST: Duration = Duration::from_millis(10);
/// What the largest crowds are compared with.
const FEW: [usize; 2] = [1, 10];
/// A crowd comes within so long.
const GATHERING: u32 = 5;
/// By then it has.
const GATHERED: usize = 6;
/// How many tenures of a crowd are watched.
const TENURES: usize = 5;
/// How long each holds what all want.
const TENURE: Duration = SECOND;

/// How long all of it takes, about.
pub fn expected(plan: &Plan) -> Duration {
    const OF_EACH: Duration = Duration::from_micros(500);
    OF_EACH * plan.clients.iter().sum::<usize>() as u32
}

/// All fleets and crowds.
pub async fn measure(plan: &Plan) -> Outcome<(Vec<Fleet>, Vec<Crowd>)> {
    // What follows is timed by nobody.
    count(true);
    let (mut fleets, mut crowds) = (Vec::new(), Vec::new());
    for &clients in plan.clients {
        progress::say(&format!("scale: {clients} clients with a lock each"));
        let fleet = simulated(move || fleet(clients)).await?;
        if fleet.heap <= 0.0 {
            return Err("the heap of the clients was not counted".into());
        }
        fleets.push(fleet);
    }
    for profile in [Profile::Queue, Profile::Line, Profile::Slot] {
        for &waiters in FEW.iter().chain(plan.clients) {
            progress::say(&format!("scale: {waiters} clients wait for one lock, {}", profile_name(profile)));
            crowds.push(simulated(move || crowd(profile, waiters)).await?);
        }
    }
    Ok((fleets, crowds))
}

/// The store that a profile stands for.
pub fn profile_name(profile: Profile) -> &'static str {
    match profile {
        Profile::Queue => "like etcd",
        Profile::Line => "like Consul, fair",
        Profile::Slot => "like Consul",
    }
}

/// On a runtime of its own, in virtual time.
async fn simulated<T, F>(simulate: impl FnOnce() -> F + Send + 'static) -> Outcome<T>
where
    T: Send + 'static,
    F: Future<Output = Outcome<T>>,
{
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        fastrand::seed(7);
        runtime.block_on(simulate())
    };
    // Ends with the simulation; this waits for it.
    tokio::task::spawn_blocking(run).await?
}

async fn fleet(clients: usize) -> Outcome<Fleet> {
    let began = heap_in_use();
    let memory = store(Profile::Queue);
    let mut meter = Meter::new(memory.control());
    for client in 0..clients {
        let (memory, after) = (memory.clone(), within(SECOND * START));
        // They end with the runtime.
        tokio::spawn(async move {
            sleep(after).await;
            let locker = Locker::new(memory);
            let key = format!("bench/scale/{client}");
            while let Ok(guard) = locker.lock(&key).await {
                guard.lost().await;
            }
        });
    }
    let starting = meter.seconds(START as usize).await;
    let idle = meter.seconds(IDLE).await;
    let heap = (heap_in_use() - began) as f64 / clients as f64;
    let control = memory.control();
    control.outage(Some(Outage::Failing));
    let refused = meter.seconds(REFUSED).await;
    control.outage(None);
    let back = meter.seconds(BACK).await;
    for session in control.sessions() {
        control.end_session(&session);
    }
    let ended = Instant::now();
    let burst = meter.until(ended + BURST).await;
    let rest = meter.until(ended + SECOND).await;
    let mut lost = vec![burst.and(rest)];
    lost.extend(meter.seconds(LOST - 1).await);
    Ok(Fleet { clients, starting, idle, refused, back, burst, lost, heap })
}

async fn crowd(profile: Profile, waiters: usize) -> Outcome<Crowd> {
    let memory = store(profile);
    let mut meter = Meter::new(memory.control());
    let handovers = Arc::new(AtomicUsize::new(0));
    for _ in 0..=waiters {
        let (memory, after, handovers) = (memory.clone(), within(SECOND * GATHERING), Arc::clone(&handovers));
        // They end with the runtime.
        tokio::spawn(async move {
            sleep(after).await;
            let locker = Locker::new(memory);
            while let Ok(guard) = locker.lock("bench/scale").await {
                handovers.fetch_add(1, Ordering::Relaxed);
                sleep(TENURE).await;
                _ = guard.release().await;
            }
        });
    }
    meter.seconds(GATHERED).await;
    let before = handovers.load(Ordering::Relaxed);
    let seconds = meter.seconds(TENURES).await;
    let handovers = handovers.load(Ordering::Relaxed) - before;
    Ok(Crowd { profile, waiters, seconds, handovers })
}

fn store(profile: Profile) -> Memory {
    let memory = Memory::builder(profile).build();
    let control = memory.control();
    // Ends with the runtime.
    tokio::spawn(async move { control.keep_time().await });
    memory
}

fn within(longest: Duration) -> Duration {
    longest.mul_f64(fastrand::f64())
}

/// Reads what a store counts.
struct Meter {
    control: Control,
    read: Requests,
    at: Instant,
}

impl Meter {
    fn new(control: Control) -> Self {
        Self { control, read: Requests::default(), at: Instant::now() }
    }

    /// What is asked from the last reading until then.
    async fn until(&mut self, at: Instant) -> Requests {
        sleep_until(at).await;
        let now = Requests::counted(|kind| self.control.calls(kind));
        let before = std::mem::replace(&mut self.read, now);
        self.at = at;
        Requests(std::array::from_fn(|kind| now.0[kind] - before.0[kind]))
    }

    /// The same for each of so many seconds.
    async fn seconds(&mut self, count: usize) -> Vec<Requests> {
        let mut seconds = Vec::with_capacity(count);
        for _ in 0..count {
            seconds.push(self.until(self.at + SECOND).await);
        }
        seconds
    }
}

impl Crowd {
    /// What it takes to hand the lock on once.
    pub fn requests_of_each(&self) -> f64 {
        [Call::Claim, Call::Wait, Call::Confirm, Call::Release].map(|kind| self.of_each(kind)).iter().sum()
    }

    /// The same, of one kind; who waits is woken once for each wait.
    pub fn of_each(&self, kind: Call) -> f64 {
        self.seconds.iter().map(|second| second.of(kind)).sum::<u64>() as f64 / self.handovers.max(1) as f64
    }
}

impl Requests {
    /// So many of each kind.
    pub fn counted(count: impl Fn(Call) -> u64) -> Self {
        Self(KINDS.map(count))
    }

    /// Of any kind.
    pub fn all(self) -> u64 {
        self.0.iter().sum()
    }

    /// Of one kind.
    pub fn of(self, kind: Call) -> u64 {
        KINDS.iter().zip(self.0).filter(|(other, _)| **other == kind).map(|(_, count)| count).sum()
    }

    fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|kind| self.0[kind] + other.0[kind]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fleet_asks_the_same_in_every_run() {
        let counts = |fleet: Fleet| [fleet.starting, fleet.idle, fleet.refused, fleet.back, vec![fleet.burst], fleet.lost];
        let run = || async move { simulated(|| fleet(200)).await.map(counts).unwrap() };
        let one = run().await;

        assert_eq!(one, run().await);
        let renewals = one[1].iter().map(|second| second.of(Call::Renew)).sum::<u64>();
        assert!((360..440).contains(&renewals), "{renewals} renewals of 200 clients in {IDLE} seconds");
    }

    #[tokio::test]
    async fn requests_of_a_handover_do_not_grow_with_those_who_wait_in_line() {
        for profile in [Profile::Queue, Profile::Line] {
            let (few, many) =
                (simulated(move || crowd(profile, 10)).await.unwrap(), simulated(move || crowd(profile, 500)).await.unwrap());
            for crowd in [few, many] {
                let told = (crowd.requests_of_each(), crowd.of_each(Call::Wait));
                assert_eq!(told, (4.0, 1.0), "{profile:?} with {} waiting", crowd.waiters);
            }
        }
    }

    #[tokio::test]
    async fn everybody_who_waits_is_woken_where_nobody_stands_in_line() {
        let crowd = simulated(|| crowd(Profile::Slot, 100)).await.unwrap();
        assert!(crowd.of_each(Call::Wait) > 90.0, "{} wake-ups", crowd.of_each(Call::Wait));
    }
}
