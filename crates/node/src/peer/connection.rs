//! A connection that tells when it is over.
//!
//! gRPC's channel would silently connect again, perhaps to another start of the peer, or to another node at its
//! address. Whoever is at the other end must be greeted first, so a channel here is one connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

use crate::transport::ByteStream;

/// Whether a connection is still there.
#[derive(Clone, Debug, Default)]
pub(super) struct Alive {
    gone: Arc<AtomicBool>,
}

impl Alive {
    pub fn is_alive(&self) -> bool {
        !self.gone.load(Ordering::Acquire)
    }
}

/// A stream of bytes whose end is noted.
pub(super) struct Connection {
    stream: ByteStream,
    alive: Alive,
}

impl Connection {
    pub fn new(stream: ByteStream, alive: Alive) -> Self {
        Self { stream, alive }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.alive.gone.store(true, Ordering::Release);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

podkv_tls::pass_writes_on!([] Connection, stream);
