//! What podkv's data means.
//!
//! One pure function stands in the middle: an [`Entry`] of the log is applied to a [`View`] of the
//! state, and comes out as [`Effects`] (what to write, what to tell watchers) and one [`Outcome`]
//! for each command. The node commits the writes, answers the proposers, publishes the events.
//!
//! Two replicas that apply the same entries hold the same bytes. So this crate has no clock, no
//! randomness, no hash order, no I/O and no threads; time comes in with each entry.
//!
//! Where to start reading: [`mvcc`] for the idea, [`schema`] for the bytes, [`apply`] for the flow.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod alarm;
pub mod apply;
pub mod auth;
pub mod backup;
pub mod changes;
pub mod check;
pub mod codec;
pub mod command;
mod compact;
mod counts;
pub mod digest;
mod expire;
mod freeze;
/// Private formats, for `tests/fuzz`: no part of the API.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod lease;
pub mod meta;
pub mod mvcc;
pub mod outcome;
mod overlay;
mod past_counts;
pub mod range;
mod record;
mod restore;
mod retention;
pub mod rights;
pub mod schema;
mod session;
mod size;
mod state;
pub mod txn;
pub mod view;

pub use bincode;

pub use alarm::{alarms, grows};
pub use apply::{Applier, Effects};
pub use auth::{
    AuthChange, AuthInfo, AuthUser, Caller, auth_info, auth_role, auth_roles, auth_user, auth_users,
};
pub use backup::{
    BackupBuilder, BackupEnd, BackupError, BackupHeader, BackupId, BackupPart, BackupReader,
    BackupRecord, BackupWriter,
};
pub use changes::{ChangesLimits, ChangesPage, RevisionEvents, changes};
pub use check::{check, check_range};
pub use codec::{Blob, CodecError, FrameKind};
pub use command::{Command, Entry, Proposal, Stamp};
pub use digest::{data_digest, state_digest};
pub use expire::next_deadline;
pub use freeze::{MAX_FROZEN_PREFIXES, frozen_prefixes};
pub use lease::{lease_status, leases};
pub use meta::{FEATURE_LEVEL, Meta, read_meta};
pub use outcome::{Answer, Outcome, Rejection};
pub use past_counts::{KeepPastCounts, PastCounts};
pub use podkv_api::Retention;
pub use range::{PageLimits, RangePage, range, range_with};
pub use restore::{REVISION_RAISE, restoring};
pub use retention::retention_target;
pub use rights::{Rights, rights};
pub use session::SESSION_WINDOW;
pub use size::{desired_size, size_counts};
pub use txn::txn_read;
pub use view::{MemoryView, Scan, View, ViewError};
