//! The log over RocksDB: every write is one atomic batch in a synced write-ahead log.
//!
//! ```text
//! key    0             4        5                13
//!        +-------------+--------+----------------+
//!        | group       | table  | index          |     big endian, so that byte order is index order
//!        | u32 BE = 0  | u8     | u64 BE         |
//!        +-------------+--------+----------------+
//!
//! table 0, the log's own records, by "index":
//!        0  format       u8 = 1
//!        1  vote         the caller's record
//!        2  purged       u64 BE, the last purged index, then the caller's record
//!        3  committed    the caller's record
//! table 1, the entries:  the caller's record, which carries its own checksum
//! ```
//!
//! **What a crash leaves.** A write that returned is in the write-ahead log and synced. A write that
//! did not return may be cut off at the end of that file: the tail is dropped, nobody was told
//! of it. Anything else that does not add up (a bad checksum, a closed file that is missing or
//! shorter than the manifest says, an entry missing between two others) is damage: the store
//! does not open, or the read fails, with [`StorageError::corrupt`]. One case looks like damage
//! although it need not be: after a power loss, a disk may have written the end of the last,
//! unsynced record and not its middle. That stops the node too. Stopping a node that could have
//! gone on is safe; dropping a vote that was acknowledged is not.
//!
//! **Purging.** The purged record hides entries at once. They are deleted in large ranges only,
//! because each range tombstone costs every later read, and RocksDB drops whole files for them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, Direction, IteratorMode,
    Options, Range, ReadOptions, WriteBatch, WriteOptions,
};

use super::durable_file::folder_bytes;
use super::log_bounds::LogBounds;
use super::reclaim::{Pace, Reclaimer};
use super::{LogRecovery, LogStore, LogWrite, StorageError, rocks};
use crate::identity::{DataFolder, LOG_FOLDER};

const GROUP: u32 = podkv_core::codec::GROUP;
const FORMAT: u8 = 1;

const TABLE_META: u8 = 0;
const TABLE_ENTRIES: u8 = 1;

const META_FORMAT: u64 = 0;
const META_VOTE: u64 = 1;
const META_PURGED: u64 = 2;
const META_COMMITTED: u64 = 3;

/// Delete purged entries when there are this many of them …
const PURGE_ENTRIES: u64 = 1024;
/// … or when their files hold this much.
const PURGE_BYTES: u64 = 16 << 20;
/// A truncation of more than this uses a range tombstone; fewer are deleted one by one, because
/// point tombstones cost later reads nothing beyond their place.
const TRUNCATE_ONE_BY_ONE: u64 = 256;

type Key = [u8; 13];

fn key(table: u8, index: u64) -> Key {
    let mut key = [0; 13];
    let (group, rest) = key.split_at_mut(4);
    let (table_byte, index_bytes) = rest.split_at_mut(1);
    group.copy_from_slice(&GROUP.to_be_bytes());
    table_byte.copy_from_slice(&[table]);
    index_bytes.copy_from_slice(&index.to_be_bytes());
    key
}

/// The first key after the entries.
fn entries_end() -> Key {
    key(TABLE_ENTRIES + 1, 0)
}

/// For tests that damage a log.
#[cfg(test)]
pub(super) fn entry_key(index: u64) -> impl AsRef<[u8]> {
    key(TABLE_ENTRIES, index)
}

fn options() -> Options {
    let mut options = rocks::base_options();
    // The default would drop everything after the first bad record, synced votes included. This one
    // accepts an unfinished last record and nothing else.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    // A recycled file has old records behind its tail, which makes a torn tail and damage look alike.
    options.set_recycle_log_file_num(0);
    // Write-ahead logs that are flushed are of no use: the entries are in tables then.
    options.set_wal_ttl_seconds(0);
    options.set_wal_size_limit_mb(0);
    // Entries are read back soon or never. Small memtables keep replay at start short and memory low;
    // three of them let a write go on while one is being flushed.
    options.set_write_buffer_size(16 << 20);
    options.set_max_write_buffer_number(3);
    options.set_target_file_size_base(32 << 20);
    // Entries live for minutes, and values often do not compress: spend no time on it.
    options.set_compression_type(DBCompressionType::None);
    // One writer thread, so nothing to gain from concurrent inserts.
    options.set_allow_concurrent_memtable_write(false);
    options.set_max_open_files(256);

    let mut table = BlockBasedOptions::default();
    // Reads are long and sequential (a follower that is behind); the node keeps recent entries itself.
    table.set_block_size(64 << 10);
    table.set_block_cache(&Cache::new_lru_cache(4 << 20));
    options.set_block_based_table_factory(&table);
    options
}

