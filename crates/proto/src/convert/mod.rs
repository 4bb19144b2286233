//! Between the messages of `podkv.v1` and the types of `podkv-api`, both ways.
//!
//! To the wire is [`From`] and cannot fail. From the wire is [`TryFrom`] and checks the *form*:
//! that fields are there, that identifiers have their length, that what excludes each other is not
//! set together. What a value *means* (is the key too large, does the lease exist) is checked
//! where it is known, not here.
//!
//! Nested transactions recurse here; prost refuses messages nested deeper than 100, which bounds it.

mod auth;
mod cluster;
pub mod error;
mod kv;
mod lease;
mod session;
mod txn;
pub mod watch;

use podkv_api::{ClusterId, Error, Header, Incarnation, MemberId, Reason};

use crate::v1;

pub use cluster::{alarm, member_id, optional_member_id};
pub use error::{Call, from_status, to_status, to_status_as};
pub use kv::{consistency, key_range};
pub use lease::{lease_id, lease_to_wire, optional_lease_id};
pub use session::{session_id, session_id_to_wire, session_stamp};

/// A message whose form is wrong.
///
/// As an [`Error`] it is [`Reason::InvalidArgument`] if the message was a request, and
/// [`Reason::Corrupt`] if it was an answer: then the *sender* has a defect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    side: Side,
    field: String,
    problem: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Request,
    Answer,
}

impl Malformed {
    /// A field of a request. `problem` says what was found and what would be accepted.
    pub fn request(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            side: Side::Request,
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// A field of an answer.
    pub fn answer(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            side: Side::Answer,
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// The same problem, seen from the message around it: `lease` becomes `then[2].put.lease`.
    #[must_use]
    pub fn within(mut self, outer: impl std::fmt::Display) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }

    /// The path of the field.
    pub fn field(&self) -> &str {
        &self.field
    }
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        match malformed.side {
            Side::Request => Error::new(Reason::InvalidArgument, malformed.to_string()),
            Side::Answer => Error::new(
                Reason::Corrupt,
                format!("the node sent a malformed answer: {malformed}"),
            ),
        }
    }
}

impl From<Malformed> for tonic::Status {
    fn from(malformed: Malformed) -> Self {
        error::to_status(&malformed.into())
    }
}

impl From<Header> for v1::Header {
    fn from(header: Header) -> Self {
        Self {
            cluster_id: header.cluster.0,
            incarnation: header.incarnation.0,
            member_id: header.member.0,
            term: header.term,
            revision: header.revision,
        }
    }
}

impl From<v1::Header> for Header {
    fn from(header: v1::Header) -> Self {
        Self {
            cluster: ClusterId(header.cluster_id),
            incarnation: Incarnation(header.incarnation),
            member: MemberId(header.member_id),
            term: header.term,
            revision: header.revision,
        }
    }
}

/// The header of an answer; every answer has one.
pub fn header(header: Option<v1::Header>) -> Result<Header, Malformed> {
    header
        .map(Header::from)
        .ok_or_else(|| Malformed::answer("header", "missing"))
}
