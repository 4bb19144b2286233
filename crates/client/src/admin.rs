//! What operators do: members, leadership, the nodes' own views, snapshots.
//!
//! Changes of the membership carry no session. They are sent again only while it is certain that they
//! were not executed; else the error says that the outcome is unknown, and [`Store::members`] tells.

use std::sync::Arc;

use futures_util::future::join_all;
#[cfg(doc)]
use podkv_api::Store;
use podkv_api::{
    Alarm, Bytes, DesiredSize, Header, LeaderHint, Member, MemberId, NodeStatus, Result, Retention,
};
use podkv_proto::convert;
use podkv_proto::v1;
use podkv_proto::v1::cluster_client::ClusterClient;
use tokio::time::Instant;

use crate::client::Client;
use crate::core::{Answered, Plan};
use crate::credentials::Authorized;
use crate::directory::{ask_status, look_around};
use crate::endpoint::Endpoint;
use crate::failure::corrupt;
use crate::snapshot::{self, SnapshotStream};

/// A node that is to join, as a learner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMember {
    pub id: MemberId,
    /// The pod's name.
    pub name: String,
    /// `host:port` for peers.
    pub peer_address: String,
    /// `host:port` for clients.
    pub client_address: String,
}

impl Client {
    /// Adds a node as a learner. Returns the members then.
    pub async fn add_member(&self, member: NewMember) -> Result<Vec<Member>> {
        let request = v1::AddMemberRequest {
            id: member.id.0,
            name: member.name,
            peer_address: member.peer_address,
            client_address: member.client_address,
        };
        self.change_members(move |mut client| {
            let request = request.clone();
            async move { client.add_member(request).await }
        })
        .await
    }

    /// Makes a learner that has caught up a voter. Returns the members then.
    pub async fn promote_member(&self, id: MemberId) -> Result<Vec<Member>> {
        let request = v1::PromoteMemberRequest { id: id.0 };
        self.change_members(move |mut client| async move { client.promote_member(request).await })
            .await
    }

    /// Removes a member for good: its id never comes back. Returns the members then.
    pub async fn remove_member(&self, id: MemberId) -> Result<Vec<Member>> {
        let request = v1::RemoveMemberRequest { id: id.0 };
        self.change_members(move |mut client| async move { client.remove_member(request).await })
            .await
    }

    async fn change_members<F>(
        &self,
        send: impl Fn(ClusterClient<Authorized>) -> F + Send + Sync,
    ) -> Result<Vec<Member>>
    where
        F: Future<Output = Result<tonic::Response<v1::MembersResponse>, tonic::Status>> + Send,
    {
        let core = self.core();
        core.call(Plan::ADMIN, core.deadline(), |endpoint, until| {
            let sent = send(ClusterClient::new(endpoint.channel()));
            async move { members(endpoint.unary(until, sent).await?) }
        })
        .await
    }

    /// Hands leadership to a voter, or to the one that is furthest if `None`. Returns who leads then.
    pub async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<MemberId> {
        let request = v1::TransferLeadershipRequest {
            to: to.map_or(0, |member| member.0),
        };
        let core = self.core();
        core.call(Plan::ADMIN, core.deadline(), |endpoint, until| async move {
            let mut client = ClusterClient::new(endpoint.channel());
            let answer = endpoint
                .unary(until, client.transfer_leadership(request))
                .await?;
            let header =
                convert::header(answer.header).map_err(|error| corrupt(error.to_string()))?;
            let leader = convert::optional_member_id(answer.leader_id)
                .ok_or_else(|| corrupt("leadership was transferred to nobody"))?;
            core.endpoints.hinted(&LeaderHint {
                member: leader,
                client_address: String::new(),
            });
            Ok((header, leader))
        })
        .await
    }

    /// Sets how much history automatic compaction leaves; [`Store::status`] tells what holds.
    pub async fn set_retention(&self, retention: Retention) -> Result<Header> {
        let request = v1::SetRetentionRequest {
            retention: Some(retention.into()),
        };
        let core = self.core();
        core.call(Plan::ADMIN, core.deadline(), |endpoint, until| async move {
            let mut client = ClusterClient::new(endpoint.channel());
            let answer = endpoint.unary(until, client.set_retention(request)).await?;
            let header =
                convert::header(answer.header).map_err(|error| corrupt(error.to_string()))?;
            Ok((header, header))
        })
        .await
    }

    /// Refuses every write below `prefix` from now on, with [`Reason::Frozen`](podkv_api::Reason::Frozen). Leases and TTLs
    /// still expire there. Returns all frozen prefixes.
    pub async fn freeze(&self, prefix: impl Into<Bytes>) -> Result<Vec<Bytes>> {
        let request = v1::FreezeRequest {
            prefix: prefix.into(),
        };
        let core = self.core();
        core.call(Plan::ADMIN, core.deadline(), |endpoint, until| {
            let request = request.clone();
            async move {
                let mut client = ClusterClient::new(endpoint.channel());
                frozen(endpoint.unary(until, client.freeze(request)).await?)
            }
        })
        .await
    }

    /// Lets a prefix be written again that was frozen; [`Reason::NotFrozen`](podkv_api::Reason::NotFrozen) if that very
    /// one is not.
    pub async fn thaw(&self, prefix: impl Into<Bytes>) -> Result<Vec<Bytes>> {
        let request = v1::ThawRequest {
            prefix: prefix.into(),
        };
        let core = self.core();
        core.call(Plan::ADMIN, core.deadline(), |endpoint, until| {
            let request = request.clone();
            async move {
                let mut client = ClusterClient::new(endpoint.channel());
                frozen(endpoint.unary(until, client.thaw(request)).await?)
            }
        })
        .await
    }

