//! The remote podkv store: one [`Client`] that implements [`podkv_api::Store`] over `podkv.v1`.
//!
//! ```no_run
//! # async fn example() -> podkv_api::Result<()> {
//! use podkv_api::{Put, Store};
//! use podkv_client::Client;
//!
//! let client = Client::connect(["127.0.0.1:2379"]).await?;
//! client.put(Put::new("greeting", "hello")).await?;
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What it does by itself
//!
//! - **Finds the cluster** from any of its nodes or through a service's name, learns its members, prefers
//!   the leader for writes, and spreads reads over all nodes.
//! - **Retries** within a deadline: reads freely, writes inside a session, so that each is applied at most
//!   once. An error says whether a write may have been applied; it never says wrongly that it was not.
//! - **Rides on one stream** to each node for puts, deletes, transactions and small ranges.
//! - **Resumes watches** on another node without a gap or a duplicate.
//! - **Authenticates** by itself, if it was given a name and a password.
//! - **Refuses** answers of another cluster, or from this cluster's past.
//!
//! # Where what is
//!
//! `core` runs a call; `retry` chooses its attempts from `endpoints`; `session::decision` is the verdict
//! on a failed one; `fence` checks each answer. `pipe`, `lease`, `scan`, `watch`, `snapshot` and
//! `restore` are the streams, `directory` is the task that looks around.

mod admin;
mod auth;
mod builder;
mod client;
mod core;
mod credentials;
mod dial;
mod directory;
mod endpoint;
mod endpoints;
mod failure;
mod fence;
mod lease;
mod pipe;
mod restore;
mod retry;
mod scan;
mod session;
mod settings;
mod snapshot;
mod watch;

pub use admin::NewMember;
pub use builder::Builder;
pub use client::Client;
pub use dial::{Connection, Dialer, Dialing};
pub use podkv_tls::TlsOptions;
pub use restore::{BackupData, SnapshotRestored};
pub use snapshot::SnapshotStream;