/// See the module.
pub(crate) struct RocksLog {
    // Fields drop in this order: the thread ends, then the database is closed.
    reclaimer: Reclaimer,
    database: Arc<DB>,
    path: PathBuf,
    /// Held for the whole of a write.
    writer: Mutex<Writer>,
    /// What readers may see. Held for moments only. A write shrinks it before it deletes anything
    /// and grows it after it stored everything, so a reader never looks for what is not there.
    visible: Mutex<Visible>,
    /// Keeps the folder locked.
    _folder: Arc<DataFolder>,
}

#[derive(Clone, Copy, Default)]
struct Visible {
    bounds: LogBounds,
    /// How often entries went away. A reader that misses an entry compares it: if it moved, the
    /// entry was truncated or purged under the reader's feet; if not, it is lost.
    shrinks: u64,
}

struct Writer {
    /// No entry below this one is stored, hidden or not.
    first_stored: u64,
    /// A write failed. Whether it is on the disk is unknown, and a second fsync may claim success
    /// for bytes that the kernel has dropped: only a restart, which reads, can tell.
    failed: bool,
}

impl RocksLog {
    /// Opens the log in `folder`. Makes a new one only if `may_create`: a node that has promised
    /// anything to anybody must have a log.
    pub fn open(folder: Arc<DataFolder>, may_create: bool) -> Result<Self, StorageError> {
        let path = folder.path().join(LOG_FOLDER);
        let options = options();
        if !path.exists() {
            if !may_create {
                return Err(StorageError::damaged(&path, "the log is missing"));
            }
            rocks::create(folder.path(), LOG_FOLDER, &options, |database| {
                database.put_opt(key(TABLE_META, META_FORMAT), [FORMAT], &synced())
            })?;
        }
        let database = rocks::open(&path, &options)?;
        let log = Self {
            reclaimer: Reclaimer::start("log")?,
            database: Arc::new(database),
            path,
            writer: Mutex::new(Writer {
                first_stored: 0,
                failed: false,
            }),
            visible: Mutex::default(),
            _folder: folder,
        };
        log.check_format()?;
        let (bounds, first_stored) = log.find_bounds()?;
        lock(&log.visible).bounds = bounds;
        lock(&log.writer).first_stored = first_stored;
        Ok(log)
    }

    fn failure(&self, doing: &str, error: rocksdb::Error) -> StorageError {
        rocks::failure(&self.path, doing, error)
    }

    fn meta(&self, record: u64) -> Result<Option<Bytes>, StorageError> {
        self.database
            .get(key(TABLE_META, record))
            .map(|value| value.map(Bytes::from))
            .map_err(|error| self.failure("reading the log's records", error))
    }

    fn check_format(&self) -> Result<(), StorageError> {
        match self.meta(META_FORMAT)?.as_deref() {
            Some([FORMAT]) => Ok(()),
            Some([newer]) => Err(StorageError::misuse(format!(
                "the log in {} has format {newer}; this release knows format {FORMAT}. Run the \
                 release that wrote it, or a newer one",
                self.path.display()
            ))),
            _ => Err(StorageError::damaged(
                &self.path,
                "its format record is missing",
            )),
        }
    }

    fn purged(&self) -> Result<Option<(u64, Bytes)>, StorageError> {
        let Some(value) = self.meta(META_PURGED)? else {
            return Ok(None);
        };
        let Some((upto, _)) = value.split_first_chunk::<8>() else {
            return Err(StorageError::damaged(
                &self.path,
                "its purged record is too short",
            ));
        };
        Ok(Some((u64::from_be_bytes(*upto), value.slice(8..))))
    }

