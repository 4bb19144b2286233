//! The native API, `podkv.v1`, over a [`Node`].
//!
//! A handler is convert, call, convert. What a call *means* is the node's; what it looks like on the
//! wire is `podkv_proto::convert`'s. Here is what remains: deadlines, the size of answers, streams and
//! their end, and the [pipe](pipe).
//!
//! Streams that would never end by themselves follow the node's health: when it drains, they end, and
//! the client goes on elsewhere.

mod auth;
pub(crate) mod caller;
pub(crate) mod calls;
mod cluster;
mod counting;
mod deadline;
pub(crate) mod draining;
mod health;
mod kv;
pub(crate) mod lease;
mod oversized;
mod pipe;
mod restore;
mod session;
pub(crate) mod snapshot;
mod watch;

use std::time::Duration;

use podkv_api::Limits;
use podkv_node::Node;
use podkv_proto::v1;
use podkv_proto::v1::auth_server::AuthServer;
use podkv_proto::v1::cluster_server::ClusterServer;
use podkv_proto::v1::kv_server::KvServer;
use podkv_proto::v1::lease_server::LeaseServer;
use podkv_proto::v1::session_server::SessionServer;
use podkv_proto::v1::snapshot_server::SnapshotServer;
use podkv_proto::v1::watch_server::WatchServer;
use tonic::service::{Routes, RoutesBuilder};
use tower::util::MapResponseLayer;

use self::calls::Calls;
use crate::etcd;
use crate::room;

/// How the API treats its callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiSettings {
    /// How many operations of one pipe may be unanswered. Enough to fill a log entry by itself; small
    /// enough that one client does not take all of a node's room.
    pub pipe_credits: u32,
    /// After it was told to go away, how long a pipe still takes operations, so that a client can
    /// move in its own time.
    pub pipe_farewell: Duration,
    /// The largest answer in one message, in bytes. At least the largest request.
    pub max_answer_bytes: usize,
    /// The largest answer to an etcd client, in bytes of keys and values. etcd has no limit but its memory; this one
    /// lets an unpaged list of a large Kubernetes cluster through, and no more.
    pub max_etcd_answer_bytes: usize,
    /// A longer deadline is cut to this: what waits takes up room.
    pub max_deadline: Duration,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            pipe_credits: 1024,
            pipe_farewell: Duration::from_secs(3),
            max_answer_bytes: Limits::MAX_ANSWER_BYTES,
            max_etcd_answer_bytes: 256 << 20,
            max_deadline: Duration::from_secs(60),
        }
    }
}

/// Beyond keys and values, a request has field tags, lengths and a session stamp; 128 operations of
/// an etcd client fit as well.
const REQUEST_OVERHEAD_BYTES: usize = 512 * 1024;

/// Messages of a stream are filled up to about this size: large enough to be cheap, well below the
/// 4 MiB that gRPC clients accept by default.
const MESSAGE_BYTES: usize = 1 << 20;

/// The largest message that is decoded.
fn max_request_bytes(node: &Node) -> usize {
    node.limits().max_request_bytes + REQUEST_OVERHEAD_BYTES
}

/// Every service for clients, to be mounted in a gRPC server: `podkv.v1`, etcd v3, `grpc.health.v1` and
/// reflection. [`Server`](crate::Server) does that; so can an application that has a server already.
pub fn routes(node: Node, settings: ApiSettings) -> Routes {
    let max_request = max_request_bytes(&node);
    let max_answer_bytes = settings.max_answer_bytes.max(max_request);
    let calls = Calls::new(
        node.clone(),
        ApiSettings {
            max_answer_bytes,
            ..settings
        },
    );

    let kv = KvServer::new(kv::Kv(calls.clone())).max_decoding_message_size(max_request);
    let lease =
        LeaseServer::new(lease::Lease(calls.clone())).max_decoding_message_size(max_request);
    let watch = WatchServer::new(watch::Watch(node.clone())).max_decoding_message_size(max_request);
    let session =
        SessionServer::new(session::Session(calls.clone())).max_decoding_message_size(max_request);
    let cluster =
        ClusterServer::new(cluster::Cluster(calls.clone())).max_decoding_message_size(max_request);
    let auth = AuthServer::new(auth::Auth(calls.clone())).max_decoding_message_size(max_request);
    let snapshot = SnapshotServer::new(snapshot::Snapshot(calls.clone()))
        .max_decoding_message_size(max_request);

    let mut routes = Routes::builder();
    routes
        .add_service(kv)
        .add_service(lease)
        .add_service(watch)
        .add_service(session);
    routes
        .add_service(cluster)
        .add_service(snapshot)
        .add_service(auth)
        .add_service(health::service(node.clone()));
    etcd::add_services(&mut routes, &calls, max_request);
    add_reflection(&mut routes);
    let typed = MapResponseLayer::new(move |response| oversized::typed(response, max_request));
    let counting = counting::Counting(node.clone());
    let grpc = routes.routes().into_axum_router();
    let grpc = grpc.layer(typed).layer(counting);
    let all = etcd::add_gateway(grpc, &node, max_request);
    Routes::from(all.layer(MapResponseLayer::new(room::hold)))
}

/// Lets tools like grpcurl ask what there is, in the protocol's current and its former version.
fn add_reflection(routes: &mut RoutesBuilder) {
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(podkv_proto::etcd::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    match (described().build_v1(), described().build_v1alpha()) {
        (Ok(current), Ok(former)) => {
            routes.add_service(current).add_service(former);
        }
        // The descriptors are compiled in: only a broken build comes here, and reflection is no
        // reason not to serve data.
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "no reflection"),
    }
}
