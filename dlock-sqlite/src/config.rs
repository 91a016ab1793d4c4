//! Where the file of locks is: options and URL.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dlock_core::TtlRange;
use percent_encoding::percent_decode_str;
use thiserror::Error;

/// Options of a [`Sqlite`](crate::Sqlite) backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteOptions {
    path: PathBuf,
    pub(crate) ttl: TtlRange,
}

impl SqliteOptions {
    /// The session lifetimes that are accepted unless set otherwise. A shorter session would not outlive a change that another process is slow at.
    pub const DEFAULT_TTL: TtlRange = TtlRange { min: Duration::from_secs(1), max: Duration::from_secs(86_400) };

    /// Options for this file, which every process names by an absolute path. It and its folder are made by the first call, if they are not there:
    /// for nobody but the user who runs the process.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let path = path.into();
        match refusal(&path) {
            None => Ok(Self { path, ttl: Self::DEFAULT_TTL }),
            Some(reason) => Err(ConfigError::Path { path, reason }),
        }
    }

    /// Options from a URL: `sqlite:///path/to/file.db`, with `%20` and the like for what a URL cannot hold. It takes no host and no parameters.
    pub fn from_url(url: &str) -> Result<Self, ConfigError> {
        let refuse = |reason| ConfigError::Url { url: redacted(url), reason };
        let Some(rest) = url.strip_prefix("sqlite://") else { return Err(refuse("its scheme must be sqlite")) };
        if rest.contains('#') {
            return Err(refuse("a # in the path is written %23"));
        }
        let path = match rest.split_once('?') {
            None => rest,
            Some((path, "")) => path,
            Some(_) => return Err(refuse("it takes no parameters, and a ? in the path is written %3F")),
        };
        if !path.starts_with('/') {
            return Err(refuse("it names no host: the path begins right after sqlite://, with a slash of its own"));
        }
        let bytes: Vec<u8> = percent_decode_str(path).collect();
        let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
        match refusal(&path) {
            None => Ok(Self { path, ttl: Self::DEFAULT_TTL }),
            Some(reason) => Err(refuse(reason)),
        }
    }

    /// The session lifetimes that are accepted; the shortest must be longer than zero, and not longer than the longest, which is a hundred years at most. Defaults to 1 s to 24 h.
    pub fn ttl_range(mut self, ttl: TtlRange) -> Result<Self, ConfigError> {
        let reason = if ttl.min.is_zero() {
            "a session must live for some time"
        } else if ttl.min > ttl.max {
            "the shortest is longer than the longest"
        } else if ttl.max > LONGEST {
            "none may be longer than a hundred years"
        } else {
            self.ttl = ttl;
            return Ok(self);
        };
        Err(ConfigError::Ttl { min: ttl.min, max: ttl.max, reason })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// With it no moment at which a session lapses is too far away to be counted in nanoseconds.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Why a path cannot be that of a file of locks, if so.
fn refusal(path: &Path) -> Option<&'static str> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.contains(&0) {
        Some("no path holds a zero byte")
    } else if !path.is_absolute() {
        Some("it must be absolute, so that all processes mean the same file")
    } else if path.file_name().is_none() || bytes.ends_with(b"/") {
        Some("it must end in the name of a file")
    } else {
        None
    }
}

/// The URL without what might be a secret, meant for another store.
fn redacted(url: &str) -> String {
    let (scheme, rest) = url.strip_prefix("sqlite://").map_or(("", url), |rest| ("sqlite://", rest));
    let (hidden, rest) = match rest.rsplit_once('@') {
        Some((before, _)) if before.contains(['?', '#']) => ("…", ""),
        Some((_, rest)) => ("…@", rest),
        None => ("", rest),
    };
    format!("{scheme}{hidden}{}", rest.split(['?', '#']).next().unwrap_or_default())
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The URL names no file.
    #[error("{url:?} names no file of locks: {reason}; use for example \"sqlite:///var/lib/app/locks.db\"")]
    Url {
        /// The refused URL, without secrets.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The path names no file.
    #[error("{path:?} names no file of locks: {reason}; use for example \"/var/lib/app/locks.db\"")]
    Path {
        /// The refused path.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No session can live so long, or so short.
    #[error("session lifetimes cannot be from {min:?} to {max:?}: {reason}; use for example 1 s to 24 h")]
    Ttl {
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// The system starts no thread.
    #[error("the system starts no thread for the file of locks")]
    Thread(#[source] std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_an_absolute_path() {
        for (url, path) in [
            ("sqlite:///var/lib/app/locks.db", "/var/lib/app/locks.db"),
            ("sqlite:///a%20b/c%3Fd%23.db", "/a b/c?d#.db"),
            ("sqlite:///locks.db?", "/locks.db"),
        ] {
            assert_eq!(SqliteOptions::from_url(url).unwrap().path(), Path::new(path), "{url}");
        }
    }

    #[test]
    fn what_names_no_file_is_refused_with_what_would() {
        for (url, reason) in [
            ("sqlite://locks.db", "no host"),
            ("sqlite://host/locks.db", "no host"),
            ("sqlite:///locks.db?busy=1", "no parameters"),
            ("sqlite:///locks.db#x", "%23"),
            ("sqlite:///", "name of a file"),
            ("sqlite:///var/lib/", "name of a file"),
            ("sqlite:///a%00b", "zero byte"),
            ("postgres:///locks.db", "scheme"),
        ] {
            let error = SqliteOptions::from_url(url).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("/var/lib/app/locks.db"), "{url}: {error}");
        }
        assert!(SqliteOptions::new("locks.db").unwrap_err().to_string().contains("absolute"));
    }

    #[test]
    fn an_error_shows_no_secret_that_was_meant_for_another_store() {
        for url in
            ["sqlite://user:secret@host/x", "sqlite:///x?token=secret", "sqlite:///x#secret", "sqlite://u?secret@host", "secret@x"]
        {
            let error = SqliteOptions::from_url(url).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_range_in_which_no_session_could_live_is_refused_with_the_reason() {
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(9));
        let century = Duration::from_secs(100 * 366 * 86_400);
        for (min, max, why) in [
            (Duration::ZERO, long, "some time"),
            (long, short, "longer than the longest"),
            (short, Duration::MAX, "hundred years"),
            (short, century, "hundred years"),
        ] {
            let error = SqliteOptions::new("/locks.db").unwrap().ttl_range(TtlRange { min, max }).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
