//! What dlock itself costs, apart from any store: `cargo bench -p dlock-rs --bench overhead`.
//!
//! `locker` is lock and release through a `Locker` on the in-memory store; `store` is the claim and the release alone, as the
//! same store is asked for them. The difference is dlock's own.

use std::sync::Arc;

use divan::{AllocProfiler, Bencher, black_box};
use dlock::Locker;
use dlock_core::{Claim, ClaimId, Key, LockBackend, Mode, Place, SessionId, SessionRequest};
use dlock_testkit::memory::{Memory, Profile};
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime can be built")
}

fn memory(profile: &str) -> Memory {
    Memory::builder(if profile == "queue" { Profile::Queue } else { Profile::Slot }).build()
}

#[divan::bench(args = ["queue", "slot"])]
fn locker(bencher: Bencher, profile: &str) {
    let runtime = runtime();
    let locker = Locker::new(memory(profile));
    runtime.block_on(async { locker.lock("k").await.expect("it is free").release().await.expect("it is answered") });
    bencher.bench_local(|| {
        runtime.block_on(async {
            let guard = locker.lock(black_box("k")).await.expect("it is free");
            guard.release().await.expect("it is answered")
        })
    });
}

#[divan::bench(args = ["queue", "slot"])]
fn store(bencher: Bencher, profile: &str) {
    let runtime = runtime();
    let backend: Arc<dyn LockBackend> = Arc::new(memory(profile));
    let ttl = std::time::Duration::from_secs(15);
    let request = SessionRequest { id: SessionId::from_bits(1), ttl, owner: "host/1/bench".into() };
    let session = runtime.block_on(backend.open(&request)).expect("it opens").id;
    let mut claim = Claim {
        id: ClaimId::from_bits(0),
        key: Key::new("k").expect("a good name"),
        mode: Mode::Exclusive,
        owner: "host/1/bench".into(),
        acquired_at: "2026-01-01T00:00:00Z".into(),
        metadata: None,
    };
    bencher.bench_local(|| {
        claim.id = ClaimId::from_bits(claim.id.bits() + 1);
        runtime.block_on(async {
            let standing = backend.claim(&session, black_box(&claim), Place::Queue).await.expect("it is answered");
            let release = backend.release(&session, &claim).await.expect("it is answered");
            (standing, release)
        })
    });
}
