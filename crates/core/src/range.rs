//! Reads of a range of keys.

use podkv_api::{KeyValue, Range, Revision};

use crate::outcome::Rejection;
use crate::view::{View, ViewError};

/// How much of a range to read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    /// Stop before the page's keys and values exceed this; the first key always comes.
    pub max_bytes: usize,
    /// Fill in [`RangePage::count`]. Turn it off for the pages after the first.
    pub count: bool,
}

impl Default for PageLimits {
    /// Everything in one page.
    fn default() -> Self {
        Self {
            max_bytes: usize::MAX,
            count: true,
        }
    }
}

/// Part of a range, or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangePage {
    /// The store's revision, also for a read of the past.
    pub revision: Revision,
    pub kvs: Vec<KeyValue>,
    /// How many keys the whole range holds, whatever the limit; 0 if it was not asked for.
    pub count: u64,
    /// True if the request's limit cut keys off.
    pub more: bool,
    /// What to ask for next, if the page was full before the range was done. Pinned to the
    /// revision that this page was read at.
    pub next: Option<Range>,
}

/// Reads a range at a revision. `request.consistency` is the node's affair.
pub fn range(
    _view: &dyn View,
    _request: &Range,
    _page: PageLimits,
) -> Result<Result<RangePage, Rejection>, ViewError> {
    Err(ViewError::corrupt("unfinished"))
}
