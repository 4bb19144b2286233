//! Lease: grant, revoke, keep alive, look. Seconds here, milliseconds in the core.

use podkv_api::{LeaseId, LeaseStatus, Limits, Reason, Store};
use podkv_core::{Answer, Command};
use podkv_node::Access;
use podkv_proto::etcd::etcdserverpb as pb;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{self, header, signed};
use super::error::{etcd, status};
use super::require_leader;
use crate::api::caller::access;
use crate::api::calls::{Call, Calls};
use crate::api::lease::{KeepAlives, keep_alives};

pub(super) struct Lease(pub Calls);

#[tonic::async_trait]
impl pb::lease_server::Lease for Lease {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        require_leader(&self.0.node, request.metadata())?;
        let call = Call::of(request, &self.0).await;
        let call = call.map_err(|error| status(&error))?;
        // Positive, as etcd's are.
        let id = convert::lease(call.message.id)
            .unwrap_or_else(|| LeaseId(rand::random_range(1..=i64::MAX)));
        let command = Command::LeaseGrant {
            id,
            ttl_ms: ttl_ms(call.message.ttl)?,
        };
        let written = call
            .access
            .propose(None, command, call.timeout)
            .await
            .map_err(|error| status(&error))?;
        let Answer::LeaseGrant(granted) = written.answer else {
            return Err(Status::internal("a command was answered by something else"));
        };
        Ok(Response::new(pb::LeaseGrantResponse {
            header: Some(header(written.header)),
            id: granted.lease.0,
            ttl: whole_seconds(granted.ttl_ms),
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        require_leader(&self.0.node, request.metadata())?;
        let call = Call::of(request, &self.0).await;
        let call = call.map_err(|error| status(&error))?;
        let id = convert::lease(call.message.id).ok_or_else(etcd::lease_not_found)?;
        let command = Command::LeaseRevoke { id };
        let written = call.access.propose(None, command, call.timeout).await;
        let written = written.map_err(|error| status(&error))?;
        Ok(Response::new(pb::LeaseRevokeResponse {
            header: Some(header(written.header)),
        }))
    }

    type LeaseKeepAliveStream = KeepAlives<pb::LeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        require_leader(&self.0.node, request.metadata())?;
        let access = access(&self.0.node, request.metadata()).await;
        let access = access.map_err(|error| status(&error))?;
        keep_alives(&self.0, access, request, keep_alive)
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        require_leader(&self.0.node, request.metadata())?;
        let call = Call::of(request, &self.0).await;
        let call = call.map_err(|error| status(&error))?;
        let id = call.message.id;
        let Some(lease) = convert::lease(id) else {
            return Ok(Response::new(self.no_lease(id)));
        };
        let read = call.access.lease_status(lease, call.message.keys);
        match self.0.within(call.timeout, read).await {
            Ok(found) => Ok(Response::new(pb::LeaseTimeToLiveResponse {
                header: Some(header(found.header)),
                id,
                ttl: signed(found.remaining_ms / 1000),
                granted_ttl: whole_seconds(found.granted_ttl_ms),
                keys: found.keys,
            })),
            Err(error) if error.reason() == Reason::LeaseNotFound => {
                Ok(Response::new(self.no_lease(id)))
            }
            Err(error) => Err(status(&error)),
        }
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        require_leader(&self.0.node, request.metadata())?;
        let call = Call::of(request, &self.0).await;
        let call = call.map_err(|error| status(&error))?;
        let read = self.0.within(call.timeout, call.access.leases()).await;
        let ids = read.map_err(|error| status(&error))?;
        Ok(Response::new(pb::LeaseLeasesResponse {
            header: Some(header(self.0.node.header())),
            leases: ids
                .into_iter()
                .map(|id| pb::LeaseStatus { id: id.0 })
                .collect(),
        }))
    }
}

impl Lease {
    fn no_lease(&self, id: i64) -> pb::LeaseTimeToLiveResponse {
        pb::LeaseTimeToLiveResponse {
            header: Some(header(self.0.node.header())),
            id,
            ttl: -1,
            ..Default::default()
        }
    }
}

async fn keep_alive(
    access: Access,
    calls: Calls,
    request: Result<pb::LeaseKeepAliveRequest, Status>,
) -> Result<pb::LeaseKeepAliveResponse, Status> {
    let id = request?.id;
    let renewed = match convert::lease(id) {
        Some(lease) => access.lease_keep_alive(lease).await.map(Some),
        None => Ok(None),
    };
    let answer = |header, ttl| pb::LeaseKeepAliveResponse {
        header: Some(header),
        id,
        ttl,
    };
    match renewed {
        Ok(Some(LeaseStatus {
            header: head,
            granted_ttl_ms,
            ..
        })) => Ok(answer(header(head), whole_seconds(granted_ttl_ms))),
        Ok(None) => Ok(answer(header(calls.node.header()), 0)),
        // No error: the client learns from the TTL that the lease is gone.
        Err(error) if error.reason() == Reason::LeaseNotFound => {
            Ok(answer(header(calls.node.header()), 0))
        }
        Err(error) => Err(status(&error)),
    }
}

/// What is too short is raised by the core, to what an election allows.
fn ttl_ms(seconds: i64) -> Result<u64, Status> {
    let seconds = u64::try_from(seconds).unwrap_or(0).max(1);
    let ms = seconds.saturating_mul(1000);
    if ms > Limits::MAX_TTL_MS {
        return Err(etcd::ttl_too_large());
    }
    Ok(ms)
}

/// Rounded up: a lease that native clients were granted may have half a second.
fn whole_seconds(ms: u64) -> i64 {
    signed(ms.div_ceil(1000))
}
