//! No usable answer, and what happens next.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

/// A call to a store that brought no usable answer.
///
/// Contention, delays and forgotten sessions are answers, not errors. The kind says what the machines do next; the message says
/// to a person what was attempted and what to do. Neither holds a secret.
#[derive(Debug)]
pub struct BackendError {
    kind: ErrorKind,
    message: Cow<'static, str>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What a failed call means for the caller. What cannot be classified is [`Ambiguous`](Self::Ambiguous).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Surely not applied: ask again.
    Transient,
    /// Perhaps applied: find out or undo.
    Ambiguous,
    /// Refused for lack of a permission, which the message names.
    Denied,
    /// The request can never succeed as it is.
    Invalid,
    /// The key is used for something else, and was left alone.
    Conflict,
    /// The store asks for fewer requests: surely not applied, ask again later.
    Overloaded,
    /// The backend does not declare this capability.
    Unsupported,
}

impl ErrorKind {
    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Transient | Self::Ambiguous | Self::Overloaded)
    }
}

impl BackendError {
    /// An error of this kind; the message in lower case, without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same error with what caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The answer to a call of a capability that is not declared.
    pub fn unsupported(call: &'static str) -> Self {
        Self::new(ErrorKind::Unsupported, format!("this backend does not declare the capability for `{call}`"))
    }

    /// What the failure means for the caller.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What was attempted and what to do.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for BackendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
