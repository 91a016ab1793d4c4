//! S1 to S7: what must be true at every line.

use super::bounds::Bounds;
use super::ledger::{Acquisition, Grant, Ledger, Stage};
use super::{Invariant, Violation, ms};
use crate::history::{End, Event, History, Line, Op};
use crate::plan::{Site, Slot, name};

/// What these rules remember beyond the ledger.
#[derive(Debug, Default)]
pub(super) struct Safety {
    /// The highest token that the resource has accepted, and the line.
    highest: Option<(u64, usize)>,
    /// A guard was handed out whose grant had lapsed: it must be told at once.
    stillborn: Option<(Op, usize, u64)>,
}

impl Safety {
    pub(super) fn see(&mut self, bounds: &Bounds, ledger: &Ledger, history: &History, n: usize) -> Option<Violation> {
        let line = &history.lines()[n];
        let untold = self.untold(bounds, ledger, n, line);
        if untold.is_some() {
            return untold;
        }
        match line.event {
            Event::Wrote { op, token, accepted: true } => self.wrote(bounds, ledger, n, line.at, op, token),
            Event::Granted { token, .. } => granted(ledger, n, token),
            Event::Held { op, token } => self.held(bounds, ledger, n, line, op, token),
            Event::StillBelieves { op, token } => still_believes(bounds, ledger, n, line.at, op, token),
            Event::Ended { op, token, cause } => ended(bounds, ledger, history, n, (op, token, cause)),
            Event::Lost { op, .. } => {
                self.stillborn = self.stillborn.filter(|(stillborn, ..)| *stillborn != op);
                None
            }
            _ => None,
        }
    }

    /// S1, and S7 for writes that nobody believed in when they began.
    fn wrote(&mut self, bounds: &Bounds, ledger: &Ledger, n: usize, at: u64, op: Op, token: u64) -> Option<Violation> {
        if let Some((highest, line)) = self.highest
            && token < highest
        {
            let says = format!("the resource accepted token {token} of acquisition {op} after token {highest}");
            return Some(Invariant::S1.broken(n, line, says));
        }
        self.highest = Some((token, n));
        let writer = ledger.acquisitions.get(op);
        // The write may have begun before the loss, and its client may have been paused before it went out.
        let began_by = writer.turned_at.max(ledger.clients.get(writer.client.into()).paused_until) + bounds.write;
        if writer.stage == Stage::Lost && at > began_by {
            let says = format!("acquisition {op} wrote {} after it was told of its loss", ms(at - writer.turned_at));
            return Some(Invariant::S7.broken(n, writer.turned, says));
        }
        None
    }

    /// S6, S7, and S3 for two clients.
    fn held(&mut self, bounds: &Bounds, ledger: &Ledger, n: usize, line: &Line, op: Op, token: u64) -> Option<Violation> {
        let acquisition = ledger.acquisitions.get(op);
        match acquisition.stage {
            Stage::Wanting | Stage::Unknown => {}
            // A guard that comes lost: nobody ever believed in it.
            Stage::Lost if acquisition.held.is_none() && line.at - acquisition.turned_at <= bounds.resume => return None,
            Stage::Lost | Stage::Releasing | Stage::Released => {
                return Some(Invariant::S7.broken(n, acquisition.turned, format!("acquisition {op} is held again after its end")));
            }
            Stage::Held | Stage::Refused | Stage::Crashed => {
                let says = format!("acquisition {op} is told that it holds the lock after it was answered before");
                return Some(Invariant::S6.broken(n, acquisition.turned, says));
            }
        }
        let Some(grant) = ledger.grant(token).filter(|grant| grant.op == op) else {
            let says = format!("acquisition {op} is told that it holds token {token}, which the store never granted it");
            return Some(Invariant::S6.broken(n, acquisition.asked, says));
        };
        match grant.ended {
            None => {}
            Some((_, at, End::Interference)) if line.at <= heard_by(bounds, ledger, acquisition.client, at) => return None,
            Some((ended, at, End::Lapsed)) => {
                self.stillborn = Some((op, ended, line.at.max(at) + bounds.resume));
                return None;
            }
            Some((ended, at, _)) => return Some(Invariant::S6.broken(n, ended, stale(op, token, line.at - at))),
        }
        let rival = ledger.believing.iter().map(|other| (*other, ledger.acquisitions.get(*other)));
        let (other, rival) = rival.into_iter().find(|(_, rival)| line.at > excused_until(bounds, ledger, rival, line.at))?;
        let held = rival.held.unwrap_or(rival.turned);
        let says = format!(
            "acquisition {op} of client {} holds the lock with token {token} while client {} believes that it does (acquisition \
             {other}, token {})",
            name(acquisition.client),
            name(rival.client),
            rival.token
        );
        Some(Invariant::S3.broken(n, held, says))
    }

