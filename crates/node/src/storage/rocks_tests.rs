//! What only disks do: torn tails, flipped bytes, files that are gone, crashes between two steps.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::suite::Disk;
use super::*;

fn entry(index: u64) -> LogWrite {
    let record = Bytes::from(format!("entry {index}: {}", "x".repeat(100)));
    LogWrite::Append { index, record }
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(ending))
        .collect();
    files.sort();
    files
}

/// A closed node's folder whose write-ahead log holds entries 1 to 9, each its own write, and nothing
/// after them. Returns the log file and where each write begins in it.
fn nine_writes() -> (Disk, PathBuf, Vec<u64>) {
    let (mut disk, storage) = Disk::open_new();
    let mut ends = Vec::new();
    let log = |disk: &Disk| files(&disk.folder().join("log"), ".log").pop().unwrap();
    for index in 1..=9 {
        ends.push(fs::metadata(log(&disk)).unwrap().len());
        storage.log.write(&[entry(index)]).unwrap();
    }
    // As `kill -9` leaves it, since closing might move the entries into a table.
    disk.take_image();
    drop(storage);
    let log = log(&disk);
    (disk, log, ends)
}

fn last_index(disk: &Disk) -> Result<Option<u64>, StorageError> {
    let storage = disk.try_open(false)?;
    let recovery = storage.log.recover()?;
    let last = recovery.last_index.unwrap_or(0);
    assert_eq!(
        storage.log.read(1, 99, usize::MAX)?.len() as u64,
        last,
        "all up to the last one are there"
    );
    Ok(recovery.last_index)
}

#[test]
fn a_torn_tail_loses_only_the_write_that_was_cut() {
    let (_, _, starts) = nine_writes();
    let (start, next) = (starts[7], starts[8]);
    for cut in [start, start + 1, start + 8, (start + next) / 2, next - 1] {
        let (disk, log, _) = nine_writes();
        let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
        file.set_len(cut).unwrap();
        assert_eq!(last_index(&disk).unwrap(), Some(7), "cut at {cut}");
    }
}

#[test]
fn zeros_behind_the_tail_are_no_damage() {
    // What a file system leaves that had made the file longer, but not yet written to it.
    let (disk, log, _) = nine_writes();
    let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
    file.set_len(file.metadata().unwrap().len() + 5000).unwrap();
    assert_eq!(last_index(&disk).unwrap(), Some(9));
}

#[test]
fn a_flipped_bit_in_the_log_stops_the_node() {
    let (_, _, starts) = nine_writes();
    // In the header of the record, in its payload; in the middle of the log and in its last write.
    for offset in [starts[3] + 1, starts[3] + 40, starts[8] + 40] {
        let (disk, log, _) = nine_writes();
        let before = flip(&log, offset);
        let error = last_index(&disk).unwrap_err();
        assert!(error.corrupt, "flipped at {offset}: {error}");
        assert!(error.what.contains("podkv/log"), "{error}");
        assert!(error.what.contains("empty volume"), "{error}");
        assert_eq!(fs::read(&log).unwrap(), before, "nothing is changed");
    }
}

/// Flips a bit; returns the bytes after.
fn flip(path: &Path, offset: u64) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset as usize] ^= 4;
    fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn a_flipped_bit_in_a_table_stops_the_node() {
    let (disk, storage) = Disk::open_new();
    storage.log.write(&[entry(1), entry(2)]).unwrap();
    storage.log.write(&[entry(3)]).unwrap();
    // More than the memtables hold, so that the first entries are in a table.
    let big = Bytes::from(vec![7; 1 << 20]);
    for index in 4..40 {
        let record = big.clone();
        storage
            .log
            .write(&[LogWrite::Append { index, record }])
            .unwrap();
    }
    drop(storage);
    let tables = files(&disk.folder().join("log"), ".sst");
    let largest = tables
        .iter()
        .max_by_key(|table| fs::metadata(table).unwrap().len());
    flip(largest.unwrap(), 1000);
    let error = match disk.try_open(false) {
        Err(error) => error,
        Ok(storage) => storage.log.read(1, 99, usize::MAX).unwrap_err(),
    };
    assert!(error.corrupt, "{error}");
    assert!(error.what.contains("log"), "{error}");
}

