//! A short selection of the scenarios, for `make test`. All of them: `make rehearse`.

use std::io::Write as _;
use std::path::PathBuf;

use podkv_pods::runner::{Plan, impossible, play_all};

/// Two or three minutes in all.
const SELECTION: [&str; 5] = [
    "first-start",
    "rolling-restart",
    "lost-volumes",
    "kills",
    "recovery",
];

/// One test, because the machine is one: two scenarios at a time leave no core to a third.
#[test]
fn the_short_rehearsal() {
    if let Some(why) = impossible() {
        // Loud, and past what captures the output of tests: nobody should take this for a rehearsal.
        writeln!(std::io::stderr(), "\nNOT REHEARSED: {why}\n").expect("stderr is there");
        return;
    }
    let plan = Plan {
        scenarios: SELECTION.map(String::from).into(),
        seed: None,
        seeds: Some(1),
        jobs: 1,
        short: true,
        without: Vec::new(),
        binary: None,
        program: Some(PathBuf::from(env!("CARGO_BIN_EXE_podkv-rehearse"))),
    };
    if let Err(error) = play_all(&plan) {
        panic!("{error}");
    }
}
