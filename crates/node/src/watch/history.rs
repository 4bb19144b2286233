//! Reads of the state for watchers: blocking, bounded, and off the async threads.
//!
//! The hub says what to read ([`Job`]); the driver runs it on a blocking thread; the result goes back
//! into the hub as an event.

use std::sync::Arc;

use podkv_api::{Error, KeyRange, KeyValue, Range, Reason, Result, Revision};
use podkv_core::{ChangesLimits, PageLimits, RevisionEvents, ViewError};

use crate::storage::{StateStore, StateView};

/// One bounded read.
pub(super) enum Job {
    /// The changes of a range from a revision on; of every key if `None`.
    Changes {
        from: Revision,
        range: Option<KeyRange>,
        limits: ChangesLimits,
    },
    /// The next chunk of a list. The view of the chunk before is used again if it was kept; a list at
    /// a revision reads the same from any later view, as long as the revision is not compacted.
    List {
        request: Range,
        view: Option<Arc<dyn StateView>>,
        max_bytes: usize,
    },
}

/// What a [`Job`] found.
pub(super) enum Found {
    Changes(Changes),
    List(Box<List>),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changes {
    pub revisions: Vec<RevisionEvents>,
    /// The first revision that was not looked at.
    pub next: Revision,
}

pub(super) struct List {
    pub kvs: Vec<KeyValue>,
    /// The revision of the whole list.
    pub revision: Revision,
    /// What reads this chunk, and all after it, again.
    pub again: Range,
    /// What reads the next chunk; `None` if this was the last.
    pub rest: Option<Range>,
    pub view: Arc<dyn StateView>,
}

impl Job {
    pub fn run(self, state: &dyn StateStore) -> Result<Found> {
        match self {
            Job::Changes {
                from,
                range,
                limits,
            } => {
                let view = state.view();
                let page = podkv_core::changes(&*view, from, Revision::MAX, range.as_ref(), limits)
                    .map_err(unreadable)??;
                let next = from.max(page.looked_to.saturating_add(1));
                Ok(Found::Changes(Changes {
                    revisions: page.revisions,
                    next,
                }))
            }
            Job::List {
                request,
                view,
                max_bytes,
            } => {
                let view = view.unwrap_or_else(|| state.view());
                let limits = PageLimits {
                    max_bytes,
                    count: false,
                };
                let page = podkv_core::range(&*view, &request, limits).map_err(unreadable)??;
                let revision = match request.revision {
                    0 => page.revision,
                    pinned => pinned,
                };
                let again = request.at(revision);
                let rest = page.next.map(|rest| rest.at(revision));
                Ok(Found::List(Box::new(List {
                    kvs: page.kvs,
                    revision,
                    again,
                    rest,
                    view,
                })))
            }
        }
    }
}

/// The node's own storage failed. Its apply thread finds that too and stops the node; the watcher
/// learns that it cannot go on here.
fn unreadable(error: ViewError) -> Error {
    tracing::error!(%error, "the state cannot be read for a watcher");
    Error::new(
        Reason::Internal,
        "the node cannot read its state: watch on another one",
    )
    .with_source(error)
}
