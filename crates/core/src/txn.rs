//! Transactions: compare, then one list of operations or the other, all at one revision.
//!
//! In three steps, so that a transaction happens as a whole or not at all:
//!
//! 1. All compares that matter are decided on the state before the transaction, nested ones too.
//!    The result is a [`Path`]: which branch each transaction takes.
//! 2. Everything on the path that can be refused is checked: frozen prefixes, leases, `ignore_*`, revisions of
//!    ranges. A refusal ends it here, and nothing was written.
//! 3. The path is executed. Ranges see the operations before them.

use std::cmp::Ordering;

use podkv_api::{
    Compare, CompareOp, CompareTarget, LeaseId, Op, OpResponse, Reason, Revision, Txn, TxnResponse,
};

use crate::meta::{Meta, read_meta};
use crate::mvcc::{decode_latest, latest};
use crate::outcome::{Rejection, header_at};
use crate::range;
use crate::record::state::Stored;
use crate::restore;
use crate::schema;
use crate::state::{Changeset, State, reject};
use crate::view::{View, ViewError};

/// Runs a transaction that cannot write (see [`Txn::is_read_only`]) on a view. One that can write
/// is refused with [`Reason::InvalidArgument`].
pub fn txn_read(view: &dyn View, txn: &Txn) -> Result<Result<TxnResponse, Rejection>, ViewError> {
    let meta = read_meta(view)?;
    if !txn.is_read_only() {
        return Ok(Err(reject(&meta, Reason::InvalidArgument)));
    }
    if restore::under_way(view, &meta)? {
        return Ok(Err(reject(&meta, Reason::Restoring)));
    }
    let path = Path::choose(view, txn)?;
    if let Err(reason) = check_ranges(&meta, txn, &path) {
        return Ok(Err(reject(&meta, reason)));
    }
    read_path(view, meta.revision, txn, &path).map(Ok)
}

fn check_ranges(meta: &Meta, txn: &Txn, path: &Path) -> Result<(), Reason> {
    let mut nested = path.nested.iter();
    for op in path.ops(txn) {
        match op {
            Op::Range(request) => range::check_revision(meta, request.revision)?,
            Op::Txn(txn) => {
                if let Some(path) = nested.next() {
                    check_ranges(meta, txn, path)?;
                }
            }
            Op::Put(_) | Op::Delete(_) => {}
        }
    }
    Ok(())
}

fn read_path(
    view: &dyn View,
    newest: Revision,
    txn: &Txn,
    path: &Path,
) -> Result<TxnResponse, ViewError> {
    let mut nested = path.nested.iter();
    let mut responses = Vec::new();
    for op in path.ops(txn) {
        match op {
            Op::Range(request) => {
                responses.push(OpResponse::Range(range::answer(view, newest, request)?));
            }
            Op::Txn(txn) => {
                if let Some(path) = nested.next() {
                    responses.push(OpResponse::Txn(read_path(view, newest, txn, path)?));
                }
            }
            Op::Put(_) | Op::Delete(_) => {}
        }
    }
    Ok(TxnResponse {
        header: header_at(newest),
        succeeded: path.succeeded,
        responses,
    })
}

/// Which branch a transaction takes, and the ones inside that branch.
struct Path {
    succeeded: bool,
    /// One for each transaction among the operations, in order.
    nested: Vec<Path>,
}

impl Path {
    fn choose(view: &dyn View, txn: &Txn) -> Result<Self, ViewError> {
        let mut path = Path {
            succeeded: true,
            nested: Vec::new(),
        };
        for compare in &txn.compare {
            if !holds(view, compare)? {
                path.succeeded = false;
                break;
            }
        }
        let mut nested = Vec::new();
        for op in path.ops(txn) {
            if let Op::Txn(txn) = op {
                nested.push(Path::choose(view, txn)?);
            }
        }
        path.nested = nested;
        Ok(path)
    }

    fn ops<'t>(&self, txn: &'t Txn) -> &'t [Op] {
        if self.succeeded {
            &txn.then
        } else {
            &txn.or_else
        }
    }
}

/// A compare of a range holds if it holds for every key. A range without keys compares as a key
/// that does not exist does: its numbers are 0, and of its value nothing holds (etcd's rule).
fn holds(view: &dyn View, compare: &Compare) -> Result<bool, ViewError> {
    if compare.range.is_single() {
        let stored = latest(view, &compare.range.start)?;
        return Ok(holds_for(compare, stored.as_ref()));
    }
    let (start, end) = schema::latest_bounds(&compare.range);
    let mut any = false;
    for item in view.scan(&start, &end, false) {
        any = true;
        if !holds_for(compare, Some(&decode_latest(item?.1)?)) {
            return Ok(false);
        }
    }
    Ok(any || holds_for(compare, None))
}

