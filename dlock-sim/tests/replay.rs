//! Replays plans: the one that `DLOCK_SIM_REPLAY` names, or those that a fault once broke, or could break.

use std::path::{Path, PathBuf};
use std::{env, fs};

use dlock_sim::campaign::{Files, REPLAY, folder, told};
use dlock_sim::plan::{Faults, Plan};
use dlock_sim::run::{Run, run};

#[test]
fn plans_that_once_failed_keep_every_promise() {
    if let Some(path) = env::var_os(REPLAY) {
        return replay(Path::new(&path));
    }
    let corpus = corpus();
    assert!(!corpus.is_empty(), "there are plans to replay");
    for path in corpus {
        let Run { plan, history, violation } = run(&read(&path));
        if let Some(violation) = violation {
            panic!("{}\n{}", path.display(), told(&plan, &history, &violation));
        }
    }
}

#[test]
fn plans_that_once_failed_list_their_faults() {
    for path in corpus() {
        assert!(matches!(read(&path).faults, Faults::Listed(_)), "{}: what is drawn is another fault tomorrow", path.display());
    }
}

/// Prints the history and the verdict, and fails if a promise is broken.
fn replay(path: &Path) {
    let Run { plan, history, violation } = run(&read(path));
    println!("{}", history.to_json_lines());
    let files = Files::write(&folder(), "replayed", &plan, &history, violation.as_ref()).unwrap();
    println!("picture  {}\n", files.picture.display());
    match violation {
        None => println!("every promise is kept"),
        Some(violation) => panic!("\n{}", told(&plan, &history, &violation)),
    }
}

fn corpus() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut plans: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    plans.sort();
    plans
}

fn read(path: &Path) -> Plan {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
