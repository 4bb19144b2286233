//! Cluster: members, status, changes of membership.

use podkv_api::{Alarm, Bytes, Consistency, Error, Header, Member, Reason, Retention, Store};
use podkv_node::Node;
use podkv_proto::convert::{self, to_status};
use podkv_proto::v1;
use tonic::{Request, Response, Status};

use super::calls::{Call, Calls, answer};

pub(super) struct Cluster(pub Calls);

impl Cluster {
    /// What was asked for, and the node, if the caller may change the cluster.
    async fn administrator<T>(&self, request: Request<T>) -> Result<(Node, T), Status> {
        let call = Call::native(request, &self.0).await?;
        let node = call.access.administrator(Consistency::Linearizable).await;
        let node = node.map_err(|error| to_status(&error))?.clone();
        Ok((node, call.message))
    }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for Cluster {
    async fn members(
        &self,
        request: Request<v1::MembersRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        let members = if call.message.local {
            call.access.known().await.map(|node| node.members_known())
        } else {
            call.access.members().await
        };
        answer(members.map(|members| (self.0.node.header(), members)))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        answer(Store::status(&call.access).await)
    }

    async fn add_member(
        &self,
        request: Request<v1::AddMemberRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let (node, request) = self.administrator(request).await?;
        let member = Member::try_from(request)?;
        answer(node.add_member(member).await)
    }

    async fn promote_member(
        &self,
        request: Request<v1::PromoteMemberRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let (node, request) = self.administrator(request).await?;
        let id = convert::member_id(request.id)?;
        answer(node.promote_member(id).await)
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let (node, request) = self.administrator(request).await?;
        let id = convert::member_id(request.id)?;
        answer(node.remove_member(id).await)
    }

    async fn set_retention(
        &self,
        request: Request<v1::SetRetentionRequest>,
    ) -> Result<Response<v1::SetRetentionResponse>, Status> {
        let (node, request) = self.administrator(request).await?;
        let retention = Retention::try_from(request)?;
        let set = node.set_retention(retention).await;
        answer(set.map(|header| v1::SetRetentionResponse {
            header: Some(header.into()),
        }))
    }

    async fn freeze(
        &self,
        request: Request<v1::FreezeRequest>,
    ) -> Result<Response<v1::FrozenResponse>, Status> {
        let (node, request) = self.administrator(request).await?;
        answer(node.freeze(request.prefix).await.map(frozen))
    }

    async fn thaw(
        &self,
        request: Request<v1::ThawRequest>,
    ) -> Result<Response<v1::FrozenResponse>, Status> {
        let (node, request) = self.administrator(request).await?;
        answer(node.thaw(request.prefix).await.map(frozen))
    }

    async fn frozen(
        &self,
        request: Request<v1::FrozenRequest>,
    ) -> Result<Response<v1::FrozenResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        let node = call.access.known().await;
        let node = node.map_err(|error| to_status(&error))?;
        answer(node.frozen().await.map(frozen))
    }

    async fn alarms(
        &self,
        request: Request<v1::AlarmsRequest>,
    ) -> Result<Response<v1::AlarmsResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        let node = call.access.known().await;
        let node = node.map_err(|error| to_status(&error))?;
        answer(node.alarms(Consistency::Linearizable).await.map(alarms))
    }

    async fn disarm_alarm(
        &self,
        request: Request<v1::DisarmAlarmRequest>,
    ) -> Result<Response<v1::AlarmsResponse>, Status> {
        let (node, request) = self.administrator(request).await?;
        let alarm = request.alarm.and_then(convert::alarm).ok_or_else(|| {
            to_status(&Error::new(
                Reason::InvalidArgument,
                "an alarm of a known kind is needed",
            ))
        })?;
        answer(node.disarm(alarm).await.map(alarms))
    }

    async fn resize(
        &self,
        request: Request<v1::ResizeRequest>,
    ) -> Result<Response<v1::ResizeResponse>, Status> {
        let (node, request) = self.administrator(request).await?;
        let resized = node.resize(request.start, request.replicas).await;
        answer(resized.map(|(header, size)| v1::ResizeResponse {
            header: Some(header.into()),
            desired_size: Some(size.into()),
        }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        let (node, request) = self.administrator(request).await?;
        let to = convert::optional_member_id(request.to);
        let moved = node.transfer_leadership(to).await;
        answer(
            moved.map(|(header, leader)| v1::TransferLeadershipResponse {
                header: Some(header.into()),
                leader_id: leader.0,
            }),
        )
    }
}

fn alarms((header, alarms): (Header, Vec<Alarm>)) -> v1::AlarmsResponse {
    v1::AlarmsResponse {
        header: Some(header.into()),
        alarms: alarms.into_iter().map(Into::into).collect(),
    }
}

fn frozen((header, prefixes): (Header, Vec<Bytes>)) -> v1::FrozenResponse {
    v1::FrozenResponse {
        header: Some(header.into()),
        prefixes,
    }
}
