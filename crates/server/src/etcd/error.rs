//! The codes and texts that clients of etcd match on: `api/v3rpc/rpctypes` in etcd's tree has the list.
//!
//! podkv's own error goes with it, in the status's details, for those who know podkv.

use podkv_api::{Error, Reason};
use podkv_proto::convert::{to_status, to_status_as};
use tonic::{Code, Status};

/// An error as etcd would say it.
pub(super) fn status(error: &Error) -> Status {
    match known(error) {
        Some((code, text)) => to_status_as(error, code, text),
        None => to_status(error),
    }
}

/// `None` if etcd has no word for it.
fn known(error: &Error) -> Option<(Code, &'static str)> {
    use Code::{
        DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, OutOfRange,
        PermissionDenied, ResourceExhausted, Unauthenticated, Unavailable,
    };
    // Whatever kept the answer away: never a code that somebody repeats by himself.
    if error.outcome_unknown() {
        return Some((DeadlineExceeded, "context deadline exceeded"));
    }
    Some(match error.reason() {
        Reason::EmptyKey => (InvalidArgument, "etcdserver: key is not provided"),
        Reason::KeyNotFound => (InvalidArgument, "etcdserver: key not found"),
        Reason::ValueProvided => (InvalidArgument, "etcdserver: value is provided"),
        Reason::LeaseProvided => (InvalidArgument, "etcdserver: lease is provided"),
        Reason::DuplicateKey => (
            InvalidArgument,
            "etcdserver: duplicate key given in txn request",
        ),
        Reason::TooManyOperations => (
            InvalidArgument,
            "etcdserver: too many operations in txn request",
        ),
        Reason::RequestTooLarge | Reason::KeyTooLarge => {
            (InvalidArgument, "etcdserver: request is too large")
        }
        Reason::InvalidTtl => (OutOfRange, "etcdserver: too large lease TTL"),
        Reason::Compacted => (
            OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        ),
        Reason::FutureRevision => (
            OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
        Reason::LeaseNotFound => (NotFound, "etcdserver: requested lease not found"),
        Reason::LeaseExists => (FailedPrecondition, "etcdserver: lease already exists"),
        Reason::NoSpace => (
            ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        ),
        Reason::Overloaded => (ResourceExhausted, "etcdserver: too many requests"),
        Reason::MemberNotFound => (NotFound, "etcdserver: member not found"),
        Reason::Unauthenticated => (Unauthenticated, "etcdserver: invalid auth token"),
        Reason::PermissionDenied => (PermissionDenied, "etcdserver: permission denied"),
        Reason::CredentialsMissing | Reason::EmptyUserName => {
            (InvalidArgument, "etcdserver: user name is empty")
        }
        Reason::AuthenticationFailed => (
            InvalidArgument,
            "etcdserver: authentication failed, invalid user ID or password",
        ),
        Reason::AuthNotEnabled => (
            FailedPrecondition,
            "etcdserver: authentication is not enabled",
        ),
        Reason::UserExists => (FailedPrecondition, "etcdserver: user name already exists"),
        Reason::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
        Reason::EmptyRoleName => (InvalidArgument, "etcdserver: role name is empty"),
        Reason::RoleExists => (FailedPrecondition, "etcdserver: role name already exists"),
        Reason::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
        Reason::RoleNotGranted => (
            FailedPrecondition,
            "etcdserver: role is not granted to the user",
        ),
        Reason::PermissionNotGranted => (
            FailedPrecondition,
            "etcdserver: permission is not granted to the role",
        ),
        Reason::RootUserNotFound => (FailedPrecondition, "etcdserver: root user does not exist"),
        Reason::RootRoleNotGranted => (
            FailedPrecondition,
            "etcdserver: root user does not have root role",
        ),
        Reason::InvalidAuthChange => (InvalidArgument, "etcdserver: invalid auth management"),
        Reason::NoLeader => (Unavailable, "etcdserver: no leader"),
        Reason::NotLeader => (FailedPrecondition, "etcdserver: not leader"),
        Reason::LeaderChanged => (Unavailable, "etcdserver: leader changed"),
        Reason::NodeNotReady => (Unavailable, "etcdserver: server stopped"),
        // Nothing was sent, or it was a read: to ask again is safe.
        Reason::DeadlineExceeded => (Unavailable, "etcdserver: request timed out"),
        _ => return None,
    })
}

/// Errors that only etcd's rules make.
pub(super) mod etcd {
    use podkv_api::{Error, Reason};
    use tonic::Status;

    /// With its detail: an `OutOfRange` without one is taken for gRPC's own word on an oversized message.
    fn because(reason: Reason, text: &str) -> Status {
        super::status(&Error::new(reason, text))
    }

    pub fn empty_key() -> Status {
        because(Reason::EmptyKey, "the key is empty")
    }

    /// What etcd says of an operation that is none.
    pub fn empty_operation() -> Status {
        because(Reason::KeyNotFound, "an operation that is none")
    }

    pub fn too_many_operations() -> Status {
        because(Reason::TooManyOperations, "too many operations")
    }

    pub fn value_provided() -> Status {
        because(Reason::ValueProvided, "ignore_value with a value")
    }

    pub fn lease_provided() -> Status {
        because(Reason::LeaseProvided, "ignore_lease with a lease")
    }

    pub fn compacted() -> Status {
        because(Reason::Compacted, "the revision is negative")
    }

    pub fn lease_not_found() -> Status {
        because(Reason::LeaseNotFound, "there is no lease 0")
    }

    pub fn ttl_too_large() -> Status {
        because(Reason::InvalidTtl, "the TTL is too large")
    }

    pub fn permission_not_given() -> Status {
        Status::invalid_argument("etcdserver: permission not given")
    }

    pub fn bad_transferee() -> Status {
        Status::failed_precondition("etcdserver: bad leader transferee")
    }
}