    /// The bounds, and the first entry that is stored although it may be purged.
    fn find_bounds(&self) -> Result<(LogBounds, u64), StorageError> {
        let purged = self.purged()?.map(|(upto, _)| upto);
        let floor = purged.map_or(Some(0), |upto| upto.checked_add(1));
        let stored = self.edge(0, Direction::Forward)?;
        let mut bounds = LogBounds {
            purged,
            entries: None,
        };
        if let Some(floor) = floor {
            let first = self.edge(floor, Direction::Forward)?;
            let last = self.edge(floor, Direction::Reverse)?;
            bounds.entries = first.zip(last);
            if let (Some(purged), Some(first)) = (purged, first)
                && first != floor
            {
                let detail = format!("it is purged up to {purged}, but its next entry is {first}");
                return Err(StorageError::damaged(&self.path, detail));
            }
        }
        Ok((bounds, stored.or(floor).unwrap_or(u64::MAX)))
    }

    /// The first or last entry at `floor` or above.
    fn edge(&self, floor: u64, direction: Direction) -> Result<Option<u64>, StorageError> {
        let mode = match direction {
            Direction::Forward => IteratorMode::Start,
            Direction::Reverse => IteratorMode::End,
        };
        let bounds = key(TABLE_ENTRIES, floor)..entries_end();
        match self.database.iterator_opt(mode, bounded(bounds)).next() {
            None => Ok(None),
            Some(Err(error)) => Err(self.failure("looking for the log's edges", error)),
            Some(Ok((key, _))) => self.index_of(&key).map(Some),
        }
    }

    fn index_of(&self, key: &[u8]) -> Result<u64, StorageError> {
        match key.split_last_chunk::<8>() {
            Some((head, index)) if head.len() == 5 => Ok(u64::from_be_bytes(*index)),
            _ => Err(StorageError::damaged(&self.path, "a log key is malformed")),
        }
    }

    /// Adds `write` to `batch`. `bounds` are those before it.
    fn stage(&self, batch: &mut WriteBatch, write: &LogWrite, bounds: &LogBounds) {
        match write {
            LogWrite::Vote(record) => batch.put(key(TABLE_META, META_VOTE), record),
            LogWrite::Committed(record) => batch.put(key(TABLE_META, META_COMMITTED), record),
            LogWrite::Append { index, record } => batch.put(key(TABLE_ENTRIES, *index), record),
            LogWrite::Purge { upto, record } => {
                if bounds.purged.is_some_and(|purged| purged > *upto) {
                    return;
                }
                let mut value = Vec::with_capacity(8 + record.len());
                value.extend_from_slice(&upto.to_be_bytes());
                value.extend_from_slice(record);
                batch.put(key(TABLE_META, META_PURGED), value);
            }
            LogWrite::TruncateFrom { from } => {
                let Some((first, last)) = bounds.entries else {
                    return;
                };
                let from = first.max(*from);
                if from > last {
                    return;
                }
                if last - from < TRUNCATE_ONE_BY_ONE {
                    for index in from..=last {
                        batch.delete(key(TABLE_ENTRIES, index));
                    }
                } else {
                    batch.delete_range(key(TABLE_ENTRIES, from), entries_end());
                }
            }
        }
    }

    /// The range of purged entries that are worth deleting now: from the first stored one to before
    /// the returned end.
    fn deletable(&self, writer: &Writer, after: &LogBounds) -> Option<u64> {
        let upto = after.purged?;
        let end = upto.checked_add(1)?;
        if end <= writer.first_stored {
            return None;
        }
        let range = (
            key(TABLE_ENTRIES, writer.first_stored),
            key(TABLE_ENTRIES, end),
        );
        let worthwhile = end - writer.first_stored >= PURGE_ENTRIES
            || after.entries.is_none()
            || self
                .database
                .get_approximate_sizes(&[Range::new(&range.0, &range.1)])
                .iter()
                .sum::<u64>()
                >= PURGE_BYTES;
        worthwhile.then_some(end)
    }