    /// S3, S4 and S6 for clients that should have been told by now.
    fn untold(&mut self, bounds: &Bounds, ledger: &Ledger, n: usize, line: &Line) -> Option<Violation> {
        if let Some((op, ended, due)) = self.stillborn
            && line.at > due
        {
            let says = format!("acquisition {op} was handed a lock that had lapsed, and not told of it");
            return Some(Invariant::S6.broken(n, ended, says));
        }
        for op in &ledger.believing {
            let believer = ledger.acquisitions.get(*op);
            let Some((ended, at, cause)) = ledger.grant(believer.token).and_then(|grant| grant.ended) else { continue };
            let comes_lost = self.stillborn.is_some_and(|(stillborn, ..)| stillborn == *op);
            if comes_lost || ledger.is_granted(*op) || line.at <= excused_until(bounds, ledger, believer, line.at) {
                continue;
            }
            let (invariant, after) = match cause {
                End::Interference => (Invariant::S3, "an operator ended its grant"),
                End::Lapsed | End::GivenBack => (Invariant::S4, "its grant ended, while it was paused"),
            };
            let says = format!(
                "client {} was not told that acquisition {op} lost token {} although {} passed since {after}",
                name(believer.client),
                believer.token,
                ms(line.at - at)
            );
            return Some(invariant.broken(n, ended, says));
        }
        None
    }
}

/// S2.
fn granted(ledger: &Ledger, n: usize, token: u64) -> Option<Violation> {
    let last = ledger.grants.last().filter(|last| last.token >= token)?;
    Some(Invariant::S2.broken(n, last.line, format!("token {token} was granted after token {}", last.token)))
}

/// S3 and S7, as an observer at the client sees it.
fn still_believes(bounds: &Bounds, ledger: &Ledger, n: usize, at: u64, op: Op, token: u64) -> Option<Violation> {
    let believer = ledger.acquisitions.get(op);
    let client = ledger.clients.get(believer.client.into());
    if client.crashed || ledger.is_granted(op) && believer.stage == Stage::Held {
        return None;
    }
    if matches!(believer.stage, Stage::Lost | Stage::Releasing | Stage::Released) {
        let says = format!("client {} believes in acquisition {op} again, which had ended for it", name(believer.client));
        return Some(Invariant::S7.broken(n, believer.turned, says));
    }
    let excused = match ledger.grant(token) {
        Some(Grant { ended: Some((_, ended, End::Interference)), .. }) => heard_by(bounds, ledger, believer.client, *ended),
        _ => steps_by(bounds, ledger, believer.client),
    };
    if at <= excused {
        return None;
    }
    let ended = ledger.grant(token).and_then(|grant| grant.ended).map_or(believer.turned, |(line, ..)| line);
    let says = format!(
        "client {} believes that it holds the lock (acquisition {op}, token {token}), which had ended",
        name(believer.client)
    );
    Some(Invariant::S3.broken(n, ended, says))
}

