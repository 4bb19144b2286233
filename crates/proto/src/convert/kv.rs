//! Keys, values, consistency; get, put, delete, range, compact.

use std::time::Duration;

use podkv_api::{
    CompactResponse, Consistency, Delete, DeleteResponse, Header, KeyRange, KeyValue, Put,
    PutResponse, Range, RangeEnd, RangeResponse,
};

use super::{Malformed, header, lease_to_wire, optional_lease_id};
use crate::v1;
use crate::v1::consistency::Level;
use crate::v1::key_range::End;

impl From<KeyRange> for v1::KeyRange {
    fn from(range: KeyRange) -> Self {
        let end = match range.end {
            RangeEnd::Single => End::Single(true),
            RangeEnd::Before(end) => End::Before(end),
            RangeEnd::Unbounded => End::Unbounded(true),
        };
        Self {
            start: range.start,
            end: Some(end),
        }
    }
}

impl TryFrom<v1::KeyRange> for KeyRange {
    type Error = Malformed;

    fn try_from(range: v1::KeyRange) -> Result<Self, Malformed> {
        let must_be_true =
            |field| Malformed::request(field, "false; expected true, or another end");
        match range.end {
            Some(End::Single(true)) => Ok(KeyRange::key(range.start)),
            Some(End::Before(end)) => Ok(KeyRange::between(range.start, end)),
            Some(End::Unbounded(true)) => Ok(KeyRange::from(range.start)),
            Some(End::Prefix(true)) => Ok(KeyRange::prefix(range.start)),
            Some(End::Single(false)) => Err(must_be_true("single")),
            Some(End::Unbounded(false)) => Err(must_be_true("unbounded")),
            Some(End::Prefix(false)) => Err(must_be_true("prefix")),
            None => Err(Malformed::request(
                "end",
                "not set; expected single, before, unbounded or prefix",
            )),
        }
    }
}

/// The field `range` of a request.
pub fn key_range(range: Option<v1::KeyRange>) -> Result<KeyRange, Malformed> {
    range
        .ok_or_else(|| Malformed::request("range", "missing"))?
        .try_into()
        .map_err(|malformed: Malformed| malformed.within("range"))
}

impl From<Consistency> for v1::Consistency {
    /// A bound finer than a millisecond is rounded down: never weaker than what was asked for.
    fn from(consistency: Consistency) -> Self {
        let level = match consistency {
            Consistency::Linearizable => Level::Linearizable(true),
            Consistency::Bounded(bound) => {
                Level::BoundedMs(u32::try_from(bound.as_millis()).unwrap_or(u32::MAX))
            }
            Consistency::Local => Level::Local(true),
        };
        Self { level: Some(level) }
    }
}

/// The field `consistency` of a request; linearizable if nothing is set.
pub fn consistency(consistency: Option<v1::Consistency>) -> Result<Consistency, Malformed> {
    let must_be_true = |level: &str| {
        let field = format!("consistency.{level}");
        Malformed::request(field, "false; expected true, or another level")
    };
    match consistency.and_then(|consistency| consistency.level) {
        None | Some(Level::Linearizable(true)) => Ok(Consistency::Linearizable),
        Some(Level::BoundedMs(ms)) => Ok(Consistency::Bounded(Duration::from_millis(ms.into()))),
        Some(Level::Local(true)) => Ok(Consistency::Local),
        Some(Level::Linearizable(false)) => Err(must_be_true("linearizable")),
        Some(Level::Local(false)) => Err(must_be_true("local")),
    }
}

impl From<KeyValue> for v1::KeyValue {
    fn from(kv: KeyValue) -> Self {
        Self {
            key: kv.key,
            value: kv.value,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: lease_to_wire(kv.lease),
            expires_at_ms: kv.expires_at_ms.unwrap_or(0),
        }
    }
}

impl From<v1::KeyValue> for KeyValue {
    fn from(kv: v1::KeyValue) -> Self {
        Self {
            key: kv.key,
            value: kv.value,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: optional_lease_id(kv.lease),
            expires_at_ms: (kv.expires_at_ms != 0).then_some(kv.expires_at_ms),
        }
    }
}

fn to_wire(kvs: Vec<KeyValue>) -> Vec<v1::KeyValue> {
    kvs.into_iter().map(Into::into).collect()
}

fn from_wire(kvs: Vec<v1::KeyValue>) -> Vec<KeyValue> {
    kvs.into_iter().map(Into::into).collect()
}

impl From<Put> for v1::PutRequest {
    /// Without a session stamp.
    fn from(put: Put) -> Self {
        Self {
            key: put.key,
            value: put.value,
            lease: lease_to_wire(put.lease),
            ttl_ms: put.ttl_ms.unwrap_or(0),
            prev_kv: put.prev_kv,
            ignore_value: put.ignore_value,
            ignore_lease: put.ignore_lease,
            session: None,
        }
    }
}

impl TryFrom<v1::PutRequest> for Put {
    type Error = Malformed;

    /// Leaves the session stamp aside.
    fn try_from(put: v1::PutRequest) -> Result<Self, Malformed> {
        if put.lease != 0 && put.ttl_ms != 0 {
            return Err(Malformed::request(
                "ttl_ms",
                "set together with lease; expected one of them",
            ));
        }
        Ok(Self {
            key: put.key,
            value: put.value,
            lease: optional_lease_id(put.lease),
            ttl_ms: (put.ttl_ms != 0).then_some(put.ttl_ms),
            prev_kv: put.prev_kv,
            ignore_value: put.ignore_value,
            ignore_lease: put.ignore_lease,
        })
    }
}

