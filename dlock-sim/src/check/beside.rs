//! What must be true where a key is shared, where there are permits, and where several keys are taken at once.
//!
//! Judged from the history alone. Nobody pauses and no operator acts in such a run, so that there is nothing to excuse.

use std::collections::{BTreeMap, BTreeSet};

use super::{Invariant, Violation, ms};
use crate::history::{Event, History, Op};
use crate::plan::{Plan, Tenancy, name};

/// What happened in such a run that a campaign must have met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Together {
    /// The most that held one key together.
    pub most: usize,
    /// Somebody had it alone after others had shared it.
    pub alone_after_shared: bool,
    /// So many keys were held by one acquisition.
    pub keys: usize,
}

/// Those who hold, as the store says and as they were told.
#[derive(Default)]
struct Tenants {
    /// The live grants, by acquisition and number: the line of each.
    granted: BTreeMap<(Op, u64), usize>,
    /// Who believes to hold, since which line, and whose it is.
    believing: BTreeMap<Op, (usize, u8)>,
    wanting: BTreeMap<Op, (usize, u8)>,
    crashed: BTreeSet<u8>,
}

impl Tenants {
    fn take(&mut self, n: usize, client: Option<u8>, event: &Event) {
        let client = client.unwrap_or(u8::MAX);
        match *event {
            Event::Granted { op, token } => _ = self.granted.insert((op, token), n),
            Event::Ended { op, token, .. } => _ = self.granted.remove(&(op, token)),
            Event::Wants { op, .. } => _ = self.wanting.insert(op, (n, client)),
            Event::Held { op, .. } => {
                self.wanting.remove(&op);
                self.believing.insert(op, (n, client));
            }
            Event::Refused { op, .. } => _ = self.wanting.remove(&op),
            Event::Lost { op, .. } | Event::Releasing { op } => _ = self.believing.remove(&op),
            Event::Crashed => {
                self.crashed.insert(client);
                self.believing.retain(|_, (_, whose)| *whose != client);
                self.wanting.retain(|_, (_, whose)| *whose != client);
            }
            _ => {}
        }
    }
}

/// Whether acquisitions may hold one key together.
fn fits(plan: &Plan, tenancy: Tenancy, ops: impl Iterator<Item = Op> + Clone) -> bool {
    match tenancy {
        Tenancy::ReadWrite => {
            let mut writers = ops.clone().filter(|op| !tenancy.reads(plan.config.seed, *op));
            writers.next().is_none() || ops.count() == 1
        }
        Tenancy::Permits(all) => ops.count() <= all as usize,
        Tenancy::Several(_) => {
            // One key each: whoever shares one may not hold at the same time.
            let mut taken = BTreeSet::new();
            let mut ops: Vec<Op> = ops.collect();
            ops.dedup();
            ops.into_iter().all(|op| tenancy.wants(plan.config.seed, op).into_iter().all(|key| taken.insert(key)))
        }
    }
}

/// The first broken promise of such a history, if there is one.
pub(super) fn check(plan: &Plan, tenancy: Tenancy, history: &History) -> Option<Violation> {
    let mut tenants = Tenants::default();
    for (n, line) in history.lines().iter().enumerate() {
        tenants.take(n, line.client, &line.event);
        match &line.event {
            // Of several keys that are taken one after the other, some are granted while another still waits for the rest.
            Event::Granted { op, token }
                if !matches!(tenancy, Tenancy::Several(_)) && !fits(plan, tenancy, tenants.granted.keys().map(|(op, _)| *op)) =>
            {
                let others = tenants.granted.iter().filter(|(other, _)| **other != (*op, *token));
                let other = others.map(|(_, line)| *line).max();
                let says = format!("acquisition {op} was granted number {token} beside {} others", tenants.granted.len() - 1);
                return Some(Invariant::S3.broken(n, other, says));
            }
            Event::Held { op, .. } if !fits(plan, tenancy, tenants.believing.keys().copied()) => {
                let others = tenants.believing.iter().filter(|(other, _)| *other != op);
                let other = others.map(|(_, (line, _))| *line).max();
                let says = format!("acquisition {op} was told that it holds while others believe that they do");
                return Some(Invariant::S3.broken(n, other, says));
            }
            Event::StillBelieves { op, .. } => {
                let says = format!("acquisition {op} believes on after what it was granted has ended");
                return Some(Invariant::S3.broken(n, None, says));
            }
            Event::Left { what } => {
                let invariant = if what.contains("task") { Invariant::H2 } else { Invariant::H1 };
                let whose = line.client.map_or_else(|| "somebody".to_owned(), |client| format!("client {}", name(client)));
                return Some(invariant.broken(n, None, format!("{what} of {whose} is left at the end")));
            }
            _ => {}
        }
    }
    let last = history.lines().len().checked_sub(1)?;
    let (op, (asked, client)) = tenants.wanting.first_key_value()?;
    let waited = ms(history.lines()[last].at - history.lines()[*asked].at);
    let says = format!("acquisition {op} of client {} was never answered, in {waited}", name(*client));
    Some(Invariant::L1.broken(last, *asked, says))
}

