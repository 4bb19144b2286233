//! Cluster: members, status, changes of membership.

use podkv_api::{Bytes, Header, Member, Retention, Store};
use podkv_node::Node;
use podkv_proto::convert;
use podkv_proto::v1;
use tonic::{Request, Response, Status};

use super::calls::answer;

pub(super) struct Cluster(pub Node);

#[tonic::async_trait]
impl v1::cluster_server::Cluster for Cluster {
    async fn members(
        &self,
        request: Request<v1::MembersRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let members = if request.into_inner().local {
            Ok(self.0.members_known())
        } else {
            self.0.members().await
        };
        answer(members.map(|members| (self.0.header(), members)))
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        answer(Store::status(&self.0).await)
    }

    async fn add_member(
        &self,
        request: Request<v1::AddMemberRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let member = Member::try_from(request.into_inner())?;
        answer(self.0.add_member(member).await)
    }

    async fn promote_member(
        &self,
        request: Request<v1::PromoteMemberRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let id = convert::member_id(request.into_inner().id)?;
        answer(self.0.promote_member(id).await)
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let id = convert::member_id(request.into_inner().id)?;
        answer(self.0.remove_member(id).await)
    }

    async fn set_retention(
        &self,
        request: Request<v1::SetRetentionRequest>,
    ) -> Result<Response<v1::SetRetentionResponse>, Status> {
        let retention = Retention::try_from(request.into_inner())?;
        let set = self.0.set_retention(retention).await;
        answer(set.map(|header| v1::SetRetentionResponse {
            header: Some(header.into()),
        }))
    }

    async fn freeze(
        &self,
        request: Request<v1::FreezeRequest>,
    ) -> Result<Response<v1::FrozenResponse>, Status> {
        answer(self.0.freeze(request.into_inner().prefix).await.map(frozen))
    }

    async fn thaw(
        &self,
        request: Request<v1::ThawRequest>,
    ) -> Result<Response<v1::FrozenResponse>, Status> {
        answer(self.0.thaw(request.into_inner().prefix).await.map(frozen))
    }

    async fn frozen(
        &self,
        _request: Request<v1::FrozenRequest>,
    ) -> Result<Response<v1::FrozenResponse>, Status> {
        answer(self.0.frozen().await.map(frozen))
    }

    async fn resize(
        &self,
        request: Request<v1::ResizeRequest>,
    ) -> Result<Response<v1::ResizeResponse>, Status> {
        let request = request.into_inner();
        let resized = self.0.resize(request.start, request.replicas).await;
        answer(resized.map(|(header, size)| v1::ResizeResponse {
            header: Some(header.into()),
            desired_size: Some(size.into()),
        }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        let to = convert::optional_member_id(request.into_inner().to);
        let moved = self.0.transfer_leadership(to).await;
        answer(
            moved.map(|(header, leader)| v1::TransferLeadershipResponse {
                header: Some(header.into()),
                leader_id: leader.0,
            }),
        )
    }
}

fn frozen((header, prefixes): (Header, Vec<Bytes>)) -> v1::FrozenResponse {
    v1::FrozenResponse {
        header: Some(header.into()),
        prefixes,
    }
}
