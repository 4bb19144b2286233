//! One set of tests for both implementations: what a caller may rely on.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::*;

/// A volume that a test can take away from its stores.
trait Harness {
    fn new() -> Self;
    /// Closes the stores in order, and opens them again.
    fn reopen(&mut self, storage: Option<Storage>) -> Storage;
    /// Ends the process without warning, and opens what it left.
    fn crash(&mut self, storage: Storage) -> Storage;
}

struct Memory(MemoryDisk);

impl Harness for Memory {
    fn new() -> Self {
        Self(MemoryDisk::new())
    }

    fn reopen(&mut self, storage: Option<Storage>) -> Storage {
        if let Some(storage) = storage {
            storage.state.flush().unwrap();
        }
        self.0.attach().open_stores()
    }

    fn crash(&mut self, _storage: Storage) -> Storage {
        self.0.crash(Crash::Power);
        self.0.attach().open_stores()
    }
}

#[cfg(feature = "rocksdb")]
pub(super) struct Disk {
    /// The last one is in use.
    folders: Vec<tempfile::TempDir>,
}

#[cfg(feature = "rocksdb")]
impl Disk {
    pub fn folder(&self) -> std::path::PathBuf {
        self.folders.last().unwrap().path().join("podkv")
    }

    /// A folder where no store was opened yet.
    pub fn empty() -> Self {
        Self::new()
    }

    /// Goes on with a copy of what is on the disk now, while the process still runs: what `kill -9`
    /// would leave.
    pub fn take_image(&mut self) {
        let image = tempfile::tempdir().unwrap();
        copy_folder(self.folders.last().unwrap().path(), image.path());
        self.folders.push(image);
    }

    /// Goes back to the folder from before [`Disk::take_image`]. The image stays on the disk until the
    /// test ends.
    pub fn forget_image(&mut self) {
        let image = self.folders.pop().unwrap();
        self.folders.insert(0, image);
    }

    /// The state alone, with the steps of its installs.
    pub fn open_state(&self) -> rocks_state::RocksState {
        let root = self.folders.last().unwrap().path();
        let folder = crate::identity::DataFolder::open(root).unwrap();
        rocks_state::RocksState::open(Arc::new(folder), 8 << 20, false).unwrap()
    }

    /// Damages the log as no crash does: one entry is gone.
    pub fn remove_log_entry(&self, index: u64) {
        let folder = self.folder().join(crate::identity::LOG_FOLDER);
        let database = rocksdb::DB::open_default(folder).unwrap();
        database.delete(rocks_log::entry_key(index)).unwrap();
    }

    pub fn try_open(&self, may_create: bool) -> Result<Storage, StorageError> {
        use crate::identity::DataFolder;
        let folder = Arc::new(DataFolder::open(self.folders.last().unwrap().path()).unwrap());
        let markers = folder.markers();
        // So that the folder is not taken for damaged; these tests are about the stores.
        let file = crate::identity::IdentityFile::Marker;
        markers.save(file, b"present").unwrap();
        Ok(Storage {
            log: Arc::new(rocks_log::RocksLog::open(folder.clone(), may_create)?),
            state: Arc::new(rocks_state::RocksState::open(folder, 8 << 20, may_create)?),
            markers,
        })
    }

    pub fn open_new() -> (Self, Storage) {
        let mut disk = Self::new();
        let storage = disk.reopen(None);
        (disk, storage)
    }
}

#[cfg(feature = "rocksdb")]
impl Harness for Disk {
    fn new() -> Self {
        let folders = vec![tempfile::tempdir().unwrap()];
        Self { folders }
    }

    fn reopen(&mut self, storage: Option<Storage>) -> Storage {
        drop(storage);
        self.try_open(true).unwrap()
    }

    fn crash(&mut self, storage: Storage) -> Storage {
        self.take_image();
        drop(storage);
        self.try_open(false).unwrap()
    }
}

