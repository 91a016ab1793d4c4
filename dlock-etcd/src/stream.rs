//! The watches of held entries, all on one stream: of the owners that wait, one drives it for all.
//!
//! Nothing is spawned. The turn to drive passes to another owner when its future is dropped or has heard something, and the stream stays. When
//! the stream fails, whoever drives is told, and the next one opens another, on which every watch goes on from where it was.

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use dlock_core::BackendError;
use etcd_client::{Error, WatchRequestSender, WatchResponse, WatchResponseStream};
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, sleep_until};

use crate::api::{Api, Refusal, unexpected};
use crate::classify::{Asked, silent};
use crate::endpoints::Connected;
use crate::roll::{Answer, Ended, Heard, Request, Roll};
use crate::watch::{Change, Opened, changes, meaning, options, refused, wants_token};

/// The streams of one backend: one for each runtime on which watches are waited for, since nobody drives what belongs to another.
#[derive(Default)]
pub(crate) struct Streams {
    lines: Mutex<Vec<Line>>,
}

/// The watches of one runtime, and their stream while nobody drives it. There for as long as there are watches.
struct Line {
    runtime: Id,
    roll: Roll,
    stream: Option<Stream>,
}

struct Stream {
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    connected: Arc<Connected>,
    /// By when the next of the watches that were asked for must be made.
    due: Option<Instant>,
}

/// The streams, as seen from one runtime.
#[derive(Clone, Copy)]
struct Here<'a> {
    streams: &'a Streams,
    runtime: Id,
}

/// A watch of one key; ended when dropped.
pub(crate) struct Watch<'a> {
    here: Here<'a>,
    id: u64,
}

/// The turn to drive; passed on when dropped.
struct Turn<'a> {
    here: Here<'a>,
    stream: Option<Stream>,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

impl Streams {
    /// Watches what happens to a key from this revision on, or its deletions alone.
    pub(crate) fn watch(&self, key: Vec<u8>, deletions: bool, from: i64) -> Watch<'_> {
        let here = Here { streams: self, runtime: Handle::current().id() };
        let (id, waker) = here.roll(|roll| roll.add(key, deletions, from));
        wake(waker);
        Watch { here, id }
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Here<'_> {
    fn line<T>(self, then: impl FnOnce(&mut Line) -> T) -> T {
        let mut lines = self.streams.lines();
        let place = lines.iter().position(|line| line.runtime == self.runtime).unwrap_or_else(|| {
            lines.push(Line { runtime: self.runtime, roll: Roll::default(), stream: None });
            lines.len() - 1
        });
        then(&mut lines[place])
    }

    fn roll<T>(self, then: impl FnOnce(&mut Roll) -> T) -> T {
        self.line(|line| then(&mut line.roll))
    }

    fn tell(self, answer: Answer) {
        wake(self.roll(|roll| roll.hear(answer)));
    }
}

impl Watch<'_> {
    /// What happens next to the key; never an empty list. Over after a refusal or an error. Free to drop.
    pub(crate) async fn news(&mut self, api: &Api, asked: &Asked<'_>) -> Result<Result<Vec<Change>, Refusal>, BackendError> {
        loop {
            match self.heard().await {
                Heard::Changes(changes) => return Ok(Ok(changes)),
                Heard::Ended(Ended::Compacted) => return Ok(Err(Refusal::Compacted)),
                Heard::Ended(Ended::Refused(error)) => return meaning(*asked, *error).map(Err).map_err(|(error, _)| error),
                Heard::Turn => {
                    let turn = Turn { here: self.here, stream: self.here.line(|line| line.stream.take()) };
                    // Apart, since of all that wait one drives.
                    Box::pin(turn.drive(api, *asked, self.id)).await?;
                }
            }
        }
    }

    /// The key that is watched.
    pub(crate) fn key(&self) -> Vec<u8> {
        self.here.roll(|roll| roll.key(self.id).unwrap_or_default().to_vec())
    }

    fn heard(&self) -> impl Future<Output = Heard> {
        poll_fn(|cx| {
            let mut waker = Some(cx.waker().clone());
            self.here.roll(|roll| roll.poll(self.id, &mut waker))
        })
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut lines = self.here.streams.lines();
        let Some(place) = lines.iter().position(|line| line.runtime == self.here.runtime) else { return };
        let removed = lines[place].roll.remove(self.id);
        let over = lines[place].roll.is_empty().then(|| lines.swap_remove(place));
        drop(lines);
        drop((over, removed.watch));
        wake(removed.wakes);
    }
}

