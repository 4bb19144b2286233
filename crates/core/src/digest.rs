//! Digests, to compare replicas.

use podkv_api::Revision;

use crate::outcome::Rejection;
use crate::view::{View, ViewError};

/// SHA-256 over every key and value that the core owns. Equal on replicas that applied the same
/// entries.
pub fn state_digest(_view: &dyn View) -> Result<[u8; 32], ViewError> {
    Err(ViewError::corrupt("unfinished"))
}

/// SHA-256 over the users' keys with values and metadata as of a revision (0 is the latest), so
/// that replicas at different positions can be compared.
pub fn data_digest(
    _view: &dyn View,
    _revision: Revision,
) -> Result<Result<[u8; 32], Rejection>, ViewError> {
    Err(ViewError::corrupt("unfinished"))
}
