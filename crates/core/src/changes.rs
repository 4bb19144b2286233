//! What changed, for watchers that have to catch up.

use podkv_api::{Event, KeyRange, Revision};

use crate::outcome::Rejection;
use crate::view::{View, ViewError};

/// All changes of one revision, in the order of its operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionEvents {
    pub revision: Revision,
    /// The key before is filled in wherever it is known; who did not ask for it strips it.
    pub events: Vec<Event>,
}

/// Where [`changes`] stops. Revisions are never cut, so the last one may pass the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangesLimits {
    pub max_events: usize,
    /// Of keys and values.
    pub max_bytes: usize,
    /// Changes looked at, matching or not: bounds the work on a quiet range.
    pub max_scanned: usize,
}

impl Default for ChangesLimits {
    fn default() -> Self {
        Self {
            max_events: 1_000,
            max_bytes: 1024 * 1024,
            max_scanned: 10_000,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangesPage {
    /// Only revisions with an event in the range.
    pub revisions: Vec<RevisionEvents>,
    /// Everything up to and including this revision was looked at: go on at the one after.
    pub looked_to: Revision,
}

/// The changes of the revisions `from ..= to`, of all keys or of a range. `to` beyond the present
/// is the present. [`podkv_api::Reason::Compacted`] if `from` is below the compacted revision.
pub fn changes(
    _view: &dyn View,
    _from: Revision,
    _to: Revision,
    _range: Option<&KeyRange>,
    _limits: ChangesLimits,
) -> Result<Result<ChangesPage, Rejection>, ViewError> {
    Err(ViewError::corrupt("unfinished"))
}
