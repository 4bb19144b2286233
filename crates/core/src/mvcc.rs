//! Multi-version concurrency control: every write makes a new version of its key, and old versions
//! stay readable until they are compacted away.
//!
//! **The idea.** The store has one revision, a number that grows by one with each write
//! transaction. Versions are named by the revision that wrote them. To read at a revision is to
//! take, of each key, the newest version not above it. So a reader needs no lock: what it reads at
//! revision 5 never changes again.
//!
//! **An example.** Time goes down, keys go across. `put a=1, b=1` in one transaction is one
//! revision; `del b` writes a tombstone (`x`):
//!
//! ```text
//! revision   a      b      c         a read at this revision sees
//!    2       a=1    b=1              a=1 b=1
//!    3              b=2              a=1 b=2
//!    4       a=2                     a=2 b=2
//!    5              x                a=2
//!    6                     c=1       a=2     c=1
//!    7              b=3              a=2 b=3 c=1      <- the latest
//! ```
//!
//! **Three tables** hold this. `latest` has one record a key, so that the reads and writes that
//! matter most cost one lookup, however long the history is. A version moves to `history` when
//! another takes its place. `changes` lists what happened in each revision, for watchers that catch
//! up and for the sweep:
//!
//! ```text
//! latest        a -> 2 @4        b -> 3 @7        c -> 1 @6
//! history       a@2 -> 1         b@2 -> 1         b@3 -> 2         b@5 -> x
//! changes       2: put a, put b  3: put b (was @2)  4: put a (was @2)
//!               5: del b (was @3)  6: put c  7: put b
//! ```
//!
//! A read of b at 4: `latest` is @7, too new. In `history`, the newest not above 4 is @3: `2`. A
//! read of b at 6 finds the tombstone @5: there is no b.
//!
//! **Compaction.** Compacting to 4 makes revisions below 4 unreadable at once: that is one number.
//! The sweep then walks `changes` strictly below 4 and drops for each the version that it
//! superseded (nobody can read it at 4 or later), its change, and the tombstone if it is one:
//!
//! ```text
//! change 2: put a, put b   superseded nothing; the changes go
//! change 3: put b (was @2) history b@2 goes, the change goes
//! change 4: put a (was @2) history a@2 goes, the change stays: a watch can start there
//!                          left in history: b@3, b@5
//! ```
//!
//! A re-created key starts a new life: version 1 and a new create revision.

use bytes::Bytes;
use podkv_api::{
    Delete, DeleteResponse, Event, EventKind, KeyRange, KeyValue, Put, PutResponse, Reason,
    Revision,
};

use crate::codec;
use crate::counts;
use crate::outcome::header_at;
use crate::record::state::{ChangeKindV1, ChangeV1, KeyMetaV1, Stored, tombstone};
use crate::schema::{self, Due};
use crate::state::{Changeset, State};
use crate::view::{View, ViewError};

/// The newest version of a key.
pub(crate) fn latest(view: &dyn View, key: &[u8]) -> Result<Option<Stored>, ViewError> {
    match view.get(&schema::latest_key(key))? {
        None => Ok(None),
        Some(record) => decode_latest(record).map(Some),
    }
}

/// A record of `latest`: never a tombstone.
pub(crate) fn decode_latest(record: Bytes) -> Result<Stored, ViewError> {
    Stored::decode(record)?.ok_or_else(|| ViewError::corrupt("the latest version is a tombstone"))
}

/// The version that a read at `at` sees.
pub(crate) fn version_at(
    view: &dyn View,
    key: &[u8],
    at: Revision,
) -> Result<Option<Stored>, ViewError> {
    match latest(view, key)? {
        Some(stored) if stored.meta.mod_revision <= at => Ok(Some(stored)),
        _ => superseded_at(view, key, at),
    }
}

/// The newest version in `history` not above `at`; `None` if there is none or it is a tombstone.
pub(crate) fn superseded_at(
    view: &dyn View,
    key: &[u8],
    at: Revision,
) -> Result<Option<Stored>, ViewError> {
    let (start, end) = schema::history_bounds_of(key, at);
    match view.scan(&start, &end, true).next().transpose()? {
        None => Ok(None),
        Some((_, record)) => Ok(Stored::decode(record)?),
    }
}

