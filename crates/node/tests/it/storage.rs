//! Promise 2 and promise 7: what was acknowledged survives `kill -9` at any moment, and two processes
//! never use one volume.
//!
//! A test starts this very binary again as a second process, running one of the `child_*` tests below.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use podkv_api::{Bytes, ClusterId, Incarnation, Reason};
use podkv_node::identity::{DataFolder, Identity};
use podkv_node::storage::{LogWrite, Storage, Volume};

const FOLDER: &str = "PODKV_TEST_FOLDER";

struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(test: &str, folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--ignored", "--nocapture"])
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The number in the next line that begins with `word`; `None` if the process says no more.
    fn next(&mut self, word: &str) -> Option<u64> {
        loop {
            let line = self.lines.next()?.unwrap();
            // The test runner writes before our first line, on the same one.
            if let Some((_, number)) = line.split_once(word) {
                return number.trim().parse().ok();
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn open(folder: &Path) -> (Identity, Storage) {
    let volume = Volume::disk(folder).unwrap();
    let identity = Identity::open(volume.markers(), "podkv-0").unwrap();
    let storage = volume.open_stores(&identity, 8 << 20).unwrap();
    (identity, storage)
}

#[test]
fn a_folder_in_use_by_another_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = Process::start("storage::child_holds_the_lock", folder.path());
    assert_eq!(other.next("locked"), Some(1));
    let error = Volume::disk(folder.path()).err().unwrap();
    assert_eq!(error.reason(), Reason::DataFolder);
    assert!(
        error.text().contains("in use by another process"),
        "{error}"
    );
    other.child.kill().unwrap();
    other.child.wait().unwrap();
    Volume::disk(folder.path()).unwrap();
}

#[test]
#[ignore = "the second process of a test"]
fn child_holds_the_lock() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let _folder = DataFolder::open(Path::new(&folder)).unwrap();
    println!("locked 1");
    // Until the first process closes the pipe or kills us.
    std::io::stdin().lines().for_each(drop);
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    for round in 1..=5 {
        let mut writer = Process::start("storage::child_writes_until_it_is_killed", folder.path());
        let mut acknowledged = 0;
        for _ in 0..20 * round {
            acknowledged = writer.next("acknowledged").unwrap();
        }
        writer.child.kill().unwrap();
        // What it said before it died, and the test did not read yet.
        while let Some(index) = writer.next("acknowledged") {
            acknowledged = index;
        }
        drop(writer);

        let (identity, storage) = open(folder.path());
        assert_eq!(identity.boot_counter(), 2 * round, "each start counts");
        let recovery = storage.log.recover().unwrap();
        let last = recovery.last_index.unwrap();
        assert!(
            acknowledged <= last && last <= acknowledged + 1,
            "acknowledged {acknowledged}, found {last}"
        );
        assert_eq!(recovery.vote.unwrap(), number(last), "one batch, one fate");
        let mut expected = 1;
        while expected <= last {
            for (index, record) in storage.log.read(expected, last + 1, 1 << 20).unwrap() {
                assert_eq!((index, record), (expected, number(expected)));
                expected += 1;
            }
        }
        let view = storage.state.view();
        let at = view.get(b"at").unwrap();
        assert_eq!(at, view.get(b"twin").unwrap(), "a commit is whole");
        assert_eq!(at, storage.state.get_durable(b"at").unwrap());
        let at = at.map_or(0, |at| u64::from_be_bytes(at.as_ref().try_into().unwrap()));
        assert!(
            last.saturating_sub(FLUSH_EVERY + 1) <= at && at <= last,
            "state at {at}, log at {last}"
        );
    }
}

const FLUSH_EVERY: u64 = 16;

fn number(index: u64) -> Bytes {
    index.to_be_bytes().to_vec().into()
}

#[test]
#[ignore = "the second process of a test"]
fn child_writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let (_identity, storage) = open(Path::new(&folder));
    let last = storage.log.recover().unwrap().last_index.unwrap_or(0);
    for index in last + 1.. {
        let record = number(index);
        let vote = LogWrite::Vote(record.clone());
        storage
            .log
            .write(&[LogWrite::Append { index, record }, vote])
            .unwrap();
        println!("acknowledged {index}");
        let writes = [&b"at"[..], b"twin"].map(|key| (key.into(), Some(number(index))));
        storage.state.commit(writes.into()).unwrap();
        if index.is_multiple_of(FLUSH_EVERY) {
            storage.state.flush().unwrap();
        }
    }
}

#[test]
fn a_member_that_lost_its_log_does_not_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (identity, storage) = open(folder.path());
    identity
        .become_member(ClusterId(7), Incarnation(1))
        .unwrap();
    drop((identity, storage));
    std::fs::remove_dir_all(folder.path().join("podkv/log")).unwrap();
    let volume = Volume::disk(folder.path()).unwrap();
    let identity = Identity::open(volume.markers(), "podkv-0").unwrap();
    let error = volume.open_stores(&identity, 8 << 20).err().unwrap();
    assert!(
        error.corrupt && error.what.contains("the log is missing"),
        "{error}"
    );
    assert!(!folder.path().join("podkv/log").exists());
}

#[test]
fn the_stores_keep_the_lock_when_the_volume_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let (identity, storage) = open(folder.path());
    drop(identity);
    assert!(Volume::disk(folder.path()).is_err());
    let state = Arc::clone(&storage.state);
    drop(storage);
    assert!(Volume::disk(folder.path()).is_err());
    drop(state);
    Volume::disk(folder.path()).unwrap();
}
