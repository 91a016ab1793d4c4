//! `dlock doctor`: whether the store is fit for locks, and what to do if not.

use dlock::{Check, Finding, Fitness};
use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::output::{Output, harmless, line};
use crate::store::Store;

#[derive(Serialize)]
struct Found {
    check: String,
    fitness: &'static str,
    detail: String,
    remedy: Option<String>,
}

/// Shows one finding a line. Ends as a lock would on that store.
pub async fn examine(store: &Store, output: Output) -> Result<Exit, Failure> {
    let (url, locker) = (store.url()?, store.unasked()?);
    if !output.is_json() {
        line(format_args!("store        {url}"))?;
    }
    let mut findings = locker.probe().await;
    if !findings.iter().any(|finding| finding.check == Check::Clock) {
        findings.push(clock());
    }
    for finding in &findings {
        let (word, coloured) = match finding.fitness {
            Fitness::Fine => ("ok", output.good("ok      ")),
            Fitness::Doubtful { .. } => ("doubtful", output.doubtful("doubtful")),
            Fitness::Broken { .. } => ("broken", output.bad("broken  ")),
        };
        let remedy = finding.remedy().map(str::to_owned);
        let told = Found { check: finding.check.to_string(), fitness: word, detail: finding.detail.clone(), remedy };
        output.say(&told, format_args!("{:<12} {coloured}  {}", finding.check, harmless(&finding.detail)))?;
        if let (Some(remedy), false) = (finding.remedy(), output.is_json()) {
            line(format_args!("{:<22} what to do: {}", "", harmless(remedy)))?;
        }
    }
    Ok(verdict(&findings))
}

/// What there is to say of the clock where the store has none that matters: sessions end by its own.
fn clock() -> Finding {
    if cfg!(target_os = "linux") {
        let detail = "deadlines are kept by the time since boot, which counts suspended time; wall clocks need not agree";
        return Finding::fine(Check::Clock, detail);
    }
    let detail = "this system tells no time since boot that counts suspended time";
    Finding::doubtful(Check::Clock, detail, "do not let machines sleep that hold locks, or rely on tokens alone")
}

fn verdict(findings: &[Finding]) -> Exit {
    let broken = findings.iter().find(|finding| finding.is_broken());
    match broken.map(|finding| finding.check) {
        None => Exit::OK,
        Some(Check::Permissions) => Exit::DENIED,
        Some(Check::Reachable | Check::Leader) => Exit::UNREACHABLE,
        Some(_) => Exit::CONFIGURATION,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_thing_that_is_broken_is_the_exit_code() {
        let fine = Finding::fine(Check::Reachable, "it answers");
        let doubtful = Finding::doubtful(Check::Storage, "little room", "make room");
        let broken = |check| Finding::broken(check, "it is not", "mend it");
        for (findings, exit) in [
            (vec![fine.clone(), doubtful], Exit::OK),
            (vec![fine.clone(), broken(Check::Permissions)], Exit::DENIED),
            (vec![broken(Check::Reachable)], Exit::UNREACHABLE),
            (vec![fine, broken(Check::Storage)], Exit::CONFIGURATION),
        ] {
            assert_eq!(verdict(&findings), exit, "{findings:?}");
        }
    }
}
