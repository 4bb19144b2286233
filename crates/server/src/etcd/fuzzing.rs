//! What this folder makes of requests before it calls the node, for `tests/fuzz`.

use podkv_api::{Limits, Range, Txn};
use podkv_proto::etcd::etcdserverpb as pb;
use prost::Message;

use super::{convert, gateway, range, txn};

/// A request that was understood.
#[derive(Debug)]
pub enum Asked {
    Put(podkv_api::Put),
    Delete(podkv_api::Delete),
    Range(Range),
    Txn(Txn),
}

/// These bytes, as each kind of request that is converted; those that are understood.
pub fn requests(bytes: &[u8]) -> Vec<Asked> {
    let mut asked = Vec::new();
    if let Ok(request) = pb::PutRequest::decode(bytes) {
        asked.extend(convert::put(request).map(Asked::Put));
    }
    if let Ok(request) = pb::DeleteRangeRequest::decode(bytes) {
        asked.extend(convert::delete(request).map(Asked::Delete));
    }
    if let Ok(request) = pb::RangeRequest::decode(bytes) {
        asked.extend(range::range(request).map(|(range, _)| Asked::Range(range)));
    }
    if let Ok(request) = pb::TxnRequest::decode(bytes) {
        let max_ops = Limits::default().max_txn_ops;
        txn::most_bytes(&request, 1 << 20, 16 << 20);
        asked.extend(txn::txn(request, max_ops).map(|(txn, ..)| Asked::Txn(txn)));
    }
    asked
}

/// What the gateway makes of JSON: that again, if it is a message of the method, and the objects that it finds in it
/// when it comes in parts of `part` bytes.
pub fn json(route: usize, text: &[u8], part: usize) -> (Option<String>, Vec<&[u8]>) {
    let message = gateway::rewritten(route, text);
    (message, gateway::objects(text, part))
}
