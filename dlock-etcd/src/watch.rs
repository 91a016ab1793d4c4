//! Waiting for what happens to keys: free to drop, and with the token of the day. Whoever waits in a line has a stream of its own; those who
//! hold share [one](crate::stream).

use std::sync::Arc;

use dlock_core::{BackendError, ErrorKind};
use etcd_client::{
    Error, EventType, ResponseHeader, WatchFilterType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream,
    WatchStream,
};

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

/// A stream to which more watches can be added.
pub(crate) struct Opened {
    pub(crate) requests: WatchRequestSender,
    pub(crate) responses: WatchResponseStream,
    pub(crate) connected: Arc<Connected>,
    /// Tells that the first watch was made, or refused.
    pub(crate) made: WatchResponse,
}

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
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

impl Headed for Opened {
    fn header(&self) -> Option<&ResponseHeader> {
        self.made.header()
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
                let mut client = connected.watch();
                let [first, others @ ..] = watched.as_slice() else {
                    return Err(Error::InvalidArgs("nothing to watch".to_owned()));
                };
                let mut stream = client.watch(first.key.as_slice(), Some(options(first, from))).await?;
                for other in others {
                    stream.watch(other.key.as_slice(), Some(options(other, from))).await?;
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

    /// Opens a stream with the watch of one key from this revision on; returns once that is made or refused.
    pub(crate) async fn open_stream(
        &self,
        asked: Asked<'_>,
        watched: &Watched,
        from: i64,
    ) -> Result<Result<Opened, Refusal>, BackendError> {
        let ask = |connected: Arc<Connected>| {
            let watched = watched.clone();
            async move {
                let stream = connected.watch().watch(watched.key.as_slice(), Some(options(&watched, from))).await?;
                let (requests, mut responses) = stream.split();
                loop {
                    match responses.message().await? {
                        Some(made) if made.created() => {
                            if made.canceled() && wants_token(&refused(&made)) {
                                return Err(refused(&made));
                            }
                            return Ok(Opened { requests, responses, connected, made });
                        }
                        Some(_) => {}
                        None => return Err(Error::WatchError("the stream ended".to_owned())),
                    }
                }
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
            return self.ended(asked, &watching.connected, ended).map(Err);
        }
    }

    /// What the end of a stream means for whoever waits on it. A connection that is at fault is left.
    pub(crate) fn ended(&self, asked: Asked<'_>, connected: &Arc<Connected>, error: Error) -> Result<Refusal, BackendError> {
        meaning(asked, error).map_err(|(error, sound)| {
            if !sound {
                self.endpoints.suspect(connected);
            }
            error
        })
    }
}

/// What the end of a watch means for whoever waits for it, and of an error, whether the endpoint did its part.
pub(crate) fn meaning(asked: Asked<'_>, ended: Error) -> Result<Refusal, (BackendError, bool)> {
    match failure(asked, ended) {
        Failure::Told { error, sound } => Err((error, sound)),
        Failure::Elsewhere(error) => Err((error, false)),
        // The next watch asks for a new token.
        Failure::Token(error) => Err((BackendError::new(ErrorKind::Transient, error.message().to_owned()), true)),
        Failure::LeaseGone => Ok(Refusal::LeaseGone),
        Failure::Compacted => Ok(Refusal::Compacted),
    }
}

pub(crate) fn options(watched: &Watched, from: i64) -> WatchOptions {
    let mut options = WatchOptions::new().with_start_revision(from);
    if let Some(end) = &watched.end {
        options = options.with_range(end.as_slice());
    }
    if watched.deletions { options.with_filters([WatchFilterType::NoPut]) } else { options }
}

/// Whether a watch was refused for the token with which its stream was opened.
pub(crate) fn wants_token(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.code() == tonic::Code::Unauthenticated)
}

/// The status that a watch which was refused would have, had it been a call of its own: the reason comes as text alone.
pub(crate) fn refused(answer: &WatchResponse) -> Error {
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

pub(crate) fn changes(answer: &WatchResponse) -> Vec<Change> {
    let changed = answer.events().iter().filter_map(|event| {
        let kv = event.kv()?;
        let entry = (event.event_type() == EventType::Put).then(|| Entry::from(kv));
        Some(Change { key: kv.key().to_vec(), revision: kv.mod_revision(), entry })
    });
    changed.collect()
}
