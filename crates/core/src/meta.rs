//! What is known about the state as a whole: one small record, read once and written once a batch.

use bytes::Bytes;
use podkv_api::{Retention, Revision};

use crate::codec;
use crate::record::state::MetaV1;
use crate::schema;
use crate::view::{View, ViewError};

/// The highest feature level that this release understands. A level gates new variants and every change in
/// what apply computes: it is raised through the log, once every member has said that it understands it.
pub const FEATURE_LEVEL: u32 = 0;

/// The state as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The latest revision. An empty store is at 1.
    pub revision: Revision,
    /// The oldest readable revision; 0 if nothing was ever compacted.
    pub compacted_revision: Revision,
    /// Everything strictly below is freed. Trails the compacted revision.
    pub swept_revision: Revision,
    /// The cluster clock.
    pub clock_ms: u64,
    /// How many keys there are.
    pub keys: u64,
    pub leases: u64,
    /// How many sessions are open.
    pub sessions: u64,
    pub feature_level: u32,
    pub retention: Retention,
    /// The newest clock mark: see `retention.rs`.
    pub(crate) mark_clock_ms: u64,
    pub(crate) mark_revision: Revision,
}

impl Default for Meta {
    /// An empty store.
    fn default() -> Self {
        Self {
            revision: 1,
            compacted_revision: 0,
            swept_revision: 0,
            clock_ms: 0,
            keys: 0,
            leases: 0,
            sessions: 0,
            feature_level: 0,
            retention: Retention::default(),
            mark_clock_ms: 0,
            mark_revision: 0,
        }
    }
}

/// Reads the meta record; an empty view is an empty store.
pub fn read_meta(view: &dyn View) -> Result<Meta, ViewError> {
    match view.get(&schema::meta_key())? {
        None => Ok(Meta::default()),
        Some(bytes) => Ok(codec::decode_record::<MetaV1>("meta", &bytes)?.into()),
    }
}

impl Meta {
    pub(crate) fn encode(&self) -> Bytes {
        codec::encode_record(&MetaV1::from(self))
    }
}
