//! How a connection is made: TCP, or whatever a program injects; and TLS over it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use podkv_tls::{ClientTls, Heard, explain};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Uri;
use tower::Service;

use crate::endpoint::lock;

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

/// The next address of a name is tried when the one before has been silent for this long. RFC 8305 says 250 ms.
const STAGGER: Duration = Duration::from_millis(250);

/// TCP, through the system's resolver: a client runs anywhere, and the system knows how names are resolved
/// there. Of a name's addresses the first that answers is taken, so a family that leads nowhere costs little.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tcp;

impl Dialer for Tcp {
    fn dial(&self, address: &str) -> Dialing {
        let address = address.to_owned();
        Box::pin(async move {
            let stream = connect(lookup_host(address).await?.collect()).await?;
            // Small messages, each waited for.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}

/// Connects to whichever address answers first; fails with the last failure when all have failed.
async fn connect(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut next_start = Instant::now();
    loop {
        tokio::select! {
            // A finished attempt first: it may spare us the next one.
            biased;
            Some(result) = attempts.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    failure = error;
                    next_start = Instant::now();
                }
            },
            () = sleep_until(next_start), if waiting.len() > 0 => {
                attempts.extend(waiting.next().map(TcpStream::connect));
                next_start = Instant::now() + STAGGER;
            }
            else => return Err(failure),
        }
    }
}

/// A dialer as gRPC wants it, for one address.
#[derive(Clone)]
pub(crate) struct Connector {
    pub address: Arc<str>,
    /// What the node's certificate must name.
    pub host: Arc<str>,
    pub dialer: Arc<dyn Dialer>,
    pub tls: Option<Arc<ClientTls>>,
    pub failure: TlsFailure,
    pub limit: Duration,
}

/// What TLS said last, if it failed and nothing has come from the node since. gRPC keeps the text of such an error
/// and loses the error, so it is noted where it happens.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFailure(Arc<Mutex<Option<String>>>);

impl TlsFailure {
    pub fn get(&self) -> Option<String> {
        lock(&self.0).clone()
    }

    fn set(&self, failure: Option<String>) {
        *lock(&self.0) = failure;
    }

    fn listener(&self) -> Heard {
        let failure = self.clone();
        Arc::new(move |heard| failure.set(heard.err()))
    }
}

impl Connector {
    async fn connect(&self) -> io::Result<Box<dyn Connection>> {
        let stream = self.dialer.dial(&self.address).await?;
        let Some(tls) = &self.tls else {
            return Ok(stream);
        };
        match tls
            .connect(&self.host, &self.address, stream, self.failure.listener())
            .await
        {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => {
                let error = io::Error::from(error);
                self.failure.set(explain(&error));
                Err(error)
            }
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Connection>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let (address, limit) = (&connector.address, connector.limit);
            match timeout(limit, connector.connect()).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_elapsed) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no connection to {address} within {limit:?}"),
                )),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn addresses_that_refuse_are_passed_over() {
        let alive = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive_at = alive.local_addr().unwrap();
        // Free again, and refusing.
        let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refusing_at = refusing.local_addr().unwrap();
        drop(refusing);
        let stream = connect(vec![refusing_at, alive_at]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), alive_at);
        let error = connect(vec![refusing_at]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = connect(Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
