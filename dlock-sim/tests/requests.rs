//! How many requests the real clients send, counted where nothing goes wrong, in virtual time: no more than can do the work.
//!
//! `consul.rs`, `etcd.rs`, and `fair.rs` of the Consul client count the same on real servers, where they can.
#![allow(missing_docs)]

use std::time::Duration;

use dlock_sim::history::{Event, Line};
use dlock_sim::plan::{Plan, Site, Tier};
use dlock_sim::wire;

const TIERS: [Tier; 3] = [Tier::Wire, Tier::WireFair, Tier::WireEtcd];
const TTL: Duration = Duration::from_secs(15);

/// What clients do that take a lock so often, each in one task, and hold it for so long at most.
fn history(tier: Tier, clients: u8, rounds: u8, longest: Duration) -> Vec<Line> {
    let histories = (0..).map(|seed| {
        let mut plan = Plan::of_seed(tier, seed).with_faults(Vec::new());
        plan.config.clients = clients;
        plan.config.rounds = rounds;
        plan.config.hold_ms = longest.as_millis() as u32;
        plan.config.ttl_ms = TTL.as_millis() as u32;
        plan.config.latency_ms = 1;
        plan.config.tries_percent = 0;
        plan.config.lock_delay_ms = 0;
        plan.config.drift_ppm = 0;
        wire::run(&plan).history.lines().to_vec()
    });
    // Some plans have two tasks for a client, which hand on within the process, and some have waiters that give up.
    let as_wanted = |lines: &Vec<Line>| {
        let wanted = lines.iter().filter(|line| matches!(line.event, Event::Wants { .. })).count();
        let held = lines.iter().filter(|line| matches!(line.event, Event::Held { .. })).count();
        wanted == usize::from(clients * rounds) && held == wanted
    };
    histories.take(100).find(as_wanted).expect("some of a hundred plans are so")
}

/// When which client sent what, but for requests that wait.
fn sent(lines: &[Line]) -> impl Iterator<Item = (Duration, u8, Site)> {
    let sent = lines.iter().filter_map(|line| match line.event {
        Event::Sent { slot, .. } => Some((Duration::from_micros(line.at), slot.client, slot.site)),
        _ => None,
    });
    sent.filter(|(_, _, site)| !matches!(site, Site::Wait | Site::Disturbed))
}

#[test]
fn a_free_lock_and_its_release_cost_two_requests_and_three_in_line() {
    for (tier, pair) in [(Tier::Wire, 2), (Tier::WireFair, 3), (Tier::WireEtcd, 2)] {
        let lines = history(tier, 1, 20, Duration::from_millis(200));
        let first = lines.iter().position(|line| matches!(line.event, Event::Released { .. })).expect("it gives back");
        // The first meeting with a key, and the session's end.
        let sites: Vec<Site> = sent(&lines[first..]).map(|(_, _, site)| site).filter(|site| *site != Site::Close).collect();
        let granted = lines[first..].iter().filter(|line| matches!(line.event, Event::Held { .. })).count();
        assert!(granted >= 10, "{tier:?}: {granted}");
        assert_eq!(sites.len(), granted * pair, "{tier:?}: {sites:?}");
    }
}

#[test]
fn a_held_lock_costs_a_renewal_and_an_audit_for_each_third_of_the_ttl() {
    for tier in TIERS {
        let lines = history(tier, 1, 1, Duration::from_secs(1_200));
        let held = lines.iter().position(|line| matches!(line.event, Event::Held { .. })).expect("it is free");
        let until = lines.iter().position(|line| matches!(line.event, Event::Releasing { .. })).expect("it gives back");
        let sent: Vec<_> = sent(&lines[held..until]).collect();
        let of = |wanted: Site| sent.iter().filter(move |(_, _, site)| *site == wanted).map(|(at, ..)| *at);
        let renewals: Vec<Duration> = of(Site::Renew).collect();
        assert!(renewals.len() >= 10, "{tier:?}: {renewals:?}");
        for pair in renewals.windows(2) {
            let (apart, third) = (pair[1].saturating_sub(pair[0]), TTL / 3);
            assert!(apart >= third * 9 / 10 && apart <= third * 11 / 10, "{tier:?}: {apart:?}");
        }
        assert!(of(Site::Audit).count() <= renewals.len(), "{tier:?}");
        assert_eq!(sent.len(), renewals.len() + of(Site::Audit).count(), "{tier:?}: {sent:?}");
    }
}

#[test]
fn a_handover_costs_the_release_and_what_the_next_asks_once_it_is_woken() {
    for (tier, clients, asks) in [
        (Tier::Wire, 2, &[&[Site::Claim][..]][..]),
        (Tier::WireFair, 2, &[&[Site::Claim]]),
        (Tier::WireFair, 6, &[&[Site::Claim]]),
        (Tier::WireEtcd, 2, &[&[Site::Confirm]]),
        (Tier::WireEtcd, 6, &[&[Site::Confirm]]),
    ] {
        let lines = history(tier, clients, 1, Duration::from_secs(60));
        let mut handovers = 0;
        for (place, line) in lines.iter().enumerate() {
            let Event::Releasing { .. } = line.event else { continue };
            let waiting = |line: &&Line| matches!(line.event, Event::Wants { .. });
            let holding = |line: &&Line| matches!(line.event, Event::Held { .. });
            let (came, were) = (lines[..place].iter().filter(waiting).count(), lines[..place].iter().filter(holding).count());
            if came == were {
                continue;
            }
            let next = place + lines[place..].iter().position(|line| holding(&line)).expect("somebody waits");
            let upkeep = |site: Site| matches!(site, Site::Renew | Site::Audit | Site::Close);
            let sent: Vec<_> = sent(&lines[place..next]).filter(|(_, _, site)| !upkeep(*site)).collect();
            let sites = |client: Option<u8>| {
                sent.iter().filter(move |(_, other, _)| Some(*other) == client).map(|(.., site)| *site).collect::<Vec<_>>()
            };
            assert_eq!(sites(line.client), [Site::Release], "{tier:?}, {clients} clients");
            let asked = sites(lines[next].client);
            assert!(asks.contains(&&asked[..]), "{tier:?}, {clients} clients: {asked:?}");
            assert_eq!(sent.len(), 1 + asked.len(), "nobody else asks anything: {tier:?}, {clients} clients");
            handovers += 1;
        }
        assert!(handovers > 0, "{tier:?}, {clients} clients");
    }
}
