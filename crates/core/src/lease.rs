//! Leases.

use podkv_api::{LeaseId, LeaseStatus};

use crate::view::{View, ViewError};

/// How a lease is, with its keys if `keys`; `None` if it does not exist. The header knows the
/// revision alone.
pub fn lease_status(
    _view: &dyn View,
    _id: LeaseId,
    _keys: bool,
) -> Result<Option<LeaseStatus>, ViewError> {
    Err(ViewError::corrupt("unfinished"))
}

/// Every lease, in the order of ids.
pub fn leases(_view: &dyn View) -> Result<Vec<LeaseId>, ViewError> {
    Err(ViewError::corrupt("unfinished"))
}
