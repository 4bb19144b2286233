//! Raft: the log, the state machine, the peers, and the [`Group`] that holds them together.
//!
//! The one place that knows openraft. Its types stay here: [`types`] fixes the generics, [`record`]
//! and [`wire`] say how they look on disk and between nodes, and [`Group`] speaks our own types. An
//! alpha is mended in one place.
//!
//! ```text
//!   Group ── submit ──► openraft core ──► log (one writer thread, one fsync a batch)
//!                          │       └────► network: append, heartbeat, snapshot streams to each peer
//!                          └─ committed ─► machine (apply thread): core.apply ► one state batch ► answers ► events
//!   peers ── RaftCalls (calls) ──► openraft core
//! ```
//!
//! What must never be: an openraft type in a public signature of `Group`, or its layout on a disk; a
//! state that is ahead of the local log's fsync; a purge that the durable state does not cover.

mod calls;
mod freshness;
mod group;
mod histogram;
mod leader_lease;
mod log;
mod machine;
mod membership;
mod network;
mod offline;
mod record;
mod transfer;
mod types;
mod wire;

#[cfg(test)]
mod suite;

use std::sync::Arc;

use podkv_api::Revision;
use podkv_core::{Outcome, RevisionEvents};

pub(crate) use self::group::{Group, GroupParts, GroupState, Role};
pub(crate) use self::histogram::HistogramSnapshot;
pub(crate) use self::leader_lease::LeaseTerms;
pub(crate) use self::log::LogStats;
pub(crate) use self::machine::SnapshotStats;
#[cfg(test)]
pub(crate) use self::offline::testing;
pub(crate) use self::offline::{Held, append_recovery, apply_all, look, newest_members};
pub(crate) use self::types::Payload;
use crate::membership::LogPosition;

/// How far the state has come. Read together, it belongs together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The last entry that is in the state; 0.0 before there is any.
    pub position: LogPosition,
    pub revision: Revision,
    pub compacted_revision: Revision,
    /// The cluster clock.
    pub clock_ms: u64,
}

/// An entry that is committed and applied: where, and what each of its proposals came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    pub position: LogPosition,
    pub outcomes: Vec<Outcome>,
}

/// Where what happened goes: the watch hub. Called from the apply thread, in order: it must not wait.
pub(crate) trait EventSink: Send + Sync + 'static {
    /// The state moved on to `applied`, through these revisions. There may be none.
    fn publish(&self, events: Vec<Arc<RevisionEvents>>, applied: Applied);

    /// The state was replaced as a whole, by a snapshot: revisions were skipped. Watchers catch up from
    /// its history, or learn that it is compacted.
    fn reset(&self, applied: Applied);

    /// Users, roles or permissions have changed, or may have. Said before what came after it is published.
    fn auth_changed(&self) {}
}
