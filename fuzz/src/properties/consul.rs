//! A Consul that answers what it is told to, whatever it is asked.

use std::collections::VecDeque;
use std::error::Error;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dlock_consul::{Answer, Consul, ConsulOptions, Request, Transport, TransportError, TransportErrorKind};
use dlock_core::{BackendError, Claim, ClaimId, Key, Metadata, Mode};
use futures_util::FutureExt;

/// Brings the given answers one after the other, then none any more.
#[derive(Debug)]
pub(super) struct Told {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    answers: VecDeque<Answer>,
    given: Vec<Answer>,
    sent: Vec<Request>,
}

impl Told {
    /// A backend that is told these answers.
    pub(super) fn backend(answers: impl IntoIterator<Item = Answer>) -> (Consul, Arc<Self>) {
        let state = State { answers: answers.into_iter().collect(), given: Vec::new(), sent: Vec::new() };
        let told = Arc::new(Self { state: Mutex::new(state) });
        (Consul::with_transport(&ConsulOptions::new(), told.clone()), told)
    }

    /// The answers that were brought so far.
    pub(super) fn given(&self) -> Vec<Answer> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).given.clone()
    }

    /// The requests that were sent so far.
    pub(super) fn sent(&self) -> Vec<Request> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).sent.clone()
    }
}

#[async_trait]
impl Transport for Told {
    async fn send(&self, request: Request) -> Result<Answer, TransportError> {
        well_formed(&request);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sent.push(request);
        assert!(state.sent.len() <= 64, "a call asks a bounded number of times");
        let Some(answer) = state.answers.pop_front() else {
            return Err(TransportError::new(TransportErrorKind::TimedOut, "no answer is left"));
        };
        state.given.push(answer.clone());
        Ok(answer)
    }
}

/// What of a request could be made of what was answered before stays in its place.
fn well_formed(request: &Request) {
    let target = &request.target;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    assert!(target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{target:?} is not percent-encoded");
    assert!(!query.contains(['?', '/']), "{target:?} has more than one query");
    assert!(!path.split('/').any(|segment| matches!(segment, "." | "..")), "{target:?} is rewritten on the way");
    let segments = path.split('/').count();
    assert!(!path.starts_with("/v1/session/") || segments <= 5, "{target:?} names another place");
}

/// The outcome of a call that never has to wait for its answers.
pub(super) fn at_once<T>(call: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
    let outcome = call.now_or_never().expect("a call waits for nothing but its answers");
    if let Err(error) = &outcome {
        readable(&error.to_string());
    }
    outcome
}

/// An error is one line for people, with nothing in it that moves the cursor of a terminal.
pub(super) fn readable(text: &str) {
    assert!(!text.is_empty() && text.len() <= 2_000, "{} bytes are no message: {text:?}", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?} is more than a line of text");
    assert_eq!(text.trim_end(), text, "{text:?} ends in nothing");
}

/// Everything that an error shows, causes and all.
pub(super) fn everything(error: &dyn Error) -> String {
    let mut text = format!("{error:?} {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!("; {error}"));
        cause = error.source();
    }
    text
}

pub(super) fn ok(body: String) -> Answer {
    Answer { status: 200, index: Some(7), body }
}

/// The claim that all calls are about.
pub(super) fn claim(metadata: Option<Metadata>) -> Claim {
    Claim {
        id: ClaimId::from_bits(0xC1A1),
        key: Key::new("locks/a").expect("the key is one"),
        mode: Mode::Exclusive,
        owner: "host/1/test".into(),
        acquired_at: "2026-01-02T03:04:05Z".into(),
        metadata: metadata.map(Arc::new),
    }
}

pub(super) const TTL: Duration = Duration::from_secs(15);
