//! No usable answer, and what happens next.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use crate::{Claim, Mode};

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

    /// The answer to a claim that [contradicts](crate::Mode::contradicts) those that hold its key.
    pub fn contradiction(claim: &Claim, holders: Mode) -> Self {
        let message =
            format!("{} is held by {holders}, and was asked for by {}; all must name the same number", claim.key, claim.mode);
        Self::new(ErrorKind::Conflict, message)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_succeed_by_itself_is_passing_and_the_rest_is_not() {
        for kind in [ErrorKind::Transient, ErrorKind::Ambiguous, ErrorKind::Overloaded] {
            assert!(kind.is_passing(), "{kind:?}");
        }
        for kind in [ErrorKind::Denied, ErrorKind::Invalid, ErrorKind::Conflict, ErrorKind::Unsupported] {
            assert!(!kind.is_passing(), "{kind:?}");
        }
    }

    #[test]
    fn an_error_tells_its_kind_its_message_and_its_cause() {
        let error = BackendError::new(ErrorKind::Denied, "the token may not write").caused_by("status 403");
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert_eq!((error.message(), error.to_string().as_str()), ("the token may not write", "the token may not write"));
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("status 403"));
    }

    #[test]
    fn an_undeclared_call_is_unsupported_and_named() {
        let error = BackendError::unsupported("evict");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("`evict`"), "{error}");
        assert!(error.source().is_none());
    }
}
