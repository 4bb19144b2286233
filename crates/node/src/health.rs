//! How a node is, for probes and for balancers.

/// A node's health. Liveness is not in it: that is whether anybody can ask at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Storage is open and the log is replayed. Joining a cluster is not part of starting.
    pub started: bool,
    /// Member of a cluster, caught up with what was committed when it started, knows a leader (or has
    /// known one within the last ten seconds), and is not draining.
    pub ready: bool,
    pub draining: bool,
    /// Why it is not ready; empty if it is.
    pub reason: String,
}

impl Health {
    pub(crate) fn starting() -> Self {
        Self {
            started: false,
            ready: false,
            draining: false,
            reason: "starting".into(),
        }
    }

    pub(crate) fn not_ready(reason: impl Into<String>) -> Self {
        Self {
            started: true,
            ready: false,
            draining: false,
            reason: reason.into(),
        }
    }

    pub(crate) fn ready() -> Self {
        Self {
            started: true,
            ready: true,
            draining: false,
            reason: String::new(),
        }
    }

    pub(crate) fn leaving() -> Self {
        Self {
            reason: "leaving: beyond the desired size; votes until the membership is without it"
                .into(),
            ..Self::draining()
        }
    }

    pub(crate) fn draining() -> Self {
        Self {
            started: true,
            ready: false,
            draining: true,
            reason: "draining: going to stop".into(),
        }
    }
}