/// S4 and S5.
fn ended(bounds: &Bounds, ledger: &Ledger, history: &History, n: usize, (op, token, cause): (Op, u64, End)) -> Option<Violation> {
    let Some(grant) = ledger.grant(token) else {
        return Some(Invariant::S5.broken(n, None, format!("token {token} ended, which was never granted")));
    };
    if let Some((line, ..)) = grant.ended {
        return Some(Invariant::S5.broken(n, line, format!("token {token} of acquisition {op} ended twice")));
    }
    let at = history.lines()[n].at;
    let owner = ledger.acquisitions.get(op);
    let held = owner.held.filter(|_| owner.stage == Stage::Held && owner.token == token);
    match (cause, held) {
        (End::GivenBack, Some(held)) => {
            let says = format!("token {token} was given back while client {} held it (acquisition {op})", name(owner.client));
            Some(Invariant::S5.broken(n, held, says))
        }
        (End::GivenBack, None) => {
            let (line, slot) = by_wrong_call(ledger, history, n, owner.client)?;
            let (owner, other) = (name(owner.client), name(slot.client));
            let says = if slot.site == Site::Claim {
                format!("token {token} of client {owner} was taken over by a claim of the same client before it was given back")
            } else {
                format!("token {token} of client {owner} was given back by a call of client {other}")
            };
            Some(Invariant::S5.broken(n, line, says))
        }
        (End::Lapsed, Some(held)) if at > steps_by(bounds, ledger, owner.client) => {
            let says = format!(
                "the store let token {token} lapse and client {} was not told before (acquisition {op})",
                name(owner.client)
            );
            Some(Invariant::S4.broken(n, held, says))
        }
        _ => None,
    }
}

/// The call that was applied at the very instant at which a grant ended, if it was none that its owner may end it with: a release of
/// another client, or a claim of its owner.
fn by_wrong_call(ledger: &Ledger, history: &History, n: usize, owner: u8) -> Option<(usize, Slot)> {
    let lines = history.lines();
    let from = lines[..n].iter().rposition(|line| line.at < lines[n].at).map_or(0, |before| before + 1);
    let mut wrong = None;
    for (m, line) in lines.iter().enumerate().skip(from).take_while(|(_, line)| line.at == lines[n].at) {
        let Event::Applied { call } = line.event else { continue };
        match ledger.calls.get(call).slot {
            Some(slot) => match (slot.client == owner, slot.site) {
                (true, Site::Release | Site::Close) => return None,
                (true, Site::Claim) | (false, Site::Release | Site::Close) => wrong = Some((m, slot)),
                _ => {}
            },
            None => return None,
        }
    }
    wrong
}

/// Until when an acquisition may go on believing although nothing is granted to it any more.
fn excused_until(bounds: &Bounds, ledger: &Ledger, believer: &Acquisition, now: u64) -> u64 {
    let step = steps_by(bounds, ledger, believer.client);
    match ledger.grant(believer.token).map(|grant| grant.ended) {
        // Told, and rightly: whoever else is told so is wrong.
        Some(None) => now.saturating_sub(1),
        Some(Some((_, at, End::Interference))) => heard_by(bounds, ledger, believer.client, at).max(step),
        _ => step,
    }
}

/// When a client that was paused has made the steps that were due; zero if it never was.
fn steps_by(bounds: &Bounds, ledger: &Ledger, client: u8) -> u64 {
    match ledger.clients.get(client.into()).paused_until {
        0 => 0,
        until => until + bounds.resume,
    }
}

/// When a client has heard at the latest that an operator ended its grant.
fn heard_by(bounds: &Bounds, ledger: &Ledger, client: u8, ended_at: u64) -> u64 {
    ended_at.max(ledger.calm_from(client)) + bounds.audit
}

