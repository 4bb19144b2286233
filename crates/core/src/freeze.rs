//! Frozen prefixes: keys that nobody may write, for as long as somebody wants to be sure of them.
//!
//! ```text
//!   freeze app/     put app/x          refused: Frozen
//!                   del app/x          refused, whether app/x is there or not
//!                   del a..b           refused: the range reaches below app/
//!                   txn                refused as a whole, if the branch that is taken would write there
//!                   revoke a lease     refused, if a key below app/ is attached to it
//!                   reads, compares    as ever
//! ```
//!
//! What is kept for a large value is frozen where its key is (see `podkv_api::large`).
//!
//! **Expiry goes on.** A lease or a TTL was a promise before the prefix was frozen: its key is gone by then. A lock whose
//! holder has died must become free, and an expiry that waited would be proposed again for ever. Who freezes settings that
//! have to stay gives them no TTL.
//!
//! Freezing is no revision: no key changes. Freezing twice is once; each prefix stands for itself, so that thawing `a/`
//! leaves `a/b/` frozen. They are in backups. The list is looked up once in a batch of entries, by the first write in it.

use bytes::Bytes;
use podkv_api::{KeyRange, LeaseId, Op, RangeEnd, Reason, large};

use crate::codec;
use crate::lease;
use crate::outcome::{Answer, Rejection};
use crate::schema;
use crate::state::State;
use crate::view::{View, ViewError};

/// Each write looks at all of them.
pub const MAX_FROZEN_PREFIXES: usize = 256;
/// All of them together stay small beside a block of a backup.
pub const MAX_FROZEN_PREFIX_BYTES: usize = 1024;

/// The frozen prefixes, in their order.
pub fn frozen_prefixes(view: &dyn View) -> Result<Vec<Bytes>, ViewError> {
    let (start, end) = schema::frozen_bounds();
    view.scan(&start, &end, false)
        .map(|item| schema::read_frozen_key(&item?.0))
        .collect()
}

/// True if a key below `prefix` can lie in the range.
fn reaches(range: &KeyRange, prefix: &Bytes) -> bool {
    if range.is_single() {
        let owner = large::owner(&range.start);
        return range.start.starts_with(prefix)
            || owner.is_some_and(|owner| owner.starts_with(prefix));
    }
    if large::reaches(range) {
        // What lies in it may be kept for a key below the prefix. Only keys one by one say whose they are.
        return true;
    }
    let below = KeyRange::prefix(prefix.clone());
    let begins_before_end = |start: &Bytes, end: &RangeEnd| match end {
        RangeEnd::Before(end) => start < end,
        RangeEnd::Single | RangeEnd::Unbounded => true,
    };
    !range.is_empty()
        && begins_before_end(&range.start, &below.end)
        && begins_before_end(&below.start, &range.end)
}

