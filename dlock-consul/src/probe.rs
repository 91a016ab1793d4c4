//! What is looked at for people and tools: the leader, the agent, a session that is opened and closed, and a key that is not written.

use std::time::Duration;

use dlock_core::{BackendError, Check, Finding, Key, PROBE_NAME, SessionId, SessionRequest, TtlRange};
use tokio::time::Instant;

use crate::classify::{Asked, Needs, RefusedTtl};
use crate::fair::Fair;
use crate::guarded::Shared;
use crate::session;
use crate::wire::{LOCK_FLAGS, Op};

/// The oldest version that is known to do what is asked of it.
const OLDEST: (u32, u32) = (1, 8);

const UNREACHABLE: &str = "see that an agent runs at the address (CONSUL_HTTP_ADDR), that it has joined its servers, and that it can be reached from here";

/// Asks one thing after the other; what is not answered at all ends it.
pub(crate) async fn probe(shared: &Shared) -> Vec<Finding> {
    let asked = Instant::now();
    let leader = match leader(shared).await {
        Ok(leader) => leader,
        Err(error) => return Finding::unanswered(&error, UNREACHABLE),
    };
    let mut found = vec![Finding::fine(Check::Reachable, format!("the agent answered in {:.1?}", asked.elapsed()))];
    let led = !leader.is_empty();
    found.push(if led {
        Finding::fine(Check::Leader, format!("the server at {leader} leads"))
    } else {
        let remedy =
            "wait for the election, and see that most of the servers run and reach one another (consul operator raft list-peers)";
        Finding::broken(Check::Leader, "the servers have no leader", remedy)
    });
    found.push(version(shared).await);
    if led {
        session(shared, &mut found).await;
        found.push(key(shared).await);
    }
    found
}

async fn leader(shared: &Shared) -> Result<String, BackendError> {
    let _permit = shared.watches.short.acquire().await;
    shared.api.leader().await
}

async fn version(shared: &Shared) -> Finding {
    let _permit = shared.watches.short.acquire().await;
    let version = match shared.api.agent_version().await {
        Ok(version) => version,
        Err(error) => return Finding::from_error(Check::Version, &error, "ask the agent itself (consul version)").softened(),
    };
    if numbers(&version).is_some_and(|numbers| numbers >= OLDEST) {
        return Finding::fine(Check::Version, format!("the agent is of version {version}"));
    }
    let (major, minor) = OLDEST;
    let remedy = format!("use Consul {major}.{minor} or later, of which dlock knows what it does");
    Finding::doubtful(Check::Version, format!("the agent is of version {version:?}"), remedy)
}

/// The first two numbers of a version such as `1.15.2+ent`.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Opens a session of the shortest ttl and closes it.
async fn session(shared: &Shared, found: &mut Vec<Finding>) {
    let TtlRange { mut min, max } = shared.capabilities.ttl;
    let mut opened = open(shared, min).await;
    if let Some(refused) = opened.as_ref().err().and_then(RefusedTtl::of) {
        let detail =
            format!("a ttl of {min:?} is refused, the servers accept {:?} to {:?} (session_ttl_min)", refused.min, refused.max);
        let remedy = "use a ttl that they accept, and say which these are by ConsulOptions::ttl_range";
        found.push(Finding::doubtful(Check::Ttl, detail, remedy));
        min = refused.min;
        opened = open(shared, min).await;
    } else if opened.is_ok() {
        found.push(Finding::fine(Check::Ttl, format!("from {min:?}, which the servers accept, to {max:?}")));
    }
    let session = match opened {
        Ok(Some(session)) => session,
        Ok(None) => {
            let node = shared.sessions.node.name().unwrap_or_default();
            let detail =
                format!("the node {node:?} is not registered yet; whether we may do that, and open a session, was not tried");
            let remedy = format!("give the token {}", Needs::NodeWrite(node).rule());
            return found.push(Finding::doubtful(Check::Permissions, detail, remedy));
        }
        Err(error) => return found.push(Finding::from_error(Check::Permissions, &error, UNREACHABLE)),
    };
    found.push(match shared.api.destroy_session(&session).await {
        Ok(()) => Finding::fine(Check::Permissions, "a session was opened and closed"),
        Err(error) => Finding::from_error(Check::Permissions, &error, "nothing: it lapses by itself").softened(),
    });
}

/// `None` where its node is still to be registered, which would stay.
async fn open(shared: &Shared, ttl: Duration) -> Result<Option<SessionId>, BackendError> {
    let request = SessionRequest { id: SessionId::new(PROBE_NAME), ttl, owner: PROBE_NAME.into() };
    session::open_as_is(&shared.api, &shared.sessions, &request).await
}

/// Asks for a write that Consul refuses by what is asked, and before that for want of a permission.
async fn key(shared: &Shared) -> Finding {
    let asked =
        Asked { what: "writing the key dlock-probe, of all keys the one that was tried", writes: true, needs: Needs::KeysWrite };
    let key = Key::new(PROBE_NAME).expect("the name of a probe is one plain segment of a key");
    let ticket = format!("{}never/", Fair::line(&key));
    let names = if shared.sessions.fair { vec![PROBE_NAME, &ticket] } else { vec![PROBE_NAME] };
    // No key ever stands at the last index.
    let refused: Vec<_> = names.into_iter().map(|name| Op::cas(name, u64::MAX, "", LOCK_FLAGS)).collect();
    match shared.txn(asked, &refused).await {
        Ok(_) => Finding::fine(Check::Permissions, "the key dlock-probe, the one that was tried, may be written"),
        // The token may be made for other keys than this one.
        Err(error) => Finding::from_error(Check::Permissions, &error, UNREACHABLE).softened(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_compared_by_its_numbers() {
        for (version, new_enough) in
            [("1.8.7", true), ("1.15.2+ent", true), ("2.0.0-beta1", true), ("1.7.4", false), ("", false), ("dev", false)]
        {
            assert_eq!(numbers(version).is_some_and(|numbers| numbers >= OLDEST), new_enough, "{version:?}");
        }
    }
}