fn stale(op: Op, token: u64, since: u64) -> String {
    format!("acquisition {op} is told that it holds token {token}, which ended {} before", ms(since))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{check, sketch};

    /// One acquisition that is held with token 1, from 0 to 10 ms.
    const HELD: &str = "0 a wants 1
                        5 - grants 1 1
                       10 a holds 1 1\n";

    fn verdict(sketch: &str) -> Option<Invariant> {
        check(&sketch::plan(), &sketch::history(sketch)).map(|violation| violation.invariant)
    }

    fn after(begin: &str, end: &str) -> Option<Invariant> {
        verdict(&format!("{begin}{end}"))
    }

    #[test]
    fn s1_an_old_token_is_not_accepted() {
        let begin = format!("{HELD}500 - lapses 1 1\n").replace("500", "20 a loses 1\n500");
        let begin = format!("{begin}500 b wants 2\n510 - grants 2 2\n520 b holds 2 2\n530 b writes 2 2\n");
        assert_eq!(after(&begin, "540 a fenced 1 1"), None);
        assert_eq!(after(&begin, "540 a writes 1 1"), Some(Invariant::S1));
    }

    #[test]
    fn s2_tokens_grow() {
        let begin = format!("{HELD}20 a releasing 1\n25 - takes-back 1 1\n30 a released 1\n40 b wants 2\n");
        assert_eq!(after(&begin, "50 - grants 2 2"), None);
        assert_eq!(after(&begin, "50 - grants 2 1"), Some(Invariant::S2));
    }

    #[test]
    fn s3_two_clients_do_not_believe_at_once() {
        let rival = "20 b wants 2\n40 - grants 2 2\n50 b holds 2 2";
        assert_eq!(after(HELD, &format!("30 a releasing 1\n35 - takes-back 1 1\n{rival}")), None);
        assert_eq!(after(HELD, rival), Some(Invariant::S3));
    }

    #[test]
    fn s3_a_paused_client_believes_only_while_it_is_paused() {
        let begin =
            format!("{HELD}20 a paused-until 1500\n1000 - lapses 1 1\n1010 b wants 2\n1020 - grants 2 2\n1030 b holds 2 2\n");
        assert_eq!(after(&begin, "1400 a believes 1 1\n1500 a loses 1"), None);
        assert_eq!(after(&begin, "1501 a loses 1"), None);
        assert_eq!(after(&begin, "1500 a loses 1\n1600 a believes 1 1"), Some(Invariant::S7));
        assert_eq!(after(&begin, "1600 a believes 1 1"), Some(Invariant::S4));
    }

    #[test]
    fn s3_belief_outlives_interference_until_it_is_heard_of() {
        let begin =
            format!("{HELD}20 a struck holding end-session\n20 - interferes 1 1\n30 b wants 2\n40 - grants 2 2\n50 b holds 2 2\n");
        assert_eq!(after(&begin, "60 a believes 1 1\n900 a loses 1"), None);
        assert_eq!(after(&begin, "60 a believes 1 1\n30000 a loses 1"), Some(Invariant::S3));
        // Cut off from the store, it hears of it only when it is heard again.
        assert_eq!(after(&begin, "60 a struck renew partition 26000\n30000 a loses 1"), None);
    }

    #[test]
    fn s3_a_late_copy_of_the_claim_makes_belief_true_again() {
        let begin = format!("{HELD}20 a struck holding delete-key\n20 - interferes 1 1\n20 a believes 1 1\n25 - grants 1 2\n");
        assert_eq!(after(&begin, "30000 b wants 2\n30010 a believes 1 1"), None);
        assert_eq!(after(&begin, "30 - interferes 1 2\n30000 b wants 2\n30010 a loses 1"), Some(Invariant::S3));
    }

    #[test]
    fn s3_nobody_believes_without_a_grant() {
        let begin = format!("{HELD}20 a releasing 1\n25 - takes-back 1 1\n");
        assert_eq!(after(&begin, "30 a released 1"), None);
        assert_eq!(verdict("0 a wants 1\n10 a believes 1 1"), Some(Invariant::S3));
        assert_eq!(after(&begin, "30 a believes 1 1"), Some(Invariant::S7));
    }

    #[test]
    fn s4_a_loss_is_told_before_the_store_forgets() {
        assert_eq!(after(HELD, "950 a loses 1\n1000 - lapses 1 1"), None);
        assert_eq!(after(HELD, "1000 - lapses 1 1\n1001 a loses 1"), Some(Invariant::S4));
    }

    #[test]
    fn s4_a_paused_client_is_told_first_of_all() {
        let begin = format!("{HELD}20 a paused-until 3000\n1000 - lapses 1 1\n");
        assert_eq!(after(&begin, "3000 a loses 1\n3100 b wants 2"), None);
        assert_eq!(after(&begin, "3100 b wants 2\n3200 a loses 1"), Some(Invariant::S4));
    }

    #[test]
    fn s4_a_crashed_client_need_not_be_told() {
        assert_eq!(after(HELD, "20 a crashes\n1000 - lapses 1 1"), None);
    }

    #[test]
    fn s5_nobody_loses_what_it_holds_by_a_release() {
        assert_eq!(after(HELD, "20 a releasing 1\n30 - takes-back 1 1\n40 a released 1"), None);
        assert_eq!(after(HELD, "30 - takes-back 1 1"), Some(Invariant::S5));
    }

    #[test]
    fn s5_no_grant_ends_twice() {
        let begin = format!("{HELD}20 a releasing 1\n30 - takes-back 1 1\n");
        assert_eq!(after(&begin, "40 - takes-back 1 1"), Some(Invariant::S5));
    }

    #[test]
    fn s5_no_call_ends_the_grant_of_another_client() {
        let begin = "0 b wants 2\n1 b sends release 7\n2 a wants 1\n3 a sends claim 8\n5 - grants 1 1\n";
        assert_eq!(after(begin, "6 - applies 7\n6 - takes-back 1 1"), Some(Invariant::S5));
        assert_eq!(after(begin, "6 - takes-back 1 1\n6 - applies 7"), Some(Invariant::S5));
        let own = format!("{begin}5 a cancels 1\n5 a sends release 9\n");
        assert_eq!(after(&own, "6 - applies 9\n6 - applies 7\n6 - takes-back 1 1"), None);
    }

    #[test]
    fn s5_no_claim_takes_over_what_its_own_client_has_not_given_back() {
        let begin = format!("{HELD}20 a releasing 1\n21 a wants 2\n22 a sends claim 7\n");
        assert_eq!(after(&begin, "30 - applies 7\n30 - takes-back 1 1"), Some(Invariant::S5));
        let own = format!("{begin}25 a sends release 8\n");
        assert_eq!(after(&own, "30 - applies 8\n30 - takes-back 1 1"), None);
    }

    #[test]
    fn s6_a_lock_is_handed_out_only_while_its_grant_is_live() {
        let begin = "0 a wants 1\n5 - grants 1 1\n";
        assert_eq!(after(begin, "10 a holds 1 1"), None);
        assert_eq!(after(begin, "10 a holds 1 2"), Some(Invariant::S6));
        assert_eq!(after(begin, "8 - takes-back 1 1\n10 a holds 1 1"), Some(Invariant::S6));
        assert_eq!(after(begin, "8 a cancels 1\n10 a holds 1 1"), Some(Invariant::S6));
    }

    #[test]
    fn s6_a_lock_that_lapsed_on_the_way_comes_lost() {
        let begin = "0 a wants 1\n5 - grants 1 1\n1000 - lapses 1 1\n1001 a holds 1 1\n";
        assert_eq!(after(begin, "1001 a loses 1\n1500 b wants 2"), None);
        assert_eq!(after(begin, "1500 b wants 2"), Some(Invariant::S6));
        assert_eq!(verdict("0 a wants 1\n5 - grants 1 1\n900 a loses 1\n901 a holds 1 1\n1000 - lapses 1 1"), None);
    }

    #[test]
    fn s7_ended_belief_does_not_return() {
        let begin = format!("{HELD}950 a loses 1\n1000 - lapses 1 1\n");
        // A write that had begun before arrives after the loss.
        assert_eq!(after(&begin, "960 a writes 1 1"), None);
        assert_eq!(after(&begin, "4000 a writes 1 1"), Some(Invariant::S7));
        assert_eq!(after(&begin, "1010 a believes 1 1"), Some(Invariant::S7));
        assert_eq!(after(&begin, "1010 a holds 1 1"), Some(Invariant::S7));
    }

    #[test]
    fn s7_a_paused_writer_writes_when_it_goes_on() {
        let begin = format!("{HELD}20 a paused-until 9000\n1000 - lapses 1 1\n9000 a loses 1\n");
        assert_eq!(after(&begin, "9010 a writes 1 1"), None);
        assert_eq!(after(&begin, "19010 a writes 1 1"), Some(Invariant::S7));
    }

    #[test]
    fn s8_a_try_is_busy_only_while_another_holds() {
        let begin = format!("{HELD}20 a releasing 1\n25 - takes-back 1 1\n30 a released 1\n");
        assert_eq!(after(&begin, "22 b tries 2\n26 b busy 2"), None);
        assert_eq!(after(&begin, "40 b tries 2\n46 b busy 2"), Some(Invariant::S8));
    }

    #[test]
    fn s8_a_try_behind_what_its_own_client_must_still_undo_may_be_busy() {
        let begin = "0 b wants 1\n5 - grants 1 1\n10 b cancels 1\n12 - takes-back 1 1\n";
        assert_eq!(after(begin, "14 b tries 2\n14 b busy 2"), None);
    }
}