impl State<'_> {
    pub(crate) fn freeze(
        &mut self,
        prefix: &Bytes,
    ) -> Result<Result<Answer, Rejection>, ViewError> {
        let frozen = self.frozen()?;
        if !frozen.contains(prefix) && frozen.len() >= MAX_FROZEN_PREFIXES {
            return Ok(Err(self.reject(Reason::TooManyFrozen)));
        }
        self.put_frozen(prefix);
        Ok(Ok(Answer::Done))
    }

    /// Without a look at how many there are: a restore brings back what was accepted once.
    pub(crate) fn put_frozen(&mut self, prefix: &Bytes) {
        self.frozen_cache = None;
        self.put_record(schema::frozen_key(prefix), codec::encode_record(&()));
    }

    /// Thawing what is not frozen is a slip in the prefix, and said.
    pub(crate) fn thaw(&mut self, prefix: &Bytes) -> Result<Result<Answer, Rejection>, ViewError> {
        if !self.frozen()?.contains(prefix) {
            return Ok(Err(self.reject(Reason::NotFrozen)));
        }
        self.frozen_cache = None;
        self.delete_record(schema::frozen_key(prefix));
        Ok(Ok(Answer::Done))
    }

    fn frozen(&mut self) -> Result<&[Bytes], ViewError> {
        if self.frozen_cache.is_none() {
            self.frozen_cache = Some(frozen_prefixes(&self.overlay)?);
        }
        Ok(self.frozen_cache.as_deref().unwrap_or_default())
    }

    /// Whether the keys of a range may be written.
    pub(crate) fn check_frozen(
        &mut self,
        range: &KeyRange,
    ) -> Result<Result<(), Reason>, ViewError> {
        let is_frozen = self.frozen()?.iter().any(|prefix| reaches(range, prefix));
        Ok(if is_frozen {
            Err(Reason::Frozen)
        } else {
            Ok(())
        })
    }

    /// The same for an operation of a transaction. Nested transactions are asked one by one.
    pub(crate) fn check_op_frozen(&mut self, op: &Op) -> Result<Result<(), Reason>, ViewError> {
        match op {
            Op::Put(put) => self.check_frozen(&KeyRange::key(put.key.clone())),
            Op::Delete(delete) => self.check_frozen(&delete.range),
            Op::Range(_) | Op::Txn(_) => Ok(Ok(())),
        }
    }

    /// Whether a lease may be revoked: that deletes its keys.
    pub(crate) fn check_lease_frozen(
        &mut self,
        id: LeaseId,
    ) -> Result<Result<(), Reason>, ViewError> {
        if self.frozen()?.is_empty() {
            return Ok(Ok(()));
        }
        for key in lease::attached_keys(&self.overlay, id)? {
            if let Err(reason) = self.check_frozen(&KeyRange::key(key))? {
                return Ok(Err(reason));
            }
        }
        Ok(Ok(()))
    }

    /// Of a restore that is thrown away.
    pub(crate) fn discard_frozen(&mut self, limit: usize) -> Result<usize, ViewError> {
        let (start, end) = schema::frozen_bounds();
        let found: Vec<_> = self
            .overlay
            .scan(&start, &end, false)
            .take(limit)
            .collect::<Result<_, _>>()?;
        let count = found.len();
        for (key, _) in found {
            self.delete_record(key);
        }
        self.frozen_cache = None;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(range: KeyRange, prefix: &'static str, expected: bool) {
        assert_eq!(
            reaches(&range, &Bytes::from_static(prefix.as_bytes())),
            expected,
            "{range:?} {prefix}"
        );
    }

    #[test]
    fn a_range_reaches_a_prefix_if_a_key_can_lie_in_both() {
        check(KeyRange::key("app/x"), "app/", true);
        check(KeyRange::key("app/"), "app/", true);
        check(KeyRange::key("app"), "app/", false);
        check(KeyRange::key("apq"), "app/", false);
        check(KeyRange::prefix("app/x"), "app/", true);
        check(KeyRange::prefix("a"), "app/", true);
        check(KeyRange::all(), "app/", true);
        check(KeyRange::all(), "", true);
        check(KeyRange::key("x"), "", true);
        check(KeyRange::from("app0"), "app/", false);
        check(KeyRange::from("app/z"), "app/", true);
        check(KeyRange::between("a", "app/"), "app/", false);
        check(KeyRange::between("a", "app/a"), "app/", true);
        check(KeyRange::between("app0", "b"), "app/", false);
        check(KeyRange::between("b", "a"), "app/", false);
    }

    #[test]
    fn a_prefix_reaches_what_is_kept_for_large_values_below_it() {
        let upload = large::UploadId(7);
        for name in [
            large::record_key(upload, b"app/x"),
            large::chunk_key(upload, 3, b"app/x"),
        ] {
            check(KeyRange::key(name.clone()), "app/", true);
            check(KeyRange::key(name.clone()), "", true);
            check(KeyRange::key(name), "apq/", false);
        }
        check(large::records(), "app/", true);
        check(large::chunks_from(upload), "app/", true);
        check(KeyRange::from("b"), "app/", false);
    }
}