fn holds_for(compare: &Compare, stored: Option<&Stored>) -> bool {
    let meta = stored.map(|stored| &stored.meta);
    let order = match &compare.target {
        CompareTarget::Value(value) => match stored {
            Some(stored) => stored.value.cmp(value),
            None => return false,
        },
        CompareTarget::Version(version) => meta.map_or(0, |meta| meta.version).cmp(version),
        CompareTarget::CreateRevision(revision) => {
            meta.map_or(0, |meta| meta.create_revision).cmp(revision)
        }
        CompareTarget::ModRevision(revision) => {
            meta.map_or(0, |meta| meta.mod_revision).cmp(revision)
        }
        CompareTarget::Lease(lease) => {
            let number = |lease: Option<LeaseId>| lease.map_or(0, |lease| lease.0);
            number(stored.and_then(Stored::lease)).cmp(&number(*lease))
        }
    };
    match compare.op {
        CompareOp::Equal => order == Ordering::Equal,
        CompareOp::NotEqual => order != Ordering::Equal,
        CompareOp::Greater => order == Ordering::Greater,
        CompareOp::Less => order == Ordering::Less,
    }
}

impl State<'_> {
    pub(crate) fn txn(&mut self, txn: &Txn) -> Result<Result<TxnResponse, Rejection>, ViewError> {
        let path = Path::choose(&self.overlay, txn)?;
        if let Err(reason) = self.check_path_frozen(txn, &path)? {
            return Ok(Err(self.reject(reason)));
        }
        // In etcd's order, which its clients see: all puts, then all ranges.
        if let Err(reason) = self.check_puts(txn, &path)? {
            return Ok(Err(self.reject(reason)));
        }
        if let Err(reason) = check_ranges(&self.meta, txn, &path) {
            return Ok(Err(self.reject(reason)));
        }
        let mut changes = self.next_revision();
        let mut response = self.run_path(&mut changes, txn, &path)?;
        self.commit(changes);
        // Inside, answers carry the revision that the transaction took, if it took one.
        set_revision(&mut response, self.meta.revision);
        Ok(Ok(response))
    }

    fn check_path_frozen(
        &mut self,
        txn: &Txn,
        path: &Path,
    ) -> Result<Result<(), Reason>, ViewError> {
        let mut nested = path.nested.iter();
        for op in path.ops(txn) {
            let checked = match op {
                Op::Txn(txn) => match nested.next() {
                    Some(path) => self.check_path_frozen(txn, path)?,
                    None => Ok(()),
                },
                op => self.check_op_frozen(op)?,
            };
            if checked.is_err() {
                return Ok(checked);
            }
        }
        Ok(Ok(()))
    }

    fn check_puts(&self, txn: &Txn, path: &Path) -> Result<Result<(), Reason>, ViewError> {
        let mut nested = path.nested.iter();
        for op in path.ops(txn) {
            let checked = match op {
                Op::Put(put) => self.check_put_in_txn(put)?,
                Op::Delete(_) | Op::Range(_) => Ok(()),
                Op::Txn(txn) => match nested.next() {
                    Some(path) => self.check_puts(txn, path)?,
                    None => Ok(()),
                },
            };
            if checked.is_err() {
                return Ok(checked);
            }
        }
        Ok(Ok(()))
    }

    fn run_path(
        &mut self,
        changes: &mut Changeset,
        txn: &Txn,
        path: &Path,
    ) -> Result<TxnResponse, ViewError> {
        let mut nested = path.nested.iter();
        let ops = path.ops(txn);
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            responses.push(match op {
                Op::Put(put) => OpResponse::Put(self.put_key(changes, put)?),
                Op::Delete(delete) => OpResponse::Delete(self.delete_range(changes, delete)?),
                Op::Range(request) => {
                    let newest = match changes.is_empty() {
                        true => self.meta.revision,
                        false => changes.revision,
                    };
                    OpResponse::Range(range::answer(&self.overlay, newest, request)?)
                }
                Op::Txn(txn) => match nested.next() {
                    Some(path) => OpResponse::Txn(self.run_path(changes, txn, path)?),
                    None => continue,
                },
            });
        }
        Ok(TxnResponse {
            header: header_at(changes.revision),
            succeeded: path.succeeded,
            responses,
        })
    }
}

fn set_revision(response: &mut TxnResponse, revision: Revision) {
    response.header.revision = revision;
    for response in &mut response.responses {
        match response {
            OpResponse::Put(response) => response.header.revision = revision,
            OpResponse::Delete(response) => response.header.revision = revision,
            OpResponse::Range(response) => response.header.revision = revision,
            OpResponse::Txn(response) => set_revision(response, revision),
        }
    }
}
