//! The one error of podkv.
//!
//! [`ErrorKind`] says what a caller can do; [`Reason`] says what happened, one for each case, and
//! is what crosses the wire. The text is for people: it names the limit, the value and what would
//! be accepted, and nothing may match on it.

use std::fmt;
use std::time::Duration;

use crate::cluster::MemberId;
use crate::kv::Revision;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request can never succeed as it is: mend it.
    Invalid,
    /// What it names does not exist.
    NotFound,
    /// It collides with what exists.
    Conflict,
    /// The revision is compacted: read the present, watch from there.
    Compacted,
    /// Not now: try again, here or elsewhere.
    Unavailable,
    /// Too much at once, or no space: wait, then try again.
    Exhausted,
    /// The caller may not do that.
    Denied,
    /// The answer came from another cluster, or from its past: stop and look.
    Fenced,
    /// A defect, or a failed disk.
    Internal,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $kind:ident;)*) => {
        /// Why. Codes are stable on the wire: appended, never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum Reason { $($(#[$doc])* $name = $code,)* }

        impl Reason {
            /// What a caller can do about it.
            pub fn kind(self) -> ErrorKind {
                match self { $(Reason::$name => ErrorKind::$kind,)* }
            }

            /// The reason for a code from the wire. One that this release does not know is
            /// [`Reason::Internal`].
            pub fn from_code(code: u16) -> Self {
                match code { $($code => Reason::$name,)* _ => Reason::Internal }
            }

            /// The stable name, in the form `LEASE_NOT_FOUND`.
            pub fn name(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name),)* }
            }
        }
    };
}

reasons! {
    /// A defect, or a storage failure. The node says more in its log.
    Internal = 1, Internal;
    EmptyKey = 2, Invalid;
    KeyTooLarge = 3, Invalid;
    RequestTooLarge = 4, Invalid;
    TooManyOperations = 5, Invalid;
    TxnTooDeep = 6, Invalid;
    /// A transaction writes one key twice.
    DuplicateKey = 7, Invalid;
    /// `ignore_value` with a value.
    ValueProvided = 8, Invalid;
    /// `ignore_lease` with a lease or TTL.
    LeaseProvided = 9, Invalid;
    /// A put that keeps the value or lease of a key that does not exist.
    KeyNotFound = 10, NotFound;
    /// Zero, or beyond the limit.
    InvalidTtl = 11, Invalid;
    /// A malformed field: the text names it.
    InvalidArgument = 12, Invalid;
    LeaseNotFound = 13, NotFound;
    LeaseExists = 14, Conflict;
    /// Below the compacted revision.
    Compacted = 15, Compacted;
    /// Above the current revision.
    FutureRevision = 16, Invalid;
    /// Never opened, expired or closed. The write was not executed. What was sent in it before
    /// may have been.
    SessionNotFound = 17, NotFound;
    /// The sequence was used for another payload.
    SessionPayloadMismatch = 18, Invalid;
    /// The sequence is below `acknowledged_below`, or too far above it.
    SessionSequence = 19, Invalid;
    /// The session belongs to another identity.
    SessionIdentity = 20, Denied;
    SessionExists = 21, Conflict;
    /// No leader is known here. Elections take about a second.
    NoLeader = 22, Unavailable;
    /// This node is not the leader, and the call is for the leader alone.
    NotLeader = 23, Unavailable;
    /// Leadership changed before the answer was known.
    LeaderChanged = 24, Unavailable;
    /// The deadline passed.
    DeadlineExceeded = 25, Unavailable;
    /// The node is starting, joining, draining or stopped: the text says which.
    NodeNotReady = 26, Unavailable;
    /// Nothing answered at the address.
    Unreachable = 27, Unavailable;
    /// Too much in flight.
    Overloaded = 28, Exhausted;
    /// The quota or the volume is full. Deletes and compaction pass.
    NoSpace = 29, Exhausted;
    /// A bounded read on a node that is too far behind.
    TooStale = 30, Unavailable;
    MemberNotFound = 31, NotFound;
    /// Another membership change is unfinished, or this one would lose quorum.
    MembershipConflict = 32, Conflict;
    WrongCluster = 33, Fenced;
    WrongIncarnation = 34, Fenced;
    /// An answer from a state older than one seen before, under one incarnation.
    RevisionWentBack = 35, Fenced;
    /// The call was meant for another node.
    WrongTarget = 36, Fenced;
    /// The volume is a copy, or was rewound.
    RewoundVolume = 37, Fenced;
    /// What proves who the caller is does not hold, or no longer: authenticate again.
    Unauthenticated = 38, Denied;
    /// The caller is known, and has no role that allows this.
    PermissionDenied = 39, Denied;
    /// A watch fell so far behind that its place is compacted, or the stream ended.
    WatchLost = 40, Unavailable;
    /// Bytes from a wire or a disk that are not what they should be.
    Corrupt = 41, Internal;
    /// This release does not know the call or the format.
    Unsupported = 42, Invalid;
    /// A lock or an election was lost: its lease expired or its key is gone.
    LockLost = 43, Conflict;
    /// A value that does not decode as the type asked for.
    BadValue = 44, Invalid;
    /// A bad setting; the text names it, its source and what would be accepted.
    Configuration = 45, Invalid;
    /// The data folder cannot be used: foreign, newer, locked, or not writable.
    DataFolder = 46, Conflict;
    /// A retry of a write that was applied, at [`Error::revision`], whose answer was too large to keep.
    AnswerNotKept = 47, Conflict;
    /// Other writers were faster, each time.
    Contention = 48, Conflict;
    /// A backup is being restored: nothing is read or written until all of it is there.
    Restoring = 49, Unavailable;
    /// A backup is restored only into a cluster that nothing was written to.
    NotEmpty = 50, Conflict;
    /// The restore was discarded, or never began.
    NotRestoring = 51, Conflict;
    /// This node's id is no longer its cluster's. Started again, the node joins anew under another one.
    Retired = 52, Conflict;
    /// The cluster asks its callers who they are, and this one did not say.
    CredentialsMissing = 53, Denied;
    /// No such user, or not its password: which of them is not told.
    AuthenticationFailed = 54, Denied;
    /// The cluster does not ask its callers who they are, so there is nothing to prove.
    AuthNotEnabled = 55, Conflict;
    /// Passwords and tokens would cross the network in clear.
    AuthNeedsTls = 56, Conflict;
    EmptyUserName = 57, Invalid;
    UserExists = 58, Conflict;
    UserNotFound = 59, NotFound;
    EmptyRoleName = 60, Invalid;
    RoleExists = 61, Conflict;
    RoleNotFound = 62, NotFound;
    /// The user has not got the role.
    RoleNotGranted = 63, NotFound;
    /// The role has no permission on exactly that range.
    PermissionNotGranted = 64, NotFound;
    /// Authentication is enabled only once there is a user `root`.
    RootUserNotFound = 65, Conflict;
    /// Authentication is enabled only once the user `root` has the role `root`.
    RootRoleNotGranted = 66, Conflict;
    /// Nobody could change anything any more, or the range of a permission is empty.
    InvalidAuthChange = 67, Invalid;
    /// The key lies below a prefix that is frozen.
    Frozen = 68, Conflict;
    /// Nobody has frozen that prefix.
    NotFrozen = 69, NotFound;
    /// As many prefixes are frozen as can be.
    TooManyFrozen = 70, Exhausted;
}

