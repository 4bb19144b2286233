//! Snapshot: the whole state as a stream. `restore.rs` takes it back.
//!
//! ```text
//!   header, total_bytes | data … data | sha256 of all data
//! ```
//!
//! A stream that ends without the last message is not a backup; the receiver checks the sum.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::try_unfold;
use podkv_api::{Consistency, Error, Result};
use podkv_node::{Node, SnapshotReader};
use podkv_proto::convert::to_status;
use podkv_proto::v1;
use sha2::{Digest, Sha256};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::caller::access;
use super::calls::Calls;
use super::restore;

pub(super) struct Snapshot(pub Calls);

impl Snapshot {
    /// The node, if the caller may do everything: a backup has all keys, and the hashes of passwords.
    async fn administrator(&self, metadata: &MetadataMap) -> Result<Node, Status> {
        let allowed = async {
            let access = access(&self.0.node, metadata).await?;
            let node = access.administrator(Consistency::Linearizable).await?;
            Ok(node.clone())
        };
        allowed.await.map_err(|error: Error| to_status(&error))
    }
}

#[tonic::async_trait]
impl v1::snapshot_server::Snapshot for Snapshot {
    type SaveStream = Pin<Box<dyn Stream<Item = Result<v1::SnapshotChunk, Status>> + Send>>;
    type RestoreStream = Pin<Box<dyn Stream<Item = Result<v1::RestoreResponse, Status>> + Send>>;

    async fn save(
        &self,
        request: Request<v1::SnapshotSaveRequest>,
    ) -> Result<Response<Self::SaveStream>, Status> {
        let node = self.administrator(request.metadata()).await?;
        let reader = node.snapshot().await.map_err(|error| to_status(&error))?;
        Ok(Response::new(Box::pin(try_unfold(
            Step::First(reader),
            |step| async { step.next().await.map_err(|error| to_status(&error)) },
        ))))
    }

    async fn restore(
        &self,
        request: Request<Streaming<v1::RestoreRequest>>,
    ) -> Result<Response<Self::RestoreStream>, Status> {
        let node = self.administrator(request.metadata()).await?;
        let first = restore::Step::First(node, request.into_inner());
        Ok(Response::new(Box::pin(try_unfold(
            first,
            restore::Step::next,
        ))))
    }

    async fn discard_restore(
        &self,
        request: Request<v1::DiscardRestoreRequest>,
    ) -> Result<Response<v1::DiscardRestoreResponse>, Status> {
        let node = self.administrator(request.metadata()).await?;
        let header = node.discard_restore().await;
        let header = header.map_err(|error| to_status(&error))?;
        Ok(Response::new(v1::DiscardRestoreResponse {
            header: Some(header.into()),
        }))
    }
}

enum Step {
    First(SnapshotReader),
    Data(SnapshotReader, Sha256),
    Done,
}

impl Step {
    /// The next message, and where it goes on.
    async fn next(self) -> Result<Option<(v1::SnapshotChunk, Step)>> {
        match self {
            Step::First(reader) => {
                let chunk = v1::SnapshotChunk {
                    header: Some(reader.header().into()),
                    total_bytes: reader.total_bytes(),
                    ..Default::default()
                };
                Ok(Some((chunk, Step::Data(reader, Sha256::new()))))
            }
            Step::Data(mut reader, sum) => match reader.next_chunk().await? {
                Some(data) => {
                    let sum = add(sum, data.clone()).await?;
                    let chunk = v1::SnapshotChunk {
                        data,
                        ..Default::default()
                    };
                    Ok(Some((chunk, Step::Data(reader, sum))))
                }
                None => {
                    let sha256 = Bytes::copy_from_slice(&sum.finalize());
                    Ok(Some((
                        v1::SnapshotChunk {
                            sha256,
                            ..Default::default()
                        },
                        Step::Done,
                    )))
                }
            },
            Step::Done => Ok(None),
        }
    }
}

/// Off the async threads: a megabyte takes milliseconds on a processor without SHA instructions.
pub(crate) async fn add(mut sum: Sha256, data: Bytes) -> Result<Sha256> {
    let added = tokio::task::spawn_blocking(move || {
        sum.update(&data);
        sum
    });
    added
        .await
        .map_err(|error| Error::internal("the checksum failed").with_source(error))
}
