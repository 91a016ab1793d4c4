//! What is told of a run as it happens, and the histories that it amounts to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::history::{History, Line};

/// A line of a history, and of which key's; on the wire, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The key; `None` for what concerns all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub line: Line,
}

/// One history for each key, in order of true time; what concerns all keys stands in each.
pub fn histories(keys: &[String], mut told: Vec<Told>) -> BTreeMap<String, History> {
    // Stable: what one teller told at one instant stays in its order.
    told.sort_by_key(|told| told.line.at);
    let mut histories: BTreeMap<String, History> = keys.iter().map(|key| (key.clone(), History::default())).collect();
    for Told { key, line: Line { at, client, event } } in told {
        match key {
            Some(key) => histories.entry(key).or_default().push(at, client, event),
            None => histories.values_mut().for_each(|history| history.push(at, client, event.clone())),
        }
    }
    histories
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Event;

    #[test]
    fn what_is_told_travels_as_one_line_of_json() {
        let told =
            Told { key: Some("k".to_owned()), line: Line { at: 7, client: Some(2), event: Event::Held { op: 3, token: 9 } } };
        let text = serde_json::to_string(&told).unwrap();
        assert!(!text.contains('\n'));
        assert_eq!(serde_json::from_str::<Told>(&text).unwrap(), told, "{text}");
    }

    #[test]
    fn what_concerns_all_keys_stands_in_each_history_in_order() {
        let keys = ["a".to_owned(), "b".to_owned()];
        let at = |at, key: Option<&str>, event| Told { key: key.map(str::to_owned), line: Line { at, client: Some(1), event } };
        let told = vec![at(5, None, Event::Crashed), at(3, Some("a"), Event::Held { op: 1, token: 1 })];
        let histories = histories(&keys, told);
        assert_eq!(histories["a"].lines().iter().map(|line| line.at).collect::<Vec<_>>(), [3, 5]);
        assert_eq!(histories["b"].lines().len(), 1);
    }
}
