//! What the log carries: entries of proposals of commands.
//!
//! A command names everything that apply needs: ids are chosen and limits are checked before it is
//! proposed ([`crate::check`]), time comes with the entry. Its bytes are in `record/command.rs`.

use bytes::Bytes;

use podkv_api::{
    Alarm, Delete, KeyRange, LeaseId, Put, RangeEnd, Revision, SessionId, SessionStamp,
};
use podkv_api::{DesiredSize, Op, Retention, Txn};

use crate::auth::{AuthChange, Caller};
use crate::backup::{BackupId, BackupRecord};
use crate::codec::{self, CodecError, FrameKind, MAX_FRAME_BYTES};
use crate::record::command::{EntryV1, ProposalV1};

/// What one Raft entry carries: all that queued while the entry before it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The cluster clock as the leader measured it. Merged into the state's by maximum, before
    /// the proposals run.
    pub clock_ms: u64,
    pub proposals: Vec<Proposal>,
}

impl Entry {
    pub fn encode(&self) -> Bytes {
        let size: usize = self.proposals.iter().map(|proposal| proposal.size()).sum();
        codec::encode_frame_sized(FrameKind::Entry, &EntryV1::from(self), size)
    }

    pub fn decode(bytes: &Bytes) -> Result<Self, CodecError> {
        let record: EntryV1 = codec::decode_frame(FrameKind::Entry, bytes, MAX_FRAME_BYTES)?;
        record.try_into()
    }
}

/// One command, and the stamp that makes it apply at most once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub stamp: Option<Stamp>,
    pub command: Command,
}

impl From<Command> for Proposal {
    /// Without a stamp.
    fn from(command: Command) -> Self {
        Proposal {
            stamp: None,
            command,
        }
    }
}

impl Proposal {
    /// For the way to the leader.
    pub fn encode(&self) -> Bytes {
        codec::encode_frame_sized(FrameKind::Proposal, &ProposalV1::from(self), self.size())
    }

    pub fn decode(bytes: &Bytes) -> Result<Self, CodecError> {
        let record: ProposalV1 = codec::decode_frame(FrameKind::Proposal, bytes, MAX_FRAME_BYTES)?;
        record.try_into()
    }

    /// About how many bytes it takes in an entry. Exact enough for budgets; never below the keys
    /// and values in it.
    pub fn size(&self) -> usize {
        let stamp = match &self.stamp {
            Some(stamp) => 40 + stamp.identity.len(),
            None => 1,
        };
        stamp + self.command.size()
    }
}

/// Who sends a write, and which of the sender's writes it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub session: SessionStamp,
    /// The caller, as the node authenticated it; opaque here. Empty without authentication. It
    /// must be the one that opened the session.
    pub identity: Bytes,
}

/// What the log can ask of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Put(Put),
    Delete(Delete),
    Txn(Txn),
    /// Makes `revision` the oldest readable one, at once. [`Command::Sweep`] frees the space.
    Compact {
        revision: Revision,
    },
    LeaseGrant {
        id: LeaseId,
        ttl_ms: u64,
    },
    LeaseRevoke {
        id: LeaseId,
    },
    LeaseKeepAlive {
        ids: Vec<LeaseId>,
    },
    /// Opening a session again under the same identity renews it: an answer may have been lost.
    SessionOpen {
        id: SessionId,
        ttl_ms: u64,
        identity: Bytes,
    },
    SessionKeepAlive {
        ids: Vec<SessionId>,
    },
    SessionClose {
        id: SessionId,
    },
    /// Removes what is past its deadline: at most about `limit` keys, leases and sessions. A lease
    /// is one revision, so it is never cut.
    Expire {
        limit: u32,
    },
    /// Frees up to `limit` changes below the compacted revision.
    Sweep {
        limit: u32,
    },
    SetRetention(Retention),
    /// Allows what only newer releases understand. Never falls.
    SetFeatureLevel(u32),
    /// For recovery from a lost majority: raises the revision to at least this one and compacts to it,
    /// so that no client mistakes the recovered past for the present it saw. Leases start again at
    /// their full TTL; sessions are closed, because what was answered in them may be lost.
    RaiseRevision {
        revision: Revision,
    },
    /// Begins to restore a backup into an empty store, or goes on with it. Until
    /// [`Command::RestoreEnd`] reads and other writes are refused.
    RestoreBegin {
        backup: BackupId,
        /// The backup's.
        revision: Revision,
        /// The backup's.
        clock_ms: u64,
        retention: Retention,
    },
    /// Restores the records from number `first` of the backup on: all of them, or none. Those that
    /// are there already are left alone.
    RestoreRecords {
        backup: BackupId,
        first: u64,
        records: Vec<BackupRecord>,
    },
    /// Makes what was restored the state, if it is all of these `records`.
    RestoreEnd {
        backup: BackupId,
        records: u64,
    },
    /// Throws away up to `limit` records of a restore that has not ended.
    RestoreDiscard {
        limit: u32,
    },
    /// See `size.rs` for which one counts.
    SetDesiredSize(DesiredSize),
    /// Changes who may do what: see `auth.rs`.
    Auth(AuthChange),
    /// What a remote caller asks for. It runs if the caller may, by the state that it finds; every
    /// other command comes from the cluster itself, and may.
    As {
        caller: Caller,
        /// Not another one of these.
        command: Box<Command>,
    },
    /// Refuses writes below the prefix from now on: see `freeze.rs`.
    Freeze {
        prefix: Bytes,
    },
    Thaw {
        prefix: Bytes,
    },
    /// Tells every member what is wrong with one: see `alarm.rs`.
    RaiseAlarm(Alarm),
    ClearAlarm(Alarm),
}

