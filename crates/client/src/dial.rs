//! How a connection is made: TCP, or whatever a program injects.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::Uri;
use tower::Service;

/// A stream of bytes to a node.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

/// A connection under way.
pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>>;

/// Makes connections. The default is TCP; tests connect to servers in their own process.
pub trait Dialer: Send + Sync + 'static {
    /// Connects to `address`, `host:port`. Called for each connection anew, so that a name leads to
    /// where it points now; no answer of a resolver may be remembered. The caller bounds the time.
    fn dial(&self, address: &str) -> Dialing;
}

/// TCP, through the system's resolver.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tcp;

impl Dialer for Tcp {
    fn dial(&self, address: &str) -> Dialing {
        let address = address.to_owned();
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            // Small messages, each waited for.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}

/// A dialer as gRPC wants it, for one address.
#[derive(Clone)]
pub(crate) struct Connector {
    pub address: Arc<str>,
    pub dialer: Arc<dyn Dialer>,
    pub limit: Duration,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Connection>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self {
            address,
            dialer,
            limit,
        } = self.clone();
        Box::pin(async move {
            match timeout(limit, dialer.dial(&address)).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_elapsed) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no connection to {address} within {limit:?}"),
                )),
            }
        })
    }
}
