//! Leases. On the wire, 0 is "no lease".

use podkv_api::{Error, LeaseGrantResponse, LeaseId, LeaseStatus};

use super::{Malformed, header};
use crate::v1;

/// A lease where there may be none.
pub fn optional_lease_id(id: i64) -> Option<LeaseId> {
    (id != 0).then_some(LeaseId(id))
}

/// The field `id` of a request that is about one lease.
pub fn lease_id(id: i64) -> Result<LeaseId, Malformed> {
    optional_lease_id(id).ok_or_else(|| Malformed::request("id", "0; expected a lease"))
}

/// Undoes [`optional_lease_id`].
pub fn lease_to_wire(lease: Option<LeaseId>) -> i64 {
    lease.map_or(0, |lease| lease.0)
}

fn answered_lease(id: i64) -> Result<LeaseId, Malformed> {
    optional_lease_id(id).ok_or_else(|| Malformed::answer("id", "0; expected a lease"))
}

impl From<LeaseGrantResponse> for v1::LeaseGrantResponse {
    fn from(response: LeaseGrantResponse) -> Self {
        Self {
            header: Some(response.header.into()),
            id: response.lease.0,
            ttl_ms: response.ttl_ms,
        }
    }
}

impl TryFrom<v1::LeaseGrantResponse> for LeaseGrantResponse {
    type Error = Malformed;

    fn try_from(response: v1::LeaseGrantResponse) -> Result<Self, Malformed> {
        Ok(Self {
            header: header(response.header)?,
            lease: answered_lease(response.id)?,
            ttl_ms: response.ttl_ms,
        })
    }
}

impl From<LeaseStatus> for v1::LeaseStatusResponse {
    fn from(status: LeaseStatus) -> Self {
        Self {
            header: Some(status.header.into()),
            id: status.lease.0,
            granted_ttl_ms: status.granted_ttl_ms,
            remaining_ms: status.remaining_ms,
            keys: status.keys,
        }
    }
}

impl TryFrom<v1::LeaseStatusResponse> for LeaseStatus {
    type Error = Malformed;

    fn try_from(status: v1::LeaseStatusResponse) -> Result<Self, Malformed> {
        Ok(Self {
            header: header(status.header)?,
            lease: answered_lease(status.id)?,
            granted_ttl_ms: status.granted_ttl_ms,
            remaining_ms: status.remaining_ms,
            keys: status.keys,
        })
    }
}

impl v1::LeaseKeepAliveResponse {
    /// The answer to a keep-alive of `id`. A failure speaks of this lease alone: the stream goes on.
    pub fn new(id: LeaseId, result: Result<LeaseStatus, Error>) -> Self {
        match result {
            Ok(status) => Self {
                header: Some(status.header.into()),
                id: id.0,
                error: None,
                granted_ttl_ms: status.granted_ttl_ms,
                remaining_ms: status.remaining_ms,
            },
            Err(error) => Self {
                id: id.0,
                error: Some((&error).into()),
                ..Self::default()
            },
        }
    }

    /// Undoes [`new`](Self::new); the keys of the status are empty.
    pub fn into_result(self) -> Result<LeaseStatus, Error> {
        if let Some(error) = self.error {
            return Err(error.into());
        }
        Ok(LeaseStatus {
            header: header(self.header)?,
            lease: answered_lease(self.id)?,
            granted_ttl_ms: self.granted_ttl_ms,
            remaining_ms: self.remaining_ms,
            keys: Vec::new(),
        })
    }
}
