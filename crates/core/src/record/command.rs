//! Bytes of entries, proposals and commands.

use podkv_api::{
    Alarm, AlarmKind, Compare, CompareOp, CompareTarget, Consistency, Delete, LeaseId, MemberId,
    Op, Put, Range, SessionId, SessionStamp, Txn,
};

use super::{Depth, KeyRangeV1};
use crate::backup::{BackupId, BackupRecord};
use crate::codec::{self, Blob, CodecError, Decode, Encode};
use crate::command::{Command, Entry, Proposal, Stamp};
use crate::record::auth::{AuthChangeV1, CallerV1};
use crate::record::backup::BackupRecordV1;
use crate::record::state::{DesiredSizeV1, RetentionV1};

#[derive(Debug, Encode, Decode)]
pub(crate) struct EntryV1 {
    clock_ms: u64,
    proposals: Vec<ProposalV1>,
}

#[derive(Debug, Encode, Decode)]
pub(crate) struct ProposalV1 {
    stamp: Option<StampV1>,
    command: CommandV1,
}

#[derive(Debug, Encode, Decode)]
struct StampV1 {
    session: u128,
    sequence: u64,
    acknowledged_below: u64,
    identity: Blob,
}

/// Variants are numbered by their place: append only.
#[derive(Debug, Encode, Decode)]
pub(crate) enum CommandV1 {
    Put(PutV1),
    Delete(DeleteV1),
    Txn(TxnV1),
    Compact {
        revision: u64,
    },
    LeaseGrant {
        id: i64,
        ttl_ms: u64,
    },
    LeaseRevoke {
        id: i64,
    },
    LeaseKeepAlive {
        ids: Vec<i64>,
    },
    SessionOpen {
        id: u128,
        ttl_ms: u64,
        identity: Blob,
    },
    SessionKeepAlive {
        ids: Vec<u128>,
    },
    SessionClose {
        id: u128,
    },
    Expire {
        limit: u32,
    },
    Sweep {
        limit: u32,
    },
    SetRetention(RetentionV1),
    SetFeatureLevel(u32),
    RaiseRevision {
        revision: u64,
    },
    RestoreBegin {
        backup: u128,
        revision: u64,
        clock_ms: u64,
        retention: RetentionV1,
    },
    RestoreRecords {
        backup: u128,
        first: u64,
        records: Vec<BackupRecordV1>,
    },
    RestoreEnd {
        backup: u128,
        records: u64,
    },
    RestoreDiscard {
        limit: u32,
    },
    SetDesiredSize(DesiredSizeV1),
    Auth(AuthChangeV1),
    As {
        caller: CallerV1,
        /// The bytes of a [`CommandV1`]; opaque, so that hostile bytes cannot make it recurse.
        command: Blob,
    },
    Freeze {
        prefix: Blob,
    },
    Thaw {
        prefix: Blob,
    },
    RaiseAlarm(AlarmV1),
    ClearAlarm(AlarmV1),
}

#[derive(Debug, Encode, Decode)]
pub(crate) struct AlarmV1 {
    kind: u8,
    member: u64,
}

impl From<&Alarm> for AlarmV1 {
    fn from(alarm: &Alarm) -> Self {
        Self {
            kind: alarm.kind as u8,
            member: alarm.member.0,
        }
    }
}

impl TryFrom<AlarmV1> for Alarm {
    type Error = CodecError;

    fn try_from(record: AlarmV1) -> Result<Self, CodecError> {
        let kind = AlarmKind::from_number(record.kind);
        Ok(Self {
            member: MemberId(record.member),
            kind: kind.ok_or_else(|| CodecError::malformed("an alarm", "its kind is unknown"))?,
        })
    }
}

#[derive(Debug, Encode, Decode)]
pub(crate) struct PutV1 {
    key: Blob,
    value: Blob,
    lease: Option<i64>,
    ttl_ms: Option<u64>,
    prev_kv: bool,
    ignore_value: bool,
    ignore_lease: bool,
}

#[derive(Debug, Encode, Decode)]
pub(crate) struct DeleteV1 {
    range: KeyRangeV1,
    prev_kv: bool,
}

/// Consistency is left out: a range inside a transaction has none.
#[derive(Debug, Encode, Decode)]
struct RangeV1 {
    range: KeyRangeV1,
    limit: u64,
    reverse: bool,
    keys_only: bool,
    count_only: bool,
    revision: u64,
}

#[derive(Debug, Encode, Decode)]
pub(crate) struct TxnV1 {
    compare: Vec<CompareV1>,
    then: Vec<OpV1>,
    or_else: Vec<OpV1>,
}

#[derive(Debug, Encode, Decode)]
struct CompareV1 {
    range: KeyRangeV1,
    op: CompareOpV1,
    target: CompareTargetV1,
}

