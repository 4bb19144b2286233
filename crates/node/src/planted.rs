//! Bugs that the simulation puts into a node, to see whether it finds them. Each is one that others have shipped, or
//! that the design names as the one not to make.
//!
//! This module, and every line that asks it, is compiled with the feature `planted` alone. The `podkv` binary does not
//! compile with it: see `crates/server/src/main.rs`.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Of this process: a simulated world is a process.
static PLANTED: AtomicU8 = AtomicU8::new(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// Entries are applied, and so may be on the disk of the state, before the own log has synced them.
    ApplyAheadOfFsync = 1,
    /// The log is purged up to its end, whatever the snapshot covers.
    PurgeAheadOfSnapshot,
    /// A leader counts the cluster clock on by three seconds that nobody measured, each time that it takes office.
    ClockAcrossRestart,
    /// A leader counts its lease twice as long.
    LongLease,
}

/// Puts a bug into every node of this process.
pub fn plant(bug: Bug) {
    PLANTED.store(bug as u8, Relaxed);
}

pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.load(Relaxed) == bug as u8
}
