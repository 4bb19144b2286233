//! How podkv's promises are checked: a [`history`] of what clients called and saw, and a [`check`] for each
//! promise.
//!
//! ```text
//!   world (simulated)  ─┐   clients, recorder
//!                       ├──► History ──► check::all ──► Report: violations, and what was looked at
//!   tests/chaos (real) ─┘   harvest
//! ```
//!
//! - [`world`]: real nodes on a simulated network, clock and disk. One seed is one run, exactly.
//! - [`clients`], [`recorder`], [`harvest`]: who calls, what is noted, what replicas hold at the end. `tests/chaos` drives
//!   real processes with the same.
//! - [`history`] and [`check`] speak to no cluster, and hold none of podkv's own code: a checker that used the store's
//!   MVCC would share its mistakes. A history is a file, so what failed once can be checked again.

pub mod check;
pub mod clients;
pub mod harvest;
pub mod history;
pub mod recorder;
pub mod world;
