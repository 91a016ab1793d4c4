//! Which store: the one that is named, or a file of the user's.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use dlock::{Locker, LockerBuilder};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use crate::exit::{Exit, Failure};

/// The store that commands speak to.
#[derive(Clone, Debug)]
pub struct Store {
    /// Its URL, as a command finds it in `DLOCK_BACKEND`. It may hold a secret as long as no backend has taken it.
    url: String,
}

impl Store {
    /// The one that was named; else the file `dlock/locks.db` in the user's state folder, which is made.
    pub fn choose(named: Option<String>) -> Result<Self, Failure> {
        match named {
            // Whoever named what is not set does not mean a file that no other machine knows.
            Some(url) if url.is_empty() => {
                let message = "--backend or DLOCK_URL is empty: name a store, or leave it out for a file of yours on this machine";
                Err(Failure::new(Exit::USAGE, message))
            }
            Some(url) => Ok(Self { url }),
            None => Ok(Self { url: url_of(&embedded()?) }),
        }
    }

    /// Its URL, once a backend has taken it: then it holds no secret.
    pub fn url(&self) -> Result<&str, Failure> {
        dlock::backend(&self.url)?;
        Ok(&self.url)
    }

    /// Options for a locker.
    pub fn locker(&self, ttl: Option<Duration>) -> Result<LockerBuilder, Failure> {
        let builder = dlock::builder(&self.url)?;
        Ok(match ttl {
            Some(ttl) => builder.ttl(ttl),
            None => builder,
        })
    }

    /// A locker with default options that has not asked the store anything yet.
    pub fn unasked(&self) -> Result<Locker, Failure> {
        self.locker(None)?.build().map_err(|options| Failure::from_error(Exit::USAGE, &options))
    }
}

/// The file of locks of the user who runs this, by the XDG base directory specification.
fn embedded() -> Result<PathBuf, Failure> {
    let absolute = |name| std::env::var_os(name).filter(|value: &OsString| value.as_bytes().starts_with(b"/")).map(PathBuf::from);
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    let Some(state) = state else {
        let message = "no home folder to keep locks in: name a store by --backend or DLOCK_URL, for example sqlite:///var/lib/dlock/locks.db, or set HOME";
        return Err(Failure::new(Exit::CONFIGURATION, message));
    };
    let folder = state.join("dlock");
    if let Err(error) = std::fs::create_dir_all(&folder) {
        let message = format!("cannot make {}: {error}; name a store by --backend or DLOCK_URL", folder.display());
        return Err(Failure::new(Exit::CONFIGURATION, message));
    }
    Ok(folder.join("locks.db"))
}

/// What may stand in the path of a URL as it is.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

fn url_of(path: &std::path::Path) -> String {
    format!("sqlite://{}", percent_encode(path.as_os_str().as_bytes(), PATH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_is_a_url() {
        assert_eq!(url_of(std::path::Path::new("/home/a b/ä#?.db")), "sqlite:///home/a%20b/%C3%A4%23%3F.db");
    }
}