#[cfg(feature = "rocksdb")]
fn copy_folder(from: &Path, to: &Path) {
    // An old state may be on its way out while this looks.
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    std::fs::create_dir_all(to).unwrap();
    let entries = match std::fs::read_dir(from) {
        Err(error) if gone(&error) => return,
        entries => entries.unwrap(),
    };
    for entry in entries {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            match std::fs::copy(entry.path(), to) {
                Err(error) if gone(&error) => {}
                copied => drop(copied.unwrap()),
            }
        }
    }
}

macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod memory_suite {
            $(#[test] fn $name() { super::$name::<super::Memory>(); })*
        }
        #[cfg(feature = "rocksdb")]
        mod disk_suite {
            $(#[test] fn $name() { super::$name::<super::Disk>(); })*
        }
    };
}

suite!(
    a_new_log_is_empty,
    appended_entries_survive_a_crash,
    a_batch_is_applied_in_order_and_whole,
    a_truncated_tail_is_gone,
    a_long_tail_is_truncated_and_replaced,
    a_purge_hides_entries_and_survives,
    a_purge_beyond_the_tail_says_where_to_go_on,
    a_large_purge_deletes_and_leaves_the_rest,
    a_read_is_bounded_in_bytes_but_never_empty,
    a_mistaken_batch_changes_nothing,
    readers_see_no_damage_while_the_log_changes,
    views_do_not_move,
    scans_are_bounded_on_both_sides,
    what_is_not_flushed_falls_back_to_a_whole_commit,
    a_clean_close_keeps_the_state,
    a_checkpoint_is_a_copy_of_one_moment,
    a_checkpoint_travels_and_is_installed,
    a_transfer_goes_on_where_it_was_interrupted,
    damaged_files_are_refused_and_sent_again,
    names_from_peers_are_checked,
    writes_from_peers_are_checked,
    only_what_is_being_received_can_be_installed,
);

fn entry(index: u64) -> LogWrite {
    let record = Bytes::from(format!("entry {index}"));
    LogWrite::Append { index, record }
}

fn purge(upto: u64) -> LogWrite {
    let record = Bytes::from(format!("purged {upto}"));
    LogWrite::Purge { upto, record }
}

/// The indexes from `start` on, each with the record that [`entry`] gave it.
#[track_caller]
fn indexes(log: &dyn LogStore, start: u64) -> Vec<u64> {
    let entries = log.read(start, u64::MAX, usize::MAX).unwrap();
    for (index, record) in &entries {
        assert_eq!(record, &format!("entry {index}"));
    }
    entries.into_iter().map(|(index, _)| index).collect()
}

fn a_new_log_is_empty<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    let recovery = storage.log.recover().unwrap();
    assert!(recovery.vote.is_none() && recovery.purged.is_none() && recovery.committed.is_none());
    assert_eq!((recovery.first_index, recovery.last_index), (None, None));
    assert!(indexes(&*storage.log, 0).is_empty());
}

fn appended_entries_survive_a_crash<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    let vote = LogWrite::Vote("vote 1".into());
    storage.log.write(&[vote, entry(1), entry(2)]).unwrap();
    let vote = LogWrite::Vote("vote 2".into());
    let committed = LogWrite::Committed("2".into());
    storage.log.write(&[entry(3), vote, committed]).unwrap();
    assert_eq!(indexes(&*storage.log, 1), [1, 2, 3], "readable at once");
    let storage = harness.crash(storage);
    let recovery = storage.log.recover().unwrap();
    assert_eq!(recovery.vote.unwrap(), "vote 2");
    assert_eq!(recovery.committed.unwrap(), "2");
    assert_eq!(
        (recovery.first_index, recovery.last_index),
        (Some(1), Some(3))
    );
    assert_eq!(indexes(&*storage.log, 1), [1, 2, 3]);
}

fn a_batch_is_applied_in_order_and_whole<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    let batch = [
        entry(1),
        entry(2),
        entry(3),
        LogWrite::TruncateFrom { from: 2 },
        entry(2),
        purge(1),
        entry(3),
    ];
    storage.log.write(&batch).unwrap();
    assert_eq!(indexes(&*storage.log, 2), [2, 3]);
    let storage = harness.crash(storage);
    assert_eq!(indexes(&*storage.log, 2), [2, 3]);
}

