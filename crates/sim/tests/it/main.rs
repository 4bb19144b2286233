//! The world: one seed is one run, some seeds are clean, and bugs that are put into it are found.
//!
//! Each run is a process of its own: see `src/main.rs`.

use std::process::{Command, Output};

use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_podkv-sim"))
        .args(arguments)
        .output()
        .expect("the runner starts")
}

/// Plays a seed, and gives what it came to.
fn played(seed: u64, more: &[&str]) -> Value {
    let seed = seed.to_string();
    let mut arguments = vec!["--json", "--seed", &seed];
    arguments.extend_from_slice(more);
    let output = run(&arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[track_caller]
fn clean(seed: u64) -> Value {
    let summary = played(seed, &[]);
    assert_eq!(
        summary["violations"],
        Value::Array(Vec::new()),
        "seed {seed}"
    );
    assert!(summary["acknowledged"].as_u64() > Some(0), "{summary}");
    summary
}

#[test]
fn a_seed_is_one_run_whatever_process_plays_it() {
    let first = clean(1);
    let again = Command::new(env!("CARGO_BIN_EXE_podkv-sim"))
        .args(["--seed", "1", "--json"])
        // Other memory, other environment.
        .env("SOMETHING_ELSE", "x".repeat(5000))
        .current_dir(std::env::temp_dir())
        .output()
        .expect("the runner starts");
    let again: Value = serde_json::from_slice(&again.stdout).expect("a summary");
    assert_eq!(first["trace"], again["trace"]);
    assert_eq!(first["events"], again["events"]);
    assert_ne!(first["trace"], clean(2)["trace"]);
}

#[test]
fn some_seeds_are_clean() {
    for seed in 3..=8 {
        clean(seed);
    }
}

/// Seeds that found something. They may play something else after a change of the world; what they found has a test of
/// its own where that was possible.
#[test]
fn seeds_that_failed_once_are_clean() {
    // A leader without a majority was asked again at once, and nothing else ran.
    clean(11);
    // A status showed a term that was not on the disk yet, and a lower one after the restart. Its test of its own:
    // `raft::group::tests::a_term_is_shown_once_it_is_on_the_disk`.
    clean(1011);
}

/// Without this a clean seed says nothing. `make sim-planted` looks for all of them.
#[test]
fn bugs_that_are_planted_are_found() {
    for bug in [
        "stale-read",
        "double-apply",
        "skipped-event",
        "fast-clock",
        "lost-fsync",
        "lost-renewal",
    ] {
        let output = run(&["--seeds", "20", "--planted", bug]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{bug}: {text}");
    }
}
