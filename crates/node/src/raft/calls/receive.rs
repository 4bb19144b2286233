//! Receiving a snapshot: see `network/snapshot.rs` for the sender.
//!
//! One is received at a time, the one that was offered last. What was received stays on disk when a transfer breaks
//! off, and the next offer of the same checkpoint goes on from there. A sender with an older vote is told
//! so before a byte is sent.

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use podkv_proto::peer as wire;
use tokio::sync::Mutex;
use tonic::{Status, Streaming};

use super::super::group::Raft;
use super::super::machine::SnapshotData;
use super::super::types::{Snapshot, SnapshotMeta};
use super::super::wire as convert;
use super::stopped;
use crate::fail_point::{self, Point};
use crate::storage::{StagedCheckpoint, StateStore, TransferError, Workers};

/// Files of one checkpoint: RocksDB has thousands at most.
const MAX_FILES: usize = 100_000;

/// Takes in snapshots.
pub(in crate::raft) struct Receiver {
    state: Arc<dyn StateStore>,
    receiving: Mutex<Option<Receiving>>,
}

#[derive(Clone)]
struct Receiving {
    id: String,
    meta: SnapshotMeta,
    staged: Arc<dyn StagedCheckpoint>,
}

impl Receiver {
    pub fn new(state: Arc<dyn StateStore>) -> Self {
        Self {
            state,
            receiving: Mutex::new(None),
        }
    }

    pub(super) async fn offer(
        &self,
        raft: &Raft,
        request: wire::OfferSnapshotRequest,
    ) -> Result<wire::OfferSnapshotResponse, Status> {
        let vote = convert::vote_from_wire(request.vote)?;
        let known = raft.metrics().borrow_watched().vote;
        // Votes are only partly ordered: of two of one term neither may be greater.
        if known > vote {
            let higher_vote = Some(convert::vote_to_wire(&known));
            return Ok(wire::OfferSnapshotResponse {
                offsets: Vec::new(),
                higher_vote,
            });
        }
        let meta = convert::snapshot_meta_from_wire(&request.meta_frame)?;
        if request.files.len() > MAX_FILES {
            return Err(Status::invalid_argument("a snapshot of too many files"));
        }
        let files = request
            .files
            .into_iter()
            .map(convert::file_from_wire)
            .collect();
        let id = request.snapshot_id;
        let mut receiving = self.receiving.lock().await;
        let (state, name) = (self.state.clone(), id.clone());
        let staged = blocking(&self.state.workers(), move || state.stage(&name, files)).await?;
        let offsets = staged.offsets();
        *receiving = Some(Receiving { id, meta, staged });
        Ok(wire::OfferSnapshotResponse {
            offsets,
            higher_vote: None,
        })
    }

    pub(super) async fn receive(
        &self,
        first: wire::SendSnapshotRequest,
        mut rest: Streaming<wire::SendSnapshotRequest>,
    ) -> Result<wire::SendSnapshotResponse, Status> {
        let staged = self.offered(&first.snapshot_id).await?.staged;
        let mut received_bytes = 0;
        let mut next = Some(first);
        while let Some(chunk) = next {
            if !chunk.data.is_empty() {
                received_bytes += chunk.data.len() as u64;
                let staged = staged.clone();
                let file = usize::try_from(chunk.file)
                    .map_err(|_| Status::invalid_argument("no such file"))?;
                let write = move || staged.write(file, chunk.offset, &chunk.data);
                blocking(&self.state.workers(), write).await?;
            }
            next = rest.message().await?;
        }
        Ok(wire::SendSnapshotResponse { received_bytes })
    }

    pub(super) async fn install(
        &self,
        raft: &Raft,
        request: wire::InstallSnapshotRequest,
    ) -> Result<wire::InstallSnapshotResponse, Status> {
        let vote = convert::vote_from_wire(request.vote)?;
        let Receiving { meta, staged, .. } = self.offered(&request.snapshot_id).await?;
        if !staged.is_complete() {
            return Err(Status::failed_precondition("the snapshot is not complete"));
        }
        fail_point::pass(Point::SnapshotReceived);
        let snapshot = Snapshot {
            meta,
            snapshot: SnapshotData::Received(staged),
        };
        let installed = raft.install_full_snapshot(vote, snapshot).await;
        let response = installed.map_err(|fatal| stopped(&fatal))?;
        self.receiving
            .lock()
            .await
            .take_if(|receiving| receiving.id == request.snapshot_id);
        Ok(wire::InstallSnapshotResponse {
            vote: Some(convert::vote_to_wire(&response.vote)),
        })
    }

    /// Another offer may have come in between: then this transfer is over.
    async fn offered(&self, id: &str) -> Result<Receiving, Status> {
        let receiving = self.receiving.lock().await;
        let offered = receiving.clone().filter(|receiving| receiving.id == id);
        offered.ok_or_else(|| Status::failed_precondition("this snapshot is not being received"))
    }
}

async fn blocking<T: Send + 'static>(
    workers: &Workers,
    work: impl FnOnce() -> Result<T, TransferError> + Send + 'static,
) -> Result<T, Status> {
    let result = workers.spawn(work).await;
    result
        .map_err(|_| Status::unavailable("the node is stopping"))?
        .map_err(|error| match error {
            TransferError::Refused(why) => Status::invalid_argument(why),
            TransferError::Storage(error) => {
                tracing::error!(%error, "a snapshot cannot be received");
                Status::internal(error.to_string())
            }
        })
}
