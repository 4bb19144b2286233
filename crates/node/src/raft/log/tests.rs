//! The writer, the cache and the reads, over a store that a test holds still.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::Poll;

use futures_util::{FutureExt, StreamExt, poll};
use openraft::storage::RaftLogReader;
use openraft::type_config::TypeConfigExt;
use podkv_core::Entry;
use podkv_core::codec::{self, FrameKind};

use super::*;
use crate::raft::types::{EntryPayload, Payload};
use crate::storage::{Crash, LogWrite, MemoryDisk};

/// What a test sees of one batch.
type Seen = Vec<String>;

/// A memory store that shows each batch, and waits to be told whether it is written.
struct Held {
    store: Arc<dyn LogStore>,
    seen: Sender<Seen>,
    verdict: Mutex<Receiver<bool>>,
}

impl LogStore for Held {
    fn recover(&self) -> Result<LogRecovery, StorageError> {
        self.store.recover()
    }

    fn write(&self, batch: &[LogWrite]) -> Result<(), StorageError> {
        self.seen.send(batch.iter().map(show).collect()).unwrap();
        // A test that is over lets everything pass.
        if self.verdict.lock().unwrap().recv().unwrap_or(true) {
            return self.store.write(batch);
        }
        Err(StorageError::misuse("the disk says no"))
    }

    fn read(
        &self,
        start: u64,
        end: u64,
        max: usize,
    ) -> Result<Vec<(u64, bytes::Bytes)>, StorageError> {
        self.store.read(start, end, max)
    }

    fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }

    fn is_durable(&self) -> bool {
        self.store.is_durable()
    }
}

fn show(write: &LogWrite) -> String {
    match write {
        LogWrite::Vote(record) => format!(
            "vote {}",
            record::decode_vote(record).unwrap().leader_id.term
        ),
        LogWrite::Append { index, .. } => format!("append {index}"),
        LogWrite::TruncateFrom { from } => format!("truncate {from}"),
        LogWrite::Purge { upto, .. } => format!("purge {upto}"),
        LogWrite::Committed(record) => {
            format!(
                "committed {}",
                record::decode_log_state(record).unwrap().index
            )
        }
    }
}

/// The test's end of a [`Held`] store.
struct Hold {
    seen: Receiver<Seen>,
    verdict: Sender<bool>,
}

impl Hold {
    /// The next batch, once the writer hands it over. It waits for a verdict then.
    fn batch(&self) -> Seen {
        self.seen.recv().unwrap()
    }

    fn pass(&self) {
        self.verdict.send(true).unwrap();
    }

    fn fail(&self) {
        self.verdict.send(false).unwrap();
    }
}

fn held(disk: &MemoryDisk) -> (Log, Writer, Hold) {
    let (seen_by, seen) = channel();
    let (verdict, verdicts) = channel();
    let store = disk.attach().open_stores().log;
    let store = Held {
        store,
        seen: seen_by,
        verdict: Mutex::new(verdicts),
    };
    let (log, writer) = Log::open(Arc::new(store), usize::MAX).unwrap();
    (log, writer, Hold { seen, verdict })
}

fn open(disk: &MemoryDisk, cache_bytes: usize) -> (Log, Writer) {
    Log::open(disk.attach().open_stores().log, cache_bytes).unwrap()
}

fn at(term: u64, index: u64) -> LogId {
    log_id(LogPosition { term, index })
}

fn blank(term: u64, index: u64) -> LogEntry {
    LogEntry {
        log_id: at(term, index),
        payload: EntryPayload::Blank,
    }
}

/// An entry of about `bytes`.
fn large(index: u64, bytes: usize) -> LogEntry {
    let frame = codec::frame(FrameKind::Entry, &vec![0; bytes]);
    LogEntry {
        log_id: at(1, index),
        payload: EntryPayload::Normal(Payload::from_log(frame)),
    }
}

type Flushed = oneshot::Receiver<io::Result<()>>;

/// Starts an append, and returns what tells of its end.
async fn append(log: &mut Log, entries: Vec<LogEntry>) -> Flushed {
    let (done, flushed) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    flushed
}