fn a_truncated_tail_is_gone<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    storage
        .log
        .write(&(1..=9).map(entry).collect::<Vec<_>>())
        .unwrap();
    storage
        .log
        .write(&[LogWrite::TruncateFrom { from: 5 }])
        .unwrap();
    assert_eq!(indexes(&*storage.log, 1), [1, 2, 3, 4]);
    let storage = harness.crash(storage);
    assert_eq!(indexes(&*storage.log, 1), [1, 2, 3, 4]);
    storage.log.write(&[entry(5)]).unwrap();
    storage
        .log
        .write(&[LogWrite::TruncateFrom { from: 1 }])
        .unwrap();
    assert!(indexes(&*storage.log, 1).is_empty());
    let recovery = harness.crash(storage).log.recover().unwrap();
    assert_eq!(recovery.last_index, None);
}

fn a_long_tail_is_truncated_and_replaced<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    storage
        .log
        .write(&(1..=2000).map(entry).collect::<Vec<_>>())
        .unwrap();
    let batch = [LogWrite::TruncateFrom { from: 11 }, entry(11)];
    storage.log.write(&batch).unwrap();
    assert_eq!(indexes(&*storage.log, 9), [9, 10, 11]);
    let storage = harness.crash(storage);
    assert_eq!(indexes(&*storage.log, 9), [9, 10, 11]);
    assert_eq!(storage.log.recover().unwrap().last_index, Some(11));
}

fn a_purge_hides_entries_and_survives<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    storage
        .log
        .write(&(1..=9).map(entry).collect::<Vec<_>>())
        .unwrap();
    storage.log.write(&[purge(4)]).unwrap();
    for storage in [storage.clone(), harness.crash(storage)] {
        // The crash made the first handle useless in memory; both look the same on a disk.
        let Ok(recovery) = storage.log.recover() else {
            continue;
        };
        assert_eq!(recovery.purged.unwrap(), "purged 4");
        assert_eq!(
            (recovery.first_index, recovery.last_index),
            (Some(5), Some(9))
        );
        assert!(indexes(&*storage.log, 4).is_empty(), "4 is purged");
        assert_eq!(indexes(&*storage.log, 5), [5, 6, 7, 8, 9]);
    }
}

fn a_purge_beyond_the_tail_says_where_to_go_on<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    storage.log.write(&[entry(1), entry(2)]).unwrap();
    storage.log.write(&[purge(100)]).unwrap();
    let storage = harness.crash(storage);
    let recovery = storage.log.recover().unwrap();
    assert_eq!(recovery.purged.unwrap(), "purged 100");
    assert_eq!((recovery.first_index, recovery.last_index), (None, None));
    assert!(
        storage.log.write(&[entry(3)]).is_err(),
        "3 is behind the purge"
    );
    storage.log.write(&[entry(101)]).unwrap();
    assert_eq!(indexes(&*storage.log, 101), [101]);
    let recovery = harness.crash(storage).log.recover().unwrap();
    assert_eq!(
        (recovery.first_index, recovery.last_index),
        (Some(101), Some(101))
    );
}

fn a_large_purge_deletes_and_leaves_the_rest<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    storage
        .log
        .write(&(1..=4000).map(entry).collect::<Vec<_>>())
        .unwrap();
    for upto in (0..=3990).step_by(10) {
        storage.log.write(&[purge(upto)]).unwrap();
    }
    let left: Vec<u64> = (3991..=4000).collect();
    assert_eq!(indexes(&*storage.log, 3991), left);
    let storage = harness.crash(storage);
    assert_eq!(indexes(&*storage.log, 3991), left);
    storage.log.write(&[entry(4001), purge(4001)]).unwrap();
    let recovery = harness.crash(storage).log.recover().unwrap();
    assert_eq!(recovery.purged.unwrap(), "purged 4001");
    assert_eq!(recovery.first_index, None);
}

