//! Cluster: who is a member. Adding and moving members is Kubernetes' business: a pod joins by itself.

use podkv_api::{
    Consistency, Error, Header, Member, MemberId, MemberRole, Reason, Result as PodkvResult, Store,
};
use podkv_node::{Access, Node};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_tls::TlsMode;
use tonic::{Request, Response, Status};

use super::called;
use super::convert::header;
use super::error::status;
use crate::api::calls::Calls;

pub(super) struct Cluster(pub Calls);

#[tonic::async_trait]
impl pb::cluster_server::Cluster for Cluster {
    async fn member_add(
        &self,
        _: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(Status::unimplemented(
            "members are not added by hand: start another node (kubectl scale), and it joins by itself",
        ))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let (access, request) = called(&self.0, request).await?;
        let node = administrator(&access).await?;
        let id = MemberId(request.id);
        // To podkv, a member that is gone is removed. etcd's clients are told that there was none.
        let known = node.members().await.map_err(|error| status(&error))?;
        if !known.iter().any(|member| member.id == id) {
            let error = Error::new(Reason::MemberNotFound, format!("no member {id}"));
            return Err(status(&error));
        }
        let removed = node.remove_member(id).await;
        let (header, members) = self.members(removed)?;
        Ok(Response::new(pb::MemberRemoveResponse { header, members }))
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(Status::unimplemented(
            "a member's address follows from its pod's name, and is looked up on every dial",
        ))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let (access, request) = called(&self.0, request).await?;
        let members = match request.linearizable {
            true => access.members().await,
            false => access.known().await.map(|node| node.members_known()),
        };
        let node = &self.0.node;
        let (header, members) = self.members(members.map(|members| (node.header(), members)))?;
        Ok(Response::new(pb::MemberListResponse { header, members }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let (access, request) = called(&self.0, request).await?;
        let node = administrator(&access).await?;
        let promoted = node.promote_member(MemberId(request.id)).await;
        let (header, members) = self.members(promoted)?;
        Ok(Response::new(pb::MemberPromoteResponse { header, members }))
    }
}

async fn administrator(access: &Access) -> Result<&Node, Status> {
    let allowed = access.administrator(Consistency::Linearizable).await;
    allowed.map_err(|error| status(&error))
}

impl Cluster {
    fn members(
        &self,
        result: PodkvResult<(Header, Vec<Member>)>,
    ) -> Result<(Option<pb::ResponseHeader>, Vec<pb::Member>), Status> {
        let (head, members) = result.map_err(|error| status(&error))?;
        // etcd's say no revision: no key is concerned.
        let header = pb::ResponseHeader {
            revision: 0,
            ..header(head)
        };
        let scheme = match self.0.node.tls().map(|tls| tls.config().mode) {
            None | Some(TlsMode::Off | TlsMode::Allow) => "http",
            Some(TlsMode::Require) => "https",
        };
        let members = members.into_iter().map(|member| member_of(member, scheme));
        Ok((Some(header), members.collect()))
    }
}

fn member_of(member: Member, scheme: &str) -> pb::Member {
    let url = |address: &str| match address {
        "" => Vec::new(),
        // A name is absolute here, by its last dot; certificates and clients leave it out.
        _ => vec![format!("{scheme}://{}", address.replace(".:", ":"))],
    };
    pb::Member {
        id: member.id.0,
        peer_ur_ls: url(&member.peer_address),
        client_ur_ls: url(&member.client_address),
        name: member.name,
        is_learner: member.role == MemberRole::Learner,
    }
}