async fn append_all(log: &mut Log, entries: Vec<LogEntry>) {
    append(log, entries).await.await.unwrap().unwrap();
}

async fn read(log: &mut Log, range: std::ops::Range<u64>) -> Vec<(u64, u64)> {
    let entries = log
        .get_log_reader()
        .await
        .try_get_log_entries(range)
        .await
        .unwrap();
    entries
        .iter()
        .map(|entry| (entry.log_id.leader_id.term, entry.log_id.index))
        .collect()
}

#[tokio::test]
async fn what_queues_is_one_batch_in_the_order_of_the_calls() {
    let (mut log, writer, hold) = held(&MemoryDisk::new());
    let first = append(&mut log, vec![blank(1, 0)]).await;
    assert_eq!(hold.batch(), ["append 0"]);

    // The disk is busy: all of this queues.
    let second = append(&mut log, vec![blank(1, 1), blank(1, 2)]).await;
    let mut other = log.clone();
    let vote = Vote::new(2, 7);
    let mut vote = Box::pin(other.save_vote(&vote));
    assert!(poll!(&mut vote).is_pending());
    log.purge(at(1, 0)).await.unwrap();
    let third = append(&mut log, vec![blank(1, 3)]).await;
    hold.pass();
    first.await.unwrap().unwrap();

    let expected = ["append 1", "append 2", "vote 2", "purge 0", "append 3"];
    assert_eq!(hold.batch(), expected);
    assert!(
        poll!(&mut vote).is_pending(),
        "a vote returns after the sync"
    );
    hold.pass();
    vote.await.unwrap();
    second.await.unwrap().unwrap();
    third.await.unwrap().unwrap();
    let stats = log.stats();
    assert_eq!(
        (stats.fsyncs, stats.batches, stats.entries_written),
        (2, 2, 4)
    );
    assert_eq!((stats.first, stats.last), (1, 3));
    writer.stop().await;
}

#[tokio::test]
async fn an_entry_is_readable_before_its_sync_and_acknowledged_after_it() {
    let (mut log, writer, hold) = held(&MemoryDisk::new());
    let mut flushed = append(&mut log, vec![blank(1, 0)]).await;
    assert_eq!(read(&mut log, 0..9).await, [(1, 0)]);
    hold.batch();
    assert!(poll!(&mut flushed).is_pending());
    assert!(log.wait_durable(0).now_or_never().is_none(), "apply waits");
    hold.pass();
    flushed.await.unwrap().unwrap();
    log.wait_durable(0).await.unwrap();
    writer.stop().await;
}

#[tokio::test]
async fn a_failed_write_ends_everything() {
    let (mut log, writer, hold) = held(&MemoryDisk::new());
    let first = append(&mut log, vec![blank(1, 0)]).await;
    hold.batch();
    let second = append(&mut log, vec![blank(1, 1)]).await;
    hold.fail();
    assert!(first.await.unwrap().is_err());
    assert!(
        second.await.unwrap().is_err(),
        "what queued behind it fails too"
    );
    assert!(log.wait_durable(0).await.is_err());
    assert!(log.save_vote(&Vote::new(3, 1)).await.is_err());
    assert!(log.truncate_after(None).await.is_err());
    writer.stop().await;
    assert!(
        hold.seen.try_recv().is_err(),
        "nothing was written after the failure"
    );
}

#[tokio::test]
async fn a_truncation_returns_after_its_sync_and_the_log_goes_on_there() {
    let (mut log, writer, hold) = held(&MemoryDisk::new());
    let flushed = append(&mut log, (0..5).map(|index| blank(1, index)).collect()).await;
    hold.batch();
    hold.pass();
    flushed.await.unwrap().unwrap();
    {
        let mut other = log.clone();
        let mut truncated = Box::pin(other.truncate_after(Some(at(1, 2))));
        assert!(poll!(&mut truncated).is_pending());
        assert_eq!(hold.batch(), ["truncate 3"]);
        assert!(poll!(&mut truncated).is_pending());
        hold.pass();
        truncated.await.unwrap();
    }
    assert_eq!(read(&mut log, 0..9).await, [(1, 0), (1, 1), (1, 2)]);
    let flushed = append(&mut log, vec![blank(2, 3)]).await;
    assert!(
        log.wait_durable(3).now_or_never().is_none(),
        "the old entry's sync does not count"
    );
    hold.batch();
    hold.pass();
    flushed.await.unwrap().unwrap();
    log.wait_durable(3).await.unwrap();
    assert_eq!(read(&mut log, 2..9).await, [(1, 2), (2, 3)]);
    writer.stop().await;
}

