//! A connection whose first byte was looked at and is read again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `first`, then what `io` yields.
#[derive(Debug)]
pub struct Prefixed<S> {
    first: Option<u8>,
    io: S,
}

impl<S> Prefixed<S> {
    pub(crate) fn new(first: u8, io: S) -> Self {
        Self {
            first: Some(first),
            io,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buffer.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

crate::pass_writes_on!([S: AsyncWrite + Unpin] Prefixed<S>, io);
