//! Retention.

use podkv_api::Revision;

use crate::view::{View, ViewError};

/// What automatic compaction should compact to now; `None` if there is nothing to do.
pub fn retention_target(_view: &dyn View) -> Result<Option<Revision>, ViewError> {
    Err(ViewError::corrupt("unfinished"))
}
