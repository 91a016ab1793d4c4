//! What a gRPC status of etcd's means for the caller.

use std::error::Error as _;
use std::fmt;

use dlock_core::{BackendError, ErrorKind};
use etcd_client::Error;
use tonic::{Code, ConnectError, Status};

use crate::endpoints::NotConnected;

/// What was asked for, and what it needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// In words, for messages.
    pub(crate) what: &'static str,
    /// Whether it may change the store.
    pub(crate) writes: bool,
    /// How the keys start for which it needs permission, in two parts; `None` where it needs none of its own.
    pub(crate) keys: Option<(&'a str, &'a str)>,
}

impl Asked<'_> {
    fn unsure(self) -> ErrorKind {
        if self.writes { ErrorKind::Ambiguous } else { ErrorKind::Transient }
    }
}

/// What a failed call means for what comes next within the call.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was surely not applied, and another endpoint may do better.
    Elsewhere(BackendError),
    /// The token is not accepted any more: with a new one it may be.
    Token(BackendError),
    /// The lease is not known.
    LeaseGone,
    /// The revision that was asked for is not kept any more.
    Compacted,
    /// The answer for the caller; `sound` if the endpoint did its part.
    Told { error: BackendError, sound: bool },
}

/// Tells what the error of a call means.
pub(crate) fn failure(asked: Asked<'_>, error: Error) -> Failure {
    match error {
        Error::GRpcStatus(status) => of_status(asked, status),
        Error::TransportError(error) => {
            let error = BackendError::new(ErrorKind::Transient, format!("{}: not connected", asked.what)).caused_by(error);
            Failure::Elsewhere(error)
        }
        Error::LeaseKeepAliveError(text) if text.contains("not found") => Failure::LeaseGone,
        error => {
            let message = format!("{}: the answer is not etcd's", asked.what);
            Failure::Told { error: BackendError::new(asked.unsure(), message).caused_by(error), sound: false }
        }
    }
}

fn of_status(asked: Asked<'_>, status: Status) -> Failure {
    let text = status.message().to_owned();
    let says = |part: &str| text.contains(part);
    let error = |kind, status: Status| {
        let message = format!("{}: etcd answered {}", asked.what, excerpt(&text));
        BackendError::new(kind, message).caused_by(status)
    };
    let told = |error| Failure::Told { error, sound: true };
    match status.code() {
        _ if never_sent(&status) => {
            let message = format!("{}: not connected", asked.what);
            Failure::Elsewhere(BackendError::new(ErrorKind::Transient, message).caused_by(status))
        }
        Code::NotFound if says("lease not found") => Failure::LeaseGone,
        Code::OutOfRange if says("compacted") => Failure::Compacted,
        // Refused before it was proposed: this member hears no leader, or is not there to be asked.
        Code::Unavailable if says("no leader") => Failure::Elsewhere(error(ErrorKind::Transient, status)),
        Code::Unavailable | Code::FailedPrecondition if says("learner") => Failure::Elsewhere(error(ErrorKind::Transient, status)),
        Code::Unauthenticated => Failure::Token(denied(asked, status)),
        Code::InvalidArgument if says("user name is empty") || says("revision of auth store is old") => {
            Failure::Token(denied(asked, status))
        }
        Code::PermissionDenied => told(denied(asked, status)),
        Code::InvalidArgument if says("authentication failed") => told(denied(asked, status)),
        Code::ResourceExhausted if says("database space exceeded") => {
            let message = format!(
                "{}: etcd's database is full (NOSPACE); held locks go on, new ones need an operator: compact, defragment, disarm the alarm",
                asked.what
            );
            // The write that goes over the limit is applied, and answered so all the same.
            let kind = if asked.writes { ErrorKind::Ambiguous } else { ErrorKind::Overloaded };
            told(BackendError::new(kind, message).caused_by(status))
        }
        // From the client's own limit on what it takes in, the answer may be that of a write.
        Code::ResourceExhausted if says("etcdserver") => told(error(ErrorKind::Overloaded, status)),
        Code::InvalidArgument | Code::Unimplemented => told(error(ErrorKind::Invalid, status)),
        // The connection broke, the leader changed, the cluster did not agree in time: a write may have been applied.
        code => Failure::Told { error: error(asked.unsure(), status), sound: code != Code::Unavailable && says("etcdserver: ") },
    }
}

/// Whether etcd answered that its database is full: perhaps applied, but surely not under way any more.
pub(crate) fn is_full(error: &BackendError) -> bool {
    answered(error)
        .is_some_and(|status| status.code() == Code::ResourceExhausted && status.message().contains("database space exceeded"))
}

/// Whether etcd knows the user, and refused what it asked for.
pub(crate) fn lacks_permission(error: &BackendError) -> bool {
    answered(error).is_some_and(|status| status.code() == Code::PermissionDenied)
}

fn answered(error: &BackendError) -> Option<&Status> {
    error.source()?.downcast_ref()
}

/// The connection could not be made anew: nothing was sent.
fn never_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// No connection could be made.
pub(crate) fn not_connected(asked: Asked<'_>, error: NotConnected) -> Failure {
    match error {
        NotConnected::Unreachable { endpoint, source } => {
            let message = format!("{}: no connection to etcd at {endpoint}", asked.what);
            let error = BackendError::new(ErrorKind::Transient, message);
            Failure::Elsewhere(match source {
                Some(source) => error.caused_by(Deep(source)),
                None => error,
            })
        }
        NotConnected::Refused(Error::GRpcStatus(status)) => match of_status(asked, status) {
            // A fresh connection asks for its own token: another would be refused like it.
            Failure::Token(error) => Failure::Told { error, sound: true },
            failure => failure,
        },
        NotConnected::Refused(error) => failure(asked, error),
    }
}

