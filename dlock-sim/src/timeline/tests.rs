use super::*;
use crate::check::{check, sketch};
use crate::plan::{Site, Slot, Struck};

/// A late copy of a release of a, by name instead of by claim, frees what b was granted.
const STRAY: &str = "0 a wants 1
    0 a sends open 1
    4 - applies 1
    8 a answered 1
    8 a sends claim 2
    12 - applies 2
    12 - grants 1 1
    17 a holds 1 1
    17 a answered 2
    40 b wants 2
    41 b sends open 3
    44 - applies 3
    47 b answered 3
    48 b sends claim 4
    52 - applies 4
    55 b answered 4
    60 a writes 1 1
    110 a writes 1 1
    214 a releasing 1
    214 a struck release repeat 214
    214 a sends release 5
    219 - applies 5
    219 - takes-back 1 1
    219 - grants 2 2
    224 a answered 5
    224 a released 1
    226 b sends confirm 6
    230 - applies 6
    236 b answered 6
    236 b holds 2 2
    260 b writes 2 2
    300 a wants 3
    301 a sends claim 7
    304 - applies 7
    309 a answered 7
    333 b sends renew 8
    338 - applies 8
    343 b answered 8
    433 - applies 5
    433 - takes-back 2 2
    433 - grants 3 3
    436 a sends confirm 9
    440 - applies 9
    445 a answered 9
    445 a holds 3 3
    470 a writes 3 3
    520 b fenced 2 2
    700 a releasing 3
    702 a sends release 10
    706 - applies 10
    706 - takes-back 3 3
    710 a released 3";

/// A client that is paused and cut off, an operator, a crash, and a write that comes too late.
const TROUBLE: &str = "0 a wants 1
    1 a sends claim 2
    5 - applies 2
    5 - grants 1 1
    9 a answered 2
    9 a holds 1 1
    20 b wants 2
    21 b sends claim 3
    25 - applies 3
    29 b answered 3
    30 c tries 3
    31 c sends claim 4
    35 - applies 4
    40 c answered 4
    40 c busy 3
    340 a struck renew partition 2500
    340 a sends renew 5
    500 a sends renew 6
    600 a struck writing pause 2150
    600 a paused-until 2750
    1005 - lapses 1 1
    1005 - grants 2 2
    1010 b struck confirm lost-reply
    1010 b sends confirm 7
    1014 - applies 7
    1180 b sends confirm 8
    1184 - applies 8
    1190 b answered 8
    1190 b holds 2 2
    1250 b writes 2 2
    1500 b struck holding delete-key
    1500 - interferes 2 2
    1510 c wants 4
    1512 c struck claim late-request 900
    1512 c sends claim 9
    1700 b loses 2
    1712 c sends claim 10
    1716 - applies 10
    1716 - grants 4 3
    1722 c answered 10
    1722 c holds 4 3
    2000 c crashes
    2412 - applies 9
    2716 - lapses 4 3
    2750 a loses 1
    2756 a fenced 1 1
    2900 a believes 1 1";

/// The picture of a sketch; to be looked at, in the folder that DLOCK_SIM_PICTURES names.
fn picture(name: &str, sketch: &str, faults: Vec<Struck>) -> String {
    let plan = sketch::plan().with_faults(faults);
    let history = sketch::history(sketch);
    let violation = check(&plan, &history);
    let picture = svg(&plan, &history, violation.as_ref());
    if let Ok(folder) = std::env::var("DLOCK_SIM_PICTURES") {
        std::fs::write(format!("{folder}/{name}.svg"), &picture).unwrap();
    }
    picture
}

fn late_release() -> Vec<Struck> {
    vec![Struck { slot: Slot { site: Site::Release, client: 0, nth: 0 }, fault: Fault::Repeat(214) }]
}

#[test]
fn a_violation_is_told_with_its_plan_and_marked_where_it_happened() {
    let picture = picture("stray", STRAY, late_release());
    let mut expected = vec!["S5 is broken: one release for one grant, and only by whom it was granted to", "S5 broken here"];
    expected.push("1 fault: arrives again 214 ms later at release 1 of client a");
    expected.push("token 2 was given back while client b held it (acquisition 2)");
    expected.extend(["holds (2), token 2", "a · token 3", "release: arrives again 214 ms later", "client b", "resource"]);
    for words in expected {
        assert!(picture.contains(words), "{words} is missing in {picture}");
    }
}

#[test]
fn every_fault_leaves_its_mark() {
    let picture = picture("trouble", TROUBLE, Vec::new());
    let expected = ["cut off for 2500 ms", "paused", "lapses", "reply lost", "operator deletes the key", "ended by an operator"];
    let more = ["request 900 ms late", "crashes", "lost: expired", "refused", "busy", "believes falsely"];
    for words in expected.into_iter().chain(more) {
        assert!(picture.contains(words), "{words} is missing in {picture}");
    }
}

#[test]
fn a_long_history_is_shown_around_its_violation() {
    let mut sketch = String::new();
    for n in 0..400_u64 {
        let at = n * 100;
        sketch += &format!("{at} a wants {n}\n{} - grants {n} {}\n{} a holds {n} {}\n", at + 1, n + 1, at + 2, n + 1);
        sketch += &format!("{} a releasing {n}\n{} - takes-back {n} {}\n{} a released {n}\n", at + 50, at + 51, n + 1, at + 52);
    }
    let sketch = sketch.replace("20050 a releasing 200\n", "");
    let picture = picture("long", &sketch, Vec::new());
    assert!(picture.contains("S5 broken here") && picture.contains("holds (200), token 201"));
    assert!(!picture.contains("(100)") && picture.len() < 60_000, "{}", picture.len());
}

#[test]
fn nothing_and_nobody_can_be_drawn() {
    assert!(picture("empty", "", Vec::new()).contains("every promise is kept"));
    assert!(picture("clean", "0 a wants 1", Vec::new()).contains("every promise is kept"));
}
