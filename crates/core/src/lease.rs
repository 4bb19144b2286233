//! Leases: keys that live as long as somebody keeps them alive.
//!
//! A lease is alive until apply removes it: by [`crate::Command::LeaseRevoke`], or by
//! [`crate::Command::Expire`] once its deadline is behind the cluster clock. So a keep-alive that is
//! earlier in the log than the expiry wins, however late it is, and nobody loses a lease to a clock
//! that only one node saw.

use podkv_api::{
    Bytes, KeyRange, LeaseGrantResponse, LeaseId, LeaseStatus, Limits, RangeEnd, Reason,
};

use crate::codec;
use crate::meta::read_meta;
use crate::outcome::{Answer, Rejection, header_at};
use crate::record::state::LeaseV1;
use crate::schema::{self, Due};
use crate::state::State;
use crate::view::{View, ViewError};

/// How a lease is, with its keys if `keys`; `None` if it does not exist. The header knows the
/// revision alone.
pub fn lease_status(
    view: &dyn View,
    id: LeaseId,
    keys: bool,
) -> Result<Option<LeaseStatus>, ViewError> {
    let Some(lease) = read(view, id)? else {
        return Ok(None);
    };
    let meta = read_meta(view)?;
    Ok(Some(LeaseStatus {
        header: header_at(meta.revision),
        lease: id,
        granted_ttl_ms: lease.ttl_ms,
        remaining_ms: lease.expires_at_ms.saturating_sub(meta.clock_ms),
        keys: match keys {
            true => attached_keys(view, id)?,
            false => Vec::new(),
        },
    }))
}

/// Every lease, in the order of ids.
pub fn leases(view: &dyn View) -> Result<Vec<LeaseId>, ViewError> {
    let (start, end) = schema::lease_bounds();
    view.scan(&start, &end, false)
        .map(|item| schema::read_lease_key(&item?.0))
        .collect()
}

fn read(view: &dyn View, id: LeaseId) -> Result<Option<LeaseV1>, ViewError> {
    match view.get(&schema::lease_key(id))? {
        None => Ok(None),
        Some(record) => Ok(Some(decode(&record)?)),
    }
}

pub(crate) fn decode(record: &[u8]) -> Result<LeaseV1, ViewError> {
    Ok(codec::decode_record("lease", record)?)
}

/// The keys attached to a lease, in key order.
pub(crate) fn attached_keys(view: &dyn View, id: LeaseId) -> Result<Vec<Bytes>, ViewError> {
    let (start, end) = schema::attached_bounds(id);
    view.scan(&start, &end, false)
        .map(|item| schema::read_attached_key(&item?.0))
        .collect()
}

/// Whether a key from `start` on and before `end` is attached to a lease; `None` is no end.
pub(crate) fn has_key_between(
    view: &dyn View,
    id: LeaseId,
    start: &[u8],
    end: Option<&[u8]>,
) -> Result<bool, ViewError> {
    let (start, end) = schema::attached_between(id, start, end);
    let first = view.scan(&start, &end, false).next().transpose()?;
    Ok(first.is_some())
}

/// The keys of a range that has an end which are attached to a lease.
pub(crate) fn attached_within(
    view: &dyn View,
    id: LeaseId,
    range: &KeyRange,
) -> Result<Vec<Bytes>, ViewError> {
    let end = match &range.end {
        RangeEnd::Before(end) => Some(&end[..]),
        RangeEnd::Single | RangeEnd::Unbounded => None,
    };
    let (start, end) = schema::attached_between(id, &range.start, end);
    view.scan(&start, &end, false)
        .map(|item| schema::read_attached_key(&item?.0))
        .collect()
}

impl State<'_> {
    pub(crate) fn lease(&self, id: LeaseId) -> Result<Option<LeaseV1>, ViewError> {
        read(&self.overlay, id)
    }

    pub(crate) fn lease_grant(
        &mut self,
        id: LeaseId,
        ttl_ms: u64,
    ) -> Result<Result<Answer, Rejection>, ViewError> {
        if self.lease(id)?.is_some() {
            return Ok(Err(self.reject(Reason::LeaseExists)));
        }
        let ttl_ms = ttl_ms.max(Limits::MIN_LEASE_TTL_MS);
        self.renew_lease(id, ttl_ms, None);
        self.meta.leases += 1;
        Ok(Ok(Answer::LeaseGrant(LeaseGrantResponse {
            header: header_at(self.meta.revision),
            lease: id,
            ttl_ms,
        })))
    }

    /// Brings a lease back; the caller has checked that it is not there.
    pub(crate) fn restore_lease(&mut self, id: LeaseId, ttl_ms: u64) {
        self.renew_lease(id, ttl_ms, None);
        self.meta.leases += 1;
    }

    pub(crate) fn lease_revoke(
        &mut self,
        id: LeaseId,
    ) -> Result<Result<Answer, Rejection>, ViewError> {
        match self.lease(id)? {
            None => Ok(Err(self.reject(Reason::LeaseNotFound))),
            Some(lease) => {
                if let Err(reason) = self.check_lease_frozen(id)? {
                    return Ok(Err(self.reject(reason)));
                }
                self.end_lease(id, &lease)?;
                Ok(Ok(Answer::LeaseRevoke))
            }
        }
    }

    /// Removes a lease and deletes its keys, in key order and in one revision. Says how many.
    pub(crate) fn end_lease(&mut self, id: LeaseId, lease: &LeaseV1) -> Result<u64, ViewError> {
        let keys = attached_keys(&self.overlay, id)?;
        let mut changes = self.next_revision();
        let mut deleted = 0;
        for key in &keys {
            deleted += u64::from(self.delete_key(&mut changes, key)?);
        }
        self.commit(changes);
        self.drop_deadline(lease.expires_at_ms, &Due::Lease(id));
        self.delete_record(schema::lease_key(id));
        self.meta.leases = self.meta.leases.saturating_sub(1);
        Ok(deleted)
    }

    pub(crate) fn lease_keep_alive(&mut self, ids: &[LeaseId]) -> Result<Answer, ViewError> {
        let mut statuses = Vec::with_capacity(ids.len());
        for &id in ids {
            let lease = self.lease(id)?;
            statuses.push(lease.map(|lease| {
                self.renew_lease(id, lease.ttl_ms, Some(lease.expires_at_ms));
                LeaseStatus {
                    header: header_at(self.meta.revision),
                    lease: id,
                    granted_ttl_ms: lease.ttl_ms,
                    remaining_ms: lease.ttl_ms,
                    keys: Vec::new(),
                }
            }));
        }
        Ok(Answer::LeaseKeepAlive(statuses))
    }

    /// Sets a lease's deadline a full TTL from now; `old` is the one that it had.
    fn renew_lease(&mut self, id: LeaseId, ttl_ms: u64, old: Option<u64>) {
        let expires_at_ms = self.meta.clock_ms.saturating_add(ttl_ms);
        if old == Some(expires_at_ms) {
            return;
        }
        if let Some(old) = old {
            self.drop_deadline(old, &Due::Lease(id));
        }
        self.set_deadline(expires_at_ms, &Due::Lease(id));
        let lease = LeaseV1 {
            ttl_ms,
            expires_at_ms,
        };
        self.put_record(schema::lease_key(id), codec::encode_record(&lease));
    }

    /// Gives every lease its full TTL again.
    pub(crate) fn restart_leases(&mut self) -> Result<(), ViewError> {
        let ids = leases(&self.overlay)?;
        self.lease_keep_alive(&ids).map(drop)
    }
}
