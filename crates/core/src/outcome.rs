//! What a command came to: an answer, or a rejection. Both are data: replicated, kept in sessions,
//! sent between nodes. Their bytes are in `record/outcome.rs`.

use bytes::Bytes;

use podkv_api::{
    CompactResponse, DeleteResponse, Error, Header, LeaseGrantResponse, LeaseStatus, OpResponse,
    PutResponse, Reason, Revision, TxnResponse,
};

use crate::codec::{self, CodecError, FrameKind, MAX_FRAME_BYTES};
use crate::record::outcome::OutcomeV1;

/// The result of one proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The store's revision after the command. Of a duplicate: after the first one.
    pub revision: Revision,
    /// The command was applied before, in its session; this is the first outcome again.
    pub duplicate: bool,
    pub result: Result<Answer, Rejection>,
}

impl Outcome {
    pub fn encode(&self) -> Bytes {
        codec::encode_frame(FrameKind::Outcome, &OutcomeV1::from(self))
    }

    pub fn decode(bytes: &Bytes) -> Result<Self, CodecError> {
        let record: OutcomeV1 = codec::decode_frame(FrameKind::Outcome, bytes, MAX_FRAME_BYTES)?;
        record.try_into()
    }
}

/// The answer to a command. Headers inside it know only the revision: see [`Answer::stamp`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Put(PutResponse),
    Delete(DeleteResponse),
    Txn(TxnResponse),
    Compact(CompactResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke,
    /// In the order of the ids that were asked for; `None` for a lease that does not exist.
    LeaseKeepAlive(Vec<Option<LeaseStatus>>),
    SessionOpen {
        /// At least what was asked for.
        ttl_ms: u64,
    },
    /// The TTL of each session that was asked for; `None` for one that does not exist.
    SessionKeepAlive(Vec<Option<u64>>),
    SessionClose,
    Expire {
        /// How many keys, leases and sessions went.
        removed: u64,
        /// More is due.
        more: bool,
    },
    Sweep {
        /// More can be freed.
        more: bool,
    },
    /// How many records of a backup are restored, and whether that was the end.
    Restore {
        records: u64,
        done: bool,
    },
    RestoreDiscard {
        /// More is to be thrown away.
        more: bool,
    },
    /// A setting was changed.
    Done,
    /// The command was applied, at [`Outcome::revision`]; its answer was too large to be kept for
    /// a retry. Only ever in a duplicate.
    RevisionOnly,
}

impl Answer {
    /// Fills in the headers: everything from `header` but the revision, which is the answer's own.
    pub fn stamp(&mut self, header: Header) {
        match self {
            Answer::Put(response) => stamp(&mut response.header, header),
            Answer::Delete(response) => stamp(&mut response.header, header),
            Answer::Txn(response) => stamp_txn(response, header),
            Answer::Compact(response) => stamp(&mut response.header, header),
            Answer::LeaseGrant(response) => stamp(&mut response.header, header),
            Answer::LeaseKeepAlive(statuses) => {
                for status in statuses.iter_mut().flatten() {
                    stamp(&mut status.header, header);
                }
            }
            Answer::LeaseRevoke
            | Answer::SessionOpen { .. }
            | Answer::SessionKeepAlive(_)
            | Answer::SessionClose
            | Answer::Expire { .. }
            | Answer::Sweep { .. }
            | Answer::Restore { .. }
            | Answer::RestoreDiscard { .. }
            | Answer::Done
            | Answer::RevisionOnly => {}
        }
    }
}

fn stamp(mine: &mut Header, header: Header) {
    *mine = Header {
        revision: mine.revision,
        ..header
    };
}

fn stamp_txn(response: &mut TxnResponse, header: Header) {
    stamp(&mut response.header, header);
    for response in &mut response.responses {
        match response {
            OpResponse::Put(response) => stamp(&mut response.header, header),
            OpResponse::Delete(response) => stamp(&mut response.header, header),
            OpResponse::Range(response) => stamp(&mut response.header, header),
            OpResponse::Txn(response) => stamp_txn(response, header),
        }
    }
}

/// A header that knows the revision alone.
pub(crate) fn header_at(revision: Revision) -> Header {
    Header {
        revision,
        ..Header::default()
    }
}

/// A command that was understood and refused. It changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: Reason,
    /// The compacted revision for [`Reason::Compacted`], else the store's.
    pub revision: Revision,
}

