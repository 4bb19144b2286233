//! Restoring a backup into a cluster that is still empty, through the log.
//!
//! ```text
//! RestoreBegin ─► RestoreRecords ─► … ─► RestoreRecords ─► RestoreEnd
//!    the store is empty, or this backup              everything is there: readable,
//!    is being restored already: says how             at a revision that nobody ever saw
//!    many records are there
//! ```
//!
//! **In between** the store is at revision 1, and reads and writes are refused: half a backup is not
//! a state that ever was. Sessions still open, since the restore itself is written in one.
//!
//! **Each step says where it begins.** One that was applied before changes nothing, and one that
//! leaves a gap is refused. So a restore that lost its node, its leader or its program begins again
//! with the same backup and goes on where it was. One that will not be finished is thrown away with
//! `RestoreDiscard`, in bounded steps.
//!
//! **The revision** is raised by [`REVISION_RAISE`] above the backup's and compacted to there: a
//! client that saw more of the old cluster than the backup holds finds nothing at a revision that
//! it knows, instead of something else. Each key keeps its own revisions and its version.
//!
//! **Users and roles** come back with their passwords, and auth as it was: enabled, if it was. It
//! counts from the end of the restore on. Nobody's old token does.
//!
//! **Time.** The cluster clock of the backup means nothing here. A key with a TTL of its own keeps
//! what was left of it, from the moment that it is restored; leases start again at their full TTL
//! when the restore ends, so that their holders can come back to them.

use podkv_api::{KeyRange, KeyValue, LeaseId, Reason};

use crate::auth::{read_role, read_user};
use crate::backup::{BackupId, BackupRecord};
use crate::codec::{self, Blob};
use crate::command::Command;
use crate::counts;
use crate::lease;
use crate::meta::{Meta, read_meta};
use crate::mvcc::{decode_latest, latest};
use crate::outcome::{Answer, Rejection};
use crate::record::auth::{AuthV1, RoleV1};
use crate::record::state::{KeyMetaV1, RestorePhaseV1, RestoreV1, Stored};
use crate::schema::{self, Due};
use crate::state::State;
use crate::view::{View, ViewError};
use podkv_api::Retention;

/// How far a restore raises the revision above the backup's. No cluster writes that much after its
/// last backup: at a million revisions a second it takes more than an hour, without one compaction.
pub const REVISION_RAISE: u64 = 1 << 32;

/// True while a backup is being restored: the state is not to be read.
pub fn restoring(view: &dyn View) -> Result<bool, ViewError> {
    under_way(view, &read_meta(view)?)
}

/// Costs nothing in a store that was ever written to.
pub(crate) fn under_way(view: &dyn View, meta: &Meta) -> Result<bool, ViewError> {
    if meta.revision != Meta::default().revision {
        return Ok(false);
    }
    let restore = read(view)?;
    Ok(restore.is_some_and(|restore| !matches!(restore.phase, RestorePhaseV1::Done { .. })))
}

fn read(view: &dyn View) -> Result<Option<RestoreV1>, ViewError> {
    match view.get(&schema::restore_key())? {
        None => Ok(None),
        Some(record) => Ok(Some(codec::decode_record("restore", &record)?)),
    }
}

/// Whether a command may run while a backup is being restored.
pub(crate) fn may_run_meanwhile(command: &Command) -> bool {
    matches!(
        command,
        Command::RestoreBegin { .. }
            | Command::RestoreRecords { .. }
            | Command::RestoreEnd { .. }
            | Command::RestoreDiscard { .. }
            | Command::SessionOpen { .. }
            | Command::SessionKeepAlive { .. }
            | Command::SessionClose { .. }
            | Command::SetFeatureLevel(_)
            | Command::SetDesiredSize(_)
            | Command::RaiseRevision { .. }
            | Command::RaiseAlarm(_)
            | Command::ClearAlarm(_)
    )
}

type Answered = Result<Result<Answer, Rejection>, ViewError>;

