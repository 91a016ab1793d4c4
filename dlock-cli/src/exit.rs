//! What `dlock` ends with, as scripts read it.

use std::process::ExitCode;

use dlock::{ConnectError, ErrorKind, InspectError, InvalidOptions, LockError, StoreError};

/// An exit code. Those that are not a command's own are as in `sysexits.h` where that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(u8);

impl Exit {
    /// All went well.
    pub const OK: Self = Self(0);
    /// The command line, a key or an option is not as it must be.
    pub const USAGE: Self = Self(64);
    /// The store is out of reach.
    pub const UNREACHABLE: Self = Self(69);
    /// The lock was lost, and the command was stopped.
    pub const LOST: Self = Self(70);
    /// Another holds the lock, and the time to wait is over.
    pub const BUSY: Self = Self(75);
    /// The store refused for lack of a permission, or the key is not ours to touch.
    pub const DENIED: Self = Self(77);
    /// The store, or the machine, is not set up for this.
    pub const CONFIGURATION: Self = Self(78);
    /// The command was found, and cannot be run.
    pub const CANNOT_RUN: Self = Self(126);
    /// There is no such command.
    pub const NOT_FOUND: Self = Self(127);
    /// As a shell tells of a process that was killed.
    pub const KILLED: Self = Self(137);

    /// A command's own.
    pub const fn of_command(code: u8) -> Self {
        Self(code)
    }

    /// As a shell tells of a process that a signal has ended.
    pub fn of_signal(signal: i32) -> Self {
        Self(u8::try_from(128 + signal).unwrap_or(u8::MAX))
    }

    /// The number.
    pub const fn code(self) -> u8 {
        self.0
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.0)
    }
}

/// Why a subcommand ended early: what to say, and what to end with.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What to end with.
    pub exit: Exit,
    message: String,
}

impl Failure {
    /// With this message, in lower case and without a full stop.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// Whoever read the results has stopped reading: nothing is wrong, and nothing to say.
    pub fn nobody_reads() -> Self {
        Self::new(Exit::OK, "")
    }

    /// Whether there is something to tell.
    pub fn is_silent(&self) -> bool {
        self.message.is_empty()
    }

    /// With what an error and all its causes say.
    pub fn from_error(exit: Exit, error: &dyn std::error::Error) -> Self {
        Self { exit, message: chain(error) }
    }
}

/// An error and its causes in one line; what a cause says again is said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        next = cause.source();
    }
    message
}

/// What a failure of the store means for a script.
pub fn of_kind(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::Denied => Exit::DENIED,
        ErrorKind::Invalid | ErrorKind::Conflict | ErrorKind::Unsupported => Exit::CONFIGURATION,
        _ => Exit::UNREACHABLE,
    }
}

fn of_store(cause: Option<&StoreError>) -> Exit {
    cause.map_or(Exit::UNREACHABLE, |cause| of_kind(cause.kind()))
}

fn of_options(options: &InvalidOptions) -> Exit {
    match options {
        InvalidOptions::NotGranted { .. } | InvalidOptions::Unmet(_) => Exit::CONFIGURATION,
        _ => Exit::USAGE,
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        let exit = match &error {
            LockError::Key(_) => Exit::USAGE,
            LockError::Options(options) => of_options(options),
            // Whoever was seen holding it is what was waited for.
            LockError::TimedOut { holder: None, cause: Some(cause), .. } | LockError::Store { cause, .. } => of_kind(cause.kind()),
            LockError::TimedOut { .. } => Exit::BUSY,
            LockError::NoSession { cause } => of_store(cause.as_ref()),
            _ => Exit::UNREACHABLE,
        };
        Self::from_error(exit, &error)
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let exit = match &error {
            ConnectError::NotReady { source, .. } => match source.as_ref() {
                LockError::NoSession { cause } => of_store(cause.as_ref()),
                LockError::Options(options) => of_options(options),
                _ => Exit::UNREACHABLE,
            },
            ConnectError::Options(options) => of_options(options),
            ConnectError::FeatureOff { feature } => {
                let message = format!("this dlock was built without {feature}: cargo install dlock-cli --features {feature}");
                return Self::new(
                    Exit::CONFIGURATION,
                    if *feature == "memory" { "a store in memory is of one process alone".to_owned() } else { message },
                );
            }
            _ => Exit::CONFIGURATION,
        };
        Self::from_error(exit, &error)
    }
}

impl From<InspectError> for Failure {
    fn from(error: InspectError) -> Self {
        let exit = match &error {
            InspectError::Key(_) => Exit::USAGE,
            InspectError::Store(cause) => of_kind(cause.kind()),
            _ => Exit::UNREACHABLE,
        };
        Self::from_error(exit, &error)
    }
}

impl From<dlock::BackendError> for Failure {
    fn from(error: dlock::BackendError) -> Self {
        Self::from_error(of_kind(error.kind()), &error)
    }
}
