//! What is looked at for people and tools: the file, a change that changes nothing, the host's clock, and the room on its disk.

use std::path::Path;
use std::time::{Duration, Instant};

use dlock_core::{BackendError, Check, Finding, TtlRange};

use crate::classify::is_full;
use crate::file::File;
use crate::schema;
use crate::wire::Sent;
use crate::worker::Worker;

const UNREACHABLE: &str = "see that the path names a file on a disk of this host, which this user can read and write";

pub(crate) async fn probe(worker: &Worker, ttl: TtlRange) -> Vec<Finding> {
    let asked = Instant::now();
    let seen = match worker.ask(Sent::Look, |file| Ok(Seen::of(file))).await {
        Ok(seen) => seen,
        Err(error) => return Finding::unanswered(&error, UNREACHABLE),
    };
    let TtlRange { min, max } = ttl;
    let since_boot = Duration::from_secs(seen.since_boot.as_secs());
    vec![
        Finding::fine(Check::Reachable, format!("the file answered in {:.1?}", asked.elapsed())),
        Finding::fine(Check::Version, format!("SQLite {}, layout {} of the file", rusqlite::version(), schema::VERSION)),
        Finding::fine(Check::Ttl, format!("from {min:?} to {max:?}")),
        permissions(&seen.changed),
        Finding::fine(Check::Clock, format!("the host is up for {since_boot:?}, in the boot {}", seen.boot)),
        storage(seen.room, seen.changed.as_ref().err()),
    ]
}

/// What the thread that has the file saw.
struct Seen {
    /// How long a change took.
    changed: Result<Duration, BackendError>,
    since_boot: Duration,
    boot: String,
    /// How many bytes are free for this user, where that is told.
    room: Option<u64>,
}

impl Seen {
    fn of(file: &mut File) -> Self {
        let begun = Instant::now();
        let changed = file.change(|change| Ok(change.write_nothing_new()?)).map(|()| begun.elapsed());
        let host = file.host();
        let since_boot = Duration::from_nanos(host.now().max(0).unsigned_abs());
        // The file was opened in it.
        let boot = host.boot().map_or_else(|_| "unknown".to_owned(), str::to_owned);
        Self { changed, since_boot, boot, room: room(file.path()) }
    }
}

fn permissions(changed: &Result<Duration, BackendError>) -> Finding {
    match changed {
        Ok(took) => Finding::fine(Check::Permissions, format!("a change of the file took {took:.1?}")),
        Err(error) => Finding::from_error(Check::Permissions, error, UNREACHABLE),
    }
}

/// The log grows to about so much before it goes into the file.
const ROOM: u64 = 4 * schema::LOG_PAGES.unsigned_abs() * schema::PAGE_BYTES.unsigned_abs() as u64;

fn storage(room: Option<u64>, error: Option<&BackendError>) -> Finding {
    match room {
        _ if error.is_some_and(is_full) => Finding::broken(Check::Storage, "the disk of the file is full", "make room on it"),
        None => Finding::fine(Check::Storage, "the system does not say how much room there is"),
        Some(room) if room < ROOM => {
            let detail = format!("{room} bytes are free on the disk of the file");
            Finding::doubtful(Check::Storage, detail, format!("make room on it, for {ROOM} bytes at least"))
        }
        Some(room) => Finding::fine(Check::Storage, format!("{room} bytes are free on the disk of the file")),
    }
}

fn room(file: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(file.parent()?).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_is_doubtful_and_none_that_is_told_fine() {
        let remedy = |room| storage(room, None).remedy().map(str::to_owned);
        assert!(remedy(Some(ROOM - 1)).is_some_and(|remedy| remedy.contains("make room")));
        assert_eq!((remedy(Some(ROOM)), remedy(None)), (None, None));
    }
}
