//! The tour: load real input, kill the leader in the middle, prove that nothing was lost or applied twice.
//!
//! The same tour runs on real processes and disks (`make demo`) and on memory storage in this process
//! (`make try`). It prints what it sees, and fails if any claim does not hold.

mod input;
mod tour;

pub use self::input::{Input, sorted_sha256};
pub use self::tour::{Stage, run};
