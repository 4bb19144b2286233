//! Expiry.

use crate::view::{View, ViewError};

/// The earliest deadline of a lease, session or key, on the cluster clock. Once the clock is
/// there, the leader proposes [`crate::Command::Expire`].
pub fn next_deadline(_view: &dyn View) -> Result<Option<u64>, ViewError> {
    Err(ViewError::corrupt("unfinished"))
}