/// The version that was written at exactly this revision, if it is not swept away.
pub(crate) fn version_written_at(
    view: &dyn View,
    key: &[u8],
    revision: Revision,
) -> Result<Option<Stored>, ViewError> {
    if let Some(stored) = latest(view, key)?
        && stored.meta.mod_revision == revision
    {
        return Ok(Some(stored));
    }
    match view.get(&schema::history_key(key, revision))? {
        None => Ok(None),
        Some(record) => Ok(Stored::decode(record)?),
    }
}

/// What a delete event says of the key: its name and the revision of the delete.
pub(crate) fn deleted_key_value(key: Bytes, revision: Revision) -> KeyValue {
    KeyValue {
        key,
        value: Bytes::new(),
        create_revision: 0,
        mod_revision: revision,
        version: 0,
        lease: None,
        expires_at_ms: None,
    }
}

impl State<'_> {
    /// What a put needs from the state; checked before anything is executed.
    pub(crate) fn check_put(&self, put: &Put) -> Result<Result<(), Reason>, ViewError> {
        match self.check_lease_of(put)? {
            Ok(()) => self.check_key_of(put),
            refused => Ok(refused),
        }
    }

    /// The same inside a transaction. Of two reasons etcd names the other one first there.
    pub(crate) fn check_put_in_txn(&self, put: &Put) -> Result<Result<(), Reason>, ViewError> {
        match self.check_key_of(put)? {
            Ok(()) => self.check_lease_of(put),
            refused => Ok(refused),
        }
    }

    fn check_lease_of(&self, put: &Put) -> Result<Result<(), Reason>, ViewError> {
        if let Some(lease) = put.lease
            && self.lease(lease)?.is_none()
        {
            return Ok(Err(Reason::LeaseNotFound));
        }
        Ok(Ok(()))
    }

    fn check_key_of(&self, put: &Put) -> Result<Result<(), Reason>, ViewError> {
        if (put.ignore_value || put.ignore_lease) && latest(&self.overlay, &put.key)?.is_none() {
            return Ok(Err(Reason::KeyNotFound));
        }
        Ok(Ok(()))
    }

    /// Writes one key as part of `changes`. [`State::check_put`] or its like has passed.
    pub(crate) fn put_key(
        &mut self,
        changes: &mut Changeset,
        put: &Put,
    ) -> Result<PutResponse, ViewError> {
        let old = latest(&self.overlay, &put.key)?;
        let new = self.new_version(changes.revision, put, old.as_ref());
        self.record_change(changes, ChangeKindV1::Put, &put.key, old.as_ref());
        self.move_attachments(&put.key, old.as_ref(), Some(&new));
        self.put_record(schema::latest_key(&put.key), new.record.clone());
        if old.is_none() {
            self.meta.keys += 1;
            counts::add(self, &put.key)?;
        }
        let prev_kv = old.map(|old| old.key_value(put.key.clone()));
        changes.events.push(Event {
            kind: EventKind::Put,
            kv: new.key_value(put.key.clone()),
            prev_kv: prev_kv.clone(),
        });
        Ok(PutResponse {
            header: header_at(changes.revision),
            prev_kv: prev_kv.filter(|_| put.prev_kv),
        })
    }

    fn new_version(&self, revision: Revision, put: &Put, old: Option<&Stored>) -> Stored {
        let value = match old {
            Some(old) if put.ignore_value => old.value.clone(),
            _ => put.value.clone(),
        };
        let (lease, expires_at_ms) = match old {
            Some(old) if put.ignore_lease => (old.meta.lease, old.meta.expires_at_ms),
            _ => {
                let deadline = put.ttl_ms.map(|ttl| self.meta.clock_ms.saturating_add(ttl));
                (put.lease.map(|lease| lease.0), deadline)
            }
        };
        let meta = KeyMetaV1 {
            create_revision: old.map_or(revision, |old| old.meta.create_revision),
            mod_revision: revision,
            version: old.map_or(1, |old| old.meta.version + 1),
            lease,
            expires_at_ms,
        };
        Stored::new(meta, value)
    }

    /// Deletes the keys of a range as part of `changes`.
    pub(crate) fn delete_range(
        &mut self,
        changes: &mut Changeset,
        delete: &Delete,
    ) -> Result<DeleteResponse, ViewError> {
        let found = self.stored_in(&delete.range)?;
        let mut prev_kvs = Vec::new();
        let deleted = found.len() as u64;
        for (key, stored) in found {
            let prev_kv = self.delete_stored(changes, key, stored)?;
            if delete.prev_kv {
                prev_kvs.push(prev_kv);
            }
        }
        Ok(DeleteResponse {
            header: header_at(changes.revision),
            deleted,
            prev_kvs,
        })
    }

    /// Deletes a key if it exists.
    pub(crate) fn delete_key(
        &mut self,
        changes: &mut Changeset,
        key: &Bytes,
    ) -> Result<bool, ViewError> {
        match latest(&self.overlay, key)? {
            None => Ok(false),
            Some(stored) => {
                self.delete_stored(changes, key.clone(), stored)?;
                Ok(true)
            }
        }
    }

    fn stored_in(&self, range: &KeyRange) -> Result<Vec<(Bytes, Stored)>, ViewError> {
        if range.is_single() {
            let stored = latest(&self.overlay, &range.start)?;
            return Ok(stored
                .map(|stored| (range.start.clone(), stored))
                .into_iter()
                .collect());
        }
        let (start, end) = schema::latest_bounds(range);
        let mut found = Vec::new();
        for item in self.overlay.scan(&start, &end, false) {
            let (key, record) = item?;
            found.push((schema::user_key(&key)?, decode_latest(record)?));
        }
        Ok(found)
    }

    fn delete_stored(
        &mut self,
        changes: &mut Changeset,
        key: Bytes,
        old: Stored,
    ) -> Result<KeyValue, ViewError> {
        self.record_change(changes, ChangeKindV1::Delete, &key, Some(&old));
        self.move_attachments(&key, Some(&old), None);
        self.put_record(schema::history_key(&key, changes.revision), tombstone());
        self.delete_record(schema::latest_key(&key));
        self.meta.keys = self.meta.keys.saturating_sub(1);
        counts::remove(self, &key)?;
        let prev_kv = old.key_value(key.clone());
        changes.events.push(Event {
            kind: EventKind::Delete,
            kv: deleted_key_value(key, changes.revision),
            prev_kv: Some(prev_kv.clone()),
        });
        Ok(prev_kv)
    }

    /// Writes the change, and moves the version that it supersedes to the history.
    fn record_change(
        &mut self,
        changes: &Changeset,
        kind: ChangeKindV1,
        key: &Bytes,
        old: Option<&Stored>,
    ) {
        // No revision has 2^32 operations: a request is a few MiB, and a delete is one operation
        // whose keys were all written by requests. Memory ends long before.
        let sub = u32::try_from(changes.events.len()).unwrap_or(u32::MAX);
        let change = ChangeV1 {
            kind,
            superseded: old.map(|old| old.meta.mod_revision),
        };
        self.put_record(
            schema::change_key(changes.revision, sub),
            codec::encode_record_with_tail(&change, key),
        );
        if let Some(old) = old {
            self.put_record(
                schema::history_key(key, old.meta.mod_revision),
                old.record.clone(),
            );
        }
    }

    /// Keeps the tables of attached keys and of deadlines in step with a key's metadata.
    pub(crate) fn move_attachments(
        &mut self,
        key: &Bytes,
        old: Option<&Stored>,
        new: Option<&Stored>,
    ) {
        let lease = |stored: Option<&Stored>| stored.and_then(|stored| stored.lease());
        let (from, to) = (lease(old), lease(new));
        if from != to {
            if let Some(from) = from {
                self.delete_record(schema::attached_key(from, key));
            }
            if let Some(to) = to {
                self.put_record(schema::attached_key(to, key), codec::encode_record(&()));
            }
        }
        let deadline =
            |stored: Option<&Stored>| stored.and_then(|stored| stored.meta.expires_at_ms);
        let (from, to) = (deadline(old), deadline(new));
        if from != to {
            if let Some(from) = from {
                self.drop_deadline(from, &Due::Key(key.clone()));
            }
            if let Some(to) = to {
                self.set_deadline(to, &Due::Key(key.clone()));
            }
        }
    }
}
