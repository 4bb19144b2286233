//! The listening side of one connection: which protocol it speaks, and the handshake.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::TlsMode;
use crate::certificate::Certificate;
use crate::error::TlsError;
use crate::prefixed::Prefixed;
use crate::tls::Tls;

/// The first byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;
/// The first byte of HTTP/2's preface, `PRI * HTTP/2.0`.
const HTTP2_PREFACE: u8 = b'P';
/// Who was refused gets this long to read why, before the connection is closed under what it still sends.
const LINGER: Duration = Duration::from_secs(1);
/// And may send this much meanwhile.
const LINGER_BYTES: u64 = 64 << 10;

/// Which of a node's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Peers,
    Clients,
}

/// A connection that was let in.
#[derive(Debug)]
pub enum Accepted<S> {
    Plain(Prefixed<S>),
    Tls {
        stream: Box<TlsStream<Prefixed<S>>>,
        /// What the other side showed, checked against the CA.
        certificate: Option<Certificate>,
    },
}

impl Tls {
    /// Lets a connection in, or says why not. Bounded by
    /// [`TlsConfig::handshake_timeout`](crate::TlsConfig::handshake_timeout).
    ///
    /// # Errors
    /// The connection is closed by then.
    pub async fn accept<S>(&self, port: Port, remote: &str, io: S) -> Result<Accepted<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let limit = self.0.config.handshake_timeout;
        let deadline = Instant::now() + limit;
        let late = || TlsError::Timeout {
            remote: remote.to_owned(),
            limit,
        };
        let (first, io) = timeout_at(deadline, first_byte(remote, io))
            .await
            .map_err(|_| late())??;
        match (first, self.0.config.mode) {
            (TLS_HANDSHAKE, _) => {}
            (HTTP2_PREFACE, TlsMode::Allow) => return Ok(Accepted::Plain(io)),
            (HTTP2_PREFACE, _) => return Err(TlsError::PlainText),
            (other, _) => return Err(TlsError::Garbage(other)),
        }
        let material = self.material();
        let config = match port {
            Port::Peers => material.peers.clone(),
            Port::Clients => material.clients.clone(),
        };
        let handshake = TlsAcceptor::from(config).accept(io).into_fallible();
        let stream = match timeout_at(deadline, handshake).await.map_err(|_| late())? {
            Ok(stream) => stream,
            Err((error, io)) => {
                linger(io).await;
                return Err(failed(remote, error));
            }
        };
        let chain = stream.get_ref().1.peer_certificates();
        let certificate = chain
            .and_then(<[_]>::first)
            .map(|leaf| Certificate::parse(leaf).map_err(TlsError::Certificate))
            .transpose()?;
        Ok(Accepted::Tls {
            stream: Box::new(stream),
            certificate,
        })
    }

    /// Says in the log who was refused and why: one line a second at most, because peers come again at once.
    pub fn report_refused(&self, port: Port, remote: &str, error: &TlsError) {
        if error.is_silence() {
            tracing::debug!(remote, ?port, "connection ended before it said anything");
        } else if let Some(left_out) = self.0.refused.next() {
            tracing::warn!(remote, ?port, %error, left_out, "refused a connection");
        }
    }
}

async fn first_byte<S: AsyncRead + Unpin>(
    remote: &str,
    mut io: S,
) -> Result<(u8, Prefixed<S>), TlsError> {
    let first = io.read_u8().await.map_err(|source| TlsError::Io {
        remote: remote.to_owned(),
        source,
    })?;
    Ok((first, Prefixed::new(first, io)))
}

/// The alert was written. A close with unread bytes in the kernel's hands would be a reset, and the other side
/// might never see the alert.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut io: S) {
    let reading = async {
        io.shutdown().await?;
        tokio::io::copy(&mut io.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    // It was refused already.
    let _ = timeout(LINGER, reading).await;
}

/// What tokio-rustls says: either TLS is broken, or what is below it.
pub(crate) fn failed(remote: &str, error: io::Error) -> TlsError {
    let remote = remote.to_owned();
    match error.downcast::<rustls::Error>() {
        Ok(source) => TlsError::Handshake { remote, source },
        Err(source) => TlsError::Io { remote, source },
    }
}
