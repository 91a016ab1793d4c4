//! What is counted.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use dlock::Locker;
use dlock_core::{
    Acquire, AcquireEvent, AcquirePlan, Chance, Claim, ClaimId, FencingToken, Key, Lease, LeaseEvent, LockBackend, Mode, Moment,
    Place, Release, RetryPolicy, SessionId, SessionRequest, Standing, Undo, UndoEvent,
};
use dlock_testkit::memory::{Memory, Profile};
use tokio::runtime::{Builder, Runtime};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Subject {
    /// The steps of the pure machines for the lock and the release of a free key.
    Core,
    /// The steps of the pure machine for a renewal.
    Renewal,
    /// Lock and release of a free key through a `Locker` on the store in memory, where claims stand in line.
    LockerQueue,
    /// The same where a key is free or taken.
    LockerSlot,
    /// Claim and release asked of the same store directly, where claims stand in line.
    StoreQueue,
    /// The same where a key is free or taken.
    StoreSlot,
}

/// Does so many operations.
pub type Operate = Box<dyn FnMut(u32)>;

/// So many operations are done first, until nothing grows any more and nothing is met for the first time.
const WARM_UP: u32 = 200;
/// One seed is one sequence of ids.
const SEED: u64 = 1;
/// Longer than anything is counted, so that no renewal falls into it.
const TTL: Duration = Duration::from_secs(3_600);

impl Subject {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Core, Self::Renewal, Self::LockerQueue, Self::LockerSlot, Self::StoreQueue, Self::StoreSlot];

    /// What programs call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Renewal => "renewal",
            Self::LockerQueue => "locker-queue",
            Self::LockerSlot => "locker-slot",
            Self::StoreQueue => "store-queue",
            Self::StoreSlot => "store-slot",
        }
    }

    /// What people read.
    pub fn told(self) -> &'static str {
        match self {
            Self::Core => "the pure machines alone",
            Self::Renewal => "the pure machine of a session, one renewal",
            Self::LockerQueue => "through a `Locker` on the store in memory, queue",
            Self::LockerSlot => "through a `Locker` on the store in memory, slot",
            Self::StoreQueue => "claim and release asked of the same store directly, queue",
            Self::StoreSlot => "claim and release asked of the same store directly, slot",
        }
    }

    /// Prepares it, and does what is only done at first.
    pub fn start(self) -> Operate {
        fastrand::seed(SEED);
        let mut operate = match self {
            Self::Core => core(),
            Self::Renewal => renewal(),
            Self::LockerQueue => locker(Profile::Queue),
            Self::LockerSlot => locker(Profile::Slot),
            Self::StoreQueue => store(Profile::Queue),
            Self::StoreSlot => store(Profile::Slot),
        };
        operate(WARM_UP);
        operate
    }
}

fn core() -> Operate {
    let plan = AcquirePlan {
        place: Place::Queue,
        retry: RetryPolicy::default(),
        deadline: None,
        attempt: Duration::from_secs(2),
        longest_wait: Duration::from_secs(55),
    };
    let now = Moment::from_origin(Duration::from_secs(1));
    Box::new(move |times| {
        for n in 0..times {
            let mut acquire = Acquire::new(black_box(plan));
            let token = FencingToken::new(u64::from(n) + 1).expect("it is not zero");
            for event in [AcquireEvent::Started, AcquireEvent::SessionReady, AcquireEvent::Answered(Standing::Held { token })] {
                black_box(acquire.step(black_box(event), now, Chance(n)));
            }
            let mut undo = Undo::new(Duration::from_secs(2), black_box(TTL));
            for event in [UndoEvent::Started, UndoEvent::Answered(Release::Released)] {
                black_box(undo.step(black_box(event), now, Chance(n)));
            }
        }
    })
}

fn renewal() -> Operate {
    let mut now = Moment::from_origin(Duration::from_secs(1));
    let ttl = Duration::from_secs(15);
    let mut lease = Lease::new(ttl, 2);
    for event in [LeaseEvent::Started, LeaseEvent::Opened { ttl }] {
        lease.step(event, now, Chance(0));
    }
    Box::new(move |times| {
        for n in 0..times {
            now = now.plus(ttl / 2);
            for event in [LeaseEvent::Elapsed, LeaseEvent::Renewed { ttl }] {
                black_box(lease.step(black_box(event), now, Chance(n)));
            }
        }
    })
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime without sockets needs nothing of the system")
}

fn locker(profile: Profile) -> Operate {
    let runtime = runtime();
    let locker = Locker::builder(Memory::builder(profile).build()).ttl(TTL).build().expect("the store accepts it");
    Box::new(move |times| {
        runtime.block_on(async {
            for _ in 0..times {
                let guard = locker.lock(black_box("k")).await.expect("it is free");
                guard.release().await.expect("it is answered");
            }
        });
    })
}

fn store(profile: Profile) -> Operate {
    let runtime = runtime();
    let backend: Arc<dyn LockBackend> = Arc::new(Memory::builder(profile).build());
    let request = SessionRequest { id: SessionId::from_bits(1), ttl: TTL, owner: "host/1/bench".into() };
    let session = runtime.block_on(backend.open(&request)).expect("it opens").id;
    let mut claim = Claim {
        id: ClaimId::from_bits(0),
        key: Key::new("k").expect("a good name"),
        mode: Mode::Exclusive,
        owner: "host/1/bench".into(),
        acquired_at: "2026-01-01T00:00:00Z".into(),
        metadata: None,
    };
    Box::new(move |times| {
        runtime.block_on(async {
            for _ in 0..times {
                claim.id = ClaimId::from_bits(claim.id.bits() + 1);
                black_box(backend.claim(&session, black_box(&claim), Place::Queue).await.expect("it is answered"));
                black_box(backend.release(&session, &claim).await.expect("it is answered"));
            }
        });
    })
}
