//! Transactions, there and back.
//!
//! The answer has the form of the request, and some of what a range asks for is done on its answer (see `range`), so
//! what was asked is kept beside what is sent to the core.

use podkv_api::{
    Compare, CompareOp, CompareTarget, Consistency, LeaseId, Op, OpResponse, Revision, Txn,
    TxnResponse,
};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::compare::{
    CompareResult, CompareTarget as Target, TargetUnion,
};
use podkv_proto::etcd::etcdserverpb::request_op::Request;
use podkv_proto::etcd::etcdserverpb::response_op::Response;
use tonic::Status;

use super::convert::{
    self, delete_response, header, inner_header, put_response, required_key_range,
};
use super::error::etcd;
use super::range::{self, Shape};

/// What is left to do with the answers of each branch.
pub(super) struct Branches {
    then: Vec<Left>,
    or_else: Vec<Left>,
}

enum Left {
    Nothing,
    Range(Shape),
    Txn(Branches),
}

/// A transaction to run, how fresh it must be if it only reads, and what to do with its answer.
pub(super) fn txn(
    request: pb::TxnRequest,
    max_ops: usize,
) -> Result<(Txn, Consistency, Branches), Status> {
    let mut reads = Reads::default();
    let (txn, branches) = convert_txn(request, max_ops, &mut reads)?;
    // One that only compares asks for nothing weaker.
    let consistency = match reads.any && reads.all_serializable {
        true => Consistency::Local,
        false => Consistency::Linearizable,
    };
    Ok((txn, consistency, branches))
}

/// The most that the answer may have in bytes, where one value has `one` and an answer at most `all`.
pub(super) fn most_bytes(request: &pb::TxnRequest, one: usize, all: usize) -> usize {
    let of = |operation: &pb::RequestOp| match &operation.request {
        Some(Request::RequestRange(range)) if range.count_only => 0,
        Some(Request::RequestRange(range)) if range.range_end.is_empty() => one,
        Some(Request::RequestRange(_)) => all,
        Some(Request::RequestPut(put)) if put.prev_kv => one,
        Some(Request::RequestDeleteRange(delete)) if !delete.prev_kv => 0,
        Some(Request::RequestDeleteRange(delete)) if delete.range_end.is_empty() => one,
        Some(Request::RequestDeleteRange(_)) => all,
        Some(Request::RequestTxn(txn)) => most_bytes(txn, one, all),
        _ => 0,
    };
    let sum = |operations: &[pb::RequestOp]| operations.iter().map(of).sum::<usize>().min(all);
    sum(&request.success).max(sum(&request.failure))
}

struct Reads {
    any: bool,
    all_serializable: bool,
}

impl Default for Reads {
    fn default() -> Self {
        Self {
            any: false,
            all_serializable: true,
        }
    }
}

/// `max_ops` is what etcd has left on this level: each level takes the longest of its lists from it.
fn convert_txn(
    request: pb::TxnRequest,
    max_ops: usize,
    reads: &mut Reads,
) -> Result<(Txn, Branches), Status> {
    let lists = [
        request.compare.len(),
        request.success.len(),
        request.failure.len(),
    ];
    let longest = lists.into_iter().max().unwrap_or(0);
    let Some(left) = max_ops.checked_sub(longest) else {
        return Err(etcd::too_many_operations());
    };
    let compare: Vec<_> = request
        .compare
        .into_iter()
        .map(convert_compare)
        .collect::<Result<_, _>>()?;
    let (then, then_left) = convert_ops(request.success, left, reads)?;
    let (or_else, else_left) = convert_ops(request.failure, left, reads)?;
    let txn = Txn {
        compare,
        then,
        or_else,
    };
    let branches = Branches {
        then: then_left,
        or_else: else_left,
    };
    Ok((txn, branches))
}

fn convert_ops(
    ops: Vec<pb::RequestOp>,
    max_ops: usize,
    reads: &mut Reads,
) -> Result<(Vec<Op>, Vec<Left>), Status> {
    let mut converted = (Vec::with_capacity(ops.len()), Vec::with_capacity(ops.len()));
    for op in ops {
        let (op, left) = match op.request {
            None => return Err(etcd::empty_operation()),
            Some(Request::RequestRange(request)) => {
                reads.any = true;
                reads.all_serializable &= request.serializable;
                let revision = request.revision;
                let (range, shape) = range::range(request)?;
                // Outside a transaction it is the newest; here etcd cannot decide.
                if revision < 0 {
                    return Err(etcd::compacted());
                }
                (Op::Range(range), Left::Range(shape))
            }
            Some(Request::RequestPut(put)) => (Op::Put(convert::put(put)?), Left::Nothing),
            Some(Request::RequestDeleteRange(delete)) => {
                (Op::Delete(convert::delete(delete)?), Left::Nothing)
            }
            Some(Request::RequestTxn(request)) => {
                let (txn, branches) = convert_txn(request, max_ops, reads)?;
                (Op::Txn(txn), Left::Txn(branches))
            }
        };
        converted.0.push(op);
        converted.1.push(left);
    }
    Ok(converted)
}

