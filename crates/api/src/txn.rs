//! Transactions: compare, then one list of operations or the other, all at one revision.

use bytes::Bytes;

use crate::cluster::Header;
use crate::key::KeyRange;
use crate::kv::{Delete, DeleteResponse, Put, PutResponse, Range, RangeResponse, Revision};
use crate::lease::LeaseId;

/// What a [`Compare`] looks at, and the value it compares with.
///
/// A key that does not exist has version, revisions and lease 0. A compare of its *value* is
/// false, also for [`CompareOp::NotEqual`] (as in etcd).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareTarget {
    Value(Bytes),
    Version(u64),
    CreateRevision(Revision),
    ModRevision(Revision),
    /// `None` compares with "no lease".
    Lease(Option<LeaseId>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    Equal,
    NotEqual,
    Greater,
    Less,
}

/// A condition on one key, or on every key of a range. A range without keys compares like one key that
/// does not exist (as in etcd).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    pub range: KeyRange,
    pub op: CompareOp,
    pub target: CompareTarget,
}

impl Compare {
    pub fn new(key: impl Into<Bytes>, op: CompareOp, target: CompareTarget) -> Self {
        Self {
            range: KeyRange::key(key),
            op,
            target,
        }
    }

    /// The key exists.
    pub fn exists(key: impl Into<Bytes>) -> Self {
        Self::new(key, CompareOp::Greater, CompareTarget::CreateRevision(0))
    }

    /// The key does not exist.
    pub fn absent(key: impl Into<Bytes>) -> Self {
        Self::new(key, CompareOp::Equal, CompareTarget::CreateRevision(0))
    }

    /// The key was last written at `revision`; 0 is "never".
    pub fn unchanged_since(key: impl Into<Bytes>, revision: Revision) -> Self {
        Self::new(key, CompareOp::Equal, CompareTarget::ModRevision(revision))
    }

    /// The key has this value.
    pub fn value(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::new(key, CompareOp::Equal, CompareTarget::Value(value.into()))
    }
}

/// One operation of a transaction. A range inside it ignores its `consistency`: it sees the state
/// that the transaction sees, with the operations before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put(Put),
    Delete(Delete),
    Range(Range),
    Txn(Txn),
}

/// If every compare holds, runs `then`, else `or_else`. The compares, nested ones included, see the
/// state before the transaction. No key may be written twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub then: Vec<Op>,
    pub or_else: Vec<Op>,
}

impl Txn {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn when(mut self, compares: impl IntoIterator<Item = Compare>) -> Self {
        self.compare.extend(compares);
        self
    }

    pub fn then(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.then.extend(ops);
        self
    }

    pub fn or_else(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.or_else.extend(ops);
        self
    }

    /// True if no branch can write: such a transaction is a read.
    pub fn is_read_only(&self) -> bool {
        self.then.iter().chain(&self.or_else).all(|op| match op {
            Op::Put(_) | Op::Delete(_) => false,
            Op::Range(_) => true,
            Op::Txn(txn) => txn.is_read_only(),
        })
    }
}

impl From<Put> for Op {
    fn from(put: Put) -> Self {
        Op::Put(put)
    }
}

impl From<Delete> for Op {
    fn from(delete: Delete) -> Self {
        Op::Delete(delete)
    }
}

impl From<Range> for Op {
    fn from(range: Range) -> Self {
        Op::Range(range)
    }
}

impl From<Txn> for Op {
    fn from(txn: Txn) -> Self {
        Op::Txn(txn)
    }
}

/// The answer to one [`Op`], in the same place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResponse {
    Put(PutResponse),
    Delete(DeleteResponse),
    Range(RangeResponse),
    Txn(TxnResponse),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnResponse {
    pub header: Header,
    /// True if every compare held and `then` ran.
    pub succeeded: bool,
    pub responses: Vec<OpResponse>,
}
