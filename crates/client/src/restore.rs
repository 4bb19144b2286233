//! A backup into an empty cluster: `Snapshot.Restore`.
//!
//! What was restored stays when a node or a connection goes away. So a lost attempt is followed by
//! another one, elsewhere, that sends the backup from its start: the cluster skips what it has.

use std::pin::Pin;

use bytes::Bytes;
use futures_core::Stream;
use futures_util::StreamExt as _;
use futures_util::future::try_join;
use podkv_api::{Error, Header, Reason, Result};
use podkv_proto::convert;
use podkv_proto::v1;
use podkv_proto::v1::snapshot_client::SnapshotClient;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::Client;
use crate::core::Plan;
use crate::endpoints::Route;
use crate::failure::{Failure, Fate, closed, corrupt};
use crate::fence::Freshness;
use crate::retry::Attempt;

/// The bytes of a backup, from its start.
pub type BackupData = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// What a restore came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRestored {
    /// The state that was restored, at its new revision.
    pub header: Header,
    /// Keys and leases.
    pub records: u64,
}

/// Large enough to be cheap, below what any node takes in one message.
const MESSAGE_BYTES: usize = 256 << 10;
/// Messages on their way, beside what the connection holds.
const QUEUE: usize = 4;
/// Between responses: a node tries each step for a minute before it gives up.
const RESPONSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(120);

impl Client {
    /// Restores a backup into this cluster, which must be empty: nothing was ever written to it. Until
    /// it ends, reads and other writes are refused with [`Reason::Restoring`].
    ///
    /// `id` is the first half of the SHA-256 at the backup's end. `open` gives the backup from its
    /// start, once for each attempt. `progress` hears how many of its bytes are restored; after a lost
    /// attempt it begins again, quickly. The deadline of the client bounds the time without progress.
    ///
    /// # Errors
    /// - [`Reason::NotEmpty`] if anything was written to the cluster.
    /// - [`Reason::Restoring`] if another backup is being restored: finish that, or
    ///   [discard](Self::discard_restore) it.
    /// - [`Reason::Corrupt`] or [`Reason::InvalidArgument`] if it is not a whole backup of that id.
    ///   What was restored of it until then cannot be read; discard it.
    pub async fn snapshot_restore(
        &self,
        id: u128,
        open: impl Fn() -> BackupData + Send + Sync,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<SnapshotRestored> {
        let core = self.core();
        let mut best = 0;
        loop {
            let mut attempts = core.attempts(Route::Any, Some(core.deadline()));
            let mut moved = false;
            while let Some(attempt) = attempts.next().await {
                let mut hear = |bytes| {
                    moved |= bytes > best;
                    best = best.max(bytes);
                    progress(bytes);
                };
                match self.restore_once(&attempt, id, open(), &mut hear).await {
                    Ok(restored) => return Ok(restored),
                    Err(failure) => {
                        attempts.failed(&attempt, &failure);
                        if !may_pass(&failure) {
                            return Err(failure.error);
                        }
                    }
                }
                if moved {
                    break;
                }
            }
            if !moved {
                return Err(attempts.exhausted());
            }
        }
    }

    /// Throws away what a restore has brought that was not finished. The cluster is empty again;
    /// nothing happens if no restore is under way.
    pub async fn discard_restore(&self) -> Result<Header> {
        let core = self.core();
        // The same when done twice, and it goes on where it was.
        let plan = Plan {
            freshness: Freshness::Any,
            ..Plan::RENEW
        };
        core.call(plan, core.deadline(), |endpoint, until| async move {
            let mut rpc = SnapshotClient::new(endpoint.channel());
            let answer = endpoint
                .unary(until, rpc.discard_restore(v1::DiscardRestoreRequest {}))
                .await?;
            let header =
                convert::header(answer.header).map_err(|error| corrupt(error.to_string()))?;
            Ok((header, header))
        })
        .await
    }

    async fn restore_once(
        &self,
        attempt: &Attempt,
        id: u128,
        data: BackupData,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<SnapshotRestored, Failure> {
        let core = self.core();
        let begun = core.fence.begin();
        let endpoint = &attempt.endpoint;
        let (requests, queue) = mpsc::channel(QUEUE);
        let mut rpc = SnapshotClient::new(endpoint.channel());
        let call = rpc.restore(ReceiverStream::new(queue));
        let receive = async {
            let responses = endpoint.unary(attempt.until, call).await?;
            self.receive(responses, progress).await
        };
        let (restored, ()) = try_join(receive, send(id, data, requests)).await?;
        core.fence
            .admit(begun, restored.header, Freshness::Any)
            .map_err(Failure::refused)?;
        endpoint.answered(restored.header.member);
        Ok(restored)
    }

    async fn receive(
        &self,
        mut responses: Streaming<v1::RestoreResponse>,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<SnapshotRestored, Failure> {
        let runtime = &self.core().runtime;
        loop {
            let response = tokio::select! {
                () = runtime.stop.cancelled() => return Err(Failure::lost(closed())),
                response = timeout(RESPONSE_TIMEOUT, responses.message()) => match response {
                    Ok(Ok(Some(response))) => response,
                    Ok(Ok(None)) => return Err(corrupt("a restore ended without saying how")),
                    Ok(Err(status)) => return Err(Failure::from_status(&status)),
                    Err(_elapsed) => return Err(Failure::lost(crate::endpoint::no_answer())),
                },
            };
            progress(response.restored_bytes);
            if response.header.is_some() {
                let header =
                    convert::header(response.header).map_err(|error| corrupt(error.to_string()))?;
                let records = response.records;
                return Ok(SnapshotRestored { header, records });
            }
        }
    }
}

/// Sends the backup. Ends early if nobody takes it: the responses say why.
async fn send(
    id: u128,
    mut data: BackupData,
    requests: mpsc::Sender<v1::RestoreRequest>,
) -> Result<(), Failure> {
    let mut backup_id = Bytes::copy_from_slice(&id.to_be_bytes());
    while let Some(piece) = data.next().await {
        // A file that cannot be read: another attempt would not read it either.
        let mut piece = piece.map_err(Failure::refused)?;
        while !piece.is_empty() {
            let request = v1::RestoreRequest {
                backup_id: std::mem::take(&mut backup_id),
                data: piece.split_to(piece.len().min(MESSAGE_BYTES)),
            };
            if requests.send(request).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Every step of a restore can be repeated, so a lost answer is no reason to stop.
fn may_pass(failure: &Failure) -> bool {
    let error: &Error = &failure.error;
    match failure.fate {
        Fate::NotSent | Fate::Lost => true,
        Fate::Refused => {
            (error.is_retryable() || error.outcome_unknown()) && error.reason() != Reason::Restoring
        }
    }
}