#[test]
fn a_lost_table_or_manifest_or_pointer_is_never_an_empty_log() {
    let (_disk, log, _) = nine_writes();
    let manifest = fs::read_dir(log.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .find(|name| name.starts_with("MANIFEST"))
        .unwrap();
    for lost in [
        "log/CURRENT".to_owned(),
        format!("log/{manifest}"),
        "log".to_owned(),
    ] {
        let (disk, _, _) = nine_writes();
        let (place, away) = (disk.folder().join(&lost), disk.folder().join("lost"));
        fs::rename(&place, &away).unwrap();
        assert!(disk.try_open(false).is_err(), "{lost}");
        fs::rename(&away, &place).unwrap();
        assert_eq!(last_index(&disk).unwrap(), Some(9), "{lost} is back");
    }
}

#[test]
fn a_lost_entry_between_two_others_is_damage() {
    let (disk, storage) = Disk::open_new();
    storage
        .log
        .write(&(1..=9).map(entry).collect::<Vec<_>>())
        .unwrap();
    drop(storage);
    disk.remove_log_entry(5);
    let storage = disk.try_open(false).unwrap();
    let error = storage.log.read(1, 99, usize::MAX).unwrap_err();
    assert!(error.corrupt && error.what.contains("entry 5"), "{error}");
}

#[test]
fn stores_are_created_only_when_allowed() {
    let disk = Disk::empty();
    let error = disk.try_open(false).err().unwrap();
    assert!(error.corrupt && error.what.contains("missing"), "{error}");
    disk.try_open(true).unwrap();
    disk.try_open(false).unwrap();
}

#[test]
fn creating_a_store_can_be_interrupted_anywhere() {
    let disk = Disk::empty();
    let folder = disk.folder();
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("MARKER"), "present").unwrap();
    // Half-made databases under temporary names.
    for name in ["log.tmp", "state-1.tmp"] {
        fs::create_dir_all(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("CURRENT"), "half").unwrap();
    }
    drop(disk.try_open(true).unwrap());
    // The first state is there, and the pointer is not yet.
    fs::remove_file(folder.join("CURRENT-STATE")).unwrap();
    drop(disk.try_open(true).unwrap());
    assert!(folder.join("CURRENT-STATE").exists());
    assert!(!folder.join("log.tmp").exists() && !folder.join("state-1.tmp").exists());
}

#[test]
fn a_state_without_its_pointer_is_not_guessed() {
    let (disk, storage) = Disk::open_new();
    drop(storage);
    fs::create_dir(disk.folder().join("state-2")).unwrap();
    fs::remove_file(disk.folder().join("CURRENT-STATE")).unwrap();
    for may_create in [false, true] {
        let error = disk.try_open(may_create).err().unwrap();
        assert!(
            error.corrupt && error.what.contains("CURRENT-STATE"),
            "{error}"
        );
    }
    assert!(disk.folder().join("state-1").exists() && disk.folder().join("state-2").exists());
}

#[test]
fn a_flipped_bit_in_any_byte_of_the_pointer_is_noticed() {
    let (disk, storage) = Disk::open_new();
    drop(storage);
    let pointer = disk.folder().join("CURRENT-STATE");
    let good = fs::read(&pointer).unwrap();
    for byte in 0..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 1 << (byte % 8);
        fs::write(&pointer, bad).unwrap();
        let error = disk.try_open(true).err().unwrap();
        assert!(
            error.corrupt && error.what.contains("CURRENT-STATE"),
            "{error}"
        );
    }
    fs::write(&pointer, good).unwrap();
    disk.try_open(false).unwrap();
}

