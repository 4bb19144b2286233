//! How bytes get from node to node: dial an address, listen on an address.
//!
//! gRPC runs over whatever is plugged in here, so tests and the simulation run the code that ships:
//!
//! ```text
//!   PeerPool ── tonic Channel ──► Transport::dial      Transport::listen ──► tonic Server ── Peer service
//!                                       └──── ByteStream ════ ByteStream ────┘
//! ```
//!
//! - [`tcp`]: sockets. The name is resolved afresh on every dial, because pod IPs change.
//! - [`tls`]: TLS over one of the others.
//! - [`memory`]: pipes inside one process, with links that can be cut and nodes that can be killed.
//!
//! An address is `host:port`, with the port as a number: `podkv-0.podkv.default.svc.cluster.local.:2380`.

pub mod memory;
pub mod tcp;
pub mod tls;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use podkv_tls::Certificate;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Dials and listens.
pub trait Transport: Send + Sync + 'static {
    /// Opens a byte stream to `address`. Bounded by the transport's own connect timeout, or else by
    /// the caller; dropping the future gives up.
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<ByteStream>>;

    /// Begins to accept byte streams at `address`. Port 0 takes any free port:
    /// [`Listener::local_address`] tells which.
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Listener>>;
}

/// What a byte stream can do.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// An open connection: ordered, reliable bytes in both directions, until it breaks.
pub struct ByteStream {
    io: Box<dyn Duplex>,
    remote: String,
    certificate: Option<Arc<Certificate>>,
}

impl ByteStream {
    /// `remote` is for people: the address at the other end, as far as it is known.
    pub fn new(io: impl Duplex + 'static, remote: impl Into<String>) -> Self {
        Self {
            io: Box::new(io),
            remote: remote.into(),
            certificate: None,
        }
    }

    /// The other side has shown this certificate, and it chains to the CA.
    #[must_use]
    pub fn with_certificate(mut self, certificate: Certificate) -> Self {
        self.certificate = Some(Arc::new(certificate));
        self
    }

    /// The address at the other end. For logs: a peer is known by the id in its header.
    pub fn remote(&self) -> &str {
        &self.remote
    }
}

impl std::fmt::Debug for ByteStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByteStream")
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

podkv_tls::pass_writes_on!([] ByteStream, io);

/// What a gRPC handler can learn about the connection that a call came over.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The address at the other end, for people.
    pub address: String,
    /// What the other side has shown; `None` in plain text, or if it was not asked.
    pub certificate: Option<Arc<Certificate>>,
}

impl Connected for ByteStream {
    type ConnectInfo = Remote;

    fn connect_info(&self) -> Remote {
        Remote {
            address: self.remote.clone(),
            certificate: self.certificate.clone(),
        }
    }
}

/// Yields the connections that others open. Stops listening when dropped.
pub struct Listener {
    local_address: String,
    incoming: BoxStream<'static, ByteStream>,
}

impl Listener {
    pub fn new(
        local_address: String,
        incoming: impl Stream<Item = ByteStream> + Send + 'static,
    ) -> Self {
        Self {
            local_address,
            incoming: incoming.boxed(),
        }
    }

    /// Where it listens, with the real port.
    pub fn local_address(&self) -> &str {
        &self.local_address
    }
}

/// Ends only when the transport is gone: an accept that failed is retried inside.
impl Stream for Listener {
    type Item = ByteStream;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ByteStream>> {
        self.incoming.poll_next_unpin(cx)
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("local_address", &self.local_address)
            .finish_non_exhaustive()
    }
}

/// Splits `host:port`; an IPv6 host is in brackets: `[::1]:2380`.
pub(crate) fn split_address(address: &str) -> io::Result<(&str, u16)> {
    let bad = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("address {address:?} is not host:port (IPv6 in brackets, port 0 to 65535)"),
        )
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let port = port.parse().map_err(|_| bad())?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or_else(bad)?,
        // More than one colon without brackets: the port of an IPv6 address would be guessed.
        None if host.contains(':') => return Err(bad()),
        None => host,
    };
    if host.is_empty() {
        return Err(bad());
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port() {
        assert_eq!(
            split_address("podkv-0.podkv.ns.:2380").unwrap(),
            ("podkv-0.podkv.ns.", 2380)
        );
        assert_eq!(split_address("[::1]:0").unwrap(), ("::1", 0));
        for bad in [
            "podkv-0",
            ":2380",
            "host:",
            "host:70000",
            "::1:2380",
            "[::1:2380",
        ] {
            let error = split_address(bad).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bad}");
        }
    }
}