impl Command {
    /// What is asked for, whoever asks.
    pub fn asked(&self) -> &Command {
        match self {
            Command::As { command, .. } => command,
            command => command,
        }
    }

    /// The same, asked for by a caller.
    pub fn by(self, caller: &Caller) -> Command {
        Command::As {
            caller: caller.clone(),
            command: Box::new(self),
        }
    }

    /// See [`Proposal::size`].
    pub fn size(&self) -> usize {
        const FIXED: usize = 32;
        FIXED
            + match self {
                Command::Put(put) => put_size(put),
                Command::Delete(delete) => range_size(&delete.range),
                Command::Txn(txn) => txn_size(txn),
                Command::LeaseKeepAlive { ids } => ids.len() * 9,
                Command::SessionKeepAlive { ids } => ids.len() * 17,
                Command::SessionOpen { identity, .. } => identity.len(),
                Command::RestoreRecords { records, .. } => {
                    records.iter().map(BackupRecord::size).sum()
                }
                Command::SetDesiredSize(size) => size.source.len(),
                Command::Auth(change) => change.size(),
                Command::As { caller, command } => {
                    let name = match caller {
                        Caller::Anonymous => 0,
                        Caller::User { name, .. } => name.len(),
                    };
                    name + command.size()
                }
                Command::Freeze { prefix } | Command::Thaw { prefix } => prefix.len(),
                Command::Compact { .. }
                | Command::LeaseGrant { .. }
                | Command::LeaseRevoke { .. }
                | Command::SessionClose { .. }
                | Command::Expire { .. }
                | Command::Sweep { .. }
                | Command::SetRetention(_)
                | Command::SetFeatureLevel(_)
                | Command::RaiseRevision { .. }
                | Command::RestoreBegin { .. }
                | Command::RestoreEnd { .. }
                | Command::RestoreDiscard { .. }
                | Command::RaiseAlarm(_)
                | Command::ClearAlarm(_) => 0,
            }
    }
}

fn put_size(put: &Put) -> usize {
    24 + put.key.len() + put.value.len()
}

pub(crate) fn range_size(range: &KeyRange) -> usize {
    let end = match &range.end {
        RangeEnd::Before(end) => end.len(),
        RangeEnd::Single | RangeEnd::Unbounded => 0,
    };
    24 + range.start.len() + end
}

fn txn_size(txn: &Txn) -> usize {
    let compares = txn.compare.iter().map(|compare| {
        let value = match &compare.target {
            podkv_api::CompareTarget::Value(value) => value.len(),
            _ => 9,
        };
        range_size(&compare.range) + value
    });
    let ops = txn.then.iter().chain(&txn.or_else).map(|op| match op {
        Op::Put(put) => put_size(put),
        Op::Delete(delete) => range_size(&delete.range),
        Op::Range(range) => range_size(&range.range) + 16,
        Op::Txn(txn) => txn_size(txn),
    });
    8 + compares.sum::<usize>() + ops.sum::<usize>()
}
