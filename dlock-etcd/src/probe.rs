//! What is looked at for people and tools: a member, a lease that is granted and revoked, and a key that is not written.

use dlock_core::{BackendError, Check, Finding, PROBE_NAME, TtlRange};
use etcd_client::{Compare, CompareOp, StatusResponse, Txn, TxnOp};
use tokio::time::Instant;

use crate::api::unexpected;
use crate::classify::{Asked, is_full, lacks_permission};
use crate::line::Shared;

const UNREACHABLE: &str =
    "see that the members run at the endpoints (ETCDCTL_ENDPOINTS) and have a leader, and that they can be reached from here";

/// Asks one thing after the other; what is not answered at all ends it.
pub(crate) async fn probe(shared: &Shared) -> Vec<Finding> {
    let asked = Instant::now();
    let member = match shared.api.status().await {
        Ok(member) => member,
        Err(error) => return Finding::unanswered(&error, UNREACHABLE),
    };
    let mut found = vec![Finding::fine(Check::Reachable, format!("a member answered in {:.1?}", asked.elapsed()))];
    found.push(leader(&member));
    found.push(version(member.version()));
    found.push(storage(&member));
    if member.leader() != 0 {
        lease(shared, &mut found).await;
        if let Some(finding) = key(shared).await {
            found.push(finding);
        }
    }
    found
}

fn leader(member: &StatusResponse) -> Finding {
    match member.leader() {
        0 => {
            let remedy = "wait for the election, and see that most of the members run and reach one another (etcdctl endpoint status --cluster)";
            Finding::broken(Check::Leader, "the members have no leader", remedy)
        }
        leader => Finding::fine(Check::Leader, format!("the member {leader:x} leads, in term {}", member.raft_term())),
    }
}

/// The oldest version that is known to do what is asked of it, and of each line the first that never renews a lease which was just revoked.
const OLDEST: (u32, u32) = (3, 5);
const SOUND: [(u32, u32, u32); 2] = [(3, 5, 23), (3, 6, 5)];

fn version(version: &str) -> Finding {
    let Some((major, minor, patch)) = numbers(version).filter(|(major, minor, _)| (*major, *minor) >= OLDEST) else {
        let remedy = format!("use etcd {}.{} or later, of which dlock knows what it does", OLDEST.0, OLDEST.1);
        return Finding::doubtful(Check::Version, format!("the member is of version {version:?}"), remedy);
    };
    match SOUND.iter().find(|sound| (sound.0, sound.1) == (major, minor) && patch < sound.2) {
        None => Finding::fine(Check::Version, format!("the member is of version {version}")),
        Some((_, _, sound)) => {
            let detail =
                format!("the member is of version {version}, which may answer the renewal of a lease that was just revoked");
            Finding::doubtful(Check::Version, detail, format!("use {major}.{minor}.{sound} or later"))
        }
    }
}

fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = version.split(['.', '-', '+']).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

/// So much of what a member may store, in percent, that an operator should hear of it.
const NEARLY_FULL: i64 = 80;

fn storage(member: &StatusResponse) -> Finding {
    let (bytes, quota) = (member.db_size(), member.db_size_quota());
    let alarm = |kind| member.errors().iter().any(|error| error.contains(kind));
    let makes_room =
        "compact, defragment and disarm the alarm (etcdctl compact, defrag, alarm disarm), or raise --quota-backend-bytes";
    if alarm("CORRUPT") {
        let remedy = "see which member differs from the others (etcdctl alarm list), and replace it";
        return Finding::broken(Check::Storage, "the data of a member is corrupt (CORRUPT)", remedy);
    }
    if alarm("NOSPACE") {
        return Finding::broken(Check::Storage, format!("the database is full (NOSPACE), with {bytes} bytes"), makes_room);
    }
    // Members before 3.6 do not say how much there may be.
    match quota {
        ..=0 => Finding::fine(Check::Storage, format!("the database takes {bytes} bytes, and there is no alarm")),
        quota if bytes / NEARLY_FULL >= quota / 100 => {
            Finding::doubtful(Check::Storage, format!("the database takes {bytes} of {quota} bytes"), makes_room)
        }
        quota => Finding::fine(Check::Storage, format!("the database takes {bytes} of {quota} bytes")),
    }
}