/// What happened in such a run.
pub fn together(plan: &Plan, tenancy: Tenancy, history: &History) -> Together {
    let (mut tenants, mut met, mut shared) = (Tenants::default(), Together::default(), false);
    for (n, line) in history.lines().iter().enumerate() {
        tenants.take(n, line.client, &line.event);
        if let Event::Held { op, .. } = line.event {
            let wanted = tenancy.wants(plan.config.seed, op).len();
            met.keys = met.keys.max(wanted);
            if tenancy.keys() == 1 {
                met.most = met.most.max(tenants.believing.len());
                shared |= tenants.believing.len() > 1;
                met.alone_after_shared |= shared && tenancy == Tenancy::ReadWrite && !tenancy.reads(plan.config.seed, op);
            }
        }
    }
    met
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Tier;

    fn verdict(tenancy: Tenancy, events: &[(u64, Option<u8>, Event)]) -> Option<Invariant> {
        let mut history = History::default();
        for (at, client, event) in events {
            history.push(*at, *client, event.clone());
        }
        check(&Plan::of_seed(Tier::Beside, 1), tenancy, &history).map(|violation| violation.invariant)
    }

    /// An acquisition of the seed that reads, or does not.
    fn op(reads: bool, nth: usize) -> Op {
        (0..).filter(|op| Tenancy::ReadWrite.reads(1, *op) == reads).nth(nth).unwrap()
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let granted = |at, op| (at, None, Event::Granted { op, token: at });
        let (one, other, writer) = (op(true, 0), op(true, 1), op(false, 0));
        assert_eq!(verdict(Tenancy::ReadWrite, &[granted(1, one), granted(2, other)]), None);
        assert_eq!(verdict(Tenancy::ReadWrite, &[granted(1, one), granted(2, writer)]), Some(Invariant::S3));
        assert_eq!(verdict(Tenancy::ReadWrite, &[granted(1, writer), granted(2, one)]), Some(Invariant::S3));
        let ended = (2, None, Event::Ended { op: one, token: 1, cause: crate::history::End::GivenBack });
        assert_eq!(verdict(Tenancy::ReadWrite, &[granted(1, one), ended, granted(3, writer)]), None);
    }

    #[test]
    fn there_are_no_more_holders_than_permits() {
        let granted = |op| (1, None, Event::Granted { op, token: u64::from(op) });
        assert_eq!(verdict(Tenancy::Permits(2), &[granted(1), granted(2)]), None);
        assert_eq!(verdict(Tenancy::Permits(2), &[granted(1), granted(2), granted(3)]), Some(Invariant::S3));
    }

    #[test]
    fn belief_without_a_grant_leftovers_and_silence_are_told() {
        let wants = (1, Some(0), Event::Wants { op: 1, tries: false });
        assert_eq!(verdict(Tenancy::Several(2), std::slice::from_ref(&wants)), Some(Invariant::L1));
        assert_eq!(verdict(Tenancy::Several(2), &[wants, (2, Some(0), Event::Crashed)]), None);
        let believes = (1, Some(0), Event::StillBelieves { op: 1, token: 1 });
        assert_eq!(verdict(Tenancy::Permits(1), &[believes]), Some(Invariant::S3));
        let left = |what: &str| (1, Some(0), Event::Left { what: what.to_owned() });
        assert_eq!(verdict(Tenancy::Permits(1), &[left("a claim")]), Some(Invariant::H1));
        assert_eq!(verdict(Tenancy::Permits(1), &[left("1 task")]), Some(Invariant::H2));
    }

    #[test]
    fn two_who_want_the_same_key_do_not_hold_together() {
        let tenancy = Tenancy::Several(2);
        let holds = |op| (1, Some(0), Event::Held { op, token: 1 });
        let all: Vec<Op> = (0..100).filter(|op| tenancy.wants(1, *op).len() == 2).take(2).collect();
        assert_eq!(verdict(tenancy, &[holds(all[0]), holds(all[1])]), Some(Invariant::S3));
        let alone = |key| (0..100).find(|op| tenancy.wants(1, *op) == [key]).unwrap();
        assert_eq!(verdict(tenancy, &[holds(alone(0)), holds(alone(1))]), None);
    }
}
