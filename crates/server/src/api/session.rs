//! Session: open, keep alive, close.

use std::time::Duration;

use podkv_core::SESSION_WINDOW;
use podkv_node::Node;
use podkv_proto::convert;
use podkv_proto::v1;
use tonic::{Request, Response, Status};

use super::Caller;
use super::calls::answer;

pub(super) struct Session(pub Node);

#[tonic::async_trait]
impl v1::session_server::Session for Session {
    async fn open(
        &self,
        request: Request<v1::SessionOpenRequest>,
    ) -> Result<Response<v1::SessionOpenResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let id = convert::session_id("id", &request.id)?;
        let ttl = Duration::from_millis(request.ttl_ms);
        let opened = self.0.session_open(id, ttl, caller.identity).await;
        answer(opened.map(|(header, ttl_ms)| v1::SessionOpenResponse {
            header: Some(header.into()),
            id: request.id,
            ttl_ms,
            window: u32::try_from(SESSION_WINDOW).unwrap_or(u32::MAX),
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<v1::SessionKeepAliveRequest>,
    ) -> Result<Response<v1::SessionKeepAliveResponse>, Status> {
        let id = convert::session_id("id", &request.into_inner().id)?;
        let kept = self.0.session_keep_alive(id).await;
        answer(
            kept.map(|(header, remaining_ms)| v1::SessionKeepAliveResponse {
                header: Some(header.into()),
                remaining_ms,
            }),
        )
    }

    async fn close(
        &self,
        request: Request<v1::SessionCloseRequest>,
    ) -> Result<Response<v1::SessionCloseResponse>, Status> {
        let id = convert::session_id("id", &request.into_inner().id)?;
        let closed = self.0.session_close(id).await;
        answer(closed.map(|header| v1::SessionCloseResponse {
            header: Some(header.into()),
        }))
    }
}
