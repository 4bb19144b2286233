//! Transactions.

use podkv_api::{Txn, TxnResponse};

use crate::outcome::Rejection;
use crate::view::{View, ViewError};

/// Runs a transaction that cannot write (see [`Txn::is_read_only`]) on a view.
pub fn txn_read(_view: &dyn View, _txn: &Txn) -> Result<Result<TxnResponse, Rejection>, ViewError> {
    Err(ViewError::corrupt("unfinished"))
}
