//! Restores of a backup into this node's cluster: [`Node::restore`].
//!
//! The records go through the log like every write, so each replica restores them, and what the
//! core promises of a restore holds ([`podkv_core::restoring`]): all or nothing to a reader, and
//! repeatable to a writer. Each step is sent again until its answer is known, over any number of
//! leaders. If this node goes away, the same backup through another one goes on where this was.

use std::time::Duration;

use bytes::Bytes;
use podkv_api::{Error, Header, Reason, Result};
use podkv_core::{
    Answer, BackupError, BackupHeader, BackupId, BackupPart, BackupReader, BackupRecord, Command,
};
use tokio::time::Instant;

use super::{Node, Written, unexpected};

/// What one command restores: enough to make the round trips cheap, little beside a busy entry.
const STEP_BYTES: usize = 256 << 10;
/// Room in a command for what is not records.
const COMMAND_BYTES: usize = 64;
/// How long one step is tried again: several elections, and the restart of a pod.
const STEP_PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts, beyond what the write waited for by itself.
const RETRY: Duration = Duration::from_millis(100);
/// Records that one command throws away.
const DISCARD_STEP: u32 = 1000;

/// A restore in progress. Dropping it leaves the cluster waiting for the rest of the same backup.
pub struct RestoreWriter {
    node: Node,
    backup: BackupId,
    reader: BackupReader,
    /// Records of the backup that were read.
    read: u64,
    /// Records that the cluster has.
    restored: u64,
}

/// What a restore came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The state that was restored, at its new revision.
    pub header: Header,
    /// Keys and leases.
    pub records: u64,
}

impl Node {
    /// Begins to restore the backup of that id, or goes on with it. The cluster must be empty:
    /// nothing was ever written to it. Until [`RestoreWriter::finish`] it answers no reads and takes
    /// no writes.
    pub fn restore(&self, backup: BackupId) -> RestoreWriter {
        RestoreWriter {
            node: self.clone(),
            backup,
            reader: BackupReader::new(),
            read: 0,
            restored: 0,
        }
    }

    /// Throws away what a restore has brought that was not finished. The cluster is empty again;
    /// nothing happens if none is under way.
    pub async fn discard_restore(&self) -> Result<Header> {
        loop {
            let discard = Command::RestoreDiscard {
                limit: DISCARD_STEP,
            };
            let written = self.write_patiently(discard).await?;
            match written.answer {
                Answer::RestoreDiscard { more: true } => {}
                Answer::RestoreDiscard { more: false } => return Ok(written.header),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Writes what may be applied twice, again and again over failures that pass.
    async fn write_patiently(&self, command: Command) -> Result<Written> {
        let deadline = Instant::now() + STEP_PATIENCE;
        loop {
            match self.write_once(command.clone()).await {
                Err(error) if may_pass(&error) && Instant::now() < deadline => {
                    tracing::debug!(%error, "a step of a restore is sent again");
                    tokio::time::sleep(RETRY).await;
                }
                result => return result,
            }
        }
    }
}

/// [`Reason::Restoring`] does not: it is the answer to somebody else's backup.
fn may_pass(error: &Error) -> bool {
    error.reason() != Reason::Restoring && (error.is_retryable() || error.outcome_unknown())
}

impl RestoreWriter {
    /// Takes the next bytes of the backup, in pieces of any size, and restores what is whole in them.
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        self.reader.push(&data);
        while let Some(part) = self.next_part().await? {
            match part {
                BackupPart::Header(header) => self.begin(header).await?,
                BackupPart::Records(records) => self.restore(records).await?,
                // Checked. `finish` asks for it.
                BackupPart::End(_) => {}
            }
        }
        Ok(())
    }

    /// Bytes of the backup that are restored.
    pub fn position(&self) -> u64 {
        self.reader.position()
    }

    /// Makes what was restored the state of the cluster. Refused if the backup was not whole, or is
    /// not the one that was announced: then nothing of it can ever be read.
    pub async fn finish(self) -> Result<Restored> {
        let end = self.reader.finish().map_err(damaged)?;
        if end.id != self.backup {
            let text = format!("backup {} was announced, and {} came", self.backup, end.id);
            return Err(Error::new(Reason::InvalidArgument, text));
        }
        let records = end.records;
        let command = Command::RestoreEnd {
            backup: self.backup,
            records,
        };
        let written = self.node.write_patiently(command).await?;
        match written.answer {
            Answer::Restore {
                records,
                done: true,
            } => Ok(Restored {
                header: written.header,
                records,
            }),
            _ => Err(unexpected()),
        }
    }

    /// Checksums and decoding, off the async threads.
    async fn next_part(&mut self) -> Result<Option<BackupPart>> {
        let mut reader = std::mem::take(&mut self.reader);
        let workers = self.node.0.storage.state.workers();
        let reading = workers.spawn(move || {
            let part = reader.next_part();
            (reader, part)
        });
        let stopping = || {
            Error::new(
                Reason::NodeNotReady,
                "the node is stopping: go on with another one",
            )
        };
        let (reader, part) = reading.await.map_err(|_| stopping())?;
        self.reader = reader;
        part.map_err(damaged)
    }

    async fn begin(&mut self, header: BackupHeader) -> Result<()> {
        let command = Command::RestoreBegin {
            backup: self.backup,
            revision: header.revision,
            clock_ms: header.clock_ms,
            retention: header.retention,
        };
        let begun = self.step(command).await.map_err(|error| match error.reason() {
            Reason::Restoring => Error::new(
                Reason::Restoring,
                "another backup is being restored into this cluster and has not ended: restore it to its end, \
                 or discard it (`podkv snapshot discard`)",
            ),
            _ => error,
        });
        begun.map(drop)
    }

    async fn restore(&mut self, records: Vec<BackupRecord>) -> Result<()> {
        let most = self
            .node
            .limits()
            .max_request_bytes
            .saturating_sub(COMMAND_BYTES)
            .min(STEP_BYTES);
        let mut first = self.read;
        self.read += records.len() as u64;
        let mut batch = Vec::new();
        let mut bytes = 0;
        for record in records {
            let size = record.size();
            if !batch.is_empty() && bytes + size > most {
                first = self
                    .restore_batch(first, std::mem::take(&mut batch))
                    .await?;
                bytes = 0;
            }
            bytes += size;
            batch.push(record);
        }
        self.restore_batch(first, batch).await.map(drop)
    }

    /// Restores what of a batch is not there yet. Returns the number of the record after it.
    async fn restore_batch(&mut self, first: u64, mut records: Vec<BackupRecord>) -> Result<u64> {
        let after = first + records.len() as u64;
        let there = self
            .restored
            .saturating_sub(first)
            .min(records.len() as u64);
        records.drain(..usize::try_from(there).unwrap_or(usize::MAX));
        if !records.is_empty() {
            let command = Command::RestoreRecords {
                backup: self.backup,
                first: first + there,
                records,
            };
            self.step(command).await?;
        }
        Ok(after)
    }

    async fn step(&mut self, command: Command) -> Result<()> {
        match self.node.write_patiently(command).await?.answer {
            Answer::Restore { records, .. } => {
                self.restored = records;
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }
}

fn damaged(error: BackupError) -> Error {
    let reason = match error {
        BackupError::Foreign(_) => Reason::InvalidArgument,
        _ => Reason::Corrupt,
    };
    Error::new(reason, error.to_string()).with_source(error)
}