/// Where the leader is, as far as the node that answered knew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderHint {
    pub member: MemberId,
    /// Its client address, `host:port`; empty if unknown.
    pub client_address: String,
}

/// What a node that is overloaded advises. Most of what it has taken is answered by then, and some thousands of clients
/// that come back ten times a second cost it little.
const OVERLOADED_RETRY_AFTER: Duration = Duration::from_millis(100);

/// The one error of podkv. Cheap to move.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    reason: Reason,
    text: String,
    outcome_unknown: bool,
    leader: Option<LeaderHint>,
    revision: Revision,
    retry_after: Option<Duration>,
    source: Option<std::sync::Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            reason,
            text: text.into(),
            outcome_unknown: false,
            leader: None,
            revision: 0,
            retry_after: matches!(reason, Reason::Overloaded).then_some(OVERLOADED_RETRY_AFTER),
            source: None,
        }))
    }

    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(Reason::Internal, text)
    }

    /// The revision is below `compacted`.
    pub fn compacted(compacted: Revision) -> Self {
        let text = format!("the revision is compacted; the oldest readable one is {compacted}");
        Self::new(Reason::Compacted, text).with_revision(compacted)
    }

    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(std::sync::Arc::new(source));
        self
    }

    pub fn with_leader(mut self, leader: Option<LeaderHint>) -> Self {
        self.0.leader = leader;
        self
    }

    /// The revision that the error speaks of: the compacted one, or the current one.
    pub fn with_revision(mut self, revision: Revision) -> Self {
        self.0.revision = revision;
        self
    }

    /// Advice of whoever answered, in place of this crate's own.
    pub fn with_retry_after(mut self, advice: Option<Duration>) -> Self {
        self.0.retry_after = advice;
        self
    }

    /// The write may or may not have been, or still be, applied.
    pub fn with_unknown_outcome(mut self) -> Self {
        self.0.outcome_unknown = true;
        self
    }

    pub fn kind(&self) -> ErrorKind {
        self.0.reason.kind()
    }

    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// True if the same request may succeed later or elsewhere. A write whose outcome is unknown
    /// is safe to repeat only inside its session.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind(), ErrorKind::Unavailable) || matches!(self.reason(), Reason::Overloaded)
    }

    /// How long to wait before the next try, if there is advice: what is overloaded gives some. Add jitter, so that those
    /// who were refused together do not come back together.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// True if a write may have been applied although it failed. Never read it as "not applied".
    pub fn outcome_unknown(&self) -> bool {
        self.0.outcome_unknown
    }

    pub fn leader(&self) -> Option<&LeaderHint> {
        self.0.leader.as_ref()
    }

    /// See [`Error::with_revision`]; 0 if the error speaks of none.
    pub fn revision(&self) -> Revision {
        self.0.revision
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)?;
        if self.0.outcome_unknown {
            f.write_str(" (outcome unknown: the write may have been applied)")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("reason", &self.0.reason)
            .field("text", &self.0.text)
            .field("outcome_unknown", &self.0.outcome_unknown)
            .field("leader", &self.0.leader)
            .field("revision", &self.0.revision)
            .field("retry_after", &self.0.retry_after)
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}
