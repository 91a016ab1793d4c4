//! L1 to L4: what must happen, and what must not happen too often.

use super::bounds::Bounds;
use super::ledger::{Acquisition, Ledger, Stage, Table};
use super::{Invariant, Violation, leaves_the_queue, ms};
use crate::history::{Event, History, Line, Op};
use crate::plan::{Plan, Site, Slot, Tier, name};

/// What these rules remember beyond the ledger.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    acquiring: Table<u32>,
    background: Table<u32>,
    /// The acquisitions that wait, in the order in which they came into line.
    arrived: Vec<(Op, usize)>,
    /// Every grant, with its line.
    granted: Vec<(Op, usize)>,
    /// Somebody may have left the queue or entered it again: its order says nothing.
    reordered: bool,
    /// The store tells who came into line, which takes more than a claim that was applied.
    tells: bool,
}

impl Liveness {
    pub(super) fn of(plan: &Plan) -> Self {
        Self { tells: plan.tier == Tier::WireFair, ..Self::default() }
    }

    pub(super) fn see(&mut self, bounds: &Bounds, ledger: &Ledger, n: usize, line: &Line) -> Option<Violation> {
        self.queue(ledger, n, line);
        match line.event {
            Event::Sent { slot, .. } => self.sent(bounds, ledger, n, line.at, slot),
            Event::Held { op, .. } | Event::Refused { op, .. } => {
                let asked = ledger.acquisitions.get(op);
                if asked.stage != Stage::Wanting {
                    return None;
                }
                free_for_long(bounds, ledger, n, line.at, op, asked).or_else(|| answered(bounds, ledger, n, line.at, op, asked))
            }
            Event::Granted { .. } => {
                let mut waiting = ledger.wanting.iter();
                waiting.find_map(|op| free_for_long(bounds, ledger, n, line.at, *op, ledger.acquisitions.get(*op)))
            }
            _ => None,
        }
    }

    /// L4.
    pub(super) fn order(&self, history: &History) -> Option<Violation> {
        if self.reordered || history.lines().iter().any(|line| leaves_the_queue(&line.event)) {
            return None;
        }
        let mut before: Option<(usize, usize)> = None;
        for (op, line) in &self.granted {
            let Some(place) = self.arrived.iter().position(|(arrived, _)| arrived == op) else { continue };
            if let Some((earlier, granted)) = before.filter(|(earlier, _)| *earlier > place) {
                let overtaker = self.arrived[earlier].0;
                let says = format!("acquisition {overtaker} was granted the lock before acquisition {op}, whose claim came first");
                return Some(Invariant::L4.broken(*line, granted, says));
            }
            before = Some((place, *line));
        }
        None
    }

    fn queue(&mut self, ledger: &Ledger, n: usize, line: &Line) {
        match line.event {
            Event::Queued { op } => {
                // Whoever comes again had left.
                self.reordered |= self.arrived.iter().any(|(arrived, _)| *arrived == op);
                self.arrived.push((op, n));
            }
            Event::Applied { call } if !self.tells => {
                let call = ledger.calls.get(call);
                let Some(Slot { site: Site::Claim, .. }) = call.slot else { return };
                let Some(op) = call.op else {
                    self.reordered = true;
                    return;
                };
                // Who only tries keeps no place.
                if !ledger.acquisitions.get(op).tries && !self.arrived.iter().any(|(arrived, _)| *arrived == op) {
                    self.arrived.push((op, n));
                }
            }
            Event::Granted { op, .. } => {
                // Whoever is granted it again had given it back, and took another place.
                self.reordered |= self.granted.iter().any(|(granted, _)| *granted == op);
                self.granted.push((op, n));
            }
            // Another session means another place.
            Event::Sent { slot: Slot { site: Site::Open, client, .. }, .. } => {
                self.reordered |= ledger.clients.get(client.into()).opens > 0;
            }
            _ => {}
        }
    }

    /// L3.
    fn sent(&mut self, bounds: &Bounds, ledger: &Ledger, n: usize, at: u64, slot: Slot) -> Option<Violation> {
        let client = ledger.clients.get(slot.client.into());
        if !matches!(slot.site, Site::Claim | Site::Wait | Site::Confirm) {
            let sent = self.background.entry(slot.client.into());
            *sent += 1;
            if *sent <= 40 {
                return None;
            }
            let per_time = 40 * at / bounds.ttl.max(1) + 20 * at / 1_000_000;
            let per_event = 12 * client.acquisitions + 6 * ledger.changes + 6 * client.faults;
            let allowed = 40 + per_time + u64::from(per_event);
            if u64::from(*sent) <= allowed {
                return None;
            }
            let says =
                format!("client {} sent {sent} calls for its sessions in {}, of {allowed} at most", name(slot.client), ms(at));
            return Some(Invariant::L3.broken(n, None, says));
        }
        let op = ledger.wanting_of(slot.client)?;
        let sent = self.acquiring.entry(op);
        *sent += 1;
        if *sent <= 30 {
            return None;
        }
        let asked = ledger.acquisitions.get(op);
        let per_event = 6 * (ledger.changes - asked.changes_before) + 6 * (client.faults - asked.faults_before);
        let allowed = 30 + 10 * (at - asked.asked_at) / 1_000_000 + u64::from(per_event);
        if u64::from(*sent) <= allowed {
            return None;
        }
        let took = ms(at - asked.asked_at);
        Some(Invariant::L3.broken(n, asked.asked, format!("acquisition {op} took {sent} calls in {took}, of {allowed} at most")))
    }
}

