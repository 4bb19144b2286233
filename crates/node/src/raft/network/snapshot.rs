//! Sending a snapshot: offer it, send what the peer lacks, have it installed.
//!
//! The offer names the checkpoint; the peer answers where to go on in each file. So a transfer that broke
//! off goes on where it stopped, as long as the checkpoint is the same: see [`super::super::transfer`].

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, stream};
use openraft::StorageError;
use openraft::errors::{ErrorSource, NetworkError, StreamingError};
use openraft::network::RPCTypes;
use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::ErrorSourceOf;
use podkv_proto::peer as wire;
use tokio::time::Instant;
use tonic::Status;

use super::super::machine::{Built, SnapshotData};
use super::super::transfer::Transfers;
use super::super::types::{Snapshot, TypeConfig, Vote};
use super::super::wire as convert;
use super::{Peer, malformed, unreachable};
use crate::peer::pool::PeerLane;
use crate::storage::CheckpointFile;

/// One message: large enough to share its costs, small enough to abort soon.
const CHUNK_BYTES: usize = 1 << 20;

/// An offer, or a piece that is not taken within this time, ends the attempt. The peer writes to its
/// disk in between.
const STALL: Duration = Duration::from_secs(10);

type Result<T, E = StreamingError<TypeConfig>> = std::result::Result<T, E>;

impl Peer {
    /// `install_ttl` limits the installation, in which the peer checks every byte of the files.
    pub(super) async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot<SnapshotData>,
        install_ttl: Duration,
    ) -> Result<SnapshotResponse<TypeConfig>> {
        let SnapshotData::Built(built) = snapshot.snapshot else {
            // Only the state machine makes snapshots to send, and it builds them.
            return Err(NetworkError::from_string("only a checkpoint of this node is sent").into());
        };
        let result = self.try_send(vote, built, install_ttl).await;
        if result.is_err() {
            self.lane.broken();
        }
        result
    }

    async fn try_send(
        &self,
        vote: Vote,
        built: Arc<Built>,
        install_ttl: Duration,
    ) -> Result<SnapshotResponse<TypeConfig>> {
        let mut client = self.lane.get().await.map_err(|error| unreachable(&error))?;
        // The peer is there. From here on nothing is purged, also while the checksums are computed.
        self.transfers.progress();
        let files = {
            let built = built.clone();
            let workers = built.workers.clone();
            workers
                .spawn(move || built.checkpoint.files())
                .await
                .map_err(|error| NetworkError::new(&error))?
                .map_err(|error| damaged(&error))?
        };
        let offer = wire::OfferSnapshotRequest {
            header: Some(self.lane.header()),
            vote: Some(convert::vote_to_wire(&vote)),
            snapshot_id: built.id.clone(),
            meta_frame: convert::snapshot_meta_to_wire(&built.meta),
            files: files.iter().map(convert::file_to_wire).collect(),
        };
        let offered = self
            .within(STALL, client.offer_snapshot(offer))
            .await?
            .into_inner();
        if let Some(higher) = offered.higher_vote {
            let vote = convert::vote_from_wire(Some(higher)).map_err(malformed)?;
            return Ok(SnapshotResponse::new(vote));
        }
        if offered.offsets.len() != files.len() {
            return Err(NetworkError::from_string("the peer did not say where to go on").into());
        }
        self.send_files(&built, files, offered.offsets).await?;

        let install = wire::InstallSnapshotRequest {
            header: Some(self.lane.header()),
            vote: Some(convert::vote_to_wire(&vote)),
            snapshot_id: built.id.clone(),
        };
        let installed = self
            .within(install_ttl, client.install_snapshot(install))
            .await?;
        let vote = convert::vote_from_wire(installed.into_inner().vote).map_err(malformed)?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn send_files(
        &self,
        built: &Arc<Built>,
        files: Vec<CheckpointFile>,
        offsets: Vec<u64>,
    ) -> Result<()> {
        let status = Arc::new(Progress::new(self.transfers.clone()));
        let chunks = chunks(
            self.lane.clone(),
            built.clone(),
            files,
            offsets,
            status.clone(),
        );
        let mut client = self.lane.get().await.map_err(|error| unreachable(&error))?;
        let sending = client.send_snapshot(chunks);
        tokio::pin!(sending);
        let sent = loop {
            tokio::select! {
                sent = &mut sending => break sent,
                () = tokio::time::sleep_until(status.deadline()) => {
                    if status.deadline() <= Instant::now() {
                        return Err(self.timeout(RPCTypes::InstallSnapshot, STALL).into());
                    }
                }
            }
        };
        if let Some(error) = status.failure() {
            return Err(damaged(&error));
        }
        sent.map_err(|status| unreachable(&status))?;
        Ok(())
    }

    async fn within<T>(
        &self,
        ttl: Duration,
        call: impl Future<Output = std::result::Result<T, Status>>,
    ) -> Result<T> {
        match tokio::time::timeout(ttl, call).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(status)) => Err(unreachable(&status).into()),
            Err(_) => Err(self.timeout(RPCTypes::InstallSnapshot, ttl).into()),
        }
    }
}