#[tokio::test]
async fn the_committed_position_rides_along_and_never_runs_ahead_of_the_disk() {
    let disk = MemoryDisk::new();
    let (mut log, writer, hold) = held(&disk);
    let first = append(&mut log, vec![blank(1, 0)]).await;
    assert_eq!(hold.batch(), ["append 0"]);
    // Two commits while the disk is busy: one record. It names an entry that is not written yet.
    let second = append(&mut log, vec![blank(1, 1)]).await;
    log.save_committed(Some(at(1, 0))).await.unwrap();
    log.save_committed(Some(at(1, 1))).await.unwrap();
    assert_eq!(log.read_committed().await.unwrap(), Some(at(1, 1)));
    hold.pass();
    assert_eq!(hold.batch(), ["append 1", "committed 1"]);
    log.save_committed(Some(at(1, 2))).await.unwrap();
    hold.pass();
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    // Accepted, but not in this batch: it is not written with it.
    log.purge(at(1, 0)).await.unwrap();
    assert_eq!(hold.batch(), ["purge 0"]);
    hold.pass();
    let third = append(&mut log, vec![blank(1, 2)]).await;
    assert_eq!(hold.batch(), ["append 2", "committed 2"]);
    hold.pass();
    third.await.unwrap().unwrap();
    assert_eq!(log.stats().fsyncs, 4);

    // At the end what is known goes along, without a sync.
    log.save_committed(Some(at(1, 2))).await.unwrap();
    hold.pass();
    writer.stop().await;
    assert_eq!(hold.batch(), ["committed 2"]);
    assert_eq!(log.stats().fsyncs, 4);
    let (mut log, writer) = open(&disk, 0);
    assert_eq!(log.read_committed().await.unwrap(), Some(at(1, 2)));
    writer.stop().await;
}

#[tokio::test]
async fn a_purge_may_reach_beyond_the_tail() {
    let disk = MemoryDisk::new();
    let (mut log, writer) = open(&disk, usize::MAX);
    append_all(&mut log, vec![blank(1, 0), blank(1, 1)]).await;
    log.purge(at(4, 90)).await.unwrap();
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(at(4, 90)), Some(at(4, 90)))
    );
    assert_eq!(read(&mut log, 0..200).await, []);
    let bounds = |log: &Log| (log.stats().first, log.stats().last);
    assert_eq!(bounds(&log), (91, 90), "it goes on behind what was purged");
    append_all(&mut log, vec![blank(5, 91)]).await;
    assert_eq!(read(&mut log, 0..200).await, [(5, 91)]);
    assert_eq!(bounds(&log), (91, 91));
    writer.stop().await;

    let (mut log, writer) = open(&disk, usize::MAX);
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(at(4, 90)), Some(at(5, 91)))
    );
    log.wait_durable(91).await.unwrap();
    writer.stop().await;
}

#[tokio::test]
async fn what_the_cache_forgot_is_read_from_disk() {
    let (mut log, writer) = open(&MemoryDisk::new(), 10 * weight(&blank(1, 0)));
    for start in (0..300).step_by(3) {
        append_all(
            &mut log,
            (start..start + 3).map(|index| blank(1, index)).collect(),
        )
        .await;
    }
    let expected: Vec<_> = (0..300).map(|index| (1, index)).collect();
    assert_eq!(read(&mut log, 0..300).await, expected);
    assert_eq!(read(&mut log, 280..1000).await, expected[280..]);
    let mut reader = log.get_log_reader().await;
    let stream = reader.entries_stream(100..300).await;
    let streamed: Vec<u64> = stream
        .map(|entry| entry.unwrap().log_id.index)
        .collect()
        .await;
    assert_eq!(streamed, (100..300).collect::<Vec<_>>());
    writer.stop().await;
}