/// L1, once the history is over.
pub(super) fn unanswered(ledger: &Ledger, history: &History) -> Option<Violation> {
    ledger.healed?;
    let last = history.lines().len() - 1;
    let op = ledger.wanting.first()?;
    let asked = ledger.acquisitions.get(*op);
    let waited = ms(history.lines()[last].at - asked.asked_at);
    let says = format!("acquisition {op} of client {} was never answered, in {waited}", name(asked.client));
    Some(Invariant::L1.broken(last, asked.asked, says))
}

/// L1, for an acquisition that is answered now.
fn answered(bounds: &Bounds, ledger: &Ledger, n: usize, at: u64, op: Op, asked: &Acquisition) -> Option<Violation> {
    let since = ledger.healed?.max(asked.asked_at).max(ledger.calm_from(asked.client));
    let waited = at.saturating_sub(since);
    if waited <= bounds.answer {
        return None;
    }
    let says = format!("acquisition {op} of client {} was answered {} after faults were over", name(asked.client), ms(waited));
    Some(Invariant::L1.broken(n, asked.asked, says))
}

/// L2, for an acquisition that waited until now.
fn free_for_long(bounds: &Bounds, ledger: &Ledger, n: usize, at: u64, op: Op, asked: &Acquisition) -> Option<Violation> {
    let healed = ledger.healed?;
    if !ledger.live.is_empty() {
        return None;
    }
    // In a line whoever is ahead comes to the key by asking: one that does not hear that it may keeps all others waiting, as long as it waits.
    let (calm_from, disturbed) = if bounds.comes_by_asking {
        let (calm_from, counted_from) = (ledger.all_calm_from(), ledger.free_since.max(healed).max(asked.asked_at));
        (calm_from, calm_from > 0 && calm_from + bounds.deaf >= counted_from)
    } else {
        (ledger.calm_from(asked.client), ledger.is_disturbed(asked))
    };
    let since = ledger.free_since.max(healed).max(asked.asked_at).max(calm_from);
    let waited = at.saturating_sub(since);
    let allowed = if disturbed { bounds.wake + bounds.deaf } else { bounds.wake };
    if waited <= allowed {
        return None;
    }
    let freed = ledger.grants.last().and_then(|grant| grant.ended).map(|(line, ..)| line);
    let says =
        format!("the lock was free for {} while acquisition {op} of client {} waited for it", ms(waited), name(asked.client));
    Some(Invariant::L2.broken(n, freed.unwrap_or(asked.asked), says))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{check, sketch};

    fn verdict(sketch: &str) -> Option<Invariant> {
        check(&sketch::plan(), &sketch::history(sketch)).map(|violation| violation.invariant)
    }

    #[test]
    fn l1_nobody_waits_for_ever_once_faults_are_over() {
        assert_eq!(verdict("0 a wants 1\n1 - healed\n5 - grants 1 1\n10 a holds 1 1"), None);
        assert_eq!(verdict("0 a wants 1\n1 - healed\n90000 b wants 2"), Some(Invariant::L1));
        assert_eq!(verdict("0 a wants 1\n1 - healed\n5 a crashes"), None);
        // While faults may still strike, nothing is promised.
        assert_eq!(verdict("0 a wants 1\n90000 b wants 2"), None);
    }

    #[test]
    fn l1_an_answer_does_not_take_more_turns_than_there_are() {
        // Every grant is short, and yet one waiter is passed over again and again.
        let mut history = "0 a wants 1000\n1 - healed\n".to_owned();
        for n in 0..700_u64 {
            let at = 2_000 * n + 10;
            history += &format!("{at} b wants {n}\n{} - grants {n} {}\n", at + 1, n + 1);
            history += &format!("{} b holds {n} {}\n{} b releasing {n}\n", at + 2, n + 1, at + 1_990);
            history += &format!("{} - takes-back {n} {}\n{} b released {n}\n", at + 1_991, n + 1, at + 1_992);
        }
        let end = |at: u64| format!("{history}{at} - grants 1000 1000\n{at} a holds 1000 1000");
        assert_eq!(verdict(&end(1_400_050)), Some(Invariant::L1));
        let short: String = history.split_inclusive('\n').take(50).collect();
        assert_eq!(verdict(&format!("{short}16012 - grants 1000 1000\n16012 a holds 1000 1000")), None);
    }

    #[test]
    fn l2_a_free_lock_does_not_wait_for_its_waiter() {
        let begin = "0 a wants 1\n1 - grants 1 1\n2 a holds 1 1\n3 b wants 2\n4 - healed\n20 a releasing 1\n21 - takes-back 1 1\n22 a released 1\n";
        assert_eq!(verdict(&format!("{begin}200 - grants 2 2\n210 b holds 2 2")), None);
        assert_eq!(verdict(&format!("{begin}60000 - grants 2 2\n60010 b holds 2 2")), Some(Invariant::L2));
        assert_eq!(verdict(&format!("{begin}60000 b times-out 2")), Some(Invariant::L2));
        // A waiter whose wait was lost asks again by itself, late; others of its client wait behind it.
        let deaf = begin.replace("4 - healed", "3 b struck wait lost-reply\n3 b wants 3\n4 - healed");
        let behind = deaf.replace("3 b wants 3", "3.5 b wants 3");
        assert_eq!(verdict(&format!("{behind}60000 - grants 2 2\n60010 b holds 2 2\n60011 b times-out 3")), None);
        let deaf = deaf.replace("3 b wants 3\n", "");
        assert_eq!(verdict(&format!("{deaf}60000 - grants 2 2\n60010 b holds 2 2")), None);
    }

    #[test]
    fn l3_an_acquisition_does_not_storm_the_store() {
        let storm = |calls: usize, apart: usize| {
            let calls = (0..calls).map(|n| format!("{} a sends claim {n}\n", 10 + n * apart));
            format!("0 a wants 1\n{}", calls.collect::<String>())
        };
        assert_eq!(verdict(&storm(100, 120)), None);
        assert_eq!(verdict(&storm(100, 20)), Some(Invariant::L3));
    }

    #[test]
    fn l3_sessions_do_not_storm_the_store() {
        let storm = |calls: usize, apart: usize| {
            let calls = (0..calls).map(|n| format!("{} a sends renew {n}\n", n * apart));
            calls.collect::<String>()
        };
        assert_eq!(verdict(&storm(400, 100)), None);
        assert_eq!(verdict(&storm(400, 5)), Some(Invariant::L3));
    }

    /// Client a holds, b and c queue; their claims come in as b, c.
    const QUEUE: &str = "0 a wants 1\n1 - grants 1 1\n2 a holds 1 1\n3 b wants 2\n4 c wants 3
        5 b sends claim 1\n6 c sends claim 2\n10 - applies 1\n11 - applies 2
        20 a releasing 1\n21 - takes-back 1 1\n22 a released 1\n";

    fn in_turn(first: (char, u32), second: (char, u32)) -> String {
        let ((a, one), (b, two)) = (first, second);
        format!(
            "30 - grants {one} 2\n31 {a} holds {one} 2\n32 {a} releasing {one}\n33 - takes-back {one} 2\n34 {a} released {one}
             40 - grants {two} 3\n41 {b} holds {two} 3"
        )
    }

    #[test]
    fn l4_a_queue_grants_in_the_order_of_arrival() {
        assert_eq!(verdict(&format!("{QUEUE}{}", in_turn(('b', 2), ('c', 3)))), None);
        assert_eq!(verdict(&format!("{QUEUE}{}", in_turn(('c', 3), ('b', 2)))), Some(Invariant::L4));
    }

    #[test]
    fn l4_whoever_gave_it_back_unheard_takes_another_place() {
        let again = "30 - grants 2 2\n31 - takes-back 2 2\n40 - grants 3 3\n41 c holds 3 3\n42 c releasing 3\n43 - takes-back 3 3
            44 c released 3\n50 - grants 2 4\n51 b holds 2 4";
        assert_eq!(verdict(&format!("{QUEUE}{again}")), None);
    }

    #[test]
    fn l4_says_nothing_once_somebody_left_the_queue() {
        let overtaken = in_turn(('c', 3), ('b', 2));
        assert_eq!(verdict(&format!("{QUEUE}23 b sends open 7\n24 b sends open 8\n{overtaken}")), None);
        assert_eq!(verdict(&format!("{QUEUE}23 b struck acquiring cancel 5\n{overtaken}")), None);
        let mut slot = sketch::plan();
        slot.config.profile = dlock_testkit::memory::Profile::Slot;
        assert_eq!(check(&slot, &sketch::history(&format!("{QUEUE}{overtaken}"))), None);
    }
}
