//! The lane of the servers.

use std::time::Duration;

use super::{ELECTION, Kind, Lane, Span, StormError, Strike, measure};
use crate::live::Clock;
use crate::live::store::Servers;
use crate::plan::hash;

/// Strikes servers until the time has come; all of them are up again then.
pub(in crate::live) async fn strike_servers(
    servers: &mut dyn Servers,
    clock: Clock,
    ttl: Duration,
    seed: u64,
    span: Span,
) -> Result<Vec<Strike>, StormError> {
    let mut draws = fastrand::Rng::with_seed(hash(&[seed, 1]));
    let mut lane = Lane::of(Kind::OF_SERVERS.to_vec(), span);
    let mut strikes = Vec::new();
    let all: Vec<usize> = (0..servers.addresses().len()).collect();
    while let Some(kind) = lane.next(clock.now(), &strikes, &mut draws) {
        // A cluster without a leader does nothing: most of the time there is one.
        tokio::time::sleep(Duration::from_millis(draws.u64(1_500..3_000))).await;
        let leader = leader(servers).await?;
        let follower = (leader + 1 + draws.usize(..all.len() - 1)) % all.len();
        let struck = match kind {
            Kind::KillLeader | Kind::RestartLeader | Kind::FreezeLeader => vec![leader],
            Kind::RestartAll | Kind::FreezeAll => all.clone(),
            _ => vec![follower],
        };
        let from = clock.now();
        if matches!(kind, Kind::FreezeLeader | Kind::FreezeFollower | Kind::FreezeAll) {
            struck.iter().try_for_each(|place| servers.pause(*place))?;
            tokio::time::sleep(measure(&mut draws, ttl + Duration::from_secs(3))).await;
            struck.iter().try_for_each(|place| servers.resume(*place))?;
        } else {
            struck.iter().try_for_each(|place| servers.kill(*place))?;
            if matches!(kind, Kind::KillLeader | Kind::KillFollower) {
                tokio::time::sleep(Duration::from_millis(draws.u64(300..4_000))).await;
            }
            servers.restart(&struck).await?;
        }
        strikes.push(Strike { kind, from, until: clock.now(), client: None, key: None });
    }
    leader(servers).await?;
    Ok(strikes)
}

async fn leader(servers: &dyn Servers) -> Result<usize, StormError> {
    let elected = async {
        loop {
            if let Some(leader) = servers.leader().await {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(ELECTION, elected).await.map_err(|_| StormError::NoLeader(ELECTION))
}