fn a_read_is_bounded_in_bytes_but_never_empty<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    storage
        .log
        .write(&(1..=9).map(entry).collect::<Vec<_>>())
        .unwrap();
    let read = |start, end, bytes| storage.log.read(start, end, bytes).unwrap().len();
    assert_eq!(read(1, 10, 0), 1);
    assert_eq!(read(1, 10, "entry 1".len() * 3), 3);
    assert_eq!(read(1, 10, "entry 1".len() * 3 - 1), 2);
    assert_eq!(read(3, 5, usize::MAX), 2);
    assert_eq!(read(9, 99, usize::MAX), 1);
    assert_eq!(read(10, 99, usize::MAX), 0);
    assert_eq!(read(5, 5, usize::MAX), 0);
}

fn a_mistaken_batch_changes_nothing<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    storage.log.write(&[entry(1)]).unwrap();
    let vote = LogWrite::Vote("never".into());
    assert!(storage.log.write(&[vote, entry(2), entry(4)]).is_err());
    assert_eq!(indexes(&*storage.log, 1), [1]);
    assert!(storage.log.recover().unwrap().vote.is_none());
    storage.log.write(&[entry(2)]).unwrap();
    let storage = harness.crash(storage);
    assert_eq!(indexes(&*storage.log, 1), [1, 2]);
    assert!(storage.log.recover().unwrap().vote.is_none());
}

fn readers_see_no_damage_while_the_log_changes<H: Harness>() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut harness = H::new();
    let storage = harness.reopen(None);
    let log = &*storage.log;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers = [0, 1].map(|_| {
            scope.spawn(|| {
                // At least once, however fast the writer is.
                loop {
                    let last_time = done.load(Ordering::Relaxed);
                    let recovery = log.recover().unwrap();
                    let start = recovery.first_index.unwrap_or(1);
                    let found = indexes(log, start);
                    let expected: Vec<u64> = (start..start + found.len() as u64).collect();
                    assert_eq!(found, expected, "no gaps");
                    if last_time {
                        break;
                    }
                }
            })
        });
        let mut last = 0;
        for round in 0..200 {
            log.write(&(last + 1..=last + 40).map(entry).collect::<Vec<_>>())
                .unwrap();
            last += 40;
            let from = last - 30;
            log.write(&[LogWrite::TruncateFrom { from }]).unwrap();
            last = from - 1;
            if round % 3 == 0 {
                log.write(&[purge(last - 5)]).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

fn put(key: &str, value: &str) -> (Bytes, Option<Bytes>) {
    let value = Bytes::from(value.to_owned());
    (Bytes::from(key.to_owned()), Some(value))
}

fn delete(key: &str) -> (Bytes, Option<Bytes>) {
    (Bytes::from(key.to_owned()), None)
}

#[track_caller]
fn get(view: &dyn StateView, key: &str) -> Option<Bytes> {
    view.get(key.as_bytes()).unwrap()
}

fn views_do_not_move<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    storage.state.commit(vec![put("a", "1")]).unwrap();
    let before = storage.state.view();
    let before_in_memory = storage.state.view_in_memory();
    storage
        .state
        .commit(vec![put("a", "2"), put("b", "2")])
        .unwrap();
    assert_eq!(get(&*storage.state.view_in_memory(), "a").unwrap(), "2");
    assert_eq!(get(&*before_in_memory, "a").unwrap(), "1");
    storage.state.commit(vec![delete("a")]).unwrap();
    storage.state.flush().unwrap();
    assert_eq!(get(&*before, "a").unwrap(), "1");
    assert_eq!(get(&*before, "b"), None);
    let now = storage.state.view();
    assert_eq!(get(&*now, "a"), None);
    assert_eq!(get(&*now, "b").unwrap(), "2");
    assert_eq!(
        get(&*storage.state.view_in_memory(), "b").unwrap(),
        "2",
        "just written, so it needs no disk"
    );
}

fn scans_are_bounded_on_both_sides<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    let writes = ["a", "b", "b\0", "c", "d"].map(|key| put(key, key));
    storage.state.commit(writes.into()).unwrap();
    storage.state.commit(vec![delete("c")]).unwrap();
    let view = storage.state.view();
    let scan = |start: &str, end: &str, reverse| -> Vec<Bytes> {
        view.scan(start.as_bytes(), end.as_bytes(), reverse)
            .map(|item| item.unwrap())
            .inspect(|(key, value)| assert_eq!(key, value))
            .map(|(key, _)| key)
            .collect()
    };
    assert_eq!(scan("a", "d", false), ["a", "b", "b\0"]);
    assert_eq!(scan("a", "d", true), ["b\0", "b", "a"]);
    assert_eq!(scan("b", "b\0", false), ["b"]);
    assert!(scan("b", "b", false).is_empty());
    assert!(scan("d", "a", true).is_empty());
}

