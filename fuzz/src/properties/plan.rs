//! The plans and histories that simulators write down and replay.

use dlock_sim::history::History;
use dlock_sim::plan::{Plan, Site, Weather};

/// The bytes as a plan, and as a history.
pub fn plan(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(plan) = serde_json::from_str::<Plan>(&text) {
        let written = serde_json::to_string(&plan).expect("a plan can be written");
        assert_eq!(serde_json::from_str::<Plan>(&written).expect("and read"), plan, "{written}");
        replays(&plan);
    }
    if let Ok(history) = History::from_json_lines(&text) {
        let written = history.to_json_lines();
        assert_eq!(History::from_json_lines(&written).expect("what was written can be read"), history, "{written}");
    }
}

/// What strikes, strikes again without the seed.
fn replays(plan: &Plan) {
    let blow = |plan: &Plan| {
        let mut weather = Weather::of(plan);
        for client in [0, 1, 0, 1, 2, 255, 0] {
            for site in [Site::Claim, Site::Acquiring, Site::Holding, Site::Renew] {
                weather.visit(site, client);
            }
        }
        weather.struck().to_vec()
    };
    let struck = blow(plan);
    assert_eq!(blow(&plan.with_faults(struck.clone())), struck);
}
