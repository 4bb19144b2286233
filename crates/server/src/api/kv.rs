//! KV: reads and writes.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use podkv_api::{Range, Store};
use podkv_proto::convert::to_status;
use podkv_proto::v1;
use tonic::{Request, Response, Status, Streaming};

use super::caller::access;
use super::calls::{Call, Calls, answer};
use super::draining::refuse_if_draining;
use super::pipe;

pub(super) struct Kv(pub Calls);

#[tonic::async_trait]
impl v1::kv_server::Kv for Kv {
    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        answer(self.0.get(call.message, &call.access, call.timeout).await)
    }

    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        answer(self.0.put(call.message, &call.access, call.timeout).await)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        answer(
            self.0
                .delete(call.message, &call.access, call.timeout)
                .await,
        )
    }

    type RangeStream = Pin<Box<dyn Stream<Item = Result<v1::RangeResponse, Status>> + Send>>;

    async fn range(
        &self,
        request: Request<v1::RangeRequest>,
    ) -> Result<Response<Self::RangeStream>, Status> {
        let call = Call::native(request, &self.0).await?;
        let range = Range::try_from(call.message)?;
        let opening = call.access.range_stream(range);
        let chunks = self
            .0
            .within(call.timeout, opening)
            .await
            .map_err(|error| to_status(&error))?;
        Ok(Response::new(Box::pin(chunks.map(|chunk| match chunk {
            Ok(chunk) => Ok(chunk.into()),
            Err(error) => Err(to_status(&error)),
        }))))
    }

    async fn txn(
        &self,
        request: Request<v1::TxnRequest>,
    ) -> Result<Response<v1::TxnResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        answer(self.0.txn(call.message, &call.access, call.timeout).await)
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
