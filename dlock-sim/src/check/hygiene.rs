//! H1 to H4: what must not stay behind.

use super::bounds::Bounds;
use super::ledger::{Ledger, Stage};
use super::{Invariant, Violation, ms};
use crate::history::{Event, Line};
use crate::plan::name;

/// H1 to H4, at a line.
pub(super) fn see(bounds: &Bounds, ledger: &Ledger, n: usize, line: &Line) -> Option<Violation> {
    if let Event::Left { what } = &line.event {
        let invariant = match what {
            secret if secret.contains("secret") => Invariant::H4,
            task if task.contains("task") => Invariant::H2,
            _ => Invariant::H1,
        };
        let whose = line.client.map_or_else(|| "somebody".to_owned(), |client| format!("client {}", name(client)));
        return Some(invariant.broken(n, None, format!("{what} of {whose} is left at the end")));
    }
    ledger.live.iter().find_map(|live| {
        let grant = ledger.grants[*live];
        let acquisition = ledger.acquisitions.get(grant.op);
        if !acquisition.stage.is_over() {
            return None;
        }
        let since = grant.at.max(acquisition.turned_at).max(ledger.calm_from(acquisition.client));
        if line.at <= since + bounds.orphan {
            return None;
        }
        let over = if acquisition.stage == Stage::Unknown { "that nobody made" } else { "that was over" };
        let says =
            format!("token {} of acquisition {}, {over}, is still granted after {}", grant.token, grant.op, ms(line.at - since));
        Some(Invariant::H3.broken(n, grant.line, says))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{check, sketch};

    fn verdict(sketch: &str) -> Option<Invariant> {
        check(&sketch::plan(), &sketch::history(sketch)).map(|violation| violation.invariant)
    }

    #[test]
    fn h1_nothing_is_left_at_the_store() {
        assert_eq!(verdict("0 - healed"), None);
        assert_eq!(verdict("0 - healed\n5 a left a session"), Some(Invariant::H1));
    }

    #[test]
    fn h2_no_task_is_left() {
        assert_eq!(verdict("5 a left 1 task"), Some(Invariant::H2));
    }

    #[test]
    fn h4_no_secret_is_told() {
        assert_eq!(verdict("5 a left a secret in the log"), Some(Invariant::H4));
    }

    #[test]
    fn h3_a_grant_that_nobody_waited_for_ends() {
        let begin = "0 a wants 1\n5 a cancels 1\n7 - grants 1 1\n";
        assert_eq!(verdict(&format!("{begin}2000 - lapses 1 1\n90000 b wants 2")), None);
        assert_eq!(verdict(&format!("{begin}2000 b wants 2")), None);
        assert_eq!(verdict(&format!("{begin}90000 b wants 2")), Some(Invariant::H3));
    }

    #[test]
    fn h3_a_grant_ends_with_its_release_or_its_client() {
        let begin = "0 a wants 1\n5 - grants 1 1\n7 a holds 1 1\n";
        assert_eq!(verdict(&format!("{begin}90000 b wants 2")), None);
        assert_eq!(verdict(&format!("{begin}10 a releasing 1\n90000 b wants 2")), Some(Invariant::H3));
        assert_eq!(verdict(&format!("{begin}10 a crashes\n90000 b wants 2")), Some(Invariant::H3));
        assert_eq!(verdict("5 - grants 1 1\n90000 b wants 2"), Some(Invariant::H3));
    }

    #[test]
    fn h3_waits_until_its_client_can_speak_to_the_store() {
        let begin = "0 a wants 1\n5 a cancels 1\n7 - grants 1 1\n8 a struck release partition 80000\n";
        assert_eq!(verdict(&format!("{begin}90000 b wants 2")), None);
    }
}
