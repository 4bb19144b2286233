//! Apply: one batch, atomic, behind the log; snapshots built and installed.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream;
use openraft::storage::{IOFlushed, RaftLogStorage};
use podkv_api::{Put, SessionId, SessionStamp};
use podkv_core::{Command, Entry, Proposal, RevisionEvents, Stamp};

use super::*;
use crate::raft::types::{EntryPayload, LogEntry, Payload};
use crate::storage::{
    Checkpoint, CheckpointFile, Crash, MemoryDisk, StagedCheckpoint, StateView, StateWrites,
    StorageError, TransferError,
};

/// Keeps what it is told.
#[derive(Default)]
pub(crate) struct Recorder {
    /// Proposers are answered before.
    pub published: watch::Sender<Published>,
    pub resets: Mutex<Vec<Applied>>,
}

type Published = Vec<(Vec<Arc<RevisionEvents>>, Applied)>;

impl EventSink for Recorder {
    fn publish(&self, events: Vec<Arc<RevisionEvents>>, applied: Applied) {
        self.published
            .send_modify(|published| published.push((events, applied)));
    }

    fn reset(&self, applied: Applied) {
        self.resets.lock().unwrap().push(applied);
    }
}

/// Counts commits.
struct Counting {
    store: Arc<dyn StateStore>,
    commits: AtomicUsize,
}

impl StateStore for Counting {
    fn view(&self) -> Arc<dyn StateView> {
        self.store.view()
    }
    fn view_in_memory(&self) -> Arc<dyn StateView> {
        self.store.view_in_memory()
    }
    fn commit(&self, writes: StateWrites) -> Result<(), StorageError> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.store.commit(writes)
    }
    fn flush(&self) -> Result<(), StorageError> {
        self.store.flush()
    }
    fn get_durable(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.store.get_durable(key)
    }
    fn checkpoint(&self) -> Result<Arc<dyn Checkpoint>, StorageError> {
        self.store.checkpoint()
    }
    fn stage(
        &self,
        id: &str,
        files: Vec<CheckpointFile>,
    ) -> Result<Arc<dyn StagedCheckpoint>, TransferError> {
        self.store.stage(id, files)
    }
    fn install(&self, staged: Arc<dyn StagedCheckpoint>) -> Result<(), TransferError> {
        self.store.install(staged)
    }
    fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }
}

struct Bench {
    store: Arc<Counting>,
    events: Arc<Recorder>,
    machine: Machine,
}

impl Bench {
    fn new(disk: &MemoryDisk, log: Option<Log>) -> Self {
        let store = disk.attach().open_stores().state;
        let store = Arc::new(Counting {
            store,
            commits: AtomicUsize::new(0),
        });
        let events = Arc::new(Recorder::default());
        let opened = Machine::open(store.clone(), events.clone(), Arc::default(), log);
        Self {
            store,
            events,
            machine: opened.unwrap().0,
        }
    }

    async fn apply(&mut self, entries: Vec<LogEntry>) -> io::Result<()> {
        self.machine
            .apply(stream::iter(
                entries.into_iter().map(|entry| Ok((entry, None))),
            ))
            .await
    }

    fn applied(&self) -> Applied {
        self.machine.applied().borrow().clone()
    }
}

fn put(index: u64) -> LogEntry {
    let put = Put::new(format!("key {index}"), "value");
    let proposals = vec![Proposal::from(Command::Put(put))];
    normal(
        index,
        Payload::new(Entry {
            clock_ms: index,
            proposals,
        }),
    )
}

fn normal(index: u64, payload: Arc<Payload>) -> LogEntry {
    let log_id = log_id(LogPosition { term: 1, index });
    LogEntry {
        log_id,
        payload: EntryPayload::Normal(payload),
    }
}

#[tokio::test]
async fn a_range_of_entries_is_one_commit() {
    let mut bench = Bench::new(&MemoryDisk::new(), None);
    bench.apply((0..100).map(put).collect()).await.unwrap();
    assert_eq!(bench.store.commits.load(Ordering::Relaxed), 1);
    let applied = bench.applied();
    assert_eq!(
        (applied.position.index, applied.revision, applied.clock_ms),
        (99, 101, 99)
    );

    let published = bench.events.published.borrow();
    let [(events, at)] = published.as_slice() else {
        panic!("not one batch of events")
    };
    assert_eq!(at, &applied);
    let revisions: Vec<u64> = events.iter().map(|events| events.revision).collect();
    assert_eq!(revisions, (2..=101).collect::<Vec<_>>());
}

#[tokio::test]
async fn after_a_crash_data_and_position_are_of_one_moment() {
    let disk = MemoryDisk::new();
    let mut bench = Bench::new(&disk, None);
    bench.apply((0..10).map(put).collect()).await.unwrap();
    bench.store.flush().unwrap();
    bench.apply((10..20).map(put).collect()).await.unwrap();
    assert_eq!(bench.applied().revision, 21);
    disk.crash(Crash::Process);

    let mut bench = Bench::new(&disk, None);
    let applied = bench.applied();
    assert_eq!((applied.position.index, applied.revision), (9, 11));
    bench.apply((10..20).map(put).collect()).await.unwrap();
    assert_eq!(bench.applied().revision, 21, "each entry once");
    assert!(bench.apply(vec![put(15)]).await.is_err(), "never twice");
}

