//! Waiting for what happens to keys, on a stream for each who waits: free to drop, and opened with the token of the day.

use std::sync::Arc;

use dlock_core::{BackendError, ErrorKind};
use etcd_client::{Error, EventType, ResponseHeader, WatchFilterType, WatchOptions, WatchResponse, WatchStream};

use crate::api::{Api, Headed, Refusal};
use crate::classify::{Asked, Failure, failure};
use crate::endpoints::Connected;
use crate::wire::Entry;

/// Keys that are watched.
pub(crate) struct Watching {
    stream: WatchStream,
    connected: Arc<Connected>,
    /// Came before all watches were made.
    early: Vec<WatchResponse>,
}

/// What to watch.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) key: Vec<u8>,
    /// The end of a range that begins with the key.
    pub(crate) end: Option<Vec<u8>>,
    /// Whether only deletions are told.
    pub(crate) deletions: bool,
}

/// Something that happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: Vec<u8>,
    pub(crate) revision: i64,
    /// What stands there now; `None` when it was deleted.
    pub(crate) entry: Option<Entry>,
}

impl Headed for Watching {
    fn header(&self) -> Option<&ResponseHeader> {
        None
    }
}

impl Api {
    /// Watches keys from this revision on; returns once the server does.
    pub(crate) async fn watch(
        &self,
        asked: Asked<'_>,
        watched: &[Watched],
        from: i64,
    ) -> Result<Result<Watching, Refusal>, BackendError> {
        let ask = |connected: Arc<Connected>| {
            let watched = watched.to_vec();
            async move {
                let options = |watched: &Watched| {
                    let mut options = WatchOptions::new().with_start_revision(from);
                    if let Some(end) = &watched.end {
                        options = options.with_range(end.as_slice());
                    }
                    if watched.deletions { options.with_filters([WatchFilterType::NoPut]) } else { options }
                };
                let mut client = connected.watch();
                let [first, others @ ..] = watched.as_slice() else {
                    return Err(Error::InvalidArgs("nothing to watch".to_owned()));
                };
                let mut stream = client.watch(first.key.as_slice(), Some(options(first))).await?;
                for other in others {
                    stream.watch(other.key.as_slice(), Some(options(other))).await?;
                }
                let (mut early, mut made) = (Vec::new(), 0);
                while made < watched.len() {
                    let Some(answer) = stream.message().await? else {
                        return Err(Error::WatchError("the stream ended".to_owned()));
                    };
                    if answer.created() && answer.canceled() {
                        return Err(refused(&answer));
                    }
                    made += usize::from(answer.created());
                    early.push(answer);
                }
                early.reverse();
                Ok(Watching { stream, connected, early })
            }
        };
        self.call(asked, ask).await
    }

    /// What happens next to the keys that are watched; never an empty list. Free to drop.
    pub(crate) async fn news(
        &self,
        asked: Asked<'_>,
        watching: &mut Watching,
    ) -> Result<Result<Vec<Change>, Refusal>, BackendError> {
        loop {
            let answer = match watching.early.pop() {
                Some(answer) => Ok(Some(answer)),
                None => watching.stream.message().await,
            };
            let ended = match answer {
                Ok(Some(answer)) if answer.canceled() && answer.compact_revision() > 0 => return Ok(Err(Refusal::Compacted)),
                Ok(Some(answer)) if answer.canceled() => refused(&answer),
                Ok(Some(answer)) => {
                    let changes = changes(&answer);
                    if changes.is_empty() {
                        continue;
                    }
                    return Ok(Ok(changes));
                }
                Ok(None) => Error::WatchError("the stream ended".to_owned()),
                Err(error) => error,
            };
            let (error, sound) = match failure(asked, ended) {
                Failure::Told { error, sound } => (error, sound),
                Failure::Elsewhere(error) => (error, false),
                // The next watch asks for a new token.
                Failure::Token(error) => (BackendError::new(ErrorKind::Transient, error.message().to_owned()), true),
                Failure::LeaseGone => return Ok(Err(Refusal::LeaseGone)),
                Failure::Compacted => return Ok(Err(Refusal::Compacted)),
            };
            if !sound {
                self.endpoints.suspect(&watching.connected);
            }
            return Err(error);
        }
    }
}

/// The status that a watch which was refused would have, had it been a call of its own: the reason comes as text alone.
fn refused(answer: &WatchResponse) -> Error {
    let reason = answer.cancel_reason();
    let status = if reason.contains("permission denied") {
        tonic::Status::permission_denied(reason)
    } else if ["invalid auth token", "user name is empty", "revision of auth store is old", "Unauthenticated"]
        .iter()
        .any(|text| reason.contains(text))
    {
        tonic::Status::unauthenticated(reason)
    } else {
        tonic::Status::unknown(reason)
    };
    Error::GRpcStatus(status)
}

fn changes(answer: &WatchResponse) -> Vec<Change> {
    let changed = answer.events().iter().filter_map(|event| {
        let kv = event.kv()?;
        let entry = (event.event_type() == EventType::Put).then(|| Entry::from(kv));
        Some(Change { key: kv.key().to_vec(), revision: kv.mod_revision(), entry })
    });
    changed.collect()
}
