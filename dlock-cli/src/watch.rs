//! `dlock watch`: every change of a lock, or of all locks with a prefix.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dlock::{Key, LockBackend};
use serde::Serialize;

use crate::contender::Contender;
use crate::event::now;
use crate::exit::{Exit, Failure};
use crate::look::{Seen, within};
use crate::output::{Output, harmless};
use crate::signals::Signals;
use crate::store::Store;

/// So often is looked where the store cannot tell of changes, and at all locks with a prefix.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// A store that has nothing to tell is looked at after so long, to find out whether it is still there.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// A lock that changes all the time is shown so often at most.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Serialize)]
struct Change<'a> {
    at: String,
    #[serde(flatten)]
    what: What<'a>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum What<'a> {
    Held(&'a Seen),
    Free { key: &'a str },
    Unreachable { reason: String },
}

/// Shows changes until a signal asks to end.
pub async fn watch(store: &Store, what: &str, output: Output) -> Result<Exit, Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::from_error(Exit::CONFIGURATION, &error))?;
    let subject = Subject::new(what)?;
    let mut watching =
        Watching { backend: dlock::backend(store.url()?)?, subject, known: BTreeMap::new(), told: false, cursor: None, output };
    tokio::select! {
        biased;
        _ = signals.end() => Ok(Exit::OK),
        failure = watching.go_on() => Err(failure),
    }
}

#[derive(Clone, Debug)]
enum Subject {
    One(Key),
    All { prefix: String },
}

impl Subject {
    fn new(what: &str) -> Result<Self, Failure> {
        if what.is_empty() || what.ends_with('/') {
            return Ok(Self::All { prefix: what.trim_start_matches('/').to_owned() });
        }
        Key::new(what).map(Self::One).map_err(|error| Failure::from_error(Exit::USAGE, &error))
    }
}

struct Watching {
    backend: Arc<dyn LockBackend>,
    subject: Subject,
    known: BTreeMap<String, Seen>,
    /// Something was told already.
    told: bool,
    cursor: Option<dlock::Cursor>,
    output: Output,
}

impl Watching {
    /// Ends only with what cannot get better.
    async fn go_on(&mut self) -> Failure {
        let mut out_of_reach = false;
        loop {
            match self.look().await {
                Ok(locks) => {
                    if std::mem::take(&mut out_of_reach) {
                        // Whoever was told that nothing is known hears everything again.
                        self.known.clear();
                    }
                    if let Err(failure) = self.tell(locks) {
                        return failure;
                    }
                    self.wait().await;
                }
                Err(failure) if failure.exit != Exit::UNREACHABLE => return failure,
                Err(failure) => {
                    let (reason, text) = (failure.to_string(), format!("the store is out of reach: {failure}"));
                    if !out_of_reach && let Err(failure) = self.say(What::Unreachable { reason }, &text) {
                        return failure;
                    }
                    out_of_reach = true;
                    self.cursor = None;
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
            }
        }
    }

    async fn look(&mut self) -> Result<BTreeMap<String, Seen>, Failure> {
        match &self.subject {
            Subject::One(key) => {
                // First the cursor, so that no change is missed after the look.
                if self.cursor.is_none() && self.backend.capabilities().tells_changes {
                    self.cursor = Some(within(self.backend.changed(key, None)).await??);
                }
                let seen = within(self.backend.inspect(key)).await??;
                Ok(BTreeMap::from([(key.as_str().to_owned(), Seen::of(key.as_str(), &seen))]))
            }
            Subject::All { prefix } => {
                let mut locks = BTreeMap::new();
                for (key, holder) in within(self.backend.list(prefix)).await?? {
                    let key = key.as_str().to_owned();
                    let lock = locks.entry(key.clone()).or_insert_with(|| Seen { key, holders: Vec::new(), waiters: None });
                    lock.holders.push(Contender::of(&holder));
                }
                Ok(locks)
            }
        }
    }

    fn tell(&mut self, locks: BTreeMap<String, Seen>) -> Result<(), Failure> {
        for (key, lock) in &locks {
            let news = self.known.get(key) != Some(lock);
            if news {
                self.show(lock)?;
            }
        }
        for key in self.known.keys().filter(|key| !locks.contains_key(*key)) {
            self.show(&Seen { key: key.clone(), holders: Vec::new(), waiters: None })?;
        }
        if !self.told && locks.is_empty() {
            self.output.note("no lock is held yet; waiting for changes");
        }
        self.told = true;
        self.known = locks;
        Ok(())
    }

    fn show(&self, lock: &Seen) -> Result<(), Failure> {
        let key = harmless(&lock.key);
        if lock.holders.is_empty() {
            return self.say(What::Free { key: &lock.key }, &format!("{}  {}", self.output.strong(&key), self.output.good("free")));
        }
        let names: Vec<_> = lock
            .holders
            .iter()
            .map(|person| {
                let token = person.token.map_or(String::new(), |token| format!(" token {token}"));
                let published = person.published();
                let published = if published.is_empty() { String::new() } else { format!(" {}", harmless(&published)) };
                format!("{}{token}{published}", harmless(&person.name()))
            })
            .collect();
        let waiting = lock.waiters.as_ref().map_or(0, Vec::len);
        let waiting = if waiting == 0 { String::new() } else { format!(", {waiting} waiting") };
        self.say(
            What::Held(lock),
            &format!("{}  {} by {}{waiting}", self.output.strong(&key), self.output.doubtful("held"), names.join("; ")),
        )
    }

    fn say(&self, what: What<'_>, text: &str) -> Result<(), Failure> {
        let at = now();
        self.output.say(&Change { at: at.clone(), what }, format!("{at}  {text}"))
    }

    /// Until something may have changed.
    async fn wait(&mut self) {
        let Subject::One(key) = &self.subject else { return tokio::time::sleep(POLL_INTERVAL).await };
        if !self.backend.capabilities().tells_changes {
            return tokio::time::sleep(POLL_INTERVAL).await;
        }
        let began = tokio::time::Instant::now();
        match tokio::time::timeout(LONGEST_WAIT, self.backend.changed(key, self.cursor)).await {
            Ok(Ok(cursor)) => self.cursor = Some(cursor),
            // The look that follows finds out.
            Ok(Err(_)) => self.cursor = None,
            Err(_) => {}
        }
        tokio::time::sleep_until(began + LEAST_INTERVAL).await;
    }
}