#[tokio::test]
async fn a_replication_batch_is_bounded_in_bytes_but_for_one_entry() {
    for cache_bytes in [0, usize::MAX] {
        let (mut log, writer) = open(&MemoryDisk::new(), cache_bytes);
        let entries = vec![
            large(0, 400 << 10),
            large(1, 400 << 10),
            large(2, 3 << 20),
            large(3, 1),
        ];
        append_all(&mut log, entries).await;
        let mut reader = log.get_log_reader().await;
        let mut lengths = Vec::new();
        let mut next = 0;
        while next < 4 {
            let entries = reader.limited_get_log_entries(next, 4).await.unwrap();
            next += entries.len() as u64;
            lengths.push(entries.len());
        }
        assert_eq!(lengths, [2, 1, 1], "cache of {cache_bytes}");
        writer.stop().await;
    }
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let disk = MemoryDisk::new();
    let (mut log, writer) = open(&disk, usize::MAX);
    log.save_vote(&Vote::new_committed(3, 9)).await.unwrap();
    let payload = Payload::new(Entry {
        clock_ms: 77,
        proposals: Vec::new(),
    });
    let entry = LogEntry {
        log_id: at(3, 1),
        payload: EntryPayload::Normal(payload),
    };
    append_all(&mut log, vec![blank(3, 0), entry]).await;
    disk.crash(Crash::Power);
    drop((log, writer));

    let (mut log, writer) = open(&disk, usize::MAX);
    let mut reader = log.get_log_reader().await;
    assert_eq!(
        reader.read_vote().await.unwrap(),
        Some(Vote::new_committed(3, 9))
    );
    let entries = reader.try_get_log_entries(..).await.unwrap();
    let EntryPayload::Normal(payload) = &entries[1].payload else {
        panic!("not proposals")
    };
    assert_eq!(payload.entry().unwrap().clock_ms, 77);
    assert_eq!(
        log.get_log_state().await.unwrap().last_log_id,
        Some(at(3, 1))
    );
    writer.stop().await;
}

#[tokio::test]
async fn a_hole_is_refused() {
    let (mut log, writer) = open(&MemoryDisk::new(), usize::MAX);
    append_all(&mut log, vec![blank(1, 0)]).await;
    let (done, _flushed) = TypeConfig::oneshot();
    let refused = log.append(vec![blank(1, 2)], IOFlushed::signal(done)).await;
    assert!(refused.is_err());
    writer.stop().await;
}

#[tokio::test]
async fn damage_is_found_when_the_log_is_opened() {
    let store = MemoryDisk::new().attach().open_stores().log;
    let record = record::encode_entry(&blank(1, 0));
    let mut damaged = record.to_vec();
    damaged[20] ^= 1;
    store
        .write(&[LogWrite::Append {
            index: 0,
            record: damaged.into(),
        }])
        .unwrap();
    let error = Log::open(store, 0).map(|_| ()).unwrap_err();
    assert!(error.corrupt);
}

#[tokio::test]
async fn a_polled_append_that_waits_for_room_loses_nothing() {
    let (mut log, writer, hold) = held(&MemoryDisk::new());
    let first = append(&mut log, vec![large(0, QUEUE_BYTES)]).await;
    hold.batch();
    // The queue is full: the append waits, and is given up before it had room.
    {
        let mut other = log.clone();
        let (done, _flushed) = TypeConfig::oneshot();
        let flushed = IOFlushed::signal(done);
        let mut append = Box::pin(other.append(vec![blank(1, 1)], flushed));
        assert!(matches!(poll!(&mut append), Poll::Pending));
    }
    assert_eq!(read(&mut log, 0..9).await.len(), 1, "it is not in the log");
    hold.pass();
    first.await.unwrap().unwrap();
    let second = append(&mut log, vec![blank(1, 1)]).await;
    hold.batch();
    hold.pass();
    second.await.unwrap().unwrap();
    writer.stop().await;
}
