//! Session: open, keep alive, close.

use std::time::Duration;

use podkv_core::SESSION_WINDOW;
use podkv_proto::convert;
use podkv_proto::v1;
use tonic::{Request, Response, Status};

use super::calls::{Call, Calls, answer};

pub(super) struct Session(pub Calls);

#[tonic::async_trait]
impl v1::session_server::Session for Session {
    async fn open(
        &self,
        request: Request<v1::SessionOpenRequest>,
    ) -> Result<Response<v1::SessionOpenResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        let request = call.message;
        let id = convert::session_id("id", &request.id)?;
        let ttl = Duration::from_millis(request.ttl_ms);
        let opened = call.access.session_open(id, ttl).await;
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
        let call = Call::native(request, &self.0).await?;
        let id = convert::session_id("id", &call.message.id)?;
        let kept = call.access.session_keep_alive(id).await;
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
        let call = Call::native(request, &self.0).await?;
        let id = convert::session_id("id", &call.message.id)?;
        let closed = call.access.session_close(id).await;
        answer(closed.map(|header| v1::SessionCloseResponse {
            header: Some(header.into()),
        }))
    }
}