impl Turn<'_> {
    /// Sends what is to be sent, and tells what comes, until something came for this watch. Free to drop.
    async fn drive(mut self, api: &Api, asked: Asked<'_>, id: u64) -> Result<(), BackendError> {
        self.stream.take_if(|stream| !api.endpoints.is_current(&stream.connected));
        let here = self.here;
        while !here.roll(|roll| roll.has_news(id)) {
            let Some(stream) = &mut self.stream else {
                self.stream = open(here, api, asked).await?;
                continue;
            };
            if let Err(error) = stream.step(here, api, asked).await {
                self.stream = None;
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let (stream, mut waker) = (self.stream.take(), None);
        let next = self.here.line(|line| {
            line.stream = stream;
            line.roll.pass(&mut waker)
        });
        drop(waker);
        wake(next);
    }
}

/// Opens a stream, with the first of the watches. Where the token is not accepted any more, it asks for another.
async fn open(here: Here<'_>, api: &Api, asked: Asked<'_>) -> Result<Option<Stream>, BackendError> {
    let first = here.roll(|roll| {
        roll.begin();
        roll.request()
    });
    let Some(request @ Request::Watch { watched, from, .. }) = &first else { return Ok(None) };
    let opened = api.open_stream(asked, watched, *from).await?.map_err(|refusal| unexpected(asked, refusal))?;
    let Opened { requests, responses, connected, made } = opened;
    here.roll(|roll| roll.sent(request));
    here.tell(Answer::from(&made));
    Ok(Some(Stream { requests, responses, connected, due: None }))
}

impl Stream {
    /// Sends one request, or takes in one answer. An error ends the stream. Free to drop.
    async fn step(&mut self, here: Here<'_>, api: &Api, asked: Asked<'_>) -> Result<(), BackendError> {
        let Self { requests, responses, connected, due } = self;
        let sending = async {
            let request = poll_fn(|cx| {
                let mut waker = Some(cx.waker().clone());
                here.roll(|roll| roll.poll_request(&mut waker))
            });
            let request = request.await;
            match &request {
                Request::Watch { watched, from, .. } => {
                    requests.watch(watched.key.as_slice(), Some(options(watched, *from))).await?;
                }
                Request::Cancel(number) => requests.cancel(*number).await?,
            }
            Ok(request)
        };
        let limit = due.unwrap_or_else(Instant::now);
        // Answers first: where nobody takes them, etcd takes no requests either.
        let ended = tokio::select! {
            biased;
            answer = responses.message() => match answer.map(|answer| answer.as_ref().map(Answer::from)) {
                Ok(Some(Answer { ended: Some(Ended::Refused(error)), .. })) if wants_token(&error) => *error,
                Ok(Some(answer)) => {
                    let made = answer.made;
                    here.tell(answer);
                    if made {
                        *due = here.roll(|roll| roll.awaits()).then(|| Instant::now() + api.attempt);
                    }
                    return Ok(());
                }
                Ok(None) => Error::WatchError("the stream ended".to_owned()),
                Err(error) => error,
            },
            // Nothing is awaited between the sending and the note of it, so that dropping this loses neither.
            sent = sending => match sent {
                Ok(request) => {
                    here.roll(|roll| roll.sent(&request));
                    if here.roll(|roll| roll.awaits()) {
                        due.get_or_insert_with(|| Instant::now() + api.attempt);
                    }
                    return Ok(());
                }
                Err(error) => error,
            },
            () = sleep_until(limit), if due.is_some() => {
                api.endpoints.suspect(connected);
                return Err(silent(asked));
            }
        };
        Err(match api.ended(asked, connected, ended) {
            Ok(refusal) => unexpected(asked, refusal),
            Err(error) => error,
        })
    }
}

impl From<&WatchResponse> for Answer {
    fn from(answer: &WatchResponse) -> Self {
        let ended = answer.canceled().then(|| match answer.compact_revision() {
            0 => Ended::Refused(Box::new(refused(answer))),
            _ => Ended::Compacted,
        });
        Self { number: answer.watch_id(), made: answer.created(), ended, changes: changes(answer) }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
