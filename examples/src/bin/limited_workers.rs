//! How do I let no more than three machines work at a queue of jobs at a time?
//!
//! `cargo run -p dlock-examples --features etcd --bin limited_workers -- [URL]`, for example with `etcd://127.0.0.1:2379`: however many of them
//! run, on however many machines, three jobs are under way. Without a URL, the six workers share a store in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dlock::{Locker, Requirement};

const WORKERS: u32 = 6;
const AT_ONCE: u32 = 3;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://limited-workers".to_owned());
    let locker = dlock::connect(&url).await?;
    // Not every store knows permits: better to hear of it now.
    locker.require([Requirement::Permits, Requirement::Fifo])?;

    let under_way = Arc::new(AtomicU32::new(0));
    let workers: Vec<_> = (1..=WORKERS).map(|worker| tokio::spawn(work(locker.clone(), worker, Arc::clone(&under_way)))).collect();
    for worker in workers {
        worker.await??;
    }
    locker.shutdown(Duration::from_secs(3)).await;
    Ok(())
}

async fn work(locker: Locker, worker: u32, under_way: Arc<AtomicU32>) -> Result<(), dlock::RunError> {
    let job = |_| async move {
        let now = under_way.fetch_add(1, Ordering::SeqCst) + 1;
        println!("worker {worker} begins, {now} at work here");
        tokio::time::sleep(Duration::from_millis(200)).await;
        under_way.fetch_sub(1, Ordering::SeqCst);
    };
    locker.permits("jobs/resize", AT_ONCE).metadata("worker", worker.to_string()).run(job).await
}