    fn shrink_to(&self, kept: LogBounds) {
        let mut visible = lock(&self.visible);
        if visible.bounds != kept {
            visible.bounds = kept;
            visible.shrinks += 1;
        }
    }

    /// Gives whole files of deleted entries back soon, without waiting for a compaction. `end` is
    /// the first entry that stays.
    fn drop_files_before(&self, end: u64) {
        // RocksDB includes the last key of this range: it must be one that is purged.
        let Some(last_purged) = end.checked_sub(1) else {
            return;
        };
        let (database, path) = (self.database.clone(), self.path.clone());
        // If too much is queued, the next purge covers this one.
        self.reclaimer.queue().run(move |pace| {
            if let Err(error) = drop_files(&database, last_purged, pace) {
                // The range tombstone is written: compaction will do the same, later.
                tracing::warn!(%error, path = %path.display(), "cannot drop purged log files yet");
            }
        });
    }
}

/// Drops the tables that hold nothing but entries up to `last_purged`, one after another: dropping
/// hundreds of megabytes at once would hold up the writer's next sync for as long as that takes.
fn drop_files(database: &DB, last_purged: u64, pace: &Pace) -> Result<(), rocksdb::Error> {
    let (first, last) = (key(TABLE_ENTRIES, 0), key(TABLE_ENTRIES, last_purged));
    let mut ends: Vec<Vec<u8>> = database
        .live_files()?
        .into_iter()
        .filter(|file| {
            file.start_key
                .as_deref()
                .is_some_and(|key| *key >= first[..])
        })
        .filter_map(|file| file.end_key.filter(|key| **key <= last[..]))
        .collect();
    ends.sort();
    for end in ends {
        if pace.is_stopping() {
            break;
        }
        pace.step(|| database.delete_file_in_range(&first[..], &end[..]))?;
    }
    Ok(())
}

impl LogStore for RocksLog {
    fn recover(&self) -> Result<LogRecovery, StorageError> {
        let bounds = lock(&self.visible).bounds;
        Ok(LogRecovery {
            vote: self.meta(META_VOTE)?,
            purged: self.purged()?.map(|(_, record)| record),
            committed: self.meta(META_COMMITTED)?,
            first_index: bounds.first(),
            last_index: bounds.last(),
        })
    }

    fn write(&self, batch: &[LogWrite]) -> Result<(), StorageError> {
        let mut writer = lock(&self.writer);
        if writer.failed {
            return Err(StorageError::misuse(format!(
                "an earlier write to {} failed; the node must be restarted",
                self.path.display()
            )));
        }
        let before = lock(&self.visible).bounds;
        let mut after = before;
        // What stays readable throughout.
        let mut kept = before;
        let mut writes = WriteBatch::default();
        for write in batch {
            self.stage(&mut writes, write, &after);
            after.apply(write)?;
            kept.entries = kept.intersection(&after);
        }
        let deletable = self.deletable(&writer, &after);
        if let Some(end) = deletable {
            let range = (
                key(TABLE_ENTRIES, writer.first_stored),
                key(TABLE_ENTRIES, end),
            );
            writes.delete_range(range.0, range.1);
        }
        let must_sync = batch
            .iter()
            .any(|write| !matches!(write, LogWrite::Committed(_)));
        let mut how = WriteOptions::default();
        how.set_sync(must_sync);

        self.shrink_to(kept);
        if let Err(error) = self.database.write_opt(writes, &how) {
            writer.failed = true;
            return Err(self.failure("writing the log", error));
        }
        lock(&self.visible).bounds = after;

        if let Some(end) = deletable {
            writer.first_stored = end;
            self.drop_files_before(end);
        }
        Ok(())
    }