fn convert_compare(compare: pb::Compare) -> Result<Compare, Status> {
    if compare.key.is_empty() {
        return Err(etcd::empty_key());
    }
    let unknown = |field| Status::invalid_argument(format!("etcdserver: unknown {field}"));
    let op = match CompareResult::try_from(compare.result).map_err(|_| unknown("result"))? {
        CompareResult::Equal => CompareOp::Equal,
        CompareResult::Greater => CompareOp::Greater,
        CompareResult::Less => CompareOp::Less,
        CompareResult::NotEqual => CompareOp::NotEqual,
    };
    let target = Target::try_from(compare.target).map_err(|_| unknown("target"))?;
    let range = required_key_range(compare.key, compare.range_end)?;
    // A union that does not fit the target compares with zero, or with nothing.
    let (op, target) = match (target, compare.target_union) {
        (Target::Value, Some(TargetUnion::Value(value))) => (op, CompareTarget::Value(value)),
        (Target::Value, _) => (op, CompareTarget::Value(bytes::Bytes::new())),
        (Target::Lease, union) => {
            let id = match union {
                Some(TargetUnion::Lease(id)) => id,
                _ => 0,
            };
            (op, CompareTarget::Lease((id != 0).then_some(LeaseId(id))))
        }
        (Target::Version, Some(TargetUnion::Version(n))) => number(op, n, CompareTarget::Version),
        (Target::Version, _) => (op, CompareTarget::Version(0)),
        (Target::Create, Some(TargetUnion::CreateRevision(n))) => {
            number(op, n, CompareTarget::CreateRevision)
        }
        (Target::Create, _) => (op, CompareTarget::CreateRevision(0)),
        (Target::Mod, Some(TargetUnion::ModRevision(n))) => {
            number(op, n, CompareTarget::ModRevision)
        }
        (Target::Mod, _) => (op, CompareTarget::ModRevision(0)),
    };
    Ok(Compare { range, op, target })
}

/// Our numbers are never negative: what a negative one means is said with the largest.
fn number(
    op: CompareOp,
    number: i64,
    target: impl Fn(u64) -> CompareTarget,
) -> (CompareOp, CompareTarget) {
    match (u64::try_from(number), op) {
        (Ok(number), _) => (op, target(number)),
        (Err(_), CompareOp::Greater | CompareOp::NotEqual) => {
            (CompareOp::NotEqual, target(u64::MAX))
        }
        (Err(_), CompareOp::Less | CompareOp::Equal) => (CompareOp::Equal, target(u64::MAX)),
    }
}

pub(super) fn response(response: TxnResponse, branches: Branches) -> pb::TxnResponse {
    let outer = header(response.header);
    let end = response.header.revision;
    let mut walk = Walk {
        begin: end - u64::from(writes(&response)),
        has_written: false,
    };
    pb::TxnResponse {
        header: Some(outer),
        ..walk.txn(response, branches)
    }
}

/// True if the transaction took a revision.
fn writes(response: &TxnResponse) -> bool {
    response.responses.iter().any(|response| match response {
        OpResponse::Put(_) => true,
        OpResponse::Delete(response) => response.deleted > 0,
        OpResponse::Range(_) => false,
        OpResponse::Txn(response) => writes(response),
    })
}

/// Goes through the answers in the order of the operations: each says the revision that it saw.
struct Walk {
    begin: Revision,
    has_written: bool,
}

impl Walk {
    fn header(&self) -> pb::ResponseHeader {
        inner_header(self.begin + u64::from(self.has_written))
    }

    fn txn(&mut self, response: TxnResponse, branches: Branches) -> pb::TxnResponse {
        let left = match response.succeeded {
            true => branches.then,
            false => branches.or_else,
        };
        let responses = response.responses.into_iter().zip(left);
        pb::TxnResponse {
            header: Some(pb::ResponseHeader::default()),
            succeeded: response.succeeded,
            responses: responses
                .map(|(response, left)| pb::ResponseOp {
                    response: Some(self.op(response, left)),
                })
                .collect(),
        }
    }

    fn op(&mut self, response: OpResponse, left: Left) -> Response {
        match (response, left) {
            (OpResponse::Put(response), _) => {
                self.has_written = true;
                Response::ResponsePut(put_response(response, self.header()))
            }
            (OpResponse::Delete(response), _) => {
                self.has_written |= response.deleted > 0;
                Response::ResponseDeleteRange(delete_response(response, self.header()))
            }
            (OpResponse::Range(response), Left::Range(shape)) => {
                Response::ResponseRange(shape.apply(response, self.header()))
            }
            (OpResponse::Txn(response), Left::Txn(branches)) => {
                Response::ResponseTxn(self.txn(response, branches))
            }
            // The core answers each operation with its kind: `Left` was made from the same list.
            (OpResponse::Range(response), _) => Response::ResponseRange(pb::RangeResponse {
                header: Some(self.header()),
                kvs: convert::key_values(response.kvs),
                more: response.more,
                count: convert::signed(response.count),
            }),
            (OpResponse::Txn(response), _) => {
                let branches = Branches {
                    then: Vec::new(),
                    or_else: Vec::new(),
                };
                Response::ResponseTxn(self.txn(response, branches))
            }
        }
    }
}
