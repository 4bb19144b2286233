//! The dialling side of one connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::TlsMode;
use crate::accept::failed;
use crate::error::{TlsError, explain};
use crate::names::host_of;
use crate::tls::Tls;

/// The first bytes of TLS records that a server may answer with: alert, handshake.
const TLS_RECORDS: [u8; 2] = [0x15, 0x16];

/// What came of dialling a peer.
#[derive(Debug)]
pub enum Outcome<S> {
    Tls(TlsConnection<S>),
    /// The other side does not speak TLS, and the mode is [`TlsMode::Allow`]: dial again, in plain text.
    DialPlain,
}

/// Hears how a connection fares after its handshake: `Ok` at the first byte from the other side, an error when TLS
/// fails. In TLS 1.3 a client learns only then that its certificate was refused.
pub type Heard = Arc<dyn Fn(Result<(), String>) + Send + Sync>;

impl Tls {
    /// Speaks TLS over `io`, which leads to the peer at `address`, `host:port`.
    ///
    /// # Errors
    /// [`TlsError`], within [`TlsConfig::handshake_timeout`](crate::TlsConfig::handshake_timeout).
    pub async fn connect<S>(&self, address: &str, io: S) -> Result<Outcome<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let limit = self.0.config.handshake_timeout;
        let config = self.material().dial.clone();
        let (shared, remote) = (self.0.clone(), address.to_owned());
        let heard: Heard = Arc::new(move |heard| {
            if let Err(error) = heard
                && let Some(left_out) = shared.refused.next()
            {
                tracing::warn!(remote, error, left_out, "a peer ended a TLS connection");
            }
        });
        let connecting = connect(config, host_of(address), address, io, heard);
        match timeout(limit, connecting).await {
            Ok(Ok(stream)) => Ok(Outcome::Tls(stream)),
            Ok(Err(TlsError::NotTls(_))) if self.0.config.mode == TlsMode::Allow => {
                Ok(Outcome::DialPlain)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(TlsError::Timeout {
                remote: address.to_owned(),
                limit,
            }),
        }
    }
}

/// A handshake as the dialling side. `host` is what the certificate must name.
pub(crate) async fn connect<S>(
    config: Arc<ClientConfig>,
    host: &str,
    remote: &str,
    io: S,
    heard: Heard,
) -> Result<TlsConnection<S>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(host).map_err(|_| TlsError::Name(host.to_owned()))?;
    let io = FirstByte { first: None, io };
    let handshake = TlsConnector::from(config).connect(name.to_owned(), io);
    match handshake.into_fallible().await {
        Ok(stream) => Ok(TlsConnection {
            stream: Box::new(stream),
            heard: Some(heard),
            silent: true,
        }),
        Err((_, io)) if !io.first.is_some_and(|first| TLS_RECORDS.contains(&first)) => {
            Err(TlsError::NotTls(remote.to_owned()))
        }
        Err((error, _)) => Err(failed(remote, error)),
    }
}

/// Remembers the first byte that came in.
#[derive(Debug)]
pub struct FirstByte<S> {
    first: Option<u8>,
    io: S,
}

/// A TLS connection that was dialled.
pub struct TlsConnection<S> {
    stream: Box<TlsStream<FirstByte<S>>>,
    /// Taken when TLS has failed.
    heard: Option<Heard>,
    silent: bool,
}

impl<S> std::fmt::Debug for TlsConnection<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsConnection").finish_non_exhaustive()
    }
}

impl<S> TlsConnection<S> {
    fn failed(&mut self, error: &io::Error) {
        if let Some(why) = explain(error)
            && let Some(heard) = self.heard.take()
        {
            heard(Err(why));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsConnection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        match &polled {
            Poll::Ready(Err(error)) => self.failed(error),
            Poll::Ready(Ok(())) if self.silent && buffer.filled().len() > before => {
                self.silent = false;
                if let Some(heard) = &self.heard {
                    heard(Ok(()));
                }
            }
            _ => {}
        }
        polled
    }
}

crate::pass_writes_on!([S: AsyncRead + AsyncWrite + Unpin] TlsConnection<S>, stream);

impl<S: AsyncRead + Unpin> AsyncRead for FirstByte<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if self.first.is_none() {
            self.first = buffer.filled().get(before).copied();
        }
        polled
    }
}

crate::pass_writes_on!([S: AsyncWrite + Unpin] FirstByte<S>, io);