fn what_is_not_flushed_falls_back_to_a_whole_commit<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    let state = &storage.state;
    state.commit(vec![put("a", "1"), put("at", "1")]).unwrap();
    assert_eq!(state.get_durable(b"at").unwrap(), None);
    state.flush().unwrap();
    state.commit(vec![put("a", "2"), put("at", "2")]).unwrap();
    assert_eq!(state.get_durable(b"at").unwrap().unwrap(), "1");
    assert_eq!(get(&*state.view(), "at").unwrap(), "2");
    let storage = harness.crash(storage);
    let view = storage.state.view();
    assert_eq!(get(&*view, "at").unwrap(), "1");
    assert_eq!(get(&*view, "a").unwrap(), "1");
    storage
        .state
        .commit(vec![put("a", "3"), put("at", "3")])
        .unwrap();
    storage.state.flush().unwrap();
    let storage = harness.crash(storage);
    assert_eq!(storage.state.get_durable(b"at").unwrap().unwrap(), "3");
}

fn a_clean_close_keeps_the_state<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    storage.state.commit(vec![put("a", "1")]).unwrap();
    let storage = harness.reopen(Some(storage));
    assert_eq!(get(&*storage.state.view(), "a").unwrap(), "1");
}

fn a_checkpoint_is_a_copy_of_one_moment<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    storage
        .state
        .commit(vec![put("a", "1"), put("at", "1")])
        .unwrap();
    let checkpoint = storage.state.checkpoint().unwrap();
    storage
        .state
        .commit(vec![put("a", "2"), put("at", "2")])
        .unwrap();
    storage.state.flush().unwrap();
    let files = checkpoint.files().unwrap();
    let view = checkpoint.view().unwrap();
    assert_eq!(get(&*view, "at").unwrap(), "1");
    assert_eq!(view.scan(b"", b"z", false).count(), 2);
    assert_eq!(
        checkpoint.files().unwrap(),
        files,
        "looking changes nothing"
    );
    for file in &files {
        let bytes = read_whole(&*checkpoint, file, 7);
        assert_eq!(bytes.len() as u64, file.length);
        assert_eq!(crc32c::crc32c(&bytes), file.crc32c);
    }
    assert!(checkpoint.read("../MARKER", 0, 1).is_err());
    assert!(
        checkpoint
            .read(&files[0].name, u64::MAX, 1)
            .unwrap()
            .is_empty()
    );
    let path = checkpoint.path().map(Path::to_path_buf);
    drop(checkpoint);
    assert_eq!(get(&*view, "at").unwrap(), "1", "the view keeps the copy");
    drop(view);
    // It is removed in the background; closing the state waits for that.
    drop(storage);
    assert!(path.is_none_or(|path| !path.exists()));
}

