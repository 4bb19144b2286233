//! Election: one leader at a time, for clients without a library of recipes.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::{BoxStream, try_unfold};
use futures_util::{Stream, StreamExt};
use podkv_api::{
    EventKind, Header, KeyRange, KeyValue, LeaseId, Op, Put, Range, RangeResponse, Revision, Store,
    Txn, Watch, WatchMessage, WatchStream,
};
use podkv_node::Access;
use podkv_proto::etcd::v3electionpb as pb;
use tonic::{Request, Response, Status};

use super::convert::{header, key_value, signed};
use super::error::status;
use super::{called, convert, recipe};
use crate::api::calls::Calls;
use crate::api::draining::{draining, goodbye, refuse_if_draining};

pub(super) struct Election(pub Calls);

#[tonic::async_trait]
impl pb::election_server::Election for Election {
    async fn campaign(
        &self,
        request: Request<pb::CampaignRequest>,
    ) -> Result<Response<pb::CampaignResponse>, Status> {
        let (access, request) = called(&self.0, request).await?;
        let value = request.value;
        let place = recipe::enter(&access, &request.name, request.lease, value.clone()).await?;
        let waiting = recipe::Waiting::new(&access, &place);
        let mut head = place.header;
        if place.before.as_ref().is_some_and(|kv| kv.value != value) {
            let held = (place.key.clone(), place.revision);
            head = proclaim(&access, held, place.lease, value).await?;
        }
        recipe::wait(&access, &request.name, &place).await?;
        waiting.done();
        Ok(Response::new(pb::CampaignResponse {
            header: Some(header(head)),
            leader: Some(pb::LeaderKey {
                name: request.name,
                key: place.key,
                rev: signed(place.revision),
                lease: place.lease.0,
            }),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<pb::ProclaimRequest>,
    ) -> Result<Response<pb::ProclaimResponse>, Status> {
        let (access, request) = called(&self.0, request).await?;
        let leader = request.leader.ok_or_else(missing_leader)?;
        let lease = convert::lease(leader.lease).ok_or_else(not_leader)?;
        let held = (leader.key, revision(leader.rev));
        let head = proclaim(&access, held, lease, request.value).await?;
        Ok(Response::new(pb::ProclaimResponse {
            header: Some(header(head)),
        }))
    }

    async fn leader(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<pb::LeaderResponse>, Status> {
        let (access, request) = called(&self.0, request).await?;
        let (head, found) = first(&access, &request.name).await?;
        let kv = found.ok_or_else(|| Status::unknown("election: no leader"))?;
        Ok(Response::new(leader_response(head, kv)))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaderResponse, Status>> + Send>>;

    async fn observe(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let node = self.0.node.clone();
        refuse_if_draining(&node)?;
        let (access, request) = called(&self.0, request).await?;
        let observer = Observer {
            node: access,
            name: request.name,
            following: None,
        };
        let seen: BoxStream<_> = try_unfold(observer, |mut observer| async move {
            let response = observer.next().await?;
            Ok(Some((response, observer)))
        })
        .boxed();
        let until = draining(node.health());
        let last = futures_util::stream::once(async move { Err(goodbye(&node)) });
        Ok(Response::new(Box::pin(seen.take_until(until).chain(last))))
    }

    async fn resign(
        &self,
        request: Request<pb::ResignRequest>,
    ) -> Result<Response<pb::ResignResponse>, Status> {
        let (access, request) = called(&self.0, request).await?;
        let leader = request.leader.ok_or_else(missing_leader)?;
        let head = recipe::leave(&access, leader.key, revision(leader.rev)).await?;
        Ok(Response::new(pb::ResignResponse {
            header: Some(header(head)),
        }))
    }
}

/// Follows the leader's key, then that of the next one.
struct Observer {
    node: Access,
    name: Bytes,
    following: Option<WatchStream>,
}

impl Observer {
    async fn next(&mut self) -> Result<pb::LeaderResponse, Status> {
        loop {
            let Some(following) = &mut self.following else {
                if let Some(response) = self.look().await? {
                    return Ok(response);
                }
                continue;
            };
            match following.next().await {
                Some(Ok(WatchMessage::Events { header, events, .. })) => {
                    let Some(event) = events.into_iter().next_back() else {
                        continue;
                    };
                    match event.kind {
                        EventKind::Put => return Ok(leader_response(header, event.kv)),
                        EventKind::Delete => self.following = None,
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(status(&error)),
                None => self.following = None,
            }
        }
    }

    /// Finds the leader; if there is none, waits for somebody to stand, and finds nothing yet.
    async fn look(&mut self) -> Result<Option<pb::LeaderResponse>, Status> {
        let (head, found) = first(&self.node, &self.name).await?;
        let from = head.revision + 1;
        let Some(kv) = found else {
            let mut all = Watch::new(recipe::queue(&self.name)).from_revision(from);
            all.no_delete = true;
            let mut coming = watch(&self.node, all).await?;
            while let Some(message) = coming.next().await {
                if let WatchMessage::Events { .. } = message.map_err(|error| status(&error))? {
                    break;
                }
            }
            return Ok(None);
        };
        let one = Watch::new(KeyRange::key(kv.key.clone())).from_revision(from);
        self.following = Some(watch(&self.node, one).await?);
        Ok(Some(leader_response(head, kv)))
    }
}

async fn watch(node: &Access, watch: Watch) -> Result<WatchStream, Status> {
    node.watch(watch).await.map_err(|error| status(&error))
}

/// Whoever came first leads.
async fn first(node: &Access, name: &[u8]) -> Result<(Header, Option<KeyValue>), Status> {
    let all = node.range(Range::new(recipe::queue(name))).await;
    let RangeResponse { header, kvs, .. } = all.map_err(|error| status(&error))?;
    let first = kvs.into_iter().min_by_key(|kv| kv.create_revision);
    Ok((header, first))
}

/// Writes the leader's value, if the place is still the leader's.
async fn proclaim(
    node: &Access,
    (key, revision): (Bytes, Revision),
    lease: LeaseId,
    value: Bytes,
) -> Result<Header, Status> {
    let put = Put::new(key.clone(), value).lease(lease);
    let txn = Txn::new()
        .when([recipe::created_at(key, revision)])
        .then([Op::from(put)]);
    let answer = node.txn(txn).await.map_err(|error| status(&error))?;
    match answer.succeeded {
        true => Ok(answer.header),
        false => Err(not_leader()),
    }
}

fn leader_response(head: Header, kv: KeyValue) -> pb::LeaderResponse {
    pb::LeaderResponse {
        header: Some(header(head)),
        kv: Some(key_value(kv)),
    }
}

fn revision(rev: i64) -> Revision {
    u64::try_from(rev).unwrap_or(0)
}

fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

fn missing_leader() -> Status {
    Status::unknown("\"leader\" field must be provided")
}