/// An error of etcd-client's with its cause, of which it tells nothing itself.
#[derive(Debug)]
struct Deep(Error);

impl fmt::Display for Deep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Deep {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            Error::TransportError(error) => error.source(),
            _ => None,
        }
    }
}

/// The call took longer than its limit.
pub(crate) fn silent(asked: Asked<'_>) -> BackendError {
    BackendError::new(asked.unsure(), format!("{}: no answer in time", asked.what))
}

/// A permission is missing, or a user is not who it says it is.
fn denied(asked: Asked<'_>, status: Status) -> BackendError {
    let message = if status.code() == Code::PermissionDenied {
        match asked.keys {
            Some((namespace, keys)) => {
                let keys = format!("{namespace}{keys}");
                format!(
                    "{}: permission denied; the user needs a role with readwrite on all keys that start with {keys:?} (etcdctl role \
                     grant-permission ROLE readwrite --prefix=true {keys:?})",
                    asked.what
                )
            }
            None => format!("{}: permission denied; the user needs readwrite on all keys under the lease", asked.what),
        }
    } else if status.message().contains("authentication failed") {
        format!("{}: etcd does not accept this user and password", asked.what)
    } else {
        format!("{}: etcd wants a user and password; set ETCDCTL_USER to user:password", asked.what)
    };
    BackendError::new(ErrorKind::Denied, message).caused_by(status)
}

/// So much of a text as fits into a line, without what would move the cursor of a terminal.
fn excerpt(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let shown: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Asked<'static> = Asked { what: "claiming the key", writes: true, keys: Some(("locks/", "k")) };
    const READ: Asked<'static> = Asked { writes: false, ..WRITE };

    fn told(asked: Asked<'_>, code: Code, text: &str) -> (ErrorKind, String) {
        match of_status(asked, Status::new(code, text)) {
            Failure::Told { error, .. } | Failure::Elsewhere(error) | Failure::Token(error) => (error.kind(), error.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_breaks_under_way_is_ambiguous_for_a_write_and_passing_for_a_read() {
        let broken = [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Unknown, "h2 protocol error: error reading a body from connection"),
            (Code::Cancelled, "Timeout expired"),
            (Code::Internal, "whatever"),
            (Code::ResourceExhausted, "decoded message length too large"),
        ];
        for (code, text) in broken {
            assert_eq!(told(WRITE, code, text).0, ErrorKind::Ambiguous, "{text}");
            assert_eq!(told(READ, code, text).0, ErrorKind::Transient, "{text}");
        }
    }

    #[test]
    fn what_a_member_without_a_leader_refuses_is_asked_elsewhere() {
        let refused = of_status(WRITE, Status::new(Code::Unavailable, "etcdserver: no leader"));
        assert!(matches!(refused, Failure::Elsewhere(error) if error.kind() == ErrorKind::Transient));
        let learner = of_status(WRITE, Status::new(Code::Unavailable, "etcdserver: rpc not supported for learner"));
        assert!(matches!(learner, Failure::Elsewhere(_)));
    }

    #[test]
    fn a_missing_lease_and_a_compacted_revision_are_answers() {
        let gone = of_status(WRITE, Status::new(Code::NotFound, "etcdserver: requested lease not found"));
        assert!(matches!(gone, Failure::LeaseGone));
        let text = "etcdserver: mvcc: required revision has been compacted";
        assert!(matches!(of_status(READ, Status::new(Code::OutOfRange, text)), Failure::Compacted));
    }

    #[test]
    fn a_full_database_may_have_taken_a_write_and_says_what_to_do() {
        let (kind, text) = told(WRITE, Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
        assert_eq!(kind, ErrorKind::Ambiguous, "the write that goes over the limit is applied");
        let read = told(READ, Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
        assert_eq!(read.0, ErrorKind::Overloaded);
        assert!(text.contains("NOSPACE") && text.contains("defragment"), "{text}");
        assert_eq!(told(WRITE, Code::ResourceExhausted, "etcdserver: too many requests").0, ErrorKind::Overloaded);
    }

    #[test]
    fn a_missing_permission_is_named_with_the_command_that_grants_it() {
        let (kind, text) = told(WRITE, Code::PermissionDenied, "etcdserver: permission denied");
        assert_eq!(kind, ErrorKind::Denied);
        assert!(text.contains("readwrite --prefix=true \"locks/k\""), "{text}");
    }

    #[test]
    fn a_token_that_is_not_accepted_any_more_can_be_renewed() {
        for (code, text) in [
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            (Code::InvalidArgument, "etcdserver: user name is empty"),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old"),
        ] {
            assert!(matches!(of_status(WRITE, Status::new(code, text)), Failure::Token(_)), "{text}");
        }
        let wrong = "etcdserver: authentication failed, invalid user ID or password";
        assert_eq!(told(WRITE, Code::InvalidArgument, wrong).0, ErrorKind::Denied);
    }

    #[test]
    fn what_can_never_succeed_is_invalid() {
        assert_eq!(told(WRITE, Code::InvalidArgument, "etcdserver: request is too large").0, ErrorKind::Invalid);
        assert_eq!(told(WRITE, Code::Unimplemented, "unknown service").0, ErrorKind::Invalid);
    }
}
