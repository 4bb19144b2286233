//! A replicated key-value store that lives inside pods.
//!
//! Each pod of a StatefulSet runs one node of a Raft group and keeps its log on its own volume; all replicas
//! hold everything. The data model is etcd's: a flat, ordered keyspace of byte strings, one revision for each
//! write transaction, watches, leases, transactions. What podkv adds: writes that are applied **exactly
//! once** whatever the network does, a time to live on a single put, reads of the freshness that you ask
//! for, and locks that can be fenced.
//!
//! # Three ways to use it
//!
//! | you have | feature | you write |
//! | --- | --- | --- |
//! | an application anywhere, a cluster elsewhere | `client` (default) | [`Client::connect`] |
//! | a Rust application in a StatefulSet whose replicas share state | `embed` | `pod::Pod::find`, or `node::Node::builder` |
//! | a unit test | `testing` | `testing::cluster(3)` |
//!
//! All three implement one trait, [`Store`], with the same types, the same errors and the same
//! [`recipes`]. Write your code against `impl Store`, and choose where it runs later:
//!
//! ```
//! use podkv::{KeyRange, Put, Range, Result, Store};
//!
//! async fn register(store: &impl Store, name: &str, address: &str) -> Result<u64> {
//!     store.put(Put::new(format!("service/{name}"), address.to_owned())).await?;
//!     let all = Range::new(KeyRange::prefix("service/")).count_only();
//!     Ok(store.range(all).await?.count)
//! }
//! ```
//!
#![cfg_attr(
    feature = "client",
    doc = r#"
# The remote client

```no_run
use podkv::{Client, Put, Store};

# async fn example() -> podkv::Result<()> {
// Any nodes; the others are learned. In Kubernetes, rather the headless service's name:
// Client::builder().service("podkv-headless.prod.svc.cluster.local.:2379").connect().await?
let client = Client::connect(["127.0.0.1:2379"]).await?;
client.put(Put::new("greeting", "hello")).await?;
client.close().await;
# Ok(())
# }
```
"#
)]
//! # What an error means
//!
//! [`Error::kind`] says what you can do, [`Error::reason`] what happened. A write that failed was not
//! applied, **unless** [`Error::outcome_unknown`] is true: then it may have been. The client has
//! retried by then, until its deadline, so there is nothing left to do but to read what is there.
//!
//! # How fresh a read is
//!
//! Linearizable, unless you ask for less by name: [`Consistency::Bounded`] and [`Consistency::Local`]
//! are answered by the node that is asked, from its own state.
//!
//! # Features
//!
//! - `client` (default): the remote client. No C++; TLS compiles a little C.
//! - `embed`: a node in your process, with its data on a volume. Builds RocksDB, which takes a C++
//!   compiler, libclang and about a quarter of an hour once. Only one version of RocksDB can be in a program.
//! - `testing`: a whole cluster in memory, to kill leaders in your unit tests. No C++ either.
#![cfg_attr(
    feature = "testing",
    doc = r#"
# A cluster in a test

```
use podkv::{Put, Store};

# #[tokio::main]
# async fn main() -> podkv::Result<()> {
let mut cluster = podkv::testing::cluster(3).await;
let leader = cluster.leader().await;
cluster.node(leader).put(Put::new("a", "1")).await?;
cluster.kill_leader().await;
let survivor = cluster.leader().await;
assert_eq!(cluster.node(survivor).get("a").await?.unwrap().value, "1");
# Ok(())
# }
```
"#
)]

pub use podkv_api::{
    Bytes, ClusterId, CompactResponse, Compare, CompareOp, CompareTarget, Consistency, Delete,
    DeleteResponse, DesiredSize, Error, ErrorKind, Event, EventKind, Header, Incarnation, KeyRange,
    KeyValue, LeaderHint, LeaseGrantResponse, LeaseId, LeaseStatus, Limits, Member, MemberId,
    MemberRole, NodeStatus, Op, OpResponse, Put, PutResponse, Range, RangeEnd, RangeResponse,
    RangeStream, Reason, Result, Retention, Revision, SessionId, SessionStamp, Store, Txn,
    TxnResponse, Watch, WatchMessage, WatchStream,
};

/// What people build on a store: typed values, a local mirror, a mutex, an election, values of any length.
pub use podkv_api::recipes;

/// The remote client.
#[cfg(feature = "client")]
pub mod client {
    pub use podkv_client::{Builder, Client, NewMember, SnapshotStream, TlsOptions};
}

#[cfg(feature = "client")]
pub use podkv_client::Client;

/// A node inside the application.
#[cfg(any(feature = "embed", feature = "testing"))]
pub mod node {
    pub use podkv_node::config::{
        ClientAuth, NodeConfig, RaftTiming, StorageConfig, TlsConfig, TlsMode,
    };
    pub use podkv_node::{Health, Node, NodeBuilder, discovery};
}

/// The pod around an embedded node: its name, its peers, how many there should be, how it leaves.
#[cfg(feature = "embed")]
pub mod pod {
    pub use podkv_pod::{Pod, PodSettings, leave};
}

/// A whole cluster inside a test: no disk, no sockets, no C++.
#[cfg(feature = "testing")]
pub use podkv_node::testing;
