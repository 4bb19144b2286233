//! The recipes against a store that fails on purpose. Time is paused: nothing here really waits.

mod election;
mod fake;
mod large;
mod mirror;
mod mutex;
mod mutex_loss;
mod typed;

use std::time::Duration;

use podkv_api::{Error, Reason};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[track_caller]
fn assert_reason<T: std::fmt::Debug>(result: Result<T, Error>, reason: Reason) {
    assert_eq!(result.expect_err("it should fail").reason(), reason);
}
