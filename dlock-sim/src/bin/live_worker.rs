//! A worker of the live runs: takes its orders as JSON, tells its history on the output, ends with its input.

use dlock_sim::live::worker::{Orders, work};
use tracing_subscriber::EnvFilter;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // So much that a secret which is told anywhere is told here.
    let usual = "warn,dlock=trace,dlock_consul=trace,dlock_etcd=trace,dlock_core=trace,reqwest=trace,etcd_client=trace,tonic=trace,\
                 tower=debug,hyper=debug,hyper_util=debug";
    let filter = EnvFilter::try_from_env("DLOCK_LIVE_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let orders = std::env::args().nth(1).ok_or("its orders are missing; the live tests start it")?;
    let orders: Orders = serde_json::from_str(&orders)?;
    work(orders).await?;
    Ok(())
}