    fn read(
        &self,
        start: u64,
        end: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let visible = *lock(&self.visible);
        let Some((start, end)) = visible.bounds.clip(start, end) else {
            return Ok(Vec::new());
        };
        let mut how = bounded(key(TABLE_ENTRIES, start)..key(TABLE_ENTRIES, end));
        // A follower that is far behind must not push everything else out of the cache.
        how.fill_cache(false);
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut expected = start;
        for item in self.database.iterator_opt(IteratorMode::Start, how) {
            let (key, record) = item.map_err(|error| self.failure("reading the log", error))?;
            let index = self.index_of(&key)?;
            if index != expected {
                break;
            }
            if !entries.is_empty() && bytes + record.len() > max_bytes {
                return Ok(entries);
            }
            bytes += record.len();
            entries.push((index, Bytes::from(record)));
            expected = index.saturating_add(1);
        }
        if expected < end && lock(&self.visible).shrinks == visible.shrinks {
            let detail = format!("entry {expected} is missing");
            return Err(StorageError::damaged(&self.path, detail));
        }
        Ok(entries)
    }

    fn disk_bytes(&self) -> u64 {
        folder_bytes(&self.path)
    }

    /// The write-ahead log has them, too; but that goes only once they are in tables.
    fn unwritten_bytes(&self) -> u64 {
        rocks::unwritten_bytes(&self.database)
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

/// No iterator runs free: without bounds it would wade through the tombstones beside its range.
fn bounded(range: std::ops::Range<Key>) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(range.start);
    options.set_iterate_upper_bound(range.end);
    options
}

fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

/// Nothing that these locks guard is left half-changed by a panic: each is set in one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(range: std::ops::RangeInclusive<u64>) -> Vec<LogWrite> {
        let append = |index: u64| LogWrite::Append {
            index,
            record: Bytes::from(index.to_string()),
        };
        range.map(append).collect()
    }

    fn open(root: &tempfile::TempDir) -> RocksLog {
        try_open(root).unwrap()
    }

    fn try_open(root: &tempfile::TempDir) -> Result<RocksLog, StorageError> {
        let folder = Arc::new(DataFolder::open(root.path()).unwrap());
        let marker = crate::identity::IdentityFile::Marker;
        folder.markers().save(marker, b"present").unwrap();
        RocksLog::open(folder, true)
    }

    /// Moves the entries from `first` on into a table of their own, on the last level.
    fn settle(log: &RocksLog, first: u64) {
        log.database.flush().unwrap();
        log.database
            .compact_range(Some(key(TABLE_ENTRIES, first)), Some(entries_end()));
    }

    #[test]
    fn a_purge_drops_whole_files_but_never_the_entry_after_it() {
        let root = tempfile::tempdir().unwrap();
        let log = open(&root);
        log.write(&entries(1..=10)).unwrap();
        settle(&log, 1);
        // One file is purged whole, the next up to its last entry.
        log.write(&entries(11..=1500)).unwrap();
        settle(&log, 11);
        log.write(&entries(1501..=3000)).unwrap();
        settle(&log, 1501);
        let tables = log.database.live_files().unwrap().len();
        assert_eq!(tables, 4, "one of the format record, and three of entries");
        let upto = 2999;
        let record = Bytes::from("purged");
        log.write(&[LogWrite::Purge { upto, record }]).unwrap();
        log.reclaimer.wait();
        let tables = log.database.live_files().unwrap().len();
        assert_eq!(
            tables, 2,
            "the format record, and the entries with the last one"
        );
        let left = log.read(3000, 9999, usize::MAX).unwrap();
        assert_eq!(left, [(3000, Bytes::from("3000"))]);
        drop(log);
        let log = open(&root);
        assert_eq!(log.recover().unwrap().first_index, Some(3000));
        let left = log.read(3000, 9999, usize::MAX).unwrap();
        assert_eq!(left, [(3000, Bytes::from("3000"))]);
    }

    #[test]
    fn a_newer_format_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let log = open(&root);
        let newer = [FORMAT + 1];
        log.database
            .put(key(TABLE_META, META_FORMAT), newer)
            .unwrap();
        drop(log);
        let error = try_open(&root).err().unwrap();
        assert!(!error.corrupt && error.what.contains("newer"), "{error}");
    }

    #[test]
    fn keys_are_as_drawn() {
        let golden = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2];
        assert_eq!(key(TABLE_ENTRIES, 0x102), golden);
    }
}
