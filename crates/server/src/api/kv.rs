//! KV: reads and writes.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use podkv_api::{Range, Store};
use podkv_proto::convert::to_status;
use podkv_proto::v1;
use podkv_proto::v1::operation::Operation;
use tonic::{Request, Response, Status, Streaming};

use super::caller::access;
use super::calls::{Call, Calls, answer, answer_in};
use super::draining::refuse_if_draining;
use super::pipe;
use crate::room::{self, Reserved};

pub(super) struct Kv(pub Calls);

impl Kv {
    /// Room for the answer to `request`, of at most `most` bytes.
    async fn room<T>(&self, request: &Request<T>, most: usize) -> Result<Option<Reserved>, Status> {
        let reserved = self.0.room(request, most).await;
        reserved.map_err(|error| to_status(&error))
    }
}

#[tonic::async_trait]
impl v1::kv_server::Kv for Kv {
    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let reserved = self.room(&request, self.0.one_value()).await?;
        let call = Call::native(request, &self.0).await?;
        answer_in(
            self.0.get(call.message, &call.access, call.timeout).await,
            reserved,
        )
    }

    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let most = match request.get_ref().prev_kv {
            true => self.0.one_value(),
            false => 0,
        };
        let reserved = self.room(&request, most).await?;
        let call = Call::native(request, &self.0).await?;
        let put = self.0.put(call.message, &call.access, call.timeout).await;
        answer_in(put, reserved)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let most = match request.get_ref().prev_kv {
            true => self.0.settings.max_answer_bytes,
            false => 0,
        };
        let reserved = self.room(&request, most).await?;
        let call = Call::native(request, &self.0).await?;
        let delete = self.0.delete(call.message, &call.access, call.timeout);
        answer_in(delete.await, reserved)
    }

    type RangeStream = Pin<Box<dyn Stream<Item = Result<v1::RangeResponse, Status>> + Send>>;

    async fn range(
        &self,
        request: Request<v1::RangeRequest>,
    ) -> Result<Response<Self::RangeStream>, Status> {
        let reserved = self.room(&request, room::STREAM_BYTES).await?;
        let call = Call::native(request, &self.0).await?;
        let range = Range::try_from(call.message)?;
        let opening = call.access.range_stream(range);
        let chunks = self
            .0
            .within(call.timeout, opening)
            .await
            .map_err(|error| to_status(&error))?;
        let chunks: Self::RangeStream = Box::pin(chunks.map(|chunk| match chunk {
            Ok(chunk) => Ok(chunk.into()),
            Err(error) => Err(to_status(&error)),
        }));
        Ok(room::attach_stream(chunks, reserved))
    }

    async fn txn(
        &self,
        request: Request<v1::TxnRequest>,
    ) -> Result<Response<v1::TxnResponse>, Status> {
        let all = self.0.settings.max_answer_bytes;
        let most = most_bytes(request.get_ref(), self.0.one_value(), all);
        let reserved = self.room(&request, most).await?;
        let call = Call::native(request, &self.0).await?;
        let txn = self.0.txn(call.message, &call.access, call.timeout).await;
        answer_in(txn, reserved)
    }

    async fn compact(
        &self,
        request: Request<v1::CompactRequest>,
    ) -> Result<Response<v1::CompactResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        answer(
            self.0
                .compact(call.message, &call.access, call.timeout)
                .await,
        )
    }

    type PipeStream = Pin<Box<dyn Stream<Item = Result<v1::PipeResponse, Status>> + Send>>;

    async fn pipe(
        &self,
        request: Request<Streaming<v1::PipeRequest>>,
    ) -> Result<Response<Self::PipeStream>, Status> {
        refuse_if_draining(&self.0.node)?;
        let access = access(&self.0.node, request.metadata()).await;
        let access = access.map_err(|error| to_status(&error))?;
        let stream = pipe::serve(self.0.clone(), access, request.into_inner());
        Ok(Response::new(Box::pin(stream)))
    }
}

/// The most that the answer to a transaction may have in bytes, where one value has `one` and an answer at most `all`.
fn most_bytes(request: &v1::TxnRequest, one: usize, all: usize) -> usize {
    let is_single =
        |range: &Option<v1::KeyRange>| range.as_ref().is_none_or(|range| range.end.is_none());
    let of = |operation: &v1::Operation| match &operation.operation {
        Some(Operation::Range(range)) if range.count_only => 0,
        Some(Operation::Range(range)) if is_single(&range.range) => one,
        Some(Operation::Range(_)) => all,
        Some(Operation::Put(put)) if put.prev_kv => one,
        Some(Operation::Delete(delete)) if !delete.prev_kv => 0,
        Some(Operation::Delete(delete)) if is_single(&delete.range) => one,
        Some(Operation::Delete(_)) => all,
        Some(Operation::Txn(txn)) => most_bytes(txn, one, all),
        _ => 0,
    };
    let sum = |operations: &[v1::Operation]| operations.iter().map(of).sum::<usize>().min(all);
    sum(&request.then).max(sum(&request.or_else))
}