impl Rejection {
    /// True if apply came to it before it looked into the session of the write, or found none. It is certain that nothing was
    /// executed now, and no word on whether the same write was before.
    pub fn is_before_session(&self) -> bool {
        matches!(
            self.reason,
            Reason::Restoring
                | Reason::CredentialsMissing
                | Reason::Unauthenticated
                | Reason::SessionNotFound
                | Reason::SessionIdentity
        )
    }
}

impl From<Rejection> for Error {
    fn from(rejection: Rejection) -> Self {
        let Rejection { reason, revision } = rejection;
        let text = match reason {
            Reason::Compacted => return Error::compacted(revision),
            Reason::FutureRevision => {
                format!("the revision is not there yet; the store is at {revision}")
            }
            Reason::EmptyKey => "the key is empty; a key has at least one byte".into(),
            Reason::DuplicateKey => "the transaction writes one key twice; each key may be put \
                                     or deleted once"
                .into(),
            Reason::ValueProvided => {
                "ignore_value keeps the value that the key has; leave the value out".into()
            }
            Reason::LeaseProvided => {
                "ignore_lease keeps the lease that the key has; leave lease and TTL out".into()
            }
            Reason::KeyNotFound => {
                "the key does not exist; ignore_value and ignore_lease need one that does".into()
            }
            Reason::InvalidTtl => "the TTL is zero or too long".into(),
            Reason::TxnTooDeep => "the transaction nests too deep".into(),
            Reason::InvalidArgument => {
                "an argument is out of bounds, or would turn back what only goes forward".into()
            }
            Reason::LeaseNotFound => {
                "the lease does not exist: it was never granted, was revoked, or expired".into()
            }
            Reason::LeaseExists => "the lease exists; choose another id, or none".into(),
            Reason::SessionNotFound => {
                "the session does not exist: it was never opened, was closed, or expired; this \
                 write was not executed"
                    .into()
            }
            Reason::SessionPayloadMismatch => {
                "the sequence was used for another write; each write takes a new one".into()
            }
            Reason::SessionSequence => format!(
                "the sequence is below acknowledged_below, or {} or more above it",
                crate::session::SESSION_WINDOW
            ),
            Reason::SessionIdentity => "the session was opened by another caller".into(),
            Reason::SessionExists => {
                "the session exists or existed; open one with a new random id".into()
            }
            Reason::Restoring => {
                "a backup is being restored into this cluster: nothing is read or written until all \
                 of it is there"
                    .into()
            }
            Reason::NotEmpty => "the cluster is not empty: a backup is restored into a new cluster \
                                 that nothing was written to"
                .into(),
            Reason::NotRestoring => "that backup is not being restored: its restore was discarded, or \
                                     never began"
                .into(),
            Reason::Unauthenticated => {
                "the user is gone, or its password was changed: authenticate again".into()
            }
            Reason::CredentialsMissing => {
                "the cluster wants to know who asks: give a user and its password".into()
            }
            Reason::PermissionDenied => "none of the user's roles allows this".into(),
            Reason::UserExists => "the user exists".into(),
            Reason::UserNotFound => "there is no such user".into(),
            Reason::RoleExists => "the role exists".into(),
            Reason::RoleNotFound => "there is no such role".into(),
            Reason::RoleNotGranted => "the user has not got the role".into(),
            Reason::PermissionNotGranted => {
                "the role has no permission on exactly that range".into()
            }
            Reason::EmptyUserName => "the user's name is empty".into(),
            Reason::EmptyRoleName => "the role's name is empty".into(),
            Reason::RootUserNotFound => "there is no user root: add it before auth is enabled".into(),
            Reason::RootRoleNotGranted => {
                "the user root has not got the role root: grant it before auth is enabled".into()
            }
            Reason::InvalidAuthChange => {
                "the user root and the role root must stay while auth is enabled, and a permission \
                 must be of a range that can hold a key"
                    .into()
            }
            Reason::Overloaded => format!(
                "there are {} sessions, and no more can be opened until one ends",
                crate::session::MAX_SESSIONS
            ),
            Reason::Frozen => "a key lies below a prefix that is frozen: `podkv freeze` lists them, and \
                               `podkv thaw` ends it"
                .into(),
            Reason::NotFrozen => "that prefix is not frozen; `podkv freeze` lists those that are".into(),
            Reason::TooManyFrozen => format!(
                "{} prefixes are frozen, and no more can be",
                crate::freeze::MAX_FROZEN_PREFIXES
            ),
            reason => format!("rejected: {}", reason.name()),
        };
        Error::new(reason, text).with_revision(revision)
    }
}
