//! The task that serves peers, and how it ends.
//!
//! Peers keep their streams open for as long as they live, so a graceful end alone would never come:
//!
//! ```text
//!   shutdown() ─► stop accepting, tell peers (GOAWAY) ─► calls finish … grace ─► close connections ─► joined
//! ```

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use podkv_proto::peer::peer_server::PeerServer as Grpc;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::service::PeerService;
use super::settings::PeerSettings;
use crate::transport::{ByteStream, Listener, Remote};

/// Serves peers until it is shut down. Dropping it closes every connection.
pub(crate) struct PeerServer {
    local_address: String,
    grace: Duration,
    stop_accepting: CancellationToken,
    close: CancellationToken,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl PeerServer {
    /// Starts to serve what `listener` yields.
    pub(crate) fn start(listener: Listener, service: PeerService, settings: &PeerSettings) -> Self {
        let local_address = listener.local_address().to_string();
        let (stop_accepting, close) = (CancellationToken::new(), CancellationToken::new());
        let closing = close.clone();
        let incoming = listener.map(move |stream| {
            Ok::<_, io::Error>(Closable {
                stream,
                closed: Box::pin(closing.clone().cancelled_owned()),
            })
        });
        let service = Grpc::new(service)
            .max_decoding_message_size(settings.max_message_bytes)
            .max_encoding_message_size(settings.max_message_bytes);
        let serving = Server::builder()
            .initial_stream_window_size(settings.stream_window_bytes)
            .initial_connection_window_size(settings.connection_window_bytes)
            .max_concurrent_streams(settings.max_concurrent_streams)
            .http2_keepalive_interval(Some(settings.keepalive_interval))
            .http2_keepalive_timeout(Some(settings.keepalive_timeout))
            .serve_with_incoming_shutdown(
                service,
                incoming,
                stop_accepting.clone().cancelled_owned(),
            );
        Self {
            local_address,
            grace: settings.shutdown_grace,
            stop_accepting,
            close,
            task: tokio::spawn(serving),
        }
    }

    /// Where peers can dial, with the real port.
    pub(crate) fn local_address(&self) -> &str {
        &self.local_address
    }

    /// Ends it: returns when every connection is closed.
    pub(crate) async fn shutdown(mut self) {
        self.stop_accepting.cancel();
        let ended = match timeout(self.grace, &mut self.task).await {
            Ok(ended) => ended,
            Err(_) => {
                self.close.cancel();
                (&mut self.task).await
            }
        };
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the peer server ended with an error"),
            Err(error) => tracing::error!(%error, "the peer server's task failed"),
        }
    }
}

impl Drop for PeerServer {
    fn drop(&mut self) {
        self.stop_accepting.cancel();
        self.close.cancel();
    }
}

/// A connection that the server can close from its side, whatever is going on in it.
struct Closable {
    stream: ByteStream,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Closable {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.closed.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Closable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 always has a read waiting, so this one check reaches every connection.
        self.poll_open(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

podkv_tls::pass_writes_on!([] Closable, stream);

impl Connected for Closable {
    type ConnectInfo = Remote;

    fn connect_info(&self) -> Remote {
        self.stream.connect_info()
    }
}
