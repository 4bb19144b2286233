//! Bytes of the values in the state. `schema.rs` says which stands under which key.

use podkv_api::{DesiredSize, KeyValue, LeaseId, Revision};

use bytes::Bytes;

use crate::codec::{self, Blob, CodecError, Decode, Encode};
use crate::meta::Meta;
use podkv_api::Retention;

/// One version of a key: in `latest` always a value, in `history` either. The value's own bytes
/// follow as the record's tail, so that a record moves from one table to the other unchanged and a
/// reader shares its memory.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum VersionV1 {
    Value(KeyMetaV1),
    /// The key was deleted at this revision.
    Tombstone,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct KeyMetaV1 {
    pub(crate) create_revision: u64,
    pub(crate) mod_revision: u64,
    pub(crate) version: u64,
    pub(crate) lease: Option<i64>,
    pub(crate) expires_at_ms: Option<u64>,
}

/// A version of a key, decoded, together with the bytes that it was decoded from.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) meta: KeyMetaV1,
    pub(crate) value: Bytes,
    pub(crate) record: Bytes,
}

impl Stored {
    pub(crate) fn new(meta: KeyMetaV1, value: Bytes) -> Self {
        let record = codec::encode_record_with_tail(&VersionV1::Value(meta.clone()), &value);
        Self {
            meta,
            value,
            record,
        }
    }

    /// `None` for a tombstone.
    pub(crate) fn decode(record: Bytes) -> Result<Option<Self>, CodecError> {
        match codec::decode_record_with_tail("version of a key", &record)? {
            (VersionV1::Value(meta), value) => Ok(Some(Self {
                meta,
                value,
                record,
            })),
            (VersionV1::Tombstone, _) => Ok(None),
        }
    }

    pub(crate) fn lease(&self) -> Option<LeaseId> {
        self.meta.lease.map(LeaseId)
    }

    pub(crate) fn key_value(&self, key: Bytes) -> KeyValue {
        KeyValue {
            key,
            value: self.value.clone(),
            create_revision: self.meta.create_revision,
            mod_revision: self.meta.mod_revision,
            version: self.meta.version,
            lease: self.lease(),
            expires_at_ms: self.meta.expires_at_ms,
        }
    }
}

pub(crate) fn tombstone() -> Bytes {
    codec::encode_record(&VersionV1::Tombstone)
}

/// One change of one key. The key's raw bytes follow as the record's tail.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ChangeV1 {
    pub(crate) kind: ChangeKindV1,
    /// The revision of the version that this change superseded; `None` if there was none.
    pub(crate) superseded: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum ChangeKindV1 {
    Put,
    Delete,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LeaseV1 {
    pub(crate) ttl_ms: u64,
    pub(crate) expires_at_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SessionV1 {
    pub(crate) identity: Blob,
    pub(crate) ttl_ms: u64,
    pub(crate) expires_at_ms: u64,
    /// Results below are forgotten. Trails what the sender acknowledged.
    pub(crate) forgotten_below: u64,
    /// Closed, and remembered until its deadline so that a late copy of the message that opened
    /// it cannot bring it back.
    pub(crate) closed: bool,
}

/// What a stamped write came to. The outcome's bytes follow as the record's tail.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SessionResultV1 {
    /// The first half of the SHA-256 of the command's bytes.
    pub(crate) digest: [u8; 16],
}

/// How many keys a block holds.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct CountV1 {
    pub(crate) keys: u64,
}

/// Of the changes of a revision, the first whose superseded version was not freed yet.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SweepPlaceV1 {
    pub(crate) revision: u64,
    pub(crate) sub: u32,
}

/// The revision that the store was at when the clock stood at the mark.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ClockMarkV1 {
    pub(crate) revision: Revision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RetentionV1 {
    keep_ms: Option<u64>,
    max_revisions: Option<u64>,
}

impl From<Retention> for RetentionV1 {
    fn from(retention: Retention) -> Self {
        Self {
            keep_ms: retention.keep_ms,
            max_revisions: retention.max_revisions,
        }
    }
}

impl From<RetentionV1> for Retention {
    fn from(retention: RetentionV1) -> Self {
        Self {
            keep_ms: retention.keep_ms,
            max_revisions: retention.max_revisions,
        }
    }
}

/// Which backup is being restored, or was, and how far that is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RestoreV1 {
    pub(crate) backup: u128,
    /// The backup's.
    pub(crate) revision: u64,
    /// The backup's.
    pub(crate) clock_ms: u64,
    pub(crate) retention: RetentionV1,
    pub(crate) records: u64,
    pub(crate) phase: RestorePhaseV1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum RestorePhaseV1 {
    Records,
    Discarding,
    /// It ended, and the store went on from this revision.
    Done {
        revision: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct MetaV1 {
    revision: u64,
    compacted_revision: u64,
    swept_revision: u64,
    clock_ms: u64,
    keys: u64,
    leases: u64,
    sessions: u64,
    feature_level: u32,
    retention: RetentionV1,
    mark_clock_ms: u64,
    mark_revision: u64,
}

impl From<&Meta> for MetaV1 {
    fn from(meta: &Meta) -> Self {
        Self {
            revision: meta.revision,
            compacted_revision: meta.compacted_revision,
            swept_revision: meta.swept_revision,
            clock_ms: meta.clock_ms,
            keys: meta.keys,
            leases: meta.leases,
            sessions: meta.sessions,
            feature_level: meta.feature_level,
            retention: meta.retention.into(),
            mark_clock_ms: meta.mark_clock_ms,
            mark_revision: meta.mark_revision,
        }
    }
}

impl From<MetaV1> for Meta {
    fn from(meta: MetaV1) -> Self {
        Self {
            revision: meta.revision,
            compacted_revision: meta.compacted_revision,
            swept_revision: meta.swept_revision,
            clock_ms: meta.clock_ms,
            keys: meta.keys,
            leases: meta.leases,
            sessions: meta.sessions,
            feature_level: meta.feature_level,
            retention: meta.retention.into(),
            mark_clock_ms: meta.mark_clock_ms,
            mark_revision: meta.mark_revision,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct DesiredSizeV1 {
    /// UTF-8.
    source: Blob,
    generation: u64,
    start: u32,
    replicas: u32,
}

impl From<&DesiredSize> for DesiredSizeV1 {
    fn from(size: &DesiredSize) -> Self {
        Self {
            source: (&Bytes::from(size.source.clone())).into(),
            generation: size.generation,
            start: size.start,
            replicas: size.replicas,
        }
    }
}

impl TryFrom<DesiredSizeV1> for DesiredSize {
    type Error = CodecError;

    fn try_from(size: DesiredSizeV1) -> Result<Self, CodecError> {
        let source = String::from_utf8(size.source.0.to_vec())
            .map_err(|error| CodecError::malformed("the source of a desired size", error))?;
        Ok(Self {
            source,
            generation: size.generation,
            start: size.start,
            replicas: size.replicas,
        })
    }
}
