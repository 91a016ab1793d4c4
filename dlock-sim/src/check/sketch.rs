//! Histories for tests, written as people would tell them.
//!
//! One event a line: milliseconds, who (`a` to `e`, or `-` for the store), and what. `5 - grants 1 3` is: after 5 ms, the store grants token 3
//! to acquisition 1.

use dlock_testkit::memory::Profile;

use crate::history::{End, Event, History, Outcome, Reason, Refusal};
use crate::plan::{Fault, Faults, Plan, Site, Slot, Tier};

/// A plan whose ttl is 1 s, on a store with a queue where nothing is drawn.
pub(crate) fn plan() -> Plan {
    let mut plan = Plan::of_seed(Tier::Machines, 0).with_faults(Vec::new());
    plan.config.profile = Profile::Queue;
    (plan.config.clients, plan.config.rounds) = (3, 2);
    (plan.config.ttl_ms, plan.config.lapses_after_percent, plan.config.lock_delay_ms) = (1_000, 100, 0);
    (plan.config.latency_ms, plan.config.hold_ms) = (10, 200);
    assert!(matches!(plan.faults, Faults::Listed(_)));
    plan
}

/// The history of a sketch.
pub(crate) fn history(sketch: &str) -> History {
    let mut history = History::default();
    for line in sketch.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        let millis: f64 = words[0].parse().unwrap_or_else(|_| panic!("{line}: begins with no time"));
        let client = match words[1] {
            "-" => None,
            name => Some(name.as_bytes()[0] - b'a'),
        };
        let mut event = event(client.unwrap_or_default(), &words[2..]).unwrap_or_else(|| panic!("{line}: not understood"));
        if let Event::Sent { slot, .. } | Event::Struck { slot, .. } = &mut event {
            slot.nth = visits(&history, *slot);
        }
        history.push((millis * 1_000.0) as u64, client, event);
    }
    history
}

/// How often a client has come to a site before.
fn visits(history: &History, at: Slot) -> u32 {
    let same = |slot: &Slot| (slot.site, slot.client) == (at.site, at.client);
    history.lines().iter().filter(|line| matches!(&line.event, Event::Sent { slot, .. } if same(slot))).count() as u32
}

fn event(client: u8, words: &[&str]) -> Option<Event> {
    let number = |n: usize| words.get(n)?.parse::<u64>().ok();
    let op = number(1).unwrap_or_default() as u32;
    Some(match words[0] {
        "wants" => Event::Wants { op, tries: false },
        "tries" => Event::Wants { op, tries: true },
        "holds" => Event::Held { op, token: number(2)? },
        "busy" => Event::Refused { op, why: Refusal::Busy },
        "times-out" => Event::Refused { op, why: Refusal::TimedOut },
        "cancels" => Event::Refused { op, why: Refusal::Cancelled },
        "loses" => Event::Lost { op, reason: Reason::Expired },
        "releasing" => Event::Releasing { op },
        "released" => Event::Released { op, outcome: Outcome::Released },
        "not-held" => Event::Released { op, outcome: Outcome::NotHeld },
        "unknown" => Event::Released { op, outcome: Outcome::Unknown },
        "crashes" => Event::Crashed,
        "paused-until" => Event::Paused { until: number(1)? * 1_000 },
        "grants" => Event::Granted { op, token: number(2)? },
        "takes-back" => Event::Ended { op, token: number(2)?, cause: End::GivenBack },
        "lapses" => Event::Ended { op, token: number(2)?, cause: End::Lapsed },
        "interferes" => Event::Ended { op, token: number(2)?, cause: End::Interference },
        "believes" => Event::StillBelieves { op, token: number(2)? },
        "writes" => Event::Wrote { op, token: number(2)?, accepted: true },
        "fenced" => Event::Wrote { op, token: number(2)?, accepted: false },
        "sends" => Event::Sent { call: number(2)? as u32, slot: Slot { site: site(words[1])?, client, nth: 0 } },
        "applies" => Event::Applied { call: op },
        "answered" => Event::Answered { call: op },
        "struck" => {
            let measure = number(3).unwrap_or_default() as u32;
            let fault = match words[2] {
                "lost-request" => Fault::LoseRequest,
                "lost-reply" => Fault::LoseReply,
                "late-request" => Fault::DelayRequest(measure),
                "repeat" => Fault::Repeat(measure),
                "refuse" => Fault::Refuse,
                "partition" => Fault::Partition(measure),
                "outage" => Fault::Outage(measure),
                "pause" => Fault::Pause(measure),
                "crash" => Fault::Crash,
                "cancel" => Fault::Cancel(measure),
                "end-session" => Fault::EndSession,
                "delete-key" => Fault::DeleteKey,
                "force" => Fault::ReleaseByForce,
                _ => return None,
            };
            Event::Struck { slot: Slot { site: site(words[1])?, client, nth: 0 }, fault }
        }
        "healed" => Event::Healed,
        "left" => Event::Left { what: words[1..].join(" ") },
        _ => return None,
    })
}

fn site(name: &str) -> Option<Site> {
    Some(match name {
        "open" => Site::Open,
        "renew" => Site::Renew,
        "close" => Site::Close,
        "claim" => Site::Claim,
        "wait" => Site::Wait,
        "confirm" => Site::Confirm,
        "release" => Site::Release,
        "acquiring" => Site::Acquiring,
        "holding" => Site::Holding,
        "writing" => Site::Writing,
        _ => return None,
    })
}