fn read_whole(checkpoint: &dyn Checkpoint, file: &CheckpointFile, chunk: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let chunk = checkpoint
            .read(&file.name, bytes.len() as u64, chunk)
            .unwrap();
        if chunk.is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// A checkpoint of another node, with key `at` = `value`.
fn checkpoint_of<H: Harness>(value: &str) -> (H, Arc<dyn Checkpoint>) {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    storage.state.commit(vec![put("at", value)]).unwrap();
    let checkpoint = storage.state.checkpoint().unwrap();
    (harness, checkpoint)
}

/// Sends what is missing, at most `limit` bytes of it.
fn send(checkpoint: &dyn Checkpoint, staged: &dyn StagedCheckpoint, mut limit: usize) {
    let files = checkpoint.files().unwrap();
    for (index, file) in files.iter().enumerate() {
        loop {
            let offset = staged.offsets()[index];
            let data = checkpoint.read(&file.name, offset, limit.min(100)).unwrap();
            if data.is_empty() {
                break;
            }
            limit -= data.len();
            staged.write(index, offset, &data).unwrap();
        }
    }
}

fn a_checkpoint_travels_and_is_installed<H: Harness>() {
    let (_from, checkpoint) = checkpoint_of::<H>("sent");
    let mut harness = H::new();
    let storage = harness.reopen(None);
    let state = storage.state.clone();
    state
        .commit(vec![put("at", "old"), put("only old", "")])
        .unwrap();
    let before = state.view();
    assert_eq!(get(&*state.view_in_memory(), "only old").unwrap(), "");
    let staged = state.stage("s1", checkpoint.files().unwrap()).unwrap();
    send(&*checkpoint, &*staged, usize::MAX);
    assert!(staged.is_complete());
    assert_eq!(
        get(&*state.view(), "at").unwrap(),
        "old",
        "not before install"
    );
    state.install(staged).unwrap();
    assert_eq!(get(&*state.view(), "at").unwrap(), "sent");
    assert_eq!(get(&*state.view(), "only old"), None);
    // What was installed may be on disk alone.
    if let Ok(found) = state.view_in_memory().get(b"only old") {
        assert_eq!(found, None);
    }
    assert_eq!(state.get_durable(b"at").unwrap().unwrap(), "sent");
    assert_eq!(get(&*before, "at").unwrap(), "old", "a view taken before");
    assert_eq!(get(&*before, "only old").unwrap(), "");
    drop((before, state));
    let storage = harness.crash(storage);
    assert_eq!(get(&*storage.state.view(), "at").unwrap(), "sent");
    let state = storage.state.clone();
    let staged = state.stage("s2", checkpoint.files().unwrap()).unwrap();
    send(&*checkpoint, &*staged, usize::MAX);
    state.install(staged).unwrap();
    drop(state);
    let storage = harness.reopen(Some(storage));
    assert_eq!(
        get(&*storage.state.view(), "at").unwrap(),
        "sent",
        "a clean close"
    );
    storage.state.commit(vec![put("at", "newer")]).unwrap();
    storage.state.flush().unwrap();
    let storage = harness.crash(storage);
    assert_eq!(get(&*storage.state.view(), "at").unwrap(), "newer");
}

fn a_transfer_goes_on_where_it_was_interrupted<H: Harness>() {
    let (_from, checkpoint) = checkpoint_of::<H>("sent");
    let files = checkpoint.files().unwrap();
    let mut harness = H::new();
    let storage = harness.reopen(None);
    let staged = storage.state.stage("s1", files.clone()).unwrap();
    send(&*checkpoint, &*staged, 9);
    assert_eq!(staged.offsets().iter().sum::<u64>(), 9);
    let again = storage.state.stage("s1", files.clone()).unwrap();
    assert_eq!(again.offsets(), staged.offsets(), "asked twice");
    assert!(!again.is_complete());
    assert!(matches!(
        storage.state.install(again),
        Err(TransferError::Refused(_))
    ));
    let storage = harness.reopen(Some(storage));
    let staged = storage.state.stage("s1", files.clone()).unwrap();
    assert_eq!(
        staged.offsets().iter().sum::<u64>(),
        9,
        "kept over a restart"
    );
    let storage = harness.reopen(Some(storage));
    let mut changed = files.clone();
    changed[0].crc32c ^= 1;
    let other = storage.state.stage("s1", changed).unwrap();
    assert_eq!(
        other.offsets().iter().sum::<u64>(),
        0,
        "one id, other files"
    );
    let other = storage.state.stage("s2", files.clone()).unwrap();
    assert_eq!(other.offsets().iter().sum::<u64>(), 0, "another snapshot");
    let first = storage.state.stage("s1", files).unwrap();
    assert_eq!(first.offsets().iter().sum::<u64>(), 0, "and s1 is gone");
    send(&*checkpoint, &*first, usize::MAX);
    storage.state.install(first).unwrap();
    assert_eq!(get(&*storage.state.view(), "at").unwrap(), "sent");
}

fn damaged_files_are_refused_and_sent_again<H: Harness>() {
    let (_from, checkpoint) = checkpoint_of::<H>("sent");
    let files = checkpoint.files().unwrap();
    let mut harness = H::new();
    let storage = harness.reopen(None);
    storage.state.commit(vec![put("at", "old")]).unwrap();
    let damaged = (0..files.len()).find(|i| files[*i].length > 4).unwrap();
    let staged = storage.state.stage("s1", files.clone()).unwrap();
    staged.write(damaged, 0, b"evil").unwrap();
    send(&*checkpoint, &*staged, usize::MAX);
    assert!(staged.is_complete());
    let refused = storage.state.install(staged.clone());
    assert!(matches!(refused, Err(TransferError::Refused(_))));
    assert_eq!(get(&*storage.state.view(), "at").unwrap(), "old");
    let mut expected: Vec<u64> = files.iter().map(|file| file.length).collect();
    expected[damaged] = 0;
    let staged = storage.state.stage("s1", files).unwrap();
    assert_eq!(staged.offsets(), expected, "only the damaged file");
    send(&*checkpoint, &*staged, usize::MAX);
    storage.state.install(staged).unwrap();
    assert_eq!(get(&*storage.state.view(), "at").unwrap(), "sent");
}

fn names_from_peers_are_checked<H: Harness>() {
    let mut harness = H::new();
    let storage = harness.reopen(None);
    let file = |name: &str| CheckpointFile {
        name: name.into(),
        length: 1,
        crc32c: 0,
    };
    let long = "x".repeat(300);
    for name in [
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        ".hidden",
        "a\0b",
        "ü",
        "a b",
        &long,
    ] {
        let refused = storage.state.stage("s1", vec![file(name)]);
        assert!(
            matches!(refused, Err(TransferError::Refused(_))),
            "{name:?}"
        );
        let refused = storage.state.stage(name, vec![file("records")]);
        // Memory storage makes no path of an id, and takes any.
        if !matches!(refused, Err(TransferError::Refused(_))) {
            assert!(
                storage.state.checkpoint().unwrap().path().is_none(),
                "{name:?}"
            );
        }
    }
    let twice = storage.state.stage("s1", vec![file("a"), file("a")]);
    assert!(matches!(twice, Err(TransferError::Refused(_))));
}

fn writes_from_peers_are_checked<H: Harness>() {
    let (_from, checkpoint) = checkpoint_of::<H>("sent");
    let files = checkpoint.files().unwrap();
    let mut harness = H::new();
    let storage = harness.reopen(None);
    let staged = storage.state.stage("s1", files.clone()).unwrap();
    let (big, length) = (0..)
        .zip(&files)
        .map(|(i, file)| (i, file.length))
        .max_by_key(|(_, length)| *length)
        .unwrap();
    let too_long = vec![0; length as usize + 1];
    for (file, offset, data) in [
        (files.len(), 0, &b"x"[..]),
        (big, 1, b"x"),
        (big, u64::MAX, b"x"),
        (big, 0, &too_long),
    ] {
        let refused = staged.write(file, offset, data);
        assert!(
            matches!(refused, Err(TransferError::Refused(_))),
            "{file} {offset}"
        );
    }
    assert_eq!(staged.offsets().iter().sum::<u64>(), 0);
    staged.write(big, 0, b"x").unwrap();
    assert!(staged.write(big, 0, b"x").is_err(), "sent twice");
}

fn only_what_is_being_received_can_be_installed<H: Harness>() {
    let (_from, checkpoint) = checkpoint_of::<H>("sent");
    let files = checkpoint.files().unwrap();
    let mut harness = H::new();
    let storage = harness.reopen(None);
    let first = storage.state.stage("s1", files.clone()).unwrap();
    send(&*checkpoint, &*first, usize::MAX);
    let second = storage.state.stage("s2", files).unwrap();
    let refused = storage.state.install(first);
    assert!(
        matches!(refused, Err(TransferError::Refused(_))),
        "replaced"
    );
    send(&*checkpoint, &*second, usize::MAX);
    storage.state.install(second.clone()).unwrap();
    let refused = storage.state.install(second);
    assert!(
        matches!(refused, Err(TransferError::Refused(_))),
        "installed"
    );
}
