//! The cases, one group a file; the list in [`conformance_cases!`](crate::conformance_cases) names every one.

mod claim;
mod faults;
mod interference;
mod keys;
mod look;
mod metadata;
mod modes;
mod optional;
mod probe;
mod queue;
mod release;
mod session;
mod several;
mod tokens;
mod wait;

use super::report::Case;

/// Every case, in the order of the groups.
pub const CASES: &[Case] = crate::conformance_cases! { case_list };

#[cfg(test)]
mod tests {
    use super::CASES;

    #[test]
    fn no_case_ends_early_without_saying_why() {
        let groups = [
            include_str!("claim.rs"),
            include_str!("faults.rs"),
            include_str!("interference.rs"),
            include_str!("keys.rs"),
            include_str!("look.rs"),
            include_str!("metadata.rs"),
            include_str!("modes.rs"),
            include_str!("optional.rs"),
            include_str!("probe.rs"),
            include_str!("queue.rs"),
            include_str!("release.rs"),
            include_str!("session.rs"),
            include_str!("several.rs"),
            include_str!("tokens.rs"),
            include_str!("wait.rs"),
        ];
        let cases = groups.iter().flat_map(|group| group.split("pub async fn ").skip(1));
        let mut seen = 0;
        for case in cases {
            let body = case.split("\n}\n").next().unwrap_or_default();
            let ends_early = body.contains("return ") || body.contains("return;");
            assert!(!ends_early, "{}", case.lines().next().unwrap_or_default());
            seen += 1;
        }
        assert_eq!(seen, CASES.len(), "every case is in the list");
    }
}
