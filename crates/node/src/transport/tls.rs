//! TLS over another transport, for both directions.
//!
//! The handshakes of a listening port run beside each other, because one takes a signature and two round trips,
//! and who is slow must not hold up others. They are owned by the [`Listener`]: dropping it ends them. At most
//! [`TlsConfig::max_handshakes`](podkv_tls::TlsConfig::max_handshakes) are under way.

use std::io;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::unfold;
use podkv_tls::{Accepted, Outcome, Port, Tls};
use tokio::task::JoinSet;

use super::{ByteStream, Listener, Transport};

/// Peers dial and listen with TLS, as the node's mode says.
pub struct TlsTransport {
    inner: Arc<dyn Transport>,
    tls: Tls,
}

impl TlsTransport {
    pub fn new(inner: Arc<dyn Transport>, tls: Tls) -> Self {
        Self { inner, tls }
    }

    async fn connect(&self, address: &str) -> io::Result<ByteStream> {
        let plain = self.inner.dial(address).await?;
        match self.tls.connect(address, plain).await? {
            Outcome::Tls(stream) => Ok(ByteStream::new(stream, address)),
            Outcome::DialPlain => {
                tracing::debug!(address, "the peer does not speak TLS yet: plain text");
                self.inner.dial(address).await
            }
        }
    }
}

impl Transport for TlsTransport {
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<ByteStream>> {
        Box::pin(self.connect(address))
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Listener>> {
        Box::pin(async move {
            let listener = self.inner.listen(address).await?;
            Ok(accept_tls(listener, self.tls.clone(), Port::Peers))
        })
    }
}

/// The same listener, yielding what has come through its handshake. The log says who has not.
pub fn accept_tls(listener: Listener, tls: Tls, port: Port) -> Listener {
    let local_address = listener.local_address().to_owned();
    let handshakes = Handshakes {
        listener,
        tls,
        port,
        under_way: JoinSet::new(),
    };
    let accepted = unfold(handshakes, |mut handshakes| async move {
        handshakes.next().await.map(|stream| (stream, handshakes))
    });
    Listener::new(local_address, accepted)
}

struct Handshakes {
    listener: Listener,
    tls: Tls,
    port: Port,
    under_way: JoinSet<Option<ByteStream>>,
}

impl Handshakes {
    async fn next(&mut self) -> Option<ByteStream> {
        loop {
            let has_room = self.under_way.len() < self.tls.config().max_handshakes;
            tokio::select! {
                Some(done) = self.under_way.join_next() => match done {
                    Ok(Some(stream)) => return Some(stream),
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "a handshake did not come to an end"),
                },
                incoming = self.listener.next(), if has_room => {
                    let (tls, port) = (self.tls.clone(), self.port);
                    let stream = incoming?;
                    self.under_way.spawn(async move { shake_hands(&tls, port, stream).await });
                }
            }
        }
    }
}

async fn shake_hands(tls: &Tls, port: Port, stream: ByteStream) -> Option<ByteStream> {
    let remote = stream.remote().to_owned();
    match tls.accept(port, &remote, stream).await {
        Ok(Accepted::Plain(stream)) => Some(ByteStream::new(stream, remote)),
        Ok(Accepted::Tls {
            stream,
            certificate,
        }) => {
            let stream = ByteStream::new(*stream, remote);
            Some(match certificate {
                Some(certificate) => stream.with_certificate(certificate),
                None => stream,
            })
        }
        Err(error) => {
            tls.report_refused(port, &remote, &error);
            None
        }
    }
}
