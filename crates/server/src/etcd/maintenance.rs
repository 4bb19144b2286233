//! Maintenance: status, digests, backup, leadership.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::try_unfold;
use podkv_api::{Alarm, AlarmKind, Consistency, MemberId, MemberRole, Reason, Store};
use podkv_node::{Node, SnapshotReader};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::alarm_request::AlarmAction;
use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status};

use super::convert::{header, signed};
use super::error::{etcd, status};
use super::{ETCD_VERSION, called};
use crate::api::calls::Calls;
use crate::api::snapshot::add;

pub(super) struct Maintenance(pub Calls);

impl Maintenance {
    /// What was asked for, and the node, if the caller may do everything. Judged by this node's own state where the call
    /// is of that.
    async fn administrator<T>(
        &self,
        request: Request<T>,
        consistency: Consistency,
    ) -> Result<(Node, T), Status> {
        let (access, message) = called(&self.0, request).await?;
        let node = access.administrator(consistency).await;
        Ok((node.map_err(|error| status(&error))?.clone(), message))
    }
}

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for Maintenance {
    async fn alarm(
        &self,
        request: Request<pb::AlarmRequest>,
    ) -> Result<Response<pb::AlarmResponse>, Status> {
        let (access, request) = called(&self.0, request).await?;
        let node = access.known().await.map_err(|error| status(&error))?;
        let (_, raised) = node
            .alarms(Consistency::Linearizable)
            .await
            .map_err(|error| status(&error))?;
        let named = raised.into_iter().filter(|alarm| {
            (request.member_id == 0 || request.member_id == alarm.member.0)
                && (request.alarm() == pb::AlarmType::None || request.alarm() == kind(alarm.kind))
        });
        let named: Vec<Alarm> = named.collect();
        match request.action() {
            AlarmAction::Get => {}
            AlarmAction::Deactivate => {
                let node = access.administrator(Consistency::Linearizable).await;
                let node = node.map_err(|error| status(&error))?;
                for alarm in &named {
                    node.disarm(*alarm).await.map_err(|error| status(&error))?;
                }
            }
            AlarmAction::Activate => {
                return Err(Status::unimplemented("alarms are not raised by hand"));
            }
        }
        // etcd's have no header either.
        let alarms = named.into_iter().map(|alarm| pb::AlarmMember {
            member_id: alarm.member.0,
            alarm: kind(alarm.kind).into(),
        });
        Ok(Response::new(pb::AlarmResponse {
            header: None,
            alarms: alarms.collect(),
        }))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let (access, _) = called(&self.0, request).await?;
        let quota = self.0.node.config().quota_bytes;
        let found = Store::status(&access)
            .await
            .map_err(|error| status(&error))?;
        let leader = found.leader.map_or(0, |leader| leader.0);
        let bytes = signed(found.disk_bytes);
        Ok(Response::new(pb::StatusResponse {
            header: Some(header(found.header)),
            version: ETCD_VERSION.to_owned(),
            db_size: bytes,
            leader,
            raft_index: found.committed_index,
            raft_term: found.header.term,
            raft_applied_index: found.applied_index,
            errors: {
                let no_leader = (leader == 0).then(|| "etcdserver: no leader".to_owned());
                let alarms = found.alarms.iter().map(ToString::to_string);
                no_leader.into_iter().chain(alarms).collect()
            },
            db_size_in_use: bytes,
            is_learner: found.role == Some(MemberRole::Learner),
            storage_version: ETCD_VERSION.to_owned(),
            db_size_quota: signed(quota),
            downgrade_info: None,
        }))
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.administrator(request, Consistency::Local).await?;
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash(
        &self,
        request: Request<pb::HashRequest>,
    ) -> Result<Response<pb::HashResponse>, Status> {
        let (node, _) = self.administrator(request, Consistency::Local).await?;
        let digest = node.data_digest(0).await.map_err(|error| status(&error))?;
        Ok(Response::new(pb::HashResponse {
            header: Some(header(digest.header)),
            hash: short(&digest.sha256),
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        let (node, request) = self.administrator(request, Consistency::Local).await?;
        let revision = u64::try_from(request.revision).unwrap_or(0);
        let digest = node.data_digest(revision).await;
        let digest = digest.map_err(|error| status(&error))?;
        Ok(Response::new(pb::HashKvResponse {
            header: Some(header(digest.header)),
            hash: short(&digest.sha256),
            compact_revision: signed(digest.compacted_revision),
            hash_revision: signed(digest.revision),
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let (node, _) = self
            .administrator(request, Consistency::Linearizable)
            .await?;
        let reader = node.snapshot().await.map_err(|error| status(&error))?;
        let remaining = reader.total_bytes();
        let start = Step::Data(Box::new(reader), Sha256::new(), remaining);
        Ok(Response::new(Box::pin(try_unfold(start, |step| {
            Box::pin(step.next())
        }))))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        let (node, request) = self
            .administrator(request, Consistency::Linearizable)
            .await?;
        let to = MemberId(request.target_id);
        match node.transfer_leadership(Some(to)).await {
            Ok(_) => Ok(Response::new(pb::MoveLeaderResponse { header: None })),
            Err(error)
                if matches!(
                    error.reason(),
                    Reason::MemberNotFound | Reason::MembershipConflict
                ) =>
            {
                Err(etcd::bad_transferee())
            }
            Err(error) => Err(status(&error)),
        }
    }

    async fn downgrade(
        &self,
        _: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(Status::unimplemented(
            "there is nothing to prepare: run an older image. A node that is too old for the data refuses to start",
        ))
    }
}

fn kind(kind: AlarmKind) -> pb::AlarmType {
    match kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
        // etcd has no word for it.
        _ => pb::AlarmType::None,
    }
}

/// The first four bytes: all that etcd's message has room for.
fn short(sha256: &[u8; 32]) -> u32 {
    let [a, b, c, d, ..] = *sha256;
    u32::from_be_bytes([a, b, c, d])
}

/// A backup on its way: its bytes, then their SHA-256, which is the last of the file as etcd's clients write it.
enum Step {
    Data(Box<SnapshotReader>, Sha256, u64),
    Done,
}

impl Step {
    async fn next(self) -> Result<Option<(pb::SnapshotResponse, Self)>, Status> {
        let Self::Data(mut reader, sum, remaining) = self else {
            return Ok(None);
        };
        let head = Some(header(reader.header()));
        let message = |blob: Bytes, remaining_bytes| pb::SnapshotResponse {
            header: head,
            remaining_bytes,
            blob,
            version: ETCD_VERSION.to_owned(),
        };
        let chunk = reader.next_chunk().await.map_err(|error| status(&error))?;
        Ok(Some(match chunk {
            Some(data) => {
                let sum = add(sum, data.clone())
                    .await
                    .map_err(|error| status(&error))?;
                let remaining = remaining.saturating_sub(data.len() as u64);
                (message(data, remaining), Self::Data(reader, sum, remaining))
            }
            None => {
                let sum = Bytes::copy_from_slice(&sum.finalize());
                (message(sum, 0), Self::Done)
            }
        }))
    }
}
