//! What people see while it runs.

/// Says what begins now.
pub fn say(what: &str) {
    eprintln!("  {what}");
}

/// Says which of several rounds begins now.
pub fn step(what: &str, round: usize, rounds: usize) {
    eprintln!("  {what} ({}/{rounds})", round + 1);
}