#[derive(Debug, Encode, Decode)]
enum CompareOpV1 {
    Equal,
    NotEqual,
    Greater,
    Less,
}

#[derive(Debug, Encode, Decode)]
enum CompareTargetV1 {
    Value(Blob),
    Version(u64),
    CreateRevision(u64),
    ModRevision(u64),
    Lease(Option<i64>),
}

#[derive(Debug, Encode, Decode)]
enum OpV1 {
    Put(PutV1),
    Delete(DeleteV1),
    Range(RangeV1),
    /// The bytes of a [`TxnV1`]. Opaque here, so that bincode does not recurse as deep as hostile
    /// bytes tell it to.
    Txn(Blob),
}

impl From<&Entry> for EntryV1 {
    fn from(entry: &Entry) -> Self {
        Self {
            clock_ms: entry.clock_ms,
            proposals: entry.proposals.iter().map(ProposalV1::from).collect(),
        }
    }
}

impl TryFrom<EntryV1> for Entry {
    type Error = CodecError;

    fn try_from(entry: EntryV1) -> Result<Self, CodecError> {
        let proposals = entry.proposals.into_iter().map(Proposal::try_from);
        Ok(Self {
            clock_ms: entry.clock_ms,
            proposals: proposals.collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Proposal> for ProposalV1 {
    fn from(proposal: &Proposal) -> Self {
        Self {
            stamp: proposal.stamp.as_ref().map(|stamp| StampV1 {
                session: stamp.session.session.0,
                sequence: stamp.session.sequence,
                acknowledged_below: stamp.session.acknowledged_below,
                identity: (&stamp.identity).into(),
            }),
            command: (&proposal.command).into(),
        }
    }
}

impl TryFrom<ProposalV1> for Proposal {
    type Error = CodecError;

    fn try_from(proposal: ProposalV1) -> Result<Self, CodecError> {
        Ok(Self {
            stamp: proposal.stamp.map(|stamp| Stamp {
                session: SessionStamp {
                    session: SessionId(stamp.session),
                    sequence: stamp.sequence,
                    acknowledged_below: stamp.acknowledged_below,
                },
                identity: stamp.identity.0,
            }),
            command: proposal.command.try_into()?,
        })
    }
}

impl From<&Command> for CommandV1 {
    fn from(command: &Command) -> Self {
        match command {
            Command::Put(put) => Self::Put(put.into()),
            Command::Delete(delete) => Self::Delete(delete.into()),
            Command::Txn(txn) => Self::Txn(txn.into()),
            Command::Compact { revision } => Self::Compact {
                revision: *revision,
            },
            Command::LeaseGrant { id, ttl_ms } => Self::LeaseGrant {
                id: id.0,
                ttl_ms: *ttl_ms,
            },
            Command::LeaseRevoke { id } => Self::LeaseRevoke { id: id.0 },
            Command::LeaseKeepAlive { ids } => Self::LeaseKeepAlive {
                ids: ids.iter().map(|id| id.0).collect(),
            },
            Command::SessionOpen {
                id,
                ttl_ms,
                identity,
            } => Self::SessionOpen {
                id: id.0,
                ttl_ms: *ttl_ms,
                identity: identity.into(),
            },
            Command::SessionKeepAlive { ids } => Self::SessionKeepAlive {
                ids: ids.iter().map(|id| id.0).collect(),
            },
            Command::SessionClose { id } => Self::SessionClose { id: id.0 },
            Command::Expire { limit } => Self::Expire { limit: *limit },
            Command::Sweep { limit } => Self::Sweep { limit: *limit },
            Command::SetRetention(retention) => Self::SetRetention((*retention).into()),
            Command::SetFeatureLevel(level) => Self::SetFeatureLevel(*level),
            Command::RaiseRevision { revision } => Self::RaiseRevision {
                revision: *revision,
            },
            Command::RestoreBegin {
                backup,
                revision,
                clock_ms,
                retention,
            } => Self::RestoreBegin {
                backup: backup.0,
                revision: *revision,
                clock_ms: *clock_ms,
                retention: (*retention).into(),
            },
            Command::RestoreRecords {
                backup,
                first,
                records,
            } => Self::RestoreRecords {
                backup: backup.0,
                first: *first,
                records: records.iter().map(BackupRecordV1::from).collect(),
            },
            Command::RestoreEnd { backup, records } => Self::RestoreEnd {
                backup: backup.0,
                records: *records,
            },
            Command::RestoreDiscard { limit } => Self::RestoreDiscard { limit: *limit },
            Command::SetDesiredSize(size) => Self::SetDesiredSize(size.into()),
            Command::Auth(change) => Self::Auth(change.into()),
            Command::As { caller, command } => Self::As {
                caller: caller.into(),
                // A caller's value is in it: it should not be moved as the buffer grows.
                command: Blob(codec::encode_sized(
                    &CommandV1::from(&**command),
                    command.size(),
                )),
            },
            Command::Freeze { prefix } => Self::Freeze {
                prefix: prefix.into(),
            },
            Command::Thaw { prefix } => Self::Thaw {
                prefix: prefix.into(),
            },
            Command::RaiseAlarm(alarm) => Self::RaiseAlarm(alarm.into()),
            Command::ClearAlarm(alarm) => Self::ClearAlarm(alarm.into()),
        }
    }
}

impl TryFrom<CommandV1> for Command {
    type Error = CodecError;

    fn try_from(command: CommandV1) -> Result<Self, CodecError> {
        Ok(match command {
            CommandV1::Put(put) => Self::Put(put.into()),
            CommandV1::Delete(delete) => Self::Delete(delete.into()),
            CommandV1::Txn(txn) => Self::Txn(txn.into_txn(Depth::TOP)?),
            CommandV1::Compact { revision } => Self::Compact { revision },
            CommandV1::LeaseGrant { id, ttl_ms } => Self::LeaseGrant {
                id: LeaseId(id),
                ttl_ms,
            },
            CommandV1::LeaseRevoke { id } => Self::LeaseRevoke { id: LeaseId(id) },
            CommandV1::LeaseKeepAlive { ids } => Self::LeaseKeepAlive {
                ids: ids.into_iter().map(LeaseId).collect(),
            },
            CommandV1::SessionOpen {
                id,
                ttl_ms,
                identity,
            } => Self::SessionOpen {
                id: SessionId(id),
                ttl_ms,
                identity: identity.0,
            },
            CommandV1::SessionKeepAlive { ids } => Self::SessionKeepAlive {
                ids: ids.into_iter().map(SessionId).collect(),
            },
            CommandV1::SessionClose { id } => Self::SessionClose { id: SessionId(id) },
            CommandV1::Expire { limit } => Self::Expire { limit },
            CommandV1::Sweep { limit } => Self::Sweep { limit },
            CommandV1::SetRetention(retention) => Self::SetRetention(retention.into()),
            CommandV1::SetFeatureLevel(level) => Self::SetFeatureLevel(level),
            CommandV1::RaiseRevision { revision } => Self::RaiseRevision { revision },
            CommandV1::RestoreBegin {
                backup,
                revision,
                clock_ms,
                retention,
            } => Self::RestoreBegin {
                backup: BackupId(backup),
                revision,
                clock_ms,
                retention: retention.into(),
            },
            CommandV1::RestoreRecords {
                backup,
                first,
                records,
            } => Self::RestoreRecords {
                backup: BackupId(backup),
                first,
                records: records.into_iter().map(BackupRecord::from).collect(),
            },
            CommandV1::RestoreEnd { backup, records } => Self::RestoreEnd {
                backup: BackupId(backup),
                records,
            },
            CommandV1::RestoreDiscard { limit } => Self::RestoreDiscard { limit },
            CommandV1::SetDesiredSize(size) => Self::SetDesiredSize(size.try_into()?),
            CommandV1::Auth(change) => Self::Auth(change.into()),
            CommandV1::As { caller, command } => {
                const WHAT: &str = "command of a caller";
                let command: CommandV1 = codec::decode(WHAT, &command.0)?;
                if matches!(command, CommandV1::As { .. }) {
                    return Err(CodecError::malformed(WHAT, "callers are nested"));
                }
                Self::As {
                    caller: caller.into(),
                    command: Box::new(command.try_into()?),
                }
            }
            CommandV1::Freeze { prefix } => Self::Freeze { prefix: prefix.0 },
            CommandV1::Thaw { prefix } => Self::Thaw { prefix: prefix.0 },
            CommandV1::RaiseAlarm(alarm) => Self::RaiseAlarm(alarm.try_into()?),
            CommandV1::ClearAlarm(alarm) => Self::ClearAlarm(alarm.try_into()?),
        })
    }
}

impl From<&Put> for PutV1 {
    fn from(put: &Put) -> Self {
        Self {
            key: (&put.key).into(),
            value: (&put.value).into(),
            lease: put.lease.map(|lease| lease.0),
            ttl_ms: put.ttl_ms,
            prev_kv: put.prev_kv,
            ignore_value: put.ignore_value,
            ignore_lease: put.ignore_lease,
        }
    }
}

impl From<PutV1> for Put {
    fn from(put: PutV1) -> Self {
        Self {
            key: put.key.0,
            value: put.value.0,
            lease: put.lease.map(LeaseId),
            ttl_ms: put.ttl_ms,
            prev_kv: put.prev_kv,
            ignore_value: put.ignore_value,
            ignore_lease: put.ignore_lease,
        }
    }
}

impl From<&Delete> for DeleteV1 {
    fn from(delete: &Delete) -> Self {
        Self {
            range: (&delete.range).into(),
            prev_kv: delete.prev_kv,
        }
    }
}

impl From<DeleteV1> for Delete {
    fn from(delete: DeleteV1) -> Self {
        Self {
            range: delete.range.into(),
            prev_kv: delete.prev_kv,
        }
    }
}

impl From<&Range> for RangeV1 {
    fn from(range: &Range) -> Self {
        Self {
            range: (&range.range).into(),
            limit: range.limit,
            reverse: range.reverse,
            keys_only: range.keys_only,
            count_only: range.count_only,
            revision: range.revision,
        }
    }
}

impl From<RangeV1> for Range {
    fn from(range: RangeV1) -> Self {
        Self {
            range: range.range.into(),
            limit: range.limit,
            reverse: range.reverse,
            keys_only: range.keys_only,
            count_only: range.count_only,
            revision: range.revision,
            consistency: Consistency::default(),
        }
    }
}

impl From<&Txn> for TxnV1 {
    fn from(txn: &Txn) -> Self {
        Self {
            compare: txn.compare.iter().map(CompareV1::from).collect(),
            then: txn.then.iter().map(OpV1::from).collect(),
            or_else: txn.or_else.iter().map(OpV1::from).collect(),
        }
    }
}

impl TxnV1 {
    fn into_txn(self, depth: Depth) -> Result<Txn, CodecError> {
        let ops = |ops: Vec<OpV1>| -> Result<Vec<Op>, CodecError> {
            ops.into_iter().map(|op| op.into_op(depth)).collect()
        };
        Ok(Txn {
            compare: self.compare.into_iter().map(Compare::from).collect(),
            then: ops(self.then)?,
            or_else: ops(self.or_else)?,
        })
    }
}

impl From<&Op> for OpV1 {
    fn from(op: &Op) -> Self {
        match op {
            Op::Put(put) => Self::Put(put.into()),
            Op::Delete(delete) => Self::Delete(delete.into()),
            Op::Range(range) => Self::Range(range.into()),
            Op::Txn(txn) => Self::Txn(Blob(codec::encode(&TxnV1::from(txn)))),
        }
    }
}

impl OpV1 {
    fn into_op(self, depth: Depth) -> Result<Op, CodecError> {
        const WHAT: &str = "nested transaction";
        Ok(match self {
            Self::Put(put) => Op::Put(put.into()),
            Self::Delete(delete) => Op::Delete(delete.into()),
            Self::Range(range) => Op::Range(range.into()),
            Self::Txn(bytes) => {
                let txn: TxnV1 = codec::decode(WHAT, &bytes.0)?;
                Op::Txn(txn.into_txn(depth.below(WHAT)?)?)
            }
        })
    }
}

impl From<&Compare> for CompareV1 {
    fn from(compare: &Compare) -> Self {
        Self {
            range: (&compare.range).into(),
            op: match compare.op {
                CompareOp::Equal => CompareOpV1::Equal,
                CompareOp::NotEqual => CompareOpV1::NotEqual,
                CompareOp::Greater => CompareOpV1::Greater,
                CompareOp::Less => CompareOpV1::Less,
            },
            target: match &compare.target {
                CompareTarget::Value(value) => CompareTargetV1::Value(value.into()),
                CompareTarget::Version(version) => CompareTargetV1::Version(*version),
                CompareTarget::CreateRevision(at) => CompareTargetV1::CreateRevision(*at),
                CompareTarget::ModRevision(at) => CompareTargetV1::ModRevision(*at),
                CompareTarget::Lease(lease) => CompareTargetV1::Lease(lease.map(|lease| lease.0)),
            },
        }
    }
}

impl From<CompareV1> for Compare {
    fn from(compare: CompareV1) -> Self {
        Self {
            range: compare.range.into(),
            op: match compare.op {
                CompareOpV1::Equal => CompareOp::Equal,
                CompareOpV1::NotEqual => CompareOp::NotEqual,
                CompareOpV1::Greater => CompareOp::Greater,
                CompareOpV1::Less => CompareOp::Less,
            },
            target: match compare.target {
                CompareTargetV1::Value(value) => CompareTarget::Value(value.0),
                CompareTargetV1::Version(version) => CompareTarget::Version(version),
                CompareTargetV1::CreateRevision(at) => CompareTarget::CreateRevision(at),
                CompareTargetV1::ModRevision(at) => CompareTarget::ModRevision(at),
                CompareTargetV1::Lease(lease) => CompareTarget::Lease(lease.map(LeaseId)),
            },
        }
    }
}
