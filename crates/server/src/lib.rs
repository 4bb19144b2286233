//! What a node shows to the network. It decides nothing about data.
//!
//! ```text
//!   grpc-client ──► server (connections, drain) ──► api: convert, call, convert ──► Node
//!   http-admin  ──► admin (probes, metrics) ─────────────────────────────────────► Node::health, status
//! ```
//!
//! Two ways to use it:
//! - [`Server`] and [`AdminServer`] listen and own their connections: the `podkv` binary;
//! - [`api::routes`] is a set of gRPC services to mount in a server of your own, and
//!   [`admin::answer`] answers one probe: an application that embeds a node.

pub mod admin;
pub mod api;
mod cert;
pub mod cli;
mod connections;
mod dev;
mod doctor;
mod etcd;
mod files;
/// What is private, for `tests/fuzz`: no part of the API.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::etcd::fuzzing::{Asked, json, requests};
    pub use crate::settings::of_text as settings;
}
mod room;
mod serve;
mod server;
pub mod settings;
mod signals;
mod unfinished;

pub use admin::AdminServer;
pub use api::ApiSettings;
pub use server::{Server, ServerBuilder, ServerSettings};
