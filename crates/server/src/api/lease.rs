//! Lease: grant, revoke, keep alive, look.

use std::pin::Pin;

use futures_util::stream::once;
use futures_util::{Stream, StreamExt};
use podkv_api::{Error, Store};
use podkv_node::Access;
use podkv_proto::convert::{self, to_status};
use podkv_proto::v1;
use tonic::{Request, Response, Status, Streaming};

use super::caller::access;
use super::calls::{Call, Calls, answer};
use super::draining::{draining, goodbye, refuse_if_draining};

/// Keep-alives of one stream that are under way at once. The node renews what arrives together in one
/// command, so a client with many leases must not wait for one after the other.
const KEEP_ALIVES_AT_ONCE: usize = 256;

/// The answers of a stream of keep-alives.
pub(crate) type KeepAlives<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

pub(super) struct Lease(pub Calls);

#[tonic::async_trait]
impl v1::lease_server::Lease for Lease {
    async fn grant(
        &self,
        request: Request<v1::LeaseGrantRequest>,
    ) -> Result<Response<v1::LeaseGrantResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        answer(
            self.0
                .lease_grant(call.message, &call.access, call.timeout)
                .await,
        )
    }

    async fn revoke(
        &self,
        request: Request<v1::LeaseRevokeRequest>,
    ) -> Result<Response<v1::LeaseRevokeResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        answer(
            self.0
                .lease_revoke(call.message, &call.access, call.timeout)
                .await,
        )
    }

    type KeepAliveStream = KeepAlives<v1::LeaseKeepAliveResponse>;

    async fn keep_alive(
        &self,
        request: Request<Streaming<v1::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let access = access(&self.0.node, request.metadata()).await;
        let access = access.map_err(|error| to_status(&error))?;
        keep_alives(&self.0, access, request, keep_alive)
    }

    async fn status(
        &self,
        request: Request<v1::LeaseStatusRequest>,
    ) -> Result<Response<v1::LeaseStatusResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        let id = convert::lease_id(call.message.id)?;
        let read = call.access.lease_status(id, call.message.keys);
        answer(self.0.within(call.timeout, read).await)
    }

    async fn list(
        &self,
        request: Request<v1::LeaseListRequest>,
    ) -> Result<Response<v1::LeaseListResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        let ids = self.0.within(call.timeout, call.access.leases()).await;
        answer(ids.map(|ids| v1::LeaseListResponse {
            header: Some(self.0.node.header().into()),
            ids: ids.into_iter().map(|id| id.0).collect(),
        }))
    }
}

/// A stream of keep-alives, of this API or etcd's: one answer for each request, in order, until the client has said all or
/// the node drains.
pub(crate) fn keep_alives<Q, A, F>(
    calls: &Calls,
    access: Access,
    requests: Request<Streaming<Q>>,
    keep_alive: impl Fn(Access, Calls, Result<Q, Status>) -> F + Send + 'static,
) -> Result<Response<KeepAlives<A>>, Status>
where
    Q: Send + 'static,
    A: Send + 'static,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    let node = calls.node.clone();
    refuse_if_draining(&node)?;
    let (calls, health) = (calls.clone(), node.health());
    let answers = requests
        .into_inner()
        .take_until(draining(health.clone()))
        .map(move |request| keep_alive(access.clone(), calls.clone(), request))
        .buffered(KEEP_ALIVES_AT_ONCE);
    // A client that said all gets a plain end; one that is cut off is told why.
    let last = once(async move { health.borrow().draining.then(|| Err(goodbye(&node))) })
        .filter_map(std::future::ready);
    Ok(Response::new(Box::pin(answers.chain(last))))
}

async fn keep_alive(
    access: Access,
    _: Calls,
    request: Result<v1::LeaseKeepAliveRequest, Status>,
) -> Result<v1::LeaseKeepAliveResponse, Status> {
    let id = request?.id;
    match convert::lease_id(id) {
        Ok(lease) => {
            let result = access.lease_keep_alive(lease).await;
            Ok(v1::LeaseKeepAliveResponse::new(lease, result))
        }
        Err(malformed) => {
            let error = Some((&Error::from(malformed)).into());
            Ok(v1::LeaseKeepAliveResponse {
                id,
                error,
                ..Default::default()
            })
        }
    }
}
