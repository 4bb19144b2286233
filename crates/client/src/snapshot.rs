//! The whole state as a stream: `Snapshot.Save`.

use std::pin::Pin;

use bytes::Bytes;
use futures_core::Stream;
use futures_util::stream;
use podkv_api::{Error, Header, Reason, Result};
use podkv_proto::convert;
use podkv_proto::v1;
use podkv_proto::v1::snapshot_client::SnapshotClient;
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tonic::Streaming;

use crate::client::Client;
use crate::endpoints::Route;
use crate::failure::{Failure, closed, corrupt};
use crate::fence::Freshness;

/// A snapshot on its way.
///
/// It is complete when [`data`](Self::data) ends without an error: its size and its SHA-256 were
/// checked then. It is not resumed when its node goes away: another node's snapshot has other bytes.
pub struct SnapshotStream {
    /// Of the node that gives it, and the revision that it holds.
    pub header: Header,
    /// The size of all data.
    pub total_bytes: u64,
    pub data: Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>,
}

struct Receiving {
    client: Client,
    stream: Streaming<v1::SnapshotChunk>,
    chunk: Option<v1::SnapshotChunk>,
    total_bytes: u64,
    received: u64,
    hash: Sha256,
    ended: bool,
}

pub(crate) async fn save(client: &Client) -> Result<SnapshotStream> {
    let core = client.core();
    let begun = core.fence.begin();
    let mut attempts = core.attempts(Route::Any, Some(core.deadline()));
    while let Some(attempt) = attempts.next().await {
        let endpoint = &attempt.endpoint;
        let limit = endpoint.max_response_bytes();
        let mut rpc = SnapshotClient::new(endpoint.channel()).max_decoding_message_size(limit);
        let first = async {
            let mut stream = endpoint
                .unary(attempt.until, rpc.save(v1::SnapshotSaveRequest {}))
                .await?;
            // Preparing a snapshot may take longer than an attempt: the node flushes for it.
            let chunk = next_chunk(client, &mut stream).await?;
            Ok((stream, chunk.ok_or_else(|| corrupt("an empty snapshot"))?))
        };
        match first.await {
            Ok((stream, chunk)) => {
                let header = convert::header(chunk.header)?;
                core.fence.admit(begun, header, Freshness::Any)?;
                return Ok(SnapshotStream {
                    header,
                    total_bytes: chunk.total_bytes,
                    data: receive(client, stream, chunk),
                });
            }
            Err(failure) => {
                attempts.failed(&attempt, &failure);
                if !failure.is_retryable() {
                    return Err(failure.error);
                }
            }
        }
    }
    Err(attempts.exhausted())
}

fn receive(
    client: &Client,
    stream: Streaming<v1::SnapshotChunk>,
    first: v1::SnapshotChunk,
) -> Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>> {
    let receiving = Receiving {
        client: client.clone(),
        stream,
        total_bytes: first.total_bytes,
        chunk: Some(first),
        received: 0,
        hash: Sha256::new(),
        ended: false,
    };
    Box::pin(stream::unfold(receiving, |mut receiving| async move {
        if receiving.ended {
            return None;
        }
        let next = receiving.next().await;
        receiving.ended |= !matches!(next, Some(Ok(_)));
        next.map(|item| (item, receiving))
    }))
}

impl Receiving {
    async fn next(&mut self) -> Option<Result<Bytes>> {
        loop {
            let chunk = match self.chunk.take() {
                Some(chunk) => chunk,
                None => match next_chunk(&self.client, &mut self.stream).await {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => return Some(Err(damaged("it ended before its checksum"))),
                    Err(failure) => return Some(Err(failure.error)),
                },
            };
            self.received += chunk.data.len() as u64;
            self.hash.update(&chunk.data);
            if self.received > self.total_bytes {
                return Some(Err(damaged("it is larger than announced")));
            }
            if !chunk.sha256.is_empty() {
                if let Err(error) = self.check(&chunk.sha256) {
                    return Some(Err(error));
                }
                self.ended = true;
                return (!chunk.data.is_empty()).then_some(Ok(chunk.data));
            }
            if !chunk.data.is_empty() {
                return Some(Ok(chunk.data));
            }
        }
    }

    fn check(&mut self, expected: &[u8]) -> Result<()> {
        if self.received != self.total_bytes {
            return Err(damaged(&format!(
                "{} bytes came, {} were announced",
                self.received, self.total_bytes
            )));
        }
        if self.hash.finalize_reset().as_slice() != expected {
            return Err(damaged("its SHA-256 is not what its node computed"));
        }
        Ok(())
    }
}

async fn next_chunk(
    client: &Client,
    stream: &mut Streaming<v1::SnapshotChunk>,
) -> Result<Option<v1::SnapshotChunk>, Failure> {
    let runtime = &client.core().runtime;
    tokio::select! {
        () = runtime.stop.cancelled() => Err(Failure::lost(closed())),
        chunk = timeout(CHUNK_TIMEOUT, stream.message()) => match chunk {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(status)) => Err(Failure::from_status(&status)),
            Err(_elapsed) => Err(Failure::lost(crate::endpoint::no_answer())),
        },
    }
}

/// Between chunks. The first waits for a flush and for checksums over the whole state.
const CHUNK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(120);

fn damaged(what: &str) -> Error {
    Error::new(
        Reason::Corrupt,
        format!("the snapshot is damaged: {what}; save it again"),
    )
}
