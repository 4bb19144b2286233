//! The error, as a message and as a gRPC status.
//!
//! ```text
//!   gRPC status: code, message = the error's text
//!     grpc-status-details-bin: google.rpc.Status { code, message, details }
//!       details[0]: Any { type.googleapis.com/podkv.v1.Error }
//!       details[1]: Any { type.googleapis.com/google.rpc.RetryInfo }, if there is advice when to come back
//!     grpc-retry-pushback-ms: the same for gRPC's own retries (its proposal A6)
//! ```
//!
//! podkv's own clients read the first detail. The rest is for everybody else: proxies, dashboards,
//! clients without the protos.

use std::error::Error as _;
use std::time::Duration;

use podkv_api::{Error, ErrorKind, LeaderHint, MemberId, Reason};
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::{rpc, v1};

const TYPE_URL: &str = "type.googleapis.com/podkv.v1.Error";
const RETRY_INFO_URL: &str = "type.googleapis.com/google.rpc.RetryInfo";
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// What was asked for, where that decides what a lost answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Changes nothing: asking again is harmless.
    Read,
    /// If the answer is lost, the outcome is unknown.
    Write,
}

impl From<&Error> for v1::Error {
    fn from(error: &Error) -> Self {
        Self {
            reason: error.reason() as u32,
            reason_name: error.reason().name().to_owned(),
            text: error.text().to_owned(),
            outcome_unknown: error.outcome_unknown(),
            leader: error.leader().map(|leader| v1::LeaderHint {
                member_id: leader.member.0,
                client_address: leader.client_address.clone(),
            }),
            revision: error.revision(),
            retry_after_ms: error.retry_after().map_or(0, millis),
        }
    }
}

impl From<v1::Error> for Error {
    /// A reason that this release does not know becomes [`Reason::Internal`]; its name goes into
    /// the text.
    fn from(error: v1::Error) -> Self {
        let reason = u16::try_from(error.reason).map_or(Reason::Internal, Reason::from_code);
        let text = if reason as u32 == error.reason {
            error.text
        } else {
            format!("{} ({} {})", error.text, error.reason_name, error.reason)
        };
        let leader = error.leader.map(|leader| LeaderHint {
            member: MemberId(leader.member_id),
            client_address: leader.client_address,
        });
        let converted = Error::new(reason, text)
            .with_leader(leader)
            .with_revision(error.revision)
            .with_retry_after(
                (error.retry_after_ms > 0)
                    .then(|| Duration::from_millis(error.retry_after_ms.into())),
            );
        if error.outcome_unknown {
            converted.with_unknown_outcome()
        } else {
            converted
        }
    }
}

/// The gRPC code of an error.
///
/// Generic clients and proxies repeat a call that failed with `Unavailable`. A write whose outcome
/// is unknown must not be repeated by those who know nothing of sessions, so it is
/// `DeadlineExceeded`, which gRPC defines as "may have completed".
pub fn code(error: &Error) -> Code {
    match error.reason() {
        Reason::DeadlineExceeded => return Code::DeadlineExceeded,
        Reason::Unauthenticated | Reason::CredentialsMissing | Reason::AuthenticationFailed => {
            return Code::Unauthenticated;
        }
        Reason::Unsupported => return Code::Unimplemented,
        Reason::Corrupt => return Code::DataLoss,
        _ => {}
    }
    match error.kind() {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Conflict | ErrorKind::Fenced => Code::FailedPrecondition,
        ErrorKind::Compacted => Code::OutOfRange,
        ErrorKind::Unavailable if error.outcome_unknown() => Code::DeadlineExceeded,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Denied => Code::PermissionDenied,
        _ => Code::Internal,
    }
}

/// An error as a gRPC status with its detail.
pub fn to_status(error: &Error) -> Status {
    to_status_as(error, code(error), error.text())
}

/// The same under another code and text, for clients that match on those.
pub fn to_status_as(error: &Error, code: Code, text: &str) -> Status {
    let mut details = vec![prost_types::Any {
        type_url: TYPE_URL.to_owned(),
        value: v1::Error::from(error).encode_to_vec(),
    }];
    let mut metadata = MetadataMap::new();
    if let Some(after) = error.retry_after() {
        let retry_delay = prost_types::Duration::try_from(after).ok();
        details.push(prost_types::Any {
            type_url: RETRY_INFO_URL.to_owned(),
            value: rpc::RetryInfo { retry_delay }.encode_to_vec(),
        });
        metadata.insert(PUSHBACK, millis(after).into());
    }
    let status = rpc::Status {
        code: code as i32,
        // Some clients believe this one, some the status's own.
        message: text.to_owned(),
        details,
    };
    Status::with_details_and_metadata(code, text, status.encode_to_vec().into(), metadata)
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// The error in a gRPC status.
///
/// A status without podkv's detail was not made by a podkv handler but on the way: by a broken
/// connection, a proxy, gRPC itself. What its code says is kept as well as it can be. A write that
/// ends like that has an unknown outcome, unless it is certain that no handler saw it.
pub fn from_status(status: &Status, call: Call) -> Error {
    if let Some(error) = detail(status) {
        return error.into();
    }
    let (reason, was_never_run) = match status.code() {
        _ if is_caused_by::<tonic::ConnectError>(status) => (Reason::Unreachable, true),
        // The caller's own timer.
        _ if is_caused_by::<tonic::TimeoutExpired>(status) => (Reason::DeadlineExceeded, false),
        Code::DeadlineExceeded => (Reason::DeadlineExceeded, false),
        Code::Unimplemented => (Reason::Unsupported, true),
        Code::Unauthenticated => (Reason::Unauthenticated, true),
        Code::PermissionDenied => (Reason::PermissionDenied, true),
        // gRPC's own, about the size of a message: of the request, or of the answer.
        Code::OutOfRange if status.source().is_none() => (Reason::RequestTooLarge, false),
        Code::ResourceExhausted => (Reason::Overloaded, false),
        Code::InvalidArgument => (Reason::InvalidArgument, true),
        // A source means that it was made here, from a failed connection.
        _ if status.source().is_some() => (Reason::Unreachable, false),
        Code::Unavailable | Code::Cancelled | Code::Unknown => (Reason::Unreachable, false),
        _ => (Reason::Internal, false),
    };
    let error = Error::new(reason, status.message()).with_source(status.clone());
    match call {
        Call::Write if !was_never_run => error.with_unknown_outcome(),
        _ => error,
    }
}

fn detail(status: &Status) -> Option<v1::Error> {
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let detail = details
        .into_iter()
        .find(|detail| detail.type_url == TYPE_URL)?;
    v1::Error::decode(detail.value.as_slice()).ok()
}

/// True if there is an `E` in the status's chain of causes.
fn is_caused_by<E: std::error::Error + 'static>(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<E>() {
            return true;
        }
        source = error.source();
    }
    false
}