impl State<'_> {
    pub(crate) fn restore_begin(
        &mut self,
        backup: BackupId,
        revision: u64,
        clock_ms: u64,
        retention: Retention,
    ) -> Answered {
        if let Some(restore) = read(&self.overlay)? {
            match restore.phase {
                RestorePhaseV1::Records if restore.backup == backup.0 => {
                    return Ok(Ok(progress(&restore)));
                }
                RestorePhaseV1::Records | RestorePhaseV1::Discarding => {
                    return Ok(Err(self.reject(Reason::Restoring)));
                }
                // Its answer was lost. If anything was written since, it is another question.
                RestorePhaseV1::Done { revision }
                    if restore.backup == backup.0 && revision == self.meta.revision =>
                {
                    return Ok(Ok(progress(&restore)));
                }
                RestorePhaseV1::Done { .. } => {}
            }
        }
        let meta = &self.meta;
        let is_empty = meta.revision == Meta::default().revision
            && meta.compacted_revision == 0
            && meta.keys == 0
            && meta.leases == 0
            && self.overlay.get(&schema::auth_key())?.is_none()
            && crate::freeze::frozen_prefixes(&self.overlay)?.is_empty();
        if !is_empty {
            return Ok(Err(self.reject(Reason::NotEmpty)));
        }
        let restore = RestoreV1 {
            backup: backup.0,
            revision,
            clock_ms,
            retention: retention.into(),
            records: 0,
            phase: RestorePhaseV1::Records,
        };
        self.restoring = true;
        self.put_restore(&restore);
        Ok(Ok(progress(&restore)))
    }

    /// All of the records, or none.
    pub(crate) fn restore_records(
        &mut self,
        backup: BackupId,
        first: u64,
        records: &[BackupRecord],
    ) -> Answered {
        let mut restore = match self.restore_of(backup)? {
            Ok(restore) => restore,
            Err(rejection) => return Ok(Err(rejection)),
        };
        let after = first.saturating_add(records.len() as u64);
        if after <= restore.records {
            return Ok(Ok(progress(&restore)));
        }
        if first != restore.records || !self.fits(&restore, records)? {
            return Ok(Err(self.reject(Reason::InvalidArgument)));
        }
        for record in records {
            match record {
                BackupRecord::Lease { id, ttl_ms } => self.restore_lease(*id, *ttl_ms),
                BackupRecord::Key(kv) => self.restore_key(&restore, kv)?,
                BackupRecord::Auth { .. }
                | BackupRecord::User { .. }
                | BackupRecord::Role { .. } => self.restore_auth(record),
                BackupRecord::Frozen { prefix } => self.put_frozen(prefix),
            }
        }
        restore.records = after;
        self.put_restore(&restore);
        Ok(Ok(progress(&restore)))
    }

    /// Whether the records can stand beside what is there.
    fn fits(&self, restore: &RestoreV1, records: &[BackupRecord]) -> Result<bool, ViewError> {
        for (at, record) in records.iter().enumerate() {
            let (before, _) = records.split_at(at);
            let is_new = match record {
                BackupRecord::Auth { .. } => self.overlay.get(&schema::auth_key())?.is_none(),
                BackupRecord::User { name, .. } => read_user(&self.overlay, name)?.is_none(),
                BackupRecord::Role { name, .. } => read_role(&self.overlay, name)?.is_none(),
                BackupRecord::Lease { id, .. } => self.lease(*id)?.is_none(),
                BackupRecord::Frozen { .. } => true,
                BackupRecord::Key(kv) => {
                    let has_its_lease = match kv.lease {
                        None => true,
                        Some(lease) => is_among(before, lease) || self.lease(lease)?.is_some(),
                    };
                    has_its_lease
                        && kv.mod_revision <= restore.revision
                        && latest(&self.overlay, &kv.key)?.is_none()
                }
            };
            if !is_new {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn restore_auth(&mut self, record: &BackupRecord) {
        match record {
            BackupRecord::Auth { enabled, revision } => self.put_auth(&AuthV1 {
                enabled: *enabled,
                revision: *revision,
                token_secret: Blob::default(),
            }),
            BackupRecord::User { name, user } => self.put_user(name, &user.into()),
            BackupRecord::Role { name, permissions } => {
                let permissions = permissions.iter().map(Into::into).collect();
                self.put_role(name, &RoleV1 { permissions });
            }
            BackupRecord::Lease { .. } | BackupRecord::Frozen { .. } | BackupRecord::Key(_) => {}
        }
    }

    fn restore_key(&mut self, restore: &RestoreV1, kv: &KeyValue) -> Result<(), ViewError> {
        let clock_ms = self.meta.clock_ms;
        let left = |at: u64| clock_ms.saturating_add(at.saturating_sub(restore.clock_ms));
        let meta = KeyMetaV1 {
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease.map(|lease| lease.0),
            expires_at_ms: kv.expires_at_ms.map(left),
        };
        let stored = Stored::new(meta, kv.value.clone());
        self.move_attachments(&kv.key, None, Some(&stored));
        self.put_record(schema::latest_key(&kv.key), stored.record);
        self.meta.keys += 1;
        counts::add(self, &kv.key)
    }

    pub(crate) fn restore_end(&mut self, backup: BackupId, records: u64) -> Answered {
        let mut restore = match self.restore_of(backup)? {
            Ok(restore) => restore,
            Err(rejection) => return Ok(Err(rejection)),
        };
        if let RestorePhaseV1::Done { .. } = restore.phase {
            return Ok(Ok(progress(&restore)));
        }
        if restore.records != records {
            return Ok(Err(self.reject(Reason::InvalidArgument)));
        }
        let revision = restore.revision.saturating_add(REVISION_RAISE);
        self.meta.revision = revision;
        self.meta.compacted_revision = revision;
        // There is no history to sweep.
        self.meta.swept_revision = revision;
        self.meta.retention = restore.retention.into();
        self.restart_leases()?;
        self.restoring = false;
        self.restored = true;
        self.auth_has_changed();
        restore.phase = RestorePhaseV1::Done { revision };
        self.put_restore(&restore);
        Ok(Ok(progress(&restore)))
    }

    /// Throws away up to `limit` records of a restore that is under way. A limit of 0 counts as 1.
    pub(crate) fn restore_discard(&mut self, limit: u32) -> Result<Answer, ViewError> {
        let Some(mut restore) = read(&self.overlay)?.filter(|_| self.restoring) else {
            return Ok(Answer::RestoreDiscard { more: false });
        };
        let mut left = limit.max(1) as usize;
        left -= self.discard_keys(left)?;
        left -= self.discard_counts(left)?;
        left -= self.discard_leases(left)?;
        left -= self.discard_auth(left)?;
        left -= self.discard_frozen(left)?;
        if left == 0 {
            restore.phase = RestorePhaseV1::Discarding;
            self.put_restore(&restore);
            return Ok(Answer::RestoreDiscard { more: true });
        }
        self.delete_record(schema::restore_key());
        self.restoring = false;
        Ok(Answer::RestoreDiscard { more: false })
    }

    fn discard_keys(&mut self, limit: usize) -> Result<usize, ViewError> {
        let (start, end) = schema::latest_bounds(&KeyRange::all());
        let found = self.first(&start, &end, limit)?;
        let count = found.len();
        for (latest_key, record) in found {
            let stored = decode_latest(record)?;
            self.move_attachments(&schema::user_key(&latest_key)?, Some(&stored), None);
            self.delete_record(latest_key);
            self.meta.keys = self.meta.keys.saturating_sub(1);
        }
        Ok(count)
    }

    /// Counts of keys that are gone: nobody reads them before the last one is deleted.
    fn discard_counts(&mut self, limit: usize) -> Result<usize, ViewError> {
        let (start, end) = schema::count_bounds(&KeyRange::all());
        let found = self.first(&start, &end, limit)?;
        let count = found.len();
        for (key, _) in found {
            self.delete_record(key);
        }
        Ok(count)
    }

    fn discard_leases(&mut self, limit: usize) -> Result<usize, ViewError> {
        let (start, end) = schema::lease_bounds();
        let found = self.first(&start, &end, limit)?;
        let count = found.len();
        for (lease_key, record) in found {
            let id = schema::read_lease_key(&lease_key)?;
            self.drop_deadline(lease::decode(&record)?.expires_at_ms, &Due::Lease(id));
            self.delete_record(lease_key);
            self.meta.leases = self.meta.leases.saturating_sub(1);
        }
        Ok(count)
    }

    fn discard_auth(&mut self, limit: usize) -> Result<usize, ViewError> {
        let mut count = 0;
        let auth = (schema::auth_key(), schema::just_after(&schema::auth_key()));
        for (start, end) in [auth, schema::auth_user_bounds(), schema::auth_role_bounds()] {
            for (key, _) in self.first(&start, &end, limit - count)? {
                self.delete_record(key);
                count += 1;
            }
        }
        self.auth_has_changed();
        Ok(count)
    }

    fn first(
        &self,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<(bytes::Bytes, bytes::Bytes)>, ViewError> {
        self.overlay.scan(start, end, false).take(limit).collect()
    }

    /// The restore of that backup, under way or done.
    fn restore_of(&self, backup: BackupId) -> Result<Result<RestoreV1, Rejection>, ViewError> {
        Ok(match read(&self.overlay)? {
            Some(restore)
                if restore.backup == backup.0 && restore.phase != RestorePhaseV1::Discarding =>
            {
                Ok(restore)
            }
            _ => Err(self.reject(Reason::NotRestoring)),
        })
    }

    fn put_restore(&mut self, restore: &RestoreV1) {
        self.put_record(schema::restore_key(), codec::encode_record(restore));
    }
}

fn is_among(records: &[BackupRecord], lease: LeaseId) -> bool {
    records
        .iter()
        .any(|record| matches!(record, BackupRecord::Lease { id, .. } if *id == lease))
}

fn progress(restore: &RestoreV1) -> Answer {
    Answer::Restore {
        records: restore.records,
        done: matches!(restore.phase, RestorePhaseV1::Done { .. }),
    }
}
