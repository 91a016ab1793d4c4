//! How do I see who leads, and say what I do while I lead?
//!
//! `cargo run -p dlock-examples --bin who_leads -- [URL]`, for example with `consul://127.0.0.1:8500`: in a second terminal it sees the first.

use std::time::Duration;

use dlock::{Leader, Locker, Metadata};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://who-leads".to_owned());
    let locker = dlock::connect(&url).await?;
    let mut leaders = locker.election("scheduler").observe()?;
    let leading = tokio::spawn(lead(locker.clone()));

    // Observing goes on until the locker is shut down; here until somebody has led, and nobody does any more.
    let mut seen = false;
    while let Some(leader) = leaders.next().await {
        match leader {
            Leader::Elected(holder) => {
                seen = true;
                let phase = holder.published.metadata().and_then(|metadata| metadata.get("phase"));
                let (who, token) = (holder.owner().unwrap_or("somebody"), holder.token.map_or(0, dlock::FencingToken::get));
                println!("{who} leads with token {token}, phase {}", phase.unwrap_or("unknown"));
            }
            Leader::Vacant if seen => break,
            Leader::Vacant => println!("nobody leads"),
            Leader::Unknown { cause, .. } => println!("the store is out of reach: {cause:?}"),
            _ => {}
        }
    }
    println!("nobody leads any more");
    leading.await??;
    locker.shutdown(Duration::from_secs(3)).await;
    Ok(())
}

/// Leads for a second, and says how far it is.
async fn lead(locker: Locker) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let term = locker.election("scheduler").metadata("phase", "warming up").campaign().await?;
    for phase in ["scheduling", "cleaning up"] {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut metadata = Metadata::new();
        metadata.insert("phase", phase)?;
        term.proclaim(metadata).await?;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    term.resign().await?;
    Ok(())
}
