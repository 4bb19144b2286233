//! How podkv's promises are checked: a [`history`] of what clients called and saw, and a [`check`] for each
//! promise.
//!
//! ```text
//!   whoever drives a cluster ──► History ──► check::all ──► Report: violations, and what was looked at
//! ```
//!
//! Nothing here speaks to a cluster, and nothing here is podkv's own code: a checker that used the store's MVCC
//! would share its mistakes. A history is a file, so what failed once can be checked again.
//!
//! Today real processes are driven (`tests/chaos`). The seeded world, which runs nodes on a simulated network,
//! clock and disk, will live in this crate too, and record the same histories.

pub mod check;
pub mod history;
