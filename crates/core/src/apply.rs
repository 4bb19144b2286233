//! The heart: entries in, effects and outcomes out.

use std::sync::Arc;

use bytes::Bytes;

use crate::changes::RevisionEvents;
use crate::command::Entry;
use crate::meta::Meta;
use crate::outcome::Outcome;
use crate::view::{View, ViewError};

/// What a batch of entries comes to.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// What to write, sorted by key; `None` deletes. To be committed in one batch, together with
    /// the applied position.
    pub writes: Vec<(Bytes, Option<Bytes>)>,
    /// What to tell watchers once the writes are committed: one for each revision, in order.
    pub events: Vec<Arc<RevisionEvents>>,
    /// The state as a whole, after the batch. It is among the writes too.
    pub meta: Meta,
}

/// Applies entries to a view, one batch of writes for all of them.
pub struct Applier<'v> {
    #[allow(dead_code)]
    view: &'v dyn View,
}

impl<'v> Applier<'v> {
    pub fn new(view: &'v dyn View) -> Result<Self, ViewError> {
        Ok(Self { view })
    }

    /// One outcome for each proposal. After an error the applier and its effects are void.
    pub fn apply(&mut self, _entry: &Entry) -> Result<Vec<Outcome>, ViewError> {
        Err(ViewError::corrupt("unfinished"))
    }

    pub fn finish(self) -> Effects {
        Effects::default()
    }
}