    /// The frozen prefixes.
    pub async fn frozen(&self) -> Result<Vec<Bytes>> {
        let core = self.core();
        core.call(Plan::READ, core.deadline(), |endpoint, until| async move {
            let mut client = ClusterClient::new(endpoint.channel());
            let asked = client.frozen(v1::FrozenRequest {});
            frozen(endpoint.unary(until, asked).await?)
        })
        .await
    }

    /// What is wrong with which members.
    pub async fn alarms(&self) -> Result<Vec<Alarm>> {
        let core = self.core();
        core.call(Plan::READ, core.deadline(), |endpoint, until| async move {
            let mut client = ClusterClient::new(endpoint.channel());
            let asked = client.alarms(v1::AlarmsRequest {});
            alarms(endpoint.unary(until, asked).await?)
        })
        .await
    }

    /// Takes an alarm back; one that is not raised is fine. If what raised it still holds, it is raised again: after
    /// [`AlarmKind::Corrupt`](podkv_api::AlarmKind::Corrupt) by the next comparison. Returns those that are left.
    pub async fn disarm(&self, alarm: Alarm) -> Result<Vec<Alarm>> {
        let request = v1::DisarmAlarmRequest {
            alarm: Some(alarm.into()),
        };
        let core = self.core();
        core.call(Plan::ADMIN, core.deadline(), |endpoint, until| async move {
            let mut client = ClusterClient::new(endpoint.channel());
            alarms(endpoint.unary(until, client.disarm_alarm(request)).await?)
        })
        .await
    }

    /// Sets by hand how many pods there should be, the ordinals from `start` on. Whoever is beyond it leaves
    /// after half a minute; 0 changes nothing, since pods that are suspended come back. Returns what counts now.
    pub async fn resize(&self, start: u32, replicas: u32) -> Result<DesiredSize> {
        let request = v1::ResizeRequest { start, replicas };
        let core = self.core();
        core.call(Plan::ADMIN, core.deadline(), |endpoint, until| async move {
            let mut client = ClusterClient::new(endpoint.channel());
            let answer = endpoint.unary(until, client.resize(request)).await?;
            let header =
                convert::header(answer.header).map_err(|error| corrupt(error.to_string()))?;
            let size = answer
                .desired_size
                .ok_or_else(|| corrupt("the desired size is not in the answer"))?;
            Ok((header, size.into()))
        })
        .await
    }

    /// The members as the answering node knows them, without asking the leader. With
    /// [`Client::at`], the view of one node.
    pub async fn local_members(&self) -> Result<Vec<Member>> {
        let core = self.core();
        core.call(Plan::LOCAL, core.deadline(), |endpoint, until| {
            ask_members(endpoint, until, true)
        })
        .await
    }

    /// How every node is, by the address that it was asked at. Those that do not answer within an
    /// attempt's time have their error.
    pub async fn statuses(&self) -> Vec<(String, Result<NodeStatus>)> {
        let core = self.core();
        // A client that was made a moment ago knows only the addresses that it was given.
        look_around(core, &[]).await;
        join_all(
            core.endpoints
                .nodes()
                .into_iter()
                .map(|endpoint| async move {
                    let status = ask_status(core, &endpoint).await;
                    let status = status.map_err(|failure| failure.error);
                    (endpoint.address().to_owned(), status)
                }),
        )
        .await
    }

    /// The addresses in use: the members' own once they are learned, else the given ones.
    pub fn endpoints(&self) -> Vec<String> {
        let nodes = self.core().endpoints.nodes();
        nodes
            .iter()
            .map(|endpoint| endpoint.address().to_owned())
            .collect()
    }

    /// Who leads, as far as this client knows.
    pub fn leader(&self) -> Option<LeaderHint> {
        self.core().endpoints.leader()
    }

    /// The whole state at one revision, as `podkv snapshot restore` takes it.
    pub async fn snapshot(&self) -> Result<SnapshotStream> {
        snapshot::save(self).await
    }
}

pub(crate) async fn ask_members(
    endpoint: Arc<Endpoint>,
    until: Instant,
    local: bool,
) -> Answered<Vec<Member>> {
    let mut client = ClusterClient::new(endpoint.channel());
    let sent = client.members(v1::MembersRequest { local });
    members(endpoint.unary(until, sent).await?)
}

fn members(answer: v1::MembersResponse) -> Answered<Vec<Member>> {
    <(Header, Vec<Member>)>::try_from(answer).map_err(|error| corrupt(error.to_string()))
}

fn alarms(answer: v1::AlarmsResponse) -> Answered<Vec<Alarm>> {
    let header = convert::header(answer.header).map_err(|error| corrupt(error.to_string()))?;
    // One of a kind that this release does not know tells it nothing.
    let alarms = answer.alarms.into_iter().filter_map(convert::alarm);
    Ok((header, alarms.collect()))
}

fn frozen(answer: v1::FrozenResponse) -> Answered<Vec<Bytes>> {
    let header = convert::header(answer.header).map_err(|error| corrupt(error.to_string()))?;
    Ok((header, answer.prefixes))
}
