//! Which part of a history is shown.

use crate::check::Violation;
use crate::history::{Event, Line};
use crate::plan::{Fault, Plan, Site, Slot};

/// More events than these are not told apart; the oldest give way.
const MOST: usize = 90;

/// Which lines are shown: from two ttl before the violation, or the line it contradicts, to one after; the oldest give way if they are too many.
pub(super) fn window(plan: &Plan, lines: &[Line], violation: Option<&Violation>) -> (usize, usize) {
    let ttl = u64::from(plan.config.ttl_ms) * 1_000;
    let Some(violation) = violation.filter(|violation| violation.line < lines.len()) else { return (0, lines.len()) };
    let at = lines[violation.line].at;
    let other = violation.other.map_or(at, |other| lines[other].at);
    let from = lines.partition_point(|line| line.at < at.saturating_sub(2 * ttl).min(other));
    let after = lines.iter().enumerate().skip(violation.line).filter(|(_, line)| is_shown(line, lines)).nth(MOST / 4);
    let to = lines.partition_point(|line| line.at <= at + ttl).min(after.map_or(lines.len(), |(n, _)| n));
    let newest = lines[from..to].iter().rev().filter(|line| is_shown(line, lines)).count();
    let surplus = newest.saturating_sub(MOST);
    let given_way = lines[from..to].iter().enumerate().filter(|(_, line)| is_shown(line, lines)).nth(surplus).map_or(0, |(n, _)| n);
    (from + if surplus > 0 { given_way } else { 0 }, to)
}

/// Whether a line has a place of its own. What only waits and watches is left out, unless a fault struck it.
pub(super) fn is_shown(line: &Line, lines: &[Line]) -> bool {
    let call = match line.event {
        Event::Sent { slot, .. } => return !is_quiet(slot) || struck_at(lines, slot).is_some(),
        Event::Applied { call } | Event::Answered { call } => call,
        _ => return true,
    };
    let sent = lines.iter().find(|line| matches!(line.event, Event::Sent { call: of, .. } if of == call));
    sent.is_some_and(|sent| is_shown(sent, lines))
}

fn is_quiet(slot: Slot) -> bool {
    matches!(slot.site, Site::Wait | Site::Disturbed | Site::Audit)
}

/// What struck there.
pub(super) fn struck_at(lines: &[Line], slot: Slot) -> Option<Fault> {
    lines.iter().find_map(|line| match line.event {
        Event::Struck { slot: at, fault } if at == slot => Some(fault),
        _ => None,
    })
}