/// A checkpoint of the own state cannot be read: the disk is failing, and the node stops.
fn damaged(error: &(impl std::error::Error + 'static)) -> StreamingError<TypeConfig> {
    StorageError::read_snapshot(None, ErrorSourceOf::<TypeConfig>::from_error(error)).into()
}

/// How the sending goes on, for those who watch it.
struct Progress {
    transfers: Arc<Transfers>,
    state: Mutex<(Instant, Option<Arc<io::Error>>)>,
}

impl Progress {
    fn new(transfers: Arc<Transfers>) -> Self {
        transfers.progress();
        Self {
            transfers,
            state: Mutex::new((Instant::now(), None)),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, (Instant, Option<Arc<io::Error>>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advanced(&self) {
        self.transfers.progress();
        self.state().0 = Instant::now();
    }

    fn deadline(&self) -> Instant {
        self.state().0 + STALL
    }

    fn failed(&self, error: io::Error) {
        self.state().1 = Some(Arc::new(error));
    }

    fn failure(&self) -> Option<Arc<io::Error>> {
        self.state().1.clone()
    }
}

/// What the peer lacks, piece by piece. Ends early if a file cannot be read.
fn chunks(
    lane: PeerLane,
    built: Arc<Built>,
    files: Vec<CheckpointFile>,
    offsets: Vec<u64>,
    progress: Arc<Progress>,
) -> impl Stream<Item = wire::SendSnapshotRequest> + Send + 'static {
    let first = Some(lane.header());
    let missing: Vec<(u32, CheckpointFile, u64)> = (0..)
        .zip(files)
        .zip(offsets)
        .map(|((number, file), offset)| (number, file, offset))
        .filter(|(_, file, offset)| *offset < file.length)
        .collect();
    let start = (missing.into_iter(), None, first);
    stream::unfold(start, move |(mut missing, current, header)| {
        let (built, progress) = (built.clone(), progress.clone());
        async move {
            let (number, file, offset) = match current {
                Some(current) => current,
                None => match missing.next() {
                    Some(next) => next,
                    // The first message carries the header, and so the right to go on.
                    None => {
                        let empty = empty_chunk(&built, header?);
                        return Some((empty, (missing, None, None)));
                    }
                },
            };
            let name = file.name.clone();
            let snapshot_id = built.id.clone();
            let workers = built.workers.clone();
            let read = move || built.checkpoint.read(&name, offset, CHUNK_BYTES);
            let data = match workers.spawn(read).await {
                Ok(Ok(data)) if !data.is_empty() => data,
                Ok(Ok(_)) => {
                    progress.failed(io::Error::other(format!("{} is too short", file.name)));
                    return None;
                }
                Ok(Err(error)) => {
                    progress.failed(error.into());
                    return None;
                }
                // The runtime is going down.
                Err(_) => return None,
            };
            progress.advanced();
            let end = offset + data.len() as u64;
            let chunk = wire::SendSnapshotRequest {
                header,
                snapshot_id,
                file: number,
                offset,
                data,
            };
            let current = (end < file.length).then_some((number, file, end));
            Some((chunk, (missing, current, None)))
        }
    })
}

fn empty_chunk(built: &Built, header: wire::PeerHeader) -> wire::SendSnapshotRequest {
    wire::SendSnapshotRequest {
        header: Some(header),
        snapshot_id: built.id.clone(),
        ..wire::SendSnapshotRequest::default()
    }
}
