//! The structs whose bytes are on disk and on the wire, and the way to and from the types that the
//! rest of the code speaks.
//!
//! They mirror the api's types instead of being them, so that the public API can move without
//! moving a byte on disk. Fields never change: a `PutV2` comes beside `PutV1`, under a variant
//! that is appended, and is written only once the feature level allows it.

pub(crate) mod auth;
pub(crate) mod backup;
pub(crate) mod command;
pub(crate) mod outcome;
pub(crate) mod state;

use podkv_api::{KeyRange, KeyValue, LeaseId, RangeEnd};

use crate::codec::{Blob, CodecError, Decode, Encode};

/// How deep transactions may nest in any format. Decoding recurses, so the bound is part of the
/// format: the limit that operators set is far below it.
pub(crate) const MAX_TXN_DEPTH: usize = 32;

#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct KeyRangeV1 {
    start: Blob,
    end: RangeEndV1,
}

#[derive(Clone, Debug, Encode, Decode)]
enum RangeEndV1 {
    Single,
    Before(Blob),
    Unbounded,
}

impl From<&KeyRange> for KeyRangeV1 {
    fn from(range: &KeyRange) -> Self {
        Self {
            start: (&range.start).into(),
            end: match &range.end {
                RangeEnd::Single => RangeEndV1::Single,
                RangeEnd::Before(end) => RangeEndV1::Before(end.into()),
                RangeEnd::Unbounded => RangeEndV1::Unbounded,
            },
        }
    }
}

impl From<KeyRangeV1> for KeyRange {
    fn from(range: KeyRangeV1) -> Self {
        Self {
            start: range.start.0,
            end: match range.end {
                RangeEndV1::Single => RangeEnd::Single,
                RangeEndV1::Before(end) => RangeEnd::Before(end.0),
                RangeEndV1::Unbounded => RangeEnd::Unbounded,
            },
        }
    }
}

#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct KeyValueV1 {
    key: Blob,
    value: Blob,
    create_revision: u64,
    mod_revision: u64,
    version: u64,
    lease: Option<i64>,
    expires_at_ms: Option<u64>,
}

impl From<&KeyValue> for KeyValueV1 {
    fn from(kv: &KeyValue) -> Self {
        Self {
            key: (&kv.key).into(),
            value: (&kv.value).into(),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease.map(|lease| lease.0),
            expires_at_ms: kv.expires_at_ms,
        }
    }
}

impl From<KeyValueV1> for KeyValue {
    fn from(kv: KeyValueV1) -> Self {
        Self {
            key: kv.key.0,
            value: kv.value.0,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease.map(LeaseId),
            expires_at_ms: kv.expires_at_ms,
        }
    }
}

/// Counts the level of a nested transaction while it is decoded.
#[derive(Clone, Copy)]
pub(crate) struct Depth(usize);

impl Depth {
    pub(crate) const TOP: Depth = Depth(1);

    pub(crate) fn below(self, what: &'static str) -> Result<Depth, CodecError> {
        if self.0 >= MAX_TXN_DEPTH {
            return Err(CodecError::malformed(what, "transactions nest too deep"));
        }
        Ok(Depth(self.0 + 1))
    }
}
