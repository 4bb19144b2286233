//! grpc.health.v1: SERVING while the node is ready. For balancers that speak gRPC; Kubernetes asks the
//! admin port.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use podkv_node::{Health, Node};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use podkv_proto::v1::auth_server::SERVICE_NAME as AUTH;
use podkv_proto::v1::cluster_server::SERVICE_NAME as CLUSTER;
use podkv_proto::v1::kv_server::SERVICE_NAME as KV;
use podkv_proto::v1::lease_server::SERVICE_NAME as LEASE;
use podkv_proto::v1::session_server::SERVICE_NAME as SESSION;
use podkv_proto::v1::snapshot_server::SERVICE_NAME as SNAPSHOT;
use podkv_proto::v1::watch_server::SERVICE_NAME as WATCH;

/// Asked for by name, or by the empty name: the node as a whole. All share one health.
const KNOWN: [&str; 8] = ["", AUTH, KV, WATCH, LEASE, SESSION, CLUSTER, SNAPSHOT];

pub(super) fn service(node: Node) -> HealthServer<impl health_server::Health> {
    HealthServer::new(Service(node))
}

struct Service(Node);

#[tonic::async_trait]
impl health_server::Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !KNOWN.contains(&request.get_ref().service.as_str()) {
            // The health protocol's own answer.
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(response(status(&self.0.health().borrow()))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !KNOWN.contains(&request.get_ref().service.as_str()) {
            let unknown = async { Ok(response(ServingStatus::ServiceUnknown)) };
            return Ok(Response::new(Box::pin(futures_util::stream::once(unknown))));
        }
        let mut last = None;
        // The text of a health may change while its status stays.
        let changes = WatchStream::new(self.0.health()).filter_map(move |health| {
            let now = status(&health);
            let is_new = last.replace(now) != Some(now);
            std::future::ready(is_new.then(|| Ok(response(now))))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

fn status(health: &Health) -> ServingStatus {
    if health.ready {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}
