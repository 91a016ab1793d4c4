//! Three candidates in one process, for those who have no server at hand.

use std::error::Error;
use std::time::Duration;

use dlock::Locker;
use tokio::runtime::Runtime;

use crate::{Options, candidate, stopped};

/// Three candidates, each in a runtime of its own that is killed like a process: nothing is given back, the lock lapses.
pub(crate) fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let url = "memory://cron_leader";
    let watcher = Runtime::new()?;
    let locker = watcher.block_on(dlock::connect(url))?;
    let mut candidates = Vec::new();
    for name in ["anna", "bert", "cleo"] {
        let runtime = Runtime::new()?;
        let options = options.clone();
        runtime.spawn(async move {
            if let Err(error) = candidate(name, url, &options).await {
                eprintln!("{name}: {error}");
            }
        });
        candidates.push((name, runtime));
    }
    while !candidates.is_empty() {
        let seen = watcher.block_on(async {
            tokio::select! {
                leader = leader(&locker, &options.key, options.every * 2) => leader.map(Some),
                () = stopped() => Ok(None),
            }
        })?;
        let Some(leader) = seen else {
            // The candidates hear of it too, and give the lock back.
            std::thread::sleep(Duration::from_millis(200));
            return Ok(());
        };
        let Some(place) = candidates.iter().position(|(name, _)| leader.ends_with(name)) else { continue };
        let (name, runtime) = candidates.remove(place);
        println!("-- killing {name}; {} left", candidates.len());
        runtime.shutdown_background();
    }
    println!("-- every leader was followed by another, with a greater token");
    Ok(())
}

/// Who leads, once somebody does, after it has worked for a while.
async fn leader(locker: &Locker, key: &str, working: Duration) -> Result<String, Box<dyn Error>> {
    loop {
        let seen = locker.inspect(key).await?;
        if let Some(owner) = seen.holders.first().and_then(|holder| holder.owner()) {
            let owner = owner.to_owned();
            tokio::time::sleep(working).await;
            return Ok(owner);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