/// Has a lease of the shortest ttl granted and revokes it.
async fn lease(shared: &Shared, found: &mut Vec<Finding>) {
    let TtlRange { min, max } = shared.capabilities.ttl;
    let (lease, ttl) = match shared.api.grant(None, min).await {
        Ok(granted) => granted,
        // Told by what is stored.
        Err(error) if is_full(&error) => return,
        Err(error) => return found.push(Finding::from_error(Check::Permissions, &error, UNREACHABLE)),
    };
    found.push(if ttl.as_secs() > min.as_secs() + 1 {
        let remedy = "count on that for how soon a killed holder is succeeded, and say so by EtcdOptions::ttl_range";
        Finding::doubtful(Check::Ttl, format!("asked for {min:?}, the members granted {ttl:?}, by their election timeout"), remedy)
    } else {
        Finding::fine(Check::Ttl, format!("from {min:?}, for which the members granted {ttl:?}, to {max:?}"))
    });
    found.push(match shared.api.revoke(lease).await {
        Ok(()) => Finding::fine(Check::Permissions, "a lease was granted and revoked"),
        Err(error) => Finding::from_error(Check::Permissions, &error, "nothing: the lease lapses by itself").softened(),
    });
}

/// Asks for a write on a condition that no key meets, for which the same permissions are needed.
async fn key(shared: &Shared) -> Option<Finding> {
    let namespace = shared.layout.namespace.as_str();
    let asked = Asked { what: "reading and writing the key dlock-probe", writes: true, keys: Some((namespace, "")) };
    let key = format!("{namespace}{PROBE_NAME}");
    let txn = || {
        let never = Compare::create_revision(key.as_str(), CompareOp::Less, 0);
        Txn::new().when([never]).and_then([TxnOp::put(key.as_str(), "", None)]).or_else([TxnOp::get(key.as_str(), None)])
    };
    let answer = shared.api.txn(&asked, txn).await.and_then(|answer| answer.map_err(|refusal| unexpected(asked, refusal)));
    match answer {
        Ok(_) => {
            Some(Finding::fine(Check::Permissions, format!("the key {key:?}, the one that was tried, may be read and written")))
        }
        Err(error) if is_full(&error) => None,
        Err(error) => Some(denied(&error, namespace)),
    }
}

fn denied(error: &BackendError, namespace: &str) -> Finding {
    if !lacks_permission(error) || !namespace.is_empty() {
        return Finding::from_error(Check::Permissions, error, UNREACHABLE);
    }
    // The user may have been made for other keys than this one.
    let detail = "the key dlock-probe, of all keys the one that was tried, must not be read and written";
    let remedy = "see that the user has a role with readwrite on all keys that start with the names of the locks (etcdctl role grant-permission \
                  ROLE readwrite --prefix=true PREFIX)";
    Finding::doubtful(Check::Permissions, detail, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_with_a_known_bug_names_the_first_without_it() {
        for (told, remedy) in [
            ("3.5.16", Some("3.5.23")),
            ("3.5.23", None),
            ("3.6.4", Some("3.6.5")),
            ("3.6.5", None),
            ("3.7.0-rc.0", None),
            ("4.0.0", None),
            ("3.4.40", Some("etcd 3.5")),
            ("dev", Some("etcd 3.5")),
        ] {
            let found = version(told);
            assert_eq!(found.remedy().is_none(), remedy.is_none(), "{told}: {found}");
            assert!(remedy.is_none_or(|remedy| found.remedy().is_some_and(|found| found.contains(remedy))), "{told}: {found}");
        }
    }
}
