//! `dlock who` and `dlock ls`: who holds what.

use dlock::Inspection;
use serde::Serialize;

use crate::contender::{Contender, age};
use crate::exit::{Exit, Failure};
use crate::output::{Output, harmless, line, table};
use crate::store::Store;

/// A lock, looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// The key.
    pub key: String,
    /// Who holds it; nobody if it is free.
    pub holders: Vec<Contender>,
    /// Who waits, first come first, where the store knows.
    pub waiters: Option<Vec<Contender>>,
}

impl Seen {
    /// What the store tells of it.
    pub fn of(key: &str, seen: &Inspection) -> Self {
        Self {
            key: key.to_owned(),
            holders: seen.holders.iter().map(Contender::of).collect(),
            waiters: seen.waiters.as_ref().map(|waiters| waiters.iter().map(Contender::waiting).collect()),
        }
    }
}

/// Shows who holds a lock and who waits for it.
pub async fn who(store: &Store, key: &str, output: Output) -> Result<Exit, Failure> {
    let lock = Seen::of(key, &store.unasked()?.inspect(key).await?);
    if output.is_json() {
        output.say(&lock, "")?;
        return Ok(Exit::OK);
    }
    if lock.holders.is_empty() {
        line(format_args!("{} is {}", output.strong(key), output.good("free")))?;
    } else {
        line(format_args!("{} is {}", output.strong(key), output.doubtful("held")))?;
    }
    let mut rows = vec![["", "HOLDER", "HOST", "PID", "TOKEN", "SINCE", "FOR", "METADATA"].map(str::to_owned).to_vec()];
    rows.extend(lock.holders.iter().map(|person| row("holds", person)));
    for (ahead, person) in lock.waiters.iter().flatten().enumerate() {
        rows.push(row(&format!("waits, {ahead} ahead"), person));
    }
    if rows.len() > 1 {
        for row in table(&rows) {
            line(row)?;
        }
    }
    Ok(Exit::OK)
}

fn row(standing: &str, person: &Contender) -> Vec<String> {
    let or_dash = |text: Option<String>| text.filter(|text| !text.is_empty()).map_or("-".to_owned(), |text| harmless(&text));
    vec![
        standing.to_owned(),
        harmless(&person.name()),
        or_dash(person.host.clone()),
        or_dash(person.pid.map(|pid| pid.to_string())),
        or_dash(person.token.map(|token| token.to_string())),
        or_dash(person.since.clone()),
        or_dash(person.since.as_deref().and_then(age)),
        or_dash(Some(person.published())),
    ]
}

/// One holder of one lock.
#[derive(Serialize)]
struct Listed {
    key: String,
    #[serde(flatten)]
    holder: Contender,
}

/// Lists the locks that are held.
pub async fn list(store: &Store, prefix: &str, output: Output) -> Result<Exit, Failure> {
    // No key starts with a slash.
    let prefix = prefix.trim_start_matches('/');
    let held = listed(store, prefix).await?;
    if output.is_json() {
        for (key, holder) in held {
            output.say(&Listed { key, holder }, "")?;
        }
        return Ok(Exit::OK);
    }
    if held.is_empty() {
        let with = if prefix.is_empty() { String::new() } else { format!(" whose key starts with {prefix}") };
        output.note(format_args!("no lock is held{with}"));
        return Ok(Exit::OK);
    }
    let mut rows = vec![["KEY", "HOLDER", "TOKEN", "FOR", "METADATA"].map(str::to_owned).to_vec()];
    for (key, holder) in held {
        let row = row("", &holder);
        rows.push(vec![harmless(&key), row[1].clone(), row[4].clone(), row[6].clone(), row[7].clone()]);
    }
    for row in table(&rows) {
        line(row)?;
    }
    Ok(Exit::OK)
}

/// All held locks with this prefix.
async fn listed(store: &Store, prefix: &str) -> Result<Vec<(String, Contender)>, Failure> {
    let backend = dlock::backend(store.url()?)?;
    let held = within(backend.list(prefix)).await??;
    Ok(held.into_iter().map(|(key, holder)| (key.as_str().to_owned(), Contender::of(&holder))).collect())
}

/// The answer, unless the store takes too long.
pub async fn within<T>(answer: impl Future<Output = T>) -> Result<T, Failure> {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);
    match tokio::time::timeout(LIMIT, answer).await {
        Ok(answer) => Ok(answer),
        Err(_) => Err(Failure::new(Exit::UNREACHABLE, format!("the store did not answer within {} s", LIMIT.as_secs()))),
    }
}
