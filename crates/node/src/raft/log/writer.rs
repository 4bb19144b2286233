//! The one thread that writes the log.
//!
//! Votes, appends, truncations and purges stand in one FIFO. The thread takes everything that is
//! queued, hands it to the store as one batch, which is one fsync, and then tells everybody whose
//! work is in it. While it syncs, the next batch queues: the slower the disk, the larger the batches.
//!
//! After a failed write nothing more is written: the disk's content is not known any more. Everybody who
//! waits is told, now and later.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use openraft::storage::IOFlushed;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use super::super::record;
use super::super::types::{LogEntry, TypeConfig};
use super::Shared;
use crate::storage::LogWrite;

/// Jobs that may be queued. More would only lengthen the wait of those behind.
pub(super) const QUEUE_JOBS: usize = 4096;

/// Bytes of entries that may be queued; one job is always let in.
pub(super) const QUEUE_BYTES: usize = 64 << 20;

/// One batch is at most about this large, so that a vote does not wait behind minutes of data.
const BATCH_BYTES: usize = 16 << 20;

pub(super) type Done = oneshot::Sender<Result<(), io::Error>>;

pub(super) enum Job {
    Vote {
        record: Bytes,
        done: Done,
    },
    Append {
        entries: Vec<LogEntry>,
        bytes: usize,
        flushed: IOFlushed<TypeConfig>,
        room: Room,
    },
    Truncate {
        from: u64,
        done: Done,
    },
    Purge {
        upto: u64,
        record: Bytes,
    },
    /// Writes what is queued before it, and ends the thread.
    Stop,
}

/// Holds a job's bytes against [`QUEUE_BYTES`] until it is written.
pub(super) type Room = OwnedSemaphorePermit;

/// Whom to tell when the batch is durable.
enum Waiting {
    Done(Done),
    Flushed(IOFlushed<TypeConfig>),
}

/// What was taken from the queue in one go.
struct Batch {
    writes: Vec<LogWrite>,
    waiting: Vec<Waiting>,
    room: Vec<Room>,
    bytes: usize,
    entries: u64,
    /// One behind the last entry, once the batch is written.
    end: u64,
    stop: bool,
}

/// What the thread does with its queue.
pub(super) struct Batches {
    shared: Arc<Shared>,
    /// One behind the last entry that was written.
    end: u64,
}

impl Batches {
    pub fn new(shared: Arc<Shared>) -> Self {
        let end = shared.durable_end();
        Self { shared, end }
    }

    /// Writes `first`, and what stands behind it in the queue, as one batch.
    pub fn write(&mut self, first: Job, queue: &mut mpsc::Receiver<Job>) -> ControlFlow<()> {
        let mut batch = Batch::new(self.end);
        batch.push(first);
        while !batch.is_full()
            && let Ok(job) = queue.try_recv()
        {
            batch.push(job);
        }
        self.end = batch.end;
        write(&self.shared, &mut batch);
        self.shared.set_writing(None);
        match batch.stop {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

impl Batch {
    fn new(end: u64) -> Self {
        let (writes, waiting, room) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            writes,
            waiting,
            room,
            bytes: 0,
            entries: 0,
            end,
            stop: false,
        }
    }

    fn is_full(&self) -> bool {
        self.stop || self.bytes >= BATCH_BYTES
    }

    fn push(&mut self, job: Job) {
        match job {
            Job::Vote { record, done } => {
                self.writes.push(LogWrite::Vote(record));
                self.waiting.push(Waiting::Done(done));
            }
            Job::Append {
                entries,
                bytes,
                flushed,
                room,
            } => {
                self.bytes += bytes;
                self.entries += entries.len() as u64;
                for entry in &entries {
                    let index = entry.log_id.index;
                    let record = record::encode_entry(entry);
                    self.writes.push(LogWrite::Append { index, record });
                    self.end = index + 1;
                }
                self.waiting.push(Waiting::Flushed(flushed));
                self.room.push(room);
            }
            Job::Truncate { from, done } => {
                self.writes.push(LogWrite::TruncateFrom { from });
                self.waiting.push(Waiting::Done(done));
                self.end = from;
            }
            Job::Purge { upto, record } => {
                self.writes.push(LogWrite::Purge { upto, record });
                // A purge may reach beyond the tail: then the log goes on behind it.
                self.end = self.end.max(upto + 1);
            }
            Job::Stop => self.stop = true,
        }
    }

    fn answer(&mut self, result: Result<(), &str>) {
        let copy = || result.map_err(io::Error::other);
        // The newest first: openraft keeps the newest report alone, and so is woken once for the batch.
        for waiting in self.waiting.drain(..).rev() {
            match waiting {
                // Who does not wait any more needs no answer.
                Waiting::Done(done) => drop(done.send(copy())),
                Waiting::Flushed(flushed) => flushed.io_completed(copy()),
            }
        }
    }
}

fn write(shared: &Shared, batch: &mut Batch) {
    if let Some(failure) = shared.failure() {
        return batch.answer(Err(&failure));
    }
    let synced = !batch.writes.is_empty();
    if let Some(committed) = shared.take_committed(batch.end) {
        batch
            .writes
            .push(LogWrite::Committed(record::encode_log_state(committed)));
    }
    if batch.writes.is_empty() {
        return;
    }
    let began = Instant::now();
    shared.set_writing(Some(began));
    let result = shared.store.write(&batch.writes);
    shared.set_writing(None);
    match result {
        Ok(()) => {
            shared.counters.write.observe(began.elapsed());
            shared.counters.batches.fetch_add(1, Relaxed);
            shared.counters.fsyncs.fetch_add(synced.into(), Relaxed);
            shared.counters.entries.fetch_add(batch.entries, Relaxed);
            shared.counters.bytes.fetch_add(batch.bytes as u64, Relaxed);
            // First what is readable from disk, then who may act on it.
            shared.written(batch.end);
            batch.answer(Ok(()));
        }
        Err(error) => {
            let doing = "the log cannot be written";
            shared.failure.note(doing, &error);
            let failure = format!("{doing}: {error}");
            // Told as an error once, by whoever sees the node end: see `Node::failed`.
            tracing::debug!(corrupt = error.corrupt, "{failure}");
            shared.fail(failure.clone());
            batch.answer(Err(&failure));
        }
    }
}
