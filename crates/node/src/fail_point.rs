//! Named places at which a test of crashes ends or stops the process: between two effects on the disk, where a crash at a
//! random moment hardly ever falls.
//!
//! In what ships [`pass`] is empty. With the feature `fail-points`, `CHAOS_FAIL_POINT=log-written:7:kill` kills the process with
//! SIGKILL when it comes to that place for the seventh time; `stop` stops it there with SIGSTOP, until somebody lets it
//! go on. Who sets them: `tests/chaos`.

/// Defines the places, and the name of each.
macro_rules! points {
    ($($(#[doc = $doc:literal])+ $point:ident = $name:literal,)+) => {
        /// A place.
        #[cfg_attr(
            not(feature = "rocksdb"),
            expect(dead_code, reason = "memory storage has no pointer to a state")
        )]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Point {
            $($(#[doc = $doc])+ $point,)+
        }

        impl Point {
            #[cfg(any(feature = "fail-points", test))]
            fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }
        }

        /// The name of each place, in any build.
        pub const FAIL_POINTS: &[&str] = &[$($name,)+];
    };
}

points! {
    /// A batch of the log stands before its sync.
    LogToWrite = "log-to-write",
    /// A batch of the log is synced, and nobody was told.
    LogWritten = "log-written",
    /// A vote is to be written.
    VoteToWrite = "vote-to-write",
    /// A vote is synced, and nobody was told.
    VoteWritten = "vote-written",
    /// Entries that another leader replaced are gone from the log.
    LogTruncated = "log-truncated",
    /// The log is to be purged.
    LogToPurge = "log-to-purge",
    /// The log is purged, its files are still there.
    LogPurged = "log-purged",
    /// Entries are computed, and not in the state.
    ApplyToCommit = "apply-to-commit",
    /// Entries are in the state, and nobody was told.
    ApplyCommitted = "apply-committed",
    /// The state is to be flushed.
    StateToFlush = "state-to-flush",
    /// The state is flushed.
    StateFlushed = "state-flushed",
    /// A checkpoint is to be made.
    SnapshotToBuild = "snapshot-to-build",
    /// A checkpoint is made, and nobody knows.
    SnapshotBuilt = "snapshot-built",
    /// A snapshot of a peer is here whole.
    SnapshotReceived = "snapshot-received",
    /// A snapshot of a peer has a folder of the state's, and the pointer names the old one.
    PointerToMove = "pointer-to-move",
    /// The pointer names the new state; the old one is served.
    PointerMoved = "pointer-moved",
    /// A snapshot is installed, and Raft does not know.
    Installed = "installed",
    /// A leader is to propose a change of the members.
    MembersToChange = "members-to-change",
    /// New members are in the state: of a change in two halves, twice.
    MembersApplied = "members-applied",
    /// A leader knows that a change of the members is committed.
    MembersChanged = "members-changed",
    /// The marker is to be written.
    MarkerToSave = "marker-to-save",
    /// The marker is written, and nobody was told.
    MarkerSaved = "marker-saved",
    /// All founders have agreed.
    ToInitialize = "to-initialize",
    /// The first membership is in the log.
    Initialized = "initialized",
}

/// The process comes to a place.
#[inline]
pub(crate) fn pass(point: Point) {
    #[cfg(feature = "fail-points")]
    armed::pass(point);
    #[cfg(not(feature = "fail-points"))]
    let _ = point;
}

#[cfg(feature = "fail-points")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use rustix::process::{Signal, getpid, kill_process};

    use super::Point;

    struct Armed {
        name: String,
        /// Of how many visits the one that springs it.
        nth: u64,
        signal: Signal,
        visits: AtomicU64,
    }

    fn read() -> Option<Armed> {
        let told = std::env::var("CHAOS_FAIL_POINT").ok()?;
        let mut parts = told.split(':');
        let (name, nth, what) = (parts.next()?, parts.next()?, parts.next()?);
        let signal = match what {
            "kill" => Signal::KILL,
            "stop" => Signal::STOP,
            _ => return None,
        };
        super::FAIL_POINTS.contains(&name).then_some(Armed {
            name: name.into(),
            nth: nth.parse().ok()?,
            signal,
            visits: AtomicU64::new(0),
        })
    }

    pub fn pass(point: Point) {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let Some(armed) = ARMED.get_or_init(read) else {
            return;
        };
        if armed.name == point.name() && armed.visits.fetch_add(1, Relaxed) + 1 == armed.nth {
            tracing::warn!(point = armed.name, nth = armed.nth, "fail point");
            let _ = kill_process(getpid(), armed.signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FAIL_POINTS, Point};

    #[test]
    fn names_are_used_once() {
        let unique: std::collections::BTreeSet<_> = FAIL_POINTS.iter().collect();
        assert_eq!(unique.len(), FAIL_POINTS.len());
        assert!(FAIL_POINTS.contains(&Point::LogWritten.name()));
    }
}
