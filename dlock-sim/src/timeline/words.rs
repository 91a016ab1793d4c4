//! Plans, sites and faults in words.

use dlock_testkit::memory::Profile;

use crate::history::{Reason, Refusal};
use crate::plan::{Fault, Plan, Site, Struck, Tier, name};

/// A plan in a few lines.
pub(crate) fn of_plan(plan: &Plan) -> Vec<String> {
    let config = &plan.config;
    let some = |number: u32, words: String| if number == 0 { String::new() } else { words };
    let mut first = format!(
        "tier {} · seed {} · store like {} · {} · {} each · ttl {} ms, lapses after {} % of it",
        match plan.tier {
            Tier::Machines => "machines",
            Tier::Locker => "locker",
            Tier::Beside => "beside",
            Tier::Wire => "wire",
            Tier::WireFair => "wire, fair",
            Tier::WireEtcd => "wire, etcd",
        },
        config.seed,
        match config.profile {
            Profile::Line => "Consul in fair mode (a line)",
            Profile::Queue => "etcd (a queue)",
            Profile::Slot => "Consul (a slot)",
        },
        counted(config.clients.into(), "client"),
        counted(config.rounds.into(), "acquisition"),
        config.ttl_ms,
        config.lapses_after_percent
    );
    first += &some(config.lock_delay_ms, format!(" · lock-delay {} ms", config.lock_delay_ms));
    first += &some(config.tries_percent, format!(" · {} % only try", config.tries_percent));
    first += &some(config.drift_ppm, format!(" · clocks up to {} ppm slow", config.drift_ppm));
    let faults = plan.listed();
    let listed: Vec<_> = faults.iter().take(6).map(of_struck).collect();
    let more = if faults.len() > 6 { format!("; and {} more", faults.len() - 6) } else { String::new() };
    let second = match faults.len() {
        0 => "no fault".to_owned(),
        many => format!("{}: {}{more}", counted(many, "fault"), listed.join("; ")),
    };
    vec![first, second]
}

/// A fault and where it struck.
pub(crate) fn of_struck(struck: &Struck) -> String {
    let Struck { slot, fault } = struck;
    format!("{} at {} {} of client {}", of_fault(*fault), of_site(slot.site), slot.nth + 1, name(slot.client))
}

/// A fault.
pub(crate) fn of_fault(fault: Fault) -> String {
    match fault {
        Fault::LoseRequest => "request lost".to_owned(),
        Fault::LoseReply => "reply lost".to_owned(),
        Fault::DelayRequest(millis) => format!("request {millis} ms late"),
        Fault::DelayReply(millis) => format!("reply {millis} ms late"),
        Fault::Repeat(millis) => format!("arrives again {millis} ms later"),
        Fault::Refuse => "refused by the store".to_owned(),
        Fault::Partition(millis) => format!("cut off for {millis} ms"),
        Fault::Outage(millis) => format!("store answers nobody for {millis} ms"),
        Fault::Pause(millis) => format!("paused for {millis} ms"),
        Fault::Crash => "crash".to_owned(),
        Fault::Cancel(millis) => format!("cancelled after {millis} ms"),
        Fault::EndSession => "operator of_site the session".to_owned(),
        Fault::DeleteKey => "operator deletes the key".to_owned(),
        Fault::ReleaseByForce => "operator releases by force".to_owned(),
    }
}

/// A site.
pub(crate) fn of_site(site: Site) -> &'static str {
    match site {
        Site::Open => "open",
        Site::Renew => "renew",
        Site::Audit => "audit",
        Site::Close => "close",
        Site::Claim => "claim",
        Site::Wait => "wait",
        Site::Confirm => "confirm",
        Site::Release => "release",
        Site::Disturbed => "watch",
        Site::Acquiring => "acquiring",
        Site::Holding => "holding",
        Site::Writing => "write",
    }
}

/// A loss.
pub(crate) fn lost(reason: Reason) -> &'static str {
    match reason {
        Reason::Expired => "expired",
        Reason::SessionGone => "session gone",
        Reason::KeyDeleted => "key deleted",
        Reason::TakenOver => "taken over",
        Reason::HeldTooLong => "held too long",
        Reason::Shutdown => "shut down",
        Reason::Other => "otherwise",
    }
}

/// A refusal.
pub(crate) fn refused(why: Refusal) -> &'static str {
    match why {
        Refusal::Busy => "busy",
        Refusal::TimedOut => "timed out",
        Refusal::Cancelled => "cancelled",
        Refusal::Failed => "failed",
        Refusal::ShutDown => "shut down",
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
