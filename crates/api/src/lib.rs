//! What users of podkv see: plain types, one error, the [`Store`] trait, and recipes on top of it.
//!
//! The embedded node and the remote client implement the same [`Store`]; code written against the
//! trait runs in a pod that *is* a node, next to one, or far from one.
//!
//! The data model is etcd's: one flat, ordered keyspace of byte strings and one cluster-wide
//! [`Revision`] that grows by one with each committed write transaction.
//!
//! This crate never names tonic, prost, openraft or RocksDB.

pub mod auth;
pub mod cluster;
pub mod error;
pub mod key;
pub mod kv;
pub mod large;
pub mod lease;
pub mod limits;
#[cfg(feature = "recipes")]
pub mod recipes;
pub mod session;
pub mod store;
pub mod txn;
pub mod watch;

pub use bytes::Bytes;

pub use auth::{AuthStatus, Permission, PermissionKind, ROOT, Role, User};
pub use cluster::{
    Alarm, AlarmKind, ClusterId, DesiredSize, Header, Incarnation, Member, MemberId, MemberRole,
    NodeStatus, Retention,
};
pub use error::{Error, ErrorKind, LeaderHint, Reason, Result};
pub use key::{KeyRange, RangeEnd};
pub use kv::{
    CompactResponse, Consistency, Delete, DeleteResponse, KeyValue, Put, PutResponse, Range,
    RangeResponse, Revision,
};
pub use lease::{LeaseGrantResponse, LeaseId, LeaseStatus};
pub use limits::Limits;
pub use session::{SessionId, SessionStamp};
pub use store::{RangeStream, Store, WatchStream};
pub use txn::{Compare, CompareOp, CompareTarget, Op, OpResponse, Txn, TxnResponse};
pub use watch::{Event, EventKind, Watch, WatchMessage};