impl From<PutResponse> for v1::PutResponse {
    fn from(response: PutResponse) -> Self {
        Self {
            header: Some(response.header.into()),
            prev_kv: response.prev_kv.map(Into::into),
        }
    }
}

impl TryFrom<v1::PutResponse> for PutResponse {
    type Error = Malformed;

    fn try_from(response: v1::PutResponse) -> Result<Self, Malformed> {
        Ok(Self {
            header: header(response.header)?,
            prev_kv: response.prev_kv.map(Into::into),
        })
    }
}

impl From<Delete> for v1::DeleteRequest {
    /// Without a session stamp.
    fn from(delete: Delete) -> Self {
        Self {
            range: Some(delete.range.into()),
            prev_kv: delete.prev_kv,
            session: None,
        }
    }
}

impl TryFrom<v1::DeleteRequest> for Delete {
    type Error = Malformed;

    /// Leaves the session stamp aside.
    fn try_from(delete: v1::DeleteRequest) -> Result<Self, Malformed> {
        Ok(Self {
            range: key_range(delete.range)?,
            prev_kv: delete.prev_kv,
        })
    }
}

impl From<DeleteResponse> for v1::DeleteResponse {
    fn from(response: DeleteResponse) -> Self {
        Self {
            header: Some(response.header.into()),
            deleted: response.deleted,
            prev_kvs: to_wire(response.prev_kvs),
        }
    }
}

impl TryFrom<v1::DeleteResponse> for DeleteResponse {
    type Error = Malformed;

    fn try_from(response: v1::DeleteResponse) -> Result<Self, Malformed> {
        Ok(Self {
            header: header(response.header)?,
            deleted: response.deleted,
            prev_kvs: from_wire(response.prev_kvs),
        })
    }
}

impl From<Range> for v1::RangeRequest {
    fn from(range: Range) -> Self {
        Self {
            range: Some(range.range.into()),
            limit: range.limit,
            reverse: range.reverse,
            keys_only: range.keys_only,
            count_only: range.count_only,
            revision: range.revision,
            consistency: Some(range.consistency.into()),
        }
    }
}

impl TryFrom<v1::RangeRequest> for Range {
    type Error = Malformed;

    fn try_from(range: v1::RangeRequest) -> Result<Self, Malformed> {
        Ok(Self {
            range: key_range(range.range)?,
            limit: range.limit,
            reverse: range.reverse,
            keys_only: range.keys_only,
            count_only: range.count_only,
            revision: range.revision,
            consistency: consistency(range.consistency)?,
        })
    }
}

impl From<RangeResponse> for v1::RangeResponse {
    fn from(response: RangeResponse) -> Self {
        Self {
            header: Some(response.header.into()),
            kvs: to_wire(response.kvs),
            count: response.count,
            more: response.more,
        }
    }
}

impl TryFrom<v1::RangeResponse> for RangeResponse {
    type Error = Malformed;

    fn try_from(response: v1::RangeResponse) -> Result<Self, Malformed> {
        Ok(Self {
            header: header(response.header)?,
            kvs: from_wire(response.kvs),
            count: response.count,
            more: response.more,
        })
    }
}

impl TryFrom<v1::GetRequest> for Range {
    type Error = Malformed;

    /// A get is the range of one key.
    fn try_from(get: v1::GetRequest) -> Result<Self, Malformed> {
        Ok(Range::new(KeyRange::key(get.key))
            .at(get.revision)
            .consistency(consistency(get.consistency)?))
    }
}

impl From<RangeResponse> for v1::GetResponse {
    /// Of the range of one key.
    fn from(mut response: RangeResponse) -> Self {
        Self {
            header: Some(response.header.into()),
            kv: response.kvs.pop().map(Into::into),
        }
    }
}

impl TryFrom<v1::GetResponse> for RangeResponse {
    type Error = Malformed;

    fn try_from(response: v1::GetResponse) -> Result<Self, Malformed> {
        let kvs: Vec<KeyValue> = response.kv.map(Into::into).into_iter().collect();
        Ok(Self {
            header: header(response.header)?,
            count: kvs.len() as u64,
            kvs,
            more: false,
        })
    }
}

impl From<CompactResponse> for v1::CompactResponse {
    fn from(response: CompactResponse) -> Self {
        Self {
            header: Some(response.header.into()),
        }
    }
}

impl TryFrom<v1::CompactResponse> for CompactResponse {
    type Error = Malformed;

    fn try_from(response: v1::CompactResponse) -> Result<Self, Malformed> {
        Ok(Self {
            header: header(response.header)?,
        })
    }
}

/// An answer inside a transaction leaves its header out where it equals the transaction's.
pub(super) fn omit_header(own: &mut Option<v1::Header>, outer: Header) {
    if *own == Some(outer.into()) {
        *own = None;
    }
}

/// Undoes [`omit_header`].
pub(super) fn inherit_header(own: &mut Option<v1::Header>, outer: Header) {
    own.get_or_insert_with(|| outer.into());
}
