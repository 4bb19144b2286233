//! A short round, for `make test`. For hours: `make chaos MINUTES=..`.

use std::path::PathBuf;
use std::time::Duration;

use podkv_chaos::rounds::{Plan, play};

#[test]
fn a_short_round() {
    let plan = Plan {
        seed: 1,
        time: Duration::from_secs(25),
        // A node that lost its volume needs more time than a short round has.
        corruption: false,
        sick_disks: false,
        fail_points: false,
        binary: None,
        program: Some(PathBuf::from(env!("CARGO_BIN_EXE_podkv-chaos"))),
    };
    let total = play(&plan).unwrap_or_else(|error| panic!("{error}"));
    assert!(total.summary.faults.kills > 0, "nothing was killed");
    assert!(total.summary.acknowledged > 0, "nothing was answered");
}
