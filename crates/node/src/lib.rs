//! One embeddable replica of a podkv cluster.
//!
//! Read in this order: [`storage`] (two narrow traits), [`raft`] (the log, the state machine and
//! the group), [`peer`] (what nodes say to each other), [`watch`], then [`node`], which ties them
//! together and implements the store trait.

mod bootstrap;
pub mod config;
pub mod discovery;
pub mod identity;
mod membership;
mod peer;
mod raft;
pub mod storage;
pub mod transport;
mod watch;

pub use config::NodeConfig;
