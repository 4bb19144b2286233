//! Keys, headers and single operations, between etcd's messages and podkv's types.

use bytes::Bytes;
use podkv_api::{
    Delete, DeleteResponse, EventKind, Header, KeyRange, KeyValue, LeaseId, Put, PutResponse,
    Revision,
};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::mvccpb;
use tonic::Status;

use super::error::etcd;

/// etcd's numbers are signed. Ours never grow that far.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn header(header: Header) -> pb::ResponseHeader {
    pb::ResponseHeader {
        cluster_id: header.cluster.0,
        member_id: header.member.0,
        revision: signed(header.revision),
        raft_term: header.term,
    }
}

/// Of an answer inside a transaction: only the revision is known there.
pub(super) fn inner_header(revision: Revision) -> pb::ResponseHeader {
    pb::ResponseHeader {
        revision: signed(revision),
        ..Default::default()
    }
}

/// The keys that a request is about. `key` may be empty only in a watch.
pub(super) fn key_range(key: Bytes, range_end: Bytes) -> KeyRange {
    match &range_end[..] {
        [] => KeyRange::key(key),
        [0] => KeyRange::from(key),
        _ => KeyRange::between(key, range_end),
    }
}

pub(super) fn required_key_range(key: Bytes, range_end: Bytes) -> Result<KeyRange, Status> {
    if key.is_empty() {
        return Err(etcd::empty_key());
    }
    Ok(key_range(key, range_end))
}

/// `None` for 0, which is etcd's "no lease".
pub(super) fn lease(id: i64) -> Option<LeaseId> {
    (id != 0).then_some(LeaseId(id))
}

pub(super) fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: signed(kv.create_revision),
        mod_revision: signed(kv.mod_revision),
        version: signed(kv.version),
        value: kv.value,
        lease: kv.lease.map_or(0, |lease| lease.0),
    }
}

pub(super) fn key_values(kvs: Vec<KeyValue>) -> Vec<mvccpb::KeyValue> {
    kvs.into_iter().map(key_value).collect()
}

pub(super) fn event(event: podkv_api::Event) -> mvccpb::Event {
    let kind = match event.kind {
        EventKind::Put => mvccpb::event::EventType::Put,
        EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event {
        r#type: kind as i32,
        kv: Some(key_value(event.kv)),
        prev_kv: event.prev_kv.map(key_value),
    }
}

pub(super) fn put(put: pb::PutRequest) -> Result<Put, Status> {
    if put.key.is_empty() {
        return Err(etcd::empty_key());
    }
    if put.ignore_value && !put.value.is_empty() {
        return Err(etcd::value_provided());
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(etcd::lease_provided());
    }
    Ok(Put {
        key: put.key,
        value: put.value,
        lease: lease(put.lease),
        ttl_ms: None,
        prev_kv: put.prev_kv,
        ignore_value: put.ignore_value,
        ignore_lease: put.ignore_lease,
    })
}

pub(super) fn put_response(response: PutResponse, header: pb::ResponseHeader) -> pb::PutResponse {
    pb::PutResponse {
        header: Some(header),
        prev_kv: response.prev_kv.map(key_value),
    }
}

pub(super) fn delete(delete: pb::DeleteRangeRequest) -> Result<Delete, Status> {
    Ok(Delete {
        range: required_key_range(delete.key, delete.range_end)?,
        prev_kv: delete.prev_kv,
    })
}

pub(super) fn delete_response(
    response: DeleteResponse,
    header: pb::ResponseHeader,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: Some(header),
        deleted: signed(response.deleted),
        prev_kvs: key_values(response.prev_kvs),
    }
}
