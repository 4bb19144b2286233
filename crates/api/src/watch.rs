//! Watching a range of keys.

use crate::cluster::Header;
use crate::key::KeyRange;
use crate::kv::{KeyValue, Revision};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// The key as it was written. Of a delete: key and `mod_revision` alone, the latter being the
    /// revision of the delete.
    pub kv: KeyValue,
    /// The key before, if the watch asked for it, it existed, and it is not compacted away.
    pub prev_kv: Option<KeyValue>,
}

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    pub range: KeyRange,
    /// The first revision to report; 0 is "from now on", the revision after the current one.
    pub start_revision: Revision,
    /// First list the range, then watch from the revision of the list on. Excludes
    /// `start_revision`.
    pub list: bool,
    /// Report the value before each change.
    pub prev_kv: bool,
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletes out.
    pub no_delete: bool,
    /// Report progress on a quiet range, so that a resume need not go far back.
    pub bookmarks: bool,
}

impl Watch {
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            start_revision: 0,
            list: false,
            prev_kv: false,
            no_put: false,
            no_delete: false,
            bookmarks: false,
        }
    }

    pub fn from_revision(mut self, revision: Revision) -> Self {
        self.start_revision = revision;
        self
    }

    pub fn list(mut self) -> Self {
        self.list = true;
        self
    }

    pub fn prev_kv(mut self) -> Self {
        self.prev_kv = true;
        self
    }

    pub fn bookmarks(mut self) -> Self {
        self.bookmarks = true;
        self
    }
}

/// What a watch reports, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchMessage {
    /// The watch stands: every change from `start_revision` on will be reported. Always first,
    /// and once: a client that resumes an interrupted watch does not repeat it.
    Created {
        header: Header,
        start_revision: Revision,
    },
    /// Part of the list that was asked for, in key order, as of `revision`.
    List {
        header: Header,
        revision: Revision,
        kvs: Vec<KeyValue>,
    },
    /// The list is complete; changes after `revision` follow.
    Listed { header: Header, revision: Revision },
    /// All changes of one revision, never split, in the order of the transaction.
    Events {
        header: Header,
        revision: Revision,
        events: Vec<Event>,
    },
    /// Every change up to this revision has been reported.
    Bookmark { header: Header, revision: Revision },
}
