//! Members and the status of a node. On the wire, member 0 is "none".

use podkv_api::{
    Alarm, AlarmKind, DesiredSize, Header, Member, MemberId, MemberRole, NodeStatus, Retention,
};

use super::{Malformed, header};
use crate::v1;
use crate::v1::member::Role;

/// A member where there may be none.
pub fn optional_member_id(id: u64) -> Option<MemberId> {
    (id != 0).then_some(MemberId(id))
}

/// The field `id` of a request that is about one member.
pub fn member_id(id: u64) -> Result<MemberId, Malformed> {
    optional_member_id(id).ok_or_else(|| Malformed::request("id", "0; expected a member"))
}

fn role_to_wire(role: Option<MemberRole>) -> i32 {
    match role {
        Some(MemberRole::Voter) => Role::Voter.into(),
        Some(MemberRole::Learner) => Role::Learner.into(),
        None => Role::Unspecified.into(),
    }
}

fn role(role: i32) -> Result<Option<MemberRole>, Malformed> {
    match Role::try_from(role) {
        Ok(Role::Voter) => Ok(Some(MemberRole::Voter)),
        Ok(Role::Learner) => Ok(Some(MemberRole::Learner)),
        Ok(Role::Unspecified) => Ok(None),
        Err(unknown) => Err(Malformed::answer("role", unknown.to_string())),
    }
}

impl From<Member> for v1::Member {
    fn from(member: Member) -> Self {
        Self {
            id: member.id.0,
            name: member.name,
            peer_address: member.peer_address,
            client_address: member.client_address,
            role: role_to_wire(Some(member.role)),
        }
    }
}

impl TryFrom<v1::Member> for Member {
    type Error = Malformed;

    fn try_from(member: v1::Member) -> Result<Self, Malformed> {
        Ok(Self {
            id: optional_member_id(member.id)
                .ok_or_else(|| Malformed::answer("id", "0; expected a member"))?,
            name: member.name,
            peer_address: member.peer_address,
            client_address: member.client_address,
            role: role(member.role)?.ok_or_else(|| Malformed::answer("role", "not set"))?,
        })
    }
}

impl TryFrom<v1::AddMemberRequest> for Member {
    type Error = Malformed;

    /// A new member is a learner.
    fn try_from(request: v1::AddMemberRequest) -> Result<Self, Malformed> {
        if request.name.is_empty() {
            return Err(Malformed::request("name", "empty; expected the pod's name"));
        }
        Ok(Self {
            id: member_id(request.id)?,
            name: request.name,
            peer_address: address("peer_address", request.peer_address)?,
            client_address: address("client_address", request.client_address)?,
            role: MemberRole::Learner,
        })
    }
}

fn address(field: &str, address: String) -> Result<String, Malformed> {
    let is_good = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if !is_good {
        return Err(Malformed::request(
            field,
            format!("{address:?}; expected host:port"),
        ));
    }
    Ok(address)
}

impl From<NodeStatus> for v1::StatusResponse {
    fn from(status: NodeStatus) -> Self {
        Self {
            header: Some(status.header.into()),
            name: status.name,
            version: status.version,
            role: role_to_wire(status.role),
            leader_id: status.leader.map_or(0, |leader| leader.0),
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            first_log_index: status.first_log_index,
            last_log_index: status.last_log_index,
            snapshot_index: status.snapshot_index,
            compacted_revision: status.compacted_revision,
            keys: status.keys,
            disk_bytes: status.disk_bytes,
            durable: status.durable,
            clock_ms: status.clock_ms,
            retention: Some(status.retention.into()),
            feature_level: status.feature_level,
            desired_size: status.desired_size.map(Into::into),
            alarms: status.alarms.into_iter().map(Into::into).collect(),
            lease_reads: status.lease_reads,
        }
    }
}

impl TryFrom<v1::StatusResponse> for NodeStatus {
    type Error = Malformed;

    fn try_from(status: v1::StatusResponse) -> Result<Self, Malformed> {
        Ok(Self {
            header: header(status.header)?,
            name: status.name,
            version: status.version,
            role: role(status.role)?,
            leader: optional_member_id(status.leader_id),
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            first_log_index: status.first_log_index,
            last_log_index: status.last_log_index,
            snapshot_index: status.snapshot_index,
            compacted_revision: status.compacted_revision,
            keys: status.keys,
            disk_bytes: status.disk_bytes,
            durable: status.durable,
            clock_ms: status.clock_ms,
            retention: status.retention.unwrap_or_default().into(),
            feature_level: status.feature_level,
            desired_size: status.desired_size.map(Into::into),
            // One of a kind that this release does not know tells it nothing.
            alarms: status.alarms.into_iter().filter_map(alarm).collect(),
            lease_reads: status.lease_reads,
        })
    }
}

impl From<Alarm> for v1::Alarm {
    fn from(alarm: Alarm) -> Self {
        let kind = match alarm.kind {
            AlarmKind::NoSpace => v1::alarm::Kind::NoSpace,
            AlarmKind::Corrupt => v1::alarm::Kind::Corrupt,
            _ => v1::alarm::Kind::Unspecified,
        };
        Self {
            member_id: alarm.member.0,
            kind: kind.into(),
        }
    }
}

fn alarm(alarm: v1::Alarm) -> Option<Alarm> {
    let kind = match alarm.kind() {
        v1::alarm::Kind::NoSpace => AlarmKind::NoSpace,
        v1::alarm::Kind::Corrupt => AlarmKind::Corrupt,
        v1::alarm::Kind::Unspecified => return None,
    };
    Some(Alarm {
        member: MemberId(alarm.member_id),
        kind,
    })
}

impl From<DesiredSize> for v1::DesiredSize {
    fn from(size: DesiredSize) -> Self {
        Self {
            source: size.source,
            generation: size.generation,
            start: size.start,
            replicas: size.replicas,
        }
    }
}

impl From<v1::DesiredSize> for DesiredSize {
    fn from(size: v1::DesiredSize) -> Self {
        Self {
            source: size.source,
            generation: size.generation,
            start: size.start,
            replicas: size.replicas,
        }
    }
}

impl From<Retention> for v1::Retention {
    fn from(retention: Retention) -> Self {
        Self {
            keep_ms: retention.keep_ms,
            max_revisions: retention.max_revisions,
        }
    }
}

impl From<v1::Retention> for Retention {
    fn from(retention: v1::Retention) -> Self {
        Self {
            keep_ms: retention.keep_ms,
            max_revisions: retention.max_revisions,
        }
    }
}

impl TryFrom<v1::SetRetentionRequest> for Retention {
    type Error = Malformed;

    fn try_from(request: v1::SetRetentionRequest) -> Result<Self, Malformed> {
        let retention = request.retention;
        let retention = retention.ok_or_else(|| Malformed::request("retention", "not set"))?;
        Ok(retention.into())
    }
}

impl From<(Header, Vec<Member>)> for v1::MembersResponse {
    fn from((header, members): (Header, Vec<Member>)) -> Self {
        Self {
            header: Some(header.into()),
            members: members.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::MembersResponse> for (Header, Vec<Member>) {
    type Error = Malformed;

    fn try_from(response: v1::MembersResponse) -> Result<Self, Malformed> {
        let from_wire = |(place, member)| {
            Member::try_from(member)
                .map_err(|malformed: Malformed| malformed.within(format_args!("members[{place}]")))
        };
        let members = response.members.into_iter().enumerate().map(from_wire);
        Ok((header(response.header)?, members.collect::<Result<_, _>>()?))
    }
}
