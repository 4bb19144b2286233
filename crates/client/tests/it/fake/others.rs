//! Sessions, leases, the cluster, snapshots.

use bytes::Bytes;
use podkv_api::{Error, Reason};
use podkv_proto::convert::{self, to_status};
use podkv_proto::v1;
use podkv_proto::v1::{cluster_server, lease_server, session_server, snapshot_server};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::world::SessionState;
use super::{Boxed, Node, broken};

#[tonic::async_trait]
impl session_server::Session for Node {
    async fn open(
        &self,
        request: Request<v1::SessionOpenRequest>,
    ) -> Result<Response<v1::SessionOpenResponse>, Status> {
        let request = request.into_inner();
        let window = {
            let mut state = self.world.state();
            state.seen.opens.push(request.id.clone());
            state
                .sessions
                .entry(request.id.clone())
                .or_insert_with(SessionState::new);
            state.window
        };
        self.lose_unary()?;
        Ok(Response::new(v1::SessionOpenResponse {
            header: self.latest(),
            id: request.id,
            ttl_ms: request.ttl_ms,
            window,
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<v1::SessionKeepAliveRequest>,
    ) -> Result<Response<v1::SessionKeepAliveResponse>, Status> {
        let id = request.into_inner().id;
        {
            let mut state = self.world.state();
            state.seen.session_keep_alives += 1;
            if !state.sessions.contains_key(&id) {
                return Err(to_status(&Error::new(Reason::SessionNotFound, "gone")));
            }
        }
        Ok(Response::new(v1::SessionKeepAliveResponse {
            header: self.latest(),
            remaining_ms: 60_000,
        }))
    }

    async fn close(
        &self,
        request: Request<v1::SessionCloseRequest>,
    ) -> Result<Response<v1::SessionCloseResponse>, Status> {
        let id = request.into_inner().id;
        {
            let mut state = self.world.state();
            state.seen.closes += 1;
            state.sessions.remove(&id);
        }
        Ok(Response::new(v1::SessionCloseResponse {
            header: self.latest(),
        }))
    }
}

#[tonic::async_trait]
impl lease_server::Lease for Node {
    type KeepAliveStream = Boxed<v1::LeaseKeepAliveResponse>;

    async fn grant(
        &self,
        request: Request<v1::LeaseGrantRequest>,
    ) -> Result<Response<v1::LeaseGrantResponse>, Status> {
        let request = request.into_inner();
        {
            let mut state = self.world.state();
            state.seen.stamps.push(request.session.expect("a stamp"));
            state.leases.insert(request.id);
        }
        self.lose_unary()?;
        Ok(Response::new(v1::LeaseGrantResponse {
            header: self.latest(),
            id: request.id,
            ttl_ms: request.ttl_ms,
        }))
    }

    async fn revoke(
        &self,
        request: Request<v1::LeaseRevokeRequest>,
    ) -> Result<Response<v1::LeaseRevokeResponse>, Status> {
        self.world.state().leases.remove(&request.into_inner().id);
        Ok(Response::new(v1::LeaseRevokeResponse {
            header: self.latest(),
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<Streaming<v1::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let mut requests = request.into_inner();
        let (out, answers) = mpsc::channel(64);
        let node = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                node.world.state().seen.keep_alives.push(request.id);
                let breaks = {
                    let mut faults = node.faults();
                    let left = faults.break_keep_alive;
                    faults.break_keep_alive = left.saturating_sub(1);
                    left > 0
                };
                if breaks {
                    let _ = out.send(Err(broken())).await;
                    return;
                }
                let lease = podkv_api::LeaseId(request.id);
                let known = node.world.state().leases.contains(&request.id);
                let result = if known {
                    Ok(podkv_api::LeaseStatus {
                        header: convert::header(node.latest()).unwrap(),
                        lease,
                        granted_ttl_ms: 9_000,
                        remaining_ms: 9_000,
                        keys: Vec::new(),
                    })
                } else {
                    Err(Error::new(Reason::LeaseNotFound, "no such lease"))
                };
                let answer = v1::LeaseKeepAliveResponse::new(lease, result);
                if out.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn status(
        &self,
        request: Request<v1::LeaseStatusRequest>,
    ) -> Result<Response<v1::LeaseStatusResponse>, Status> {
        Ok(Response::new(v1::LeaseStatusResponse {
            header: self.latest(),
            id: request.into_inner().id,
            granted_ttl_ms: 9_000,
            remaining_ms: 5_000,
            keys: Vec::new(),
        }))
    }

    async fn list(
        &self,
        _: Request<v1::LeaseListRequest>,
    ) -> Result<Response<v1::LeaseListResponse>, Status> {
        let mut ids: Vec<i64> = self.world.state().leases.iter().copied().collect();
        ids.sort_unstable();
        Ok(Response::new(v1::LeaseListResponse {
            header: self.latest(),
            ids,
        }))
    }
}

#[tonic::async_trait]
impl cluster_server::Cluster for Node {
    async fn members(
        &self,
        _: Request<v1::MembersRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let addresses = self.addresses.lock().unwrap().clone();
        let members = addresses
            .into_iter()
            .enumerate()
            .map(|(place, client_address)| v1::Member {
                id: place as u64 + 1,
                name: format!("podkv-{place}"),
                peer_address: String::new(),
                client_address,
                role: v1::member::Role::Voter.into(),
            });
        Ok(Response::new(v1::MembersResponse {
            header: self.latest(),
            members: members.collect(),
        }))
    }

    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let leader_id = {
            let mut state = self.world.state();
            state.seen.statuses += 1;
            state.leader as u64 + 1
        };
        Ok(Response::new(v1::StatusResponse {
            header: self.latest(),
            name: format!("podkv-{}", self.place),
            version: "0.1.0".into(),
            leader_id,
            ..Default::default()
        }))
    }

    async fn alarms(
        &self,
        _: Request<v1::AlarmsRequest>,
    ) -> Result<Response<v1::AlarmsResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn disarm_alarm(
        &self,
        _: Request<v1::DisarmAlarmRequest>,
    ) -> Result<Response<v1::AlarmsResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn add_member(
        &self,
        _: Request<v1::AddMemberRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        self.world.state().seen.operations += 1;
        self.lose_unary()?;
        self.members(Request::new(v1::MembersRequest { local: false }))
            .await
    }

    async fn promote_member(
        &self,
        _: Request<v1::PromoteMemberRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        Err(to_status(&Error::new(
            Reason::MembershipConflict,
            "another change is unfinished",
        )))
    }

    async fn remove_member(
        &self,
        _: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn set_retention(
        &self,
        _: Request<v1::SetRetentionRequest>,
    ) -> Result<Response<v1::SetRetentionResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn freeze(
        &self,
        _: Request<v1::FreezeRequest>,
    ) -> Result<Response<v1::FrozenResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn thaw(
        &self,
        _: Request<v1::ThawRequest>,
    ) -> Result<Response<v1::FrozenResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn frozen(
        &self,
        _: Request<v1::FrozenRequest>,
    ) -> Result<Response<v1::FrozenResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn resize(
        &self,
        _: Request<v1::ResizeRequest>,
    ) -> Result<Response<v1::ResizeResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        let leader = self.world.state().leader;
        if self.place != leader {
            let hint = podkv_api::LeaderHint {
                member: podkv_api::MemberId(leader as u64 + 1),
                client_address: self.addresses.lock().unwrap()[leader].clone(),
            };
            let error = Error::new(Reason::NotLeader, "not the leader").with_leader(Some(hint));
            return Err(to_status(&error));
        }
        let to = request.into_inner().to;
        {
            let mut state = self.world.state();
            state.leader = to as usize - 1;
            state.term += 1;
        }
        Ok(Response::new(v1::TransferLeadershipResponse {
            header: self.latest(),
            leader_id: to,
        }))
    }
}

#[tonic::async_trait]
impl snapshot_server::Snapshot for Node {
    type SaveStream = Boxed<v1::SnapshotChunk>;

    async fn save(
        &self,
        _: Request<v1::SnapshotSaveRequest>,
    ) -> Result<Response<Self::SaveStream>, Status> {
        use sha2::{Digest, Sha256};
        let data = b"the whole state";
        let mut hash = Sha256::digest(data).to_vec();
        if self.faults().damage_snapshot {
            hash[0] ^= 1;
        }
        let chunks = vec![
            Ok(v1::SnapshotChunk {
                header: self.latest(),
                total_bytes: data.len() as u64,
                data: Bytes::from_static(&data[..4]),
                ..Default::default()
            }),
            Ok(v1::SnapshotChunk {
                data: Bytes::from_static(&data[4..]),
                sha256: hash.into(),
                ..Default::default()
            }),
        ];
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    type RestoreStream = Boxed<v1::RestoreResponse>;

    async fn restore(
        &self,
        request: Request<Streaming<v1::RestoreRequest>>,
    ) -> Result<Response<Self::RestoreStream>, Status> {
        use futures_util::StreamExt;
        let breaks_after = self.faults().restore_breaks.pop_front();
        let refusal = self.faults().refuse_restore.clone();
        let node = self.clone();
        let mut data = Vec::new();
        let requests = request
            .into_inner()
            .map(Some)
            .chain(tokio_stream::once(None));
        let responses = requests.enumerate().map(move |(number, request)| {
            if let Some(error) = &refusal {
                return Err(podkv_proto::convert::to_status(error));
            }
            if breaks_after == Some(number) {
                return Err(Status::unavailable("broken"));
            }
            let end = request.is_none();
            if let Some(request) = request {
                let request = request?;
                assert_eq!(request.backup_id.len(), if number == 0 { 16 } else { 0 });
                data.extend_from_slice(&request.data);
            } else {
                node.world.state().seen.restores.push(data.clone());
            }
            Ok(v1::RestoreResponse {
                restored_bytes: data.len() as u64,
                header: if end { node.latest() } else { None },
                records: 7,
            })
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn discard_restore(
        &self,
        _: Request<v1::DiscardRestoreRequest>,
    ) -> Result<Response<v1::DiscardRestoreResponse>, Status> {
        self.world.state().seen.restores.clear();
        Ok(Response::new(v1::DiscardRestoreResponse {
            header: self.latest(),
        }))
    }
}
