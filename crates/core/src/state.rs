//! The state while entries are applied: a view, the writes so far, and what they mean for watchers.
//!
//! Other modules add the verbs: `mvcc.rs` puts and deletes keys, `lease.rs`, `session.rs`,
//! `expire.rs`, `freeze.rs` and `compact.rs` do the rest.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use podkv_api::{Event, Reason, Revision, SessionId};

use crate::apply::Effects;
use crate::auth::Caller;
use crate::changes::RevisionEvents;
use crate::meta::{Meta, read_meta};
use crate::outcome::Rejection;
use crate::overlay::Overlay;
use crate::record::state::SessionV1;
use crate::restore;
use crate::rights::Rights;
use crate::schema;
use crate::view::{View, ViewError};

pub(crate) struct State<'v> {
    pub(crate) overlay: Overlay<'v>,
    /// Kept here and written once, by [`State::finish`]; the record in the view is older.
    pub(crate) meta: Meta,
    events: Vec<Arc<RevisionEvents>>,
    /// A backup is being restored: see `restore.rs`.
    pub(crate) restoring: bool,
    /// A restore ended in this batch.
    pub(crate) restored: bool,
    /// Sessions that this batch has met, so that a busy one is read once. `None`: there is none.
    pub(crate) session_cache: BTreeMap<SessionId, Option<SessionV1>>,
    /// Callers that this batch has met, and what they may do.
    pub(crate) rights_cache: BTreeMap<Caller, Result<Arc<Rights>, Reason>>,
    /// Users, roles or permissions changed in this batch.
    pub(crate) auth_changed: bool,
    /// The frozen prefixes, once this batch has looked: see `freeze.rs`.
    pub(crate) frozen_cache: Option<Vec<Bytes>>,
}

impl<'v> State<'v> {
    pub(crate) fn new(view: &'v dyn View) -> Result<Self, ViewError> {
        let meta = read_meta(view)?;
        Ok(Self {
            restoring: restore::under_way(view, &meta)?,
            restored: false,
            meta,
            overlay: Overlay::new(view),
            events: Vec::new(),
            session_cache: BTreeMap::new(),
            rights_cache: BTreeMap::new(),
            auth_changed: false,
            frozen_cache: None,
        })
    }

    pub(crate) fn put_record(&mut self, key: Bytes, value: Bytes) {
        self.overlay.put(key, value);
    }

    pub(crate) fn delete_record(&mut self, key: Bytes) {
        self.overlay.delete(key);
    }

    /// The changes of the revision that comes next.
    pub(crate) fn next_revision(&self) -> Changeset {
        Changeset {
            revision: self.meta.revision + 1,
            events: Vec::new(),
        }
    }

    /// Makes the revision of `changes` the store's, unless it changes nothing.
    pub(crate) fn commit(&mut self, changes: Changeset) {
        if changes.events.is_empty() {
            return;
        }
        self.meta.revision = changes.revision;
        self.events.push(Arc::new(RevisionEvents {
            revision: changes.revision,
            events: changes.events,
        }));
    }

    pub(crate) fn reject(&self, reason: Reason) -> Rejection {
        reject(&self.meta, reason)
    }

    pub(crate) fn finish(mut self) -> Effects {
        self.overlay.put(schema::meta_key(), self.meta.encode());
        Effects {
            writes: self.overlay.into_writes(),
            events: self.events,
            restored: self.restored,
            auth_changed: self.auth_changed,
            meta: self.meta,
        }
    }
}

/// A rejection that speaks of the revision its reason is about.
pub(crate) fn reject(meta: &Meta, reason: Reason) -> Rejection {
    let revision = match reason {
        Reason::Compacted => meta.compacted_revision,
        _ => meta.revision,
    };
    Rejection { reason, revision }
}

/// What one revision changes, in the making.
pub(crate) struct Changeset {
    pub(crate) revision: Revision,
    pub(crate) events: Vec<Event>,
}

impl Changeset {
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}
