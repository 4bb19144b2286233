//! etcd's v3 API over a [`Node`]: all that is etcd's in podkv is in this folder.
//!
//! A handler converts, calls the verbs that the native API calls, and converts back. What etcd means and the core
//! means, too, is not said again here; what only etcd's clients can see (its numbers, texts, orders) is:
//!
//! | file | what |
//! | --- | --- |
//! | `error` | the codes and texts that clients of etcd match on |
//! | `convert` | keys, headers, single operations |
//! | `range` | order and filters of a range, on top of what the core reads |
//! | `txn` | transactions, there and back |
//! | `watch` | many watches in one stream |
//! | `auth` | users, roles, permissions, tokens |
//! | `lock`, `election` | recipes on the server's side |
//! | `import` | `podkv import etcd`: a running etcd moves in |
//! | `gateway` | JSON over HTTP, and what else is beside gRPC on etcd's port |
//!
//! # Where a node answers otherwise than etcd, on purpose
//!
//! | what | etcd | podkv | why |
//! | --- | --- | --- | --- |
//! | a write whose outcome is unknown | `Unavailable`, "request timed out" | `DeadlineExceeded` | proxies repeat what is unavailable, and a write must not run twice |
//! | `MemberAdd`, `MemberUpdate` | change the membership | refused | a pod joins by itself, and its address follows from its name |
//! | `MoveLeader` | only at the leader | at any node | it is passed on |
//! | calls at a learner | mostly refused | all served | a standby is a learner for good, and a service sends it a share of the connections |
//! | `Snapshot` | a file of bbolt | podkv's backup | what is restored must be podkv's |
//! | `Hash`, `HashKV` | a CRC of etcd's files | a digest of the data | equal on every node, which is what they are for |
//! | `Defragment` | stops the world | nothing to do | space is reclaimed all the time |
//! | keys above 64 KiB, transactions deeper than 8 | accepted | refused | see `Limits` |
//! | an unknown enum value in a compare | holds, or compares as equal | refused | a guess decides about a write |
//! | a write below a frozen prefix | there are none | `FailedPrecondition`, and podkv's own text | etcd has no word for it |
//! | a negative revision inside a transaction | compacted, or the newest | refused before it runs | the same |
//! | `AuthEnable` | always | refused where clients may come in clear | `auth-without-tls` allows it |
//! | tokens | renewed by use, or JWT | hold for a day, end with the password | no node remembers them |
//! | alarms | raised and disarmed by hand too | raised by what is measured; `NOSPACE` goes by itself, and comes back after a disarm that was too early | nobody should have to remember it |
//! | what `NOSPACE` refuses | puts, transactions that would put, leases | the same, and transactions that might put | it is decided before anything is proposed |
//! | disarming an alarm | whoever is known | only `root`, if auth is enabled | as all that concerns the cluster |
//! | a certificate's name | may be a user | is none | certificates name pods |
//! | who may call leases, members, alarms, compaction | asked since 3.5.28 | asked | open before, by mistake |
//! | a watch whose permission is taken away | goes on | is cancelled | or it would be no permission |
//! | a permission on an empty range | accepted by old ones | refused | it allows nothing |
//! | `watch` from "now" | this node's now | after everything acknowledged, if there is a leader | a client may have written elsewhere |

mod auth;
mod cluster;
mod convert;
mod election;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod gateway;
pub(crate) mod import;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod range;
mod recipe;
mod txn;
mod watch;

use podkv_node::{Access, Node};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::v3electionpb::election_server::ElectionServer;
use podkv_proto::etcd::v3lockpb::lock_server::LockServer;
use tonic::metadata::MetadataMap;
use tonic::service::RoutesBuilder;
use tonic::{Request, Status};

pub(crate) use self::gateway::add as add_gateway;

use self::error::status;
use crate::api::calls::{Call, Calls};

/// The newest etcd whose calls are answered. Kubernetes and others decide by it what to use.
const ETCD_VERSION: &str = "3.7.0";

/// Adds every service of etcd.
pub(crate) fn add_services(routes: &mut RoutesBuilder, calls: &Calls, max_request: usize) {
    let auth = pb::auth_server::AuthServer::new(auth::Auth(calls.clone()));
    let kv = pb::kv_server::KvServer::new(kv::Kv(calls.clone()));
    let watch = pb::watch_server::WatchServer::new(watch::Watch(calls.node.clone()));
    let lease = pb::lease_server::LeaseServer::new(lease::Lease(calls.clone()));
    let cluster = pb::cluster_server::ClusterServer::new(cluster::Cluster(calls.clone()));
    let maintenance =
        pb::maintenance_server::MaintenanceServer::new(maintenance::Maintenance(calls.clone()));
    let lock = LockServer::new(lock::Lock(calls.clone()));
    let election = ElectionServer::new(election::Election(calls.clone()));
    routes
        .add_service(kv.max_decoding_message_size(max_request))
        .add_service(watch.max_decoding_message_size(max_request))
        .add_service(lease.max_decoding_message_size(max_request))
        .add_service(auth.max_decoding_message_size(max_request))
        .add_service(cluster.max_decoding_message_size(max_request))
        .add_service(maintenance.max_decoding_message_size(max_request))
        .add_service(lock.max_decoding_message_size(max_request))
        .add_service(election.max_decoding_message_size(max_request));
}

/// A call, and the node as its caller may use it.
async fn called<T>(calls: &Calls, request: Request<T>) -> Result<(Access, T), Status> {
    require_leader(&calls.node, request.metadata())?;
    let call = Call::of(request, calls).await;
    let call = call.map_err(|error| status(&error))?;
    Ok((call.access, call.message))
}

/// Clients that say `hasleader` want to be told at once, instead of waiting for a leader.
fn require_leader(node: &Node, metadata: &MetadataMap) -> Result<(), Status> {
    let asked = metadata
        .get("hasleader")
        .is_some_and(|value| value.as_bytes() == b"true");
    if asked && node.leader().is_none() {
        let error = podkv_api::Error::new(podkv_api::Reason::NoLeader, "no leader is known here");
        return Err(status(&error));
    }
    Ok(())
}