/// Before a stamped write is executed, its result is looked for: that there was none is not to be remembered.
#[tokio::test]
async fn a_write_that_is_sent_again_is_not_executed_again() {
    let mut bench = Bench::new(&MemoryDisk::new(), None);
    let session = SessionId(7);
    let open = Command::SessionOpen {
        id: session,
        ttl_ms: 60_000,
        identity: Bytes::new(),
    };
    let stamp = Stamp {
        session: SessionStamp {
            session,
            sequence: 1,
            acknowledged_below: 1,
        },
        identity: Bytes::new(),
    };
    let write = || Proposal {
        stamp: Some(stamp.clone()),
        command: Command::Put(Put::new("key", "value")),
    };
    let entry = |index, proposal| {
        let entry = Entry {
            clock_ms: index,
            proposals: vec![proposal],
        };
        normal(index, Payload::new(entry))
    };
    let first = vec![entry(0, Proposal::from(open)), entry(1, write())];
    bench.apply(first).await.unwrap();
    let written = bench.applied().revision;
    bench.apply(vec![entry(2, write())]).await.unwrap();
    assert_eq!(bench.applied().revision, written);
}

#[tokio::test]
async fn what_cannot_be_decoded_stops_the_node_and_changes_nothing() {
    let mut bench = Bench::new(&MemoryDisk::new(), None);
    let damaged = Payload::from_log(Bytes::from_static(b"not a frame"));
    assert!(bench.apply(vec![put(0), normal(1, damaged)]).await.is_err());
    assert_eq!(bench.store.commits.load(Ordering::Relaxed), 0);
    assert_eq!(bench.applied().revision, 1);
}

#[tokio::test]
async fn the_state_never_overtakes_the_log() {
    let (mut log, writer) = Log::open(MemoryDisk::new().attach().open_stores().log, 0).unwrap();
    let mut bench = Bench::new(&MemoryDisk::new(), Some(log.clone()));
    let mut apply = Box::pin(bench.apply(vec![put(0)]));
    assert!(futures_util::poll!(&mut apply).is_pending());
    log.append(vec![put(0)], IOFlushed::noop()).await.unwrap();
    apply.await.unwrap();
    log.wait_durable(0)
        .now_or_never()
        .expect("synced before it was applied")
        .unwrap();
    writer.stop().await;
}

#[tokio::test]
async fn a_snapshot_covers_what_was_purged() {
    let (mut log, writer) = Log::open(MemoryDisk::new().attach().open_stores().log, 0).unwrap();
    log.append((0..30).map(put), IOFlushed::noop())
        .await
        .unwrap();
    let mut bench = Bench::new(&MemoryDisk::new(), Some(log.clone()));
    bench.apply((0..10).map(put).collect()).await.unwrap();
    assert!(
        bench
            .machine
            .get_current_snapshot()
            .await
            .unwrap()
            .is_none(),
        "nothing is purged"
    );

    let mut builder = bench
        .machine
        .try_create_snapshot_builder(false)
        .await
        .unwrap();
    bench.apply((10..20).map(put).collect()).await.unwrap();
    let built = builder.build_snapshot().await.unwrap();
    let index = |snapshot: &Snapshot<SnapshotData>| snapshot.meta.last_log_id.unwrap().index;
    assert_eq!(index(&built), 19);

    log.purge(log_id(LogPosition { term: 1, index: 15 }))
        .await
        .unwrap();
    let current = bench.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(index(&current), 19, "the kept one will do");
    bench.apply((20..30).map(put).collect()).await.unwrap();
    log.purge(log_id(LogPosition { term: 1, index: 25 }))
        .await
        .unwrap();
    let current = bench.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(
        index(&current),
        29,
        "older than the purge it would be of no use"
    );
    writer.stop().await;
}

#[tokio::test]
async fn no_newer_snapshot_is_built_while_one_is_sent() {
    let mut bench = Bench::new(&MemoryDisk::new(), None);
    bench.apply(vec![put(0)]).await.unwrap();
    bench.machine.shared.transfers.progress();
    assert!(
        bench
            .machine
            .try_create_snapshot_builder(false)
            .await
            .is_none()
    );
    assert!(
        bench
            .machine
            .try_create_snapshot_builder(true)
            .await
            .is_some()
    );
}

#[tokio::test]
async fn an_installed_snapshot_replaces_everything() {
    let mut from = Bench::new(&MemoryDisk::new(), None);
    from.apply((0..50).map(put).collect()).await.unwrap();
    let mut builder = from.machine.get_snapshot_builder().await;
    let snapshot = builder.build_snapshot().await.unwrap();

    let mut to = Bench::new(&MemoryDisk::new(), None);
    to.apply((0..3).map(put).collect()).await.unwrap();
    to.machine
        .install_snapshot(&snapshot.meta, snapshot.snapshot)
        .await
        .unwrap();
    assert_eq!(to.applied(), from.applied());
    assert_eq!(
        *to.events.resets.lock().unwrap(),
        [from.applied()],
        "watchers are told"
    );
    let digest = |bench: &Bench| podkv_core::state_digest(&*bench.store.view()).unwrap();
    assert_eq!(digest(&to), digest(&from));
    let current = to.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta, snapshot.meta);
    to.apply(vec![put(50)]).await.unwrap();
    assert_eq!(to.applied().revision, 52);
}

#[tokio::test]
async fn a_snapshot_that_is_not_what_was_announced_stops_the_node() {
    let mut from = Bench::new(&MemoryDisk::new(), None);
    from.apply((0..5).map(put).collect()).await.unwrap();
    let snapshot = from
        .machine
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();
    let mut meta = snapshot.meta.clone();
    meta.last_log_id = Some(log_id(LogPosition { term: 1, index: 9 }));
    let mut to = Bench::new(&MemoryDisk::new(), None);
    assert!(
        to.machine
            .install_snapshot(&meta, snapshot.snapshot)
            .await
            .is_err()
    );
}
