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