#[test]
fn what_was_left_over_is_removed_and_nothing_else() {
    let (disk, storage) = Disk::open_new();
    drop(storage);
    let folder = disk.folder();
    for left_over in ["state-7", "state-8.tmp", "checkpoint-3", "checkpoint-4.tmp"] {
        fs::create_dir(folder.join(left_over)).unwrap();
    }
    for kept in ["staged-s1", "state-of-the-art", "notes"] {
        fs::create_dir(folder.join(kept)).unwrap();
    }
    drop(disk.try_open(false).unwrap());
    let mut names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "CURRENT-STATE",
        "LOCK",
        "MARKER",
        "log",
        "notes",
        "staged-s1",
        "state-1",
        "state-of-the-art",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_read_that_needs_the_disk_says_so() {
    let (mut disk, storage) = Disk::open_new();
    let writes = vec![(Bytes::from("a"), Some(Bytes::from("1")))];
    storage.state.commit(writes).unwrap();
    storage.state.flush().unwrap();
    disk.take_image();
    drop(storage);
    let storage = disk.try_open(false).unwrap();
    let in_memory = storage.state.view_in_memory();
    assert!(in_memory.get(b"a").unwrap_err().is_not_in_memory());
    let mut scan = in_memory.scan(b"a", b"b", false);
    assert!(scan.next().unwrap().unwrap_err().is_not_in_memory());
    let view = storage.state.view();
    assert_eq!(view.get(b"a").unwrap().unwrap(), "1");
    let in_memory = storage.state.view_in_memory();
    assert_eq!(in_memory.get(b"a").unwrap().unwrap(), "1", "now it is");
}

#[test]
fn an_old_state_folder_goes_with_its_last_view() {
    let (from, source) = Disk::open_new();
    let checkpoint = source.state.checkpoint().unwrap();
    let (disk, storage) = Disk::open_new();
    let view = storage.state.view();
    let staged = storage
        .state
        .stage("s1", checkpoint.files().unwrap())
        .unwrap();
    copy_all(&*checkpoint, &*staged);
    storage.state.install(staged).unwrap();
    let folder = disk.folder();
    assert!(folder.join("state-1").exists() && folder.join("state-2").exists());
    assert!(!folder.join("staged-s1").exists());
    drop(view);
    // It is removed in the background; closing the state waits for that.
    drop(storage);
    assert!(!folder.join("state-1").exists());
    assert!(folder.join("state-2").exists());
    drop((checkpoint, source, from));
}

fn copy_all(checkpoint: &dyn Checkpoint, staged: &dyn StagedCheckpoint) {
    for (index, file) in checkpoint.files().unwrap().iter().enumerate() {
        let data = checkpoint.read(&file.name, 0, usize::MAX).unwrap();
        staged.write(index, 0, &data).unwrap();
    }
}

#[test]
fn files_that_are_no_database_are_the_peers_fault() {
    let (disk, storage) = Disk::open_new();
    let file = CheckpointFile {
        name: "records".into(),
        length: 4,
        crc32c: crc32c::crc32c(b"evil"),
    };
    let staged = storage.state.stage("s1", vec![file]).unwrap();
    staged.write(0, 0, b"evil").unwrap();
    let refused = storage.state.install(staged);
    assert!(
        matches!(refused, Err(TransferError::Refused(_))),
        "{refused:?}"
    );
    let writes = vec![(Bytes::from("a"), Some(Bytes::from("1")))];
    storage.state.commit(writes).unwrap();
    drop(storage);
    assert!(!disk.folder().join("state-2").exists());
    disk.try_open(false).unwrap();
}

#[test]
fn checksums_of_tables_are_remembered_and_right() {
    let (_disk, storage) = Disk::open_new();
    for round in ["1", "2", "3"] {
        let writes = vec![(Bytes::from(round), Some(Bytes::from(round)))];
        storage.state.commit(writes).unwrap();
        let checkpoint = storage.state.checkpoint().unwrap();
        for file in checkpoint.files().unwrap() {
            let bytes = checkpoint.read(&file.name, 0, usize::MAX).unwrap();
            assert_eq!(crc32c::crc32c(&bytes), file.crc32c, "{}", file.name);
        }
    }
}

#[test]
fn what_is_yet_to_be_written_to_tables_is_counted() {
    let (_disk, storage) = Disk::open_new();
    let value = Bytes::from(vec![b'v'; 1 << 20]);
    let before = storage.state.unwritten_bytes();
    let writes = vec![(Bytes::from("a"), Some(value.clone()))];
    storage.state.commit(writes).unwrap();
    let after = storage.state.unwritten_bytes();
    assert!(after >= before + (1 << 20), "{before}, then {after}");
    storage.state.flush().unwrap();
    assert!(storage.state.unwritten_bytes() < 1 << 20);

    let before = storage.log.unwritten_bytes();
    let append = LogWrite::Append {
        index: 1,
        record: value,
    };
    storage.log.write(&[append]).unwrap();
    let after = storage.log.unwritten_bytes();
    assert!(after >= before + (1 << 20), "{before}, then {after}");
}
