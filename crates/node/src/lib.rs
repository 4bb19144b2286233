//! One embeddable replica of a podkv cluster.
//!
//! Read in this order: [`storage`] (two narrow traits), [`raft`] (the log, the state machine and
//! the group), [`peer`] (what nodes say to each other), [`watch`], then [`node`], which ties them
//! together and implements the store trait.

mod auth;
mod bootstrap;
mod clock;
pub mod config;
pub mod discovery;
pub mod dns;
mod duties;
mod fail_point;
/// Private formats, for `tests/fuzz`: no part of the API.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod health;
pub mod identity;
mod loans;
mod membership;
pub mod node;
mod own_session;
mod past_counts;
mod peer;
#[cfg(feature = "planted")]
pub mod planted;
mod query;
mod raft;
mod read;
mod reconcile;
pub mod recovery;
mod renew;
pub mod resync;
#[cfg(test)]
mod script;
mod size;
mod space;
mod stall;
pub mod storage;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
mod watch;
mod write;

/// True if this build can be given bugs, for the simulation to find: see the feature `planted`. What ships asserts that it
/// is not.
pub const CAN_BE_PLANTED: bool = cfg!(feature = "planted");

/// True if this build ends at places that the environment names, for tests of crashes: see the feature `fail-points`.
pub const HAS_FAIL_POINTS: bool = cfg!(feature = "fail-points");

pub use config::NodeConfig;
pub use fail_point::FAIL_POINTS;
pub use health::Health;
pub use node::{
    Access, DataDigest, Latency, Method, Node, NodeBuilder, NodeStats, Requests, RestoreWriter,
    Restored, Scrubbed, SnapshotReader, Total, Written, open_tls,
};
pub use size::SizeSource;
pub use space::VolumeSpace;
pub use watch::Progress;
