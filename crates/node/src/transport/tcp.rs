//! TCP: every dial resolves the name afresh, then races what it resolved to.
//!
//! A pod that is rescheduled keeps its name and changes its address, so an address is never kept
//! longer than one dial. A name may resolve to IPv4 and IPv6; one of them may lead nowhere. The
//! attempts are therefore staggered (RFC 8305, "happy eyeballs"): the next one starts when the one
//! before failed or has been silent for [`TcpSettings::stagger`], and the first to connect wins.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, unfold};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::time::{Instant, sleep_until, timeout};

use super::{ByteStream, Listener, Transport, split_address};
use crate::dns::{Dns, DnsSettings};

/// Turns names into addresses. Must not remember an answer for longer than a few seconds, and a
/// failure not at all.
pub trait Resolver: Send + Sync + 'static {
    /// Every address of `host`, in the order in which they should be tried.
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
}

/// The operating system's resolver, asked afresh each time. It runs on tokio's blocking threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(lookup_host((host, port)).await?.collect()) })
    }
}

/// For the names of peers: one that ends with a dot is complete, and DNS is asked for it directly (see
/// [`crate::dns`] for why). Everything else (addresses, `localhost`, what `/etc/hosts` or a search list
/// completes) is left to the operating system.
#[derive(Clone)]
pub struct DnsResolver(Dns);

impl DnsResolver {
    pub fn new(dns: Dns) -> Self {
        Self(dns)
    }
}

impl Resolver for DnsResolver {
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        if !host.ends_with('.') {
            return SystemResolver.resolve(host, port);
        }
        Box::pin(async move {
            let found = self.0.addresses(host).await?;
            Ok(found
                .into_iter()
                .map(|ip| SocketAddr::new(ip, port))
                .collect())
        })
    }
}

/// How long dialing may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSettings {
    /// For resolving and connecting together. One second: longer than a lost SYN's first resend on
    /// a local network would be useful for, and short enough that a vote is not held up by one dead peer.
    pub connect_timeout: Duration,
    /// Start the next attempt when the one before has been silent for this long. RFC 8305 says 250 ms.
    pub stagger: Duration,
    /// Wait this long after an accept failed: it fails again at once when file descriptors run out.
    pub accept_retry: Duration,
}

impl Default for TcpSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            stagger: Duration::from_millis(250),
            accept_retry: Duration::from_millis(100),
        }
    }
}

/// TCP sockets, without Nagle's delay.
pub struct TcpTransport {
    settings: TcpSettings,
    resolver: Arc<dyn Resolver>,
}

impl TcpTransport {
    /// With the operating system's resolver.
    pub fn new(settings: TcpSettings) -> Self {
        Self::with_resolver(settings, Arc::new(SystemResolver))
    }

    /// For dialing peers by their complete names; see [`DnsResolver`]. Where no DNS server is configured, the
    /// operating system is asked for those as well.
    pub fn for_peers(settings: TcpSettings) -> Self {
        match Dns::from_system(&DnsSettings::default()) {
            Ok(dns) => Self::with_resolver(settings, Arc::new(DnsResolver::new(dns))),
            Err(error) => {
                tracing::debug!(%error, "peers are looked up by the operating system");
                Self::new(settings)
            }
        }
    }

    pub fn with_resolver(settings: TcpSettings, resolver: Arc<dyn Resolver>) -> Self {
        Self { settings, resolver }
    }

    async fn connect(&self, address: &str) -> io::Result<ByteStream> {
        let (host, port) = split_address(address)?;
        let found = self.resolver.resolve(host, port).await?;
        if found.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{host:?} resolved to no address"),
            ));
        }
        let stream = race(alternate_families(found), self.settings.stagger).await?;
        stream.set_nodelay(true)?;
        Ok(ByteStream::new(stream, address))
    }
}

impl Transport for TcpTransport {
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<ByteStream>> {
        Box::pin(async move {
            let limit = self.settings.connect_timeout;
            timeout(limit, self.connect(address))
                .await
                .unwrap_or_else(|_| {
                    Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("{address} did not answer within {limit:?}"),
                    ))
                })
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Listener>> {
        Box::pin(async move {
            let (host, port) = split_address(address)?;
            let found = self.resolver.resolve(host, port).await?;
            let listener = bind(&found).await?;
            let local_address = listener.local_addr()?.to_string();
            let accept_retry = self.settings.accept_retry;
            let incoming = unfold(listener, move |listener| async move {
                let stream = accept(&listener, accept_retry).await;
                Some((stream, listener))
            });
            Ok(Listener::new(local_address, incoming))
        })
    }
}

/// Listens on the first of these that can be had. `[::]` means every address that this machine has, of
/// both families: where IPv6 is switched off, that is every IPv4 address.
async fn bind(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    let error = match TcpListener::bind(addresses).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    // Switched off at boot the family is unknown; switched off later it has no addresses.
    let is_off = error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
    match addresses {
        [any] if is_off && any.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, any.port())).await
        }
        _ => Err(error),
    }
}

/// The next connection. Accepting fails for reasons that pass (no file descriptors left, the peer hung up
/// already): it is retried, because a node that stopped listening would look dead for ever.
async fn accept(listener: &TcpListener, retry: Duration) -> ByteStream {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%remote, %error, "connection was gone before it was set up");
                    continue;
                }
                return ByteStream::new(stream, remote.to_string());
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(retry).await;
            }
        }
    }
}

/// The same addresses, with IPv4 and IPv6 taking turns, beginning with the family of the first.
fn alternate_families(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let total = found.len();
    let first_is_v4 = found.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|address| address.is_ipv4() == first_is_v4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut mixed = Vec::with_capacity(total);
    while mixed.len() < total {
        mixed.extend(first.next());
        mixed.extend(second.next());
    }
    mixed
}

/// Connects to whichever address answers first. Fails with the last failure when all have failed.
async fn race(addresses: Vec<SocketAddr>, stagger: Duration) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = None;
    let mut next_start = Instant::now();
    loop {
        tokio::select! {
            // A finished attempt first: it may spare us the next one.
            biased;
            Some(result) = attempts.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    failure = Some(error);
                    next_start = Instant::now();
                }
            },
            () = sleep_until(next_start), if waiting.len() > 0 => {
                attempts.extend(waiting.next().map(TcpStream::connect));
                next_start = Instant::now() + stagger;
            }
            else => return Err(failure.unwrap_or_else(|| io::ErrorKind::NotFound.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers what it is told to, and counts how often it was asked.
    #[derive(Default)]
    struct Script {
        answer: Mutex<Vec<SocketAddr>>,
        asked: Mutex<u32>,
    }

    impl Resolver for Script {
        fn resolve<'a>(
            &'a self,
            host: &'a str,
            _: u16,
        ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
            Box::pin(async move {
                if let Ok(ip) = host.parse() {
                    return Ok(vec![SocketAddr::new(ip, 0)]);
                }
                *self.asked.lock().unwrap() += 1;
                Ok(self.answer.lock().unwrap().clone())
            })
        }
    }

    fn parse(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    /// Greets whoever connects, so that a test knows whom it reached.
    async fn greeter(
        transport: &TcpTransport,
        greeting: &'static str,
    ) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let mut listener = transport.listen("127.0.0.1:0").await.unwrap();
        let address = parse(listener.local_address());
        let task = tokio::spawn(async move {
            while let Some(mut stream) = listener.next().await {
                let _ = stream.write_all(greeting.as_bytes()).await;
            }
        });
        (address, task)
    }

    async fn who_answers(transport: &TcpTransport) -> String {
        let mut stream = transport.dial("podkv-0.podkv.:2380").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn every_dial_resolves_afresh() {
        let script = Arc::new(Script::default());
        let transport = TcpTransport::with_resolver(TcpSettings::default(), script.clone());
        let (old, _old_task) = greeter(&transport, "old pod").await;
        let (new, _new_task) = greeter(&transport, "new pod").await;

        *script.answer.lock().unwrap() = vec![old];
        assert_eq!(who_answers(&transport).await, "old pod");
        *script.answer.lock().unwrap() = vec![new];
        assert_eq!(who_answers(&transport).await, "new pod");
        assert_eq!(*script.asked.lock().unwrap(), 2);
    }

    #[tokio::test]
    async fn a_refusing_address_is_passed_over() {
        let script = Arc::new(Script::default());
        let transport = TcpTransport::with_resolver(TcpSettings::default(), script.clone());
        let (alive, _task) = greeter(&transport, "alive").await;
        // Bound and not listening: refuses at once.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let refusing = closed.local_addr().unwrap();
        drop(closed);

        *script.answer.lock().unwrap() = vec![refusing, alive];
        assert_eq!(who_answers(&transport).await, "alive");
        *script.answer.lock().unwrap() = vec![refusing];
        let error = transport.dial("podkv-0:1").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        *script.answer.lock().unwrap() = vec![];
        let error = transport.dial("podkv-0:1").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn families_take_turns() {
        let found = ["[::1]:1", "[::2]:1", "[::3]:1", "127.0.0.1:1"]
            .map(parse)
            .to_vec();
        let mixed = ["[::1]:1", "127.0.0.1:1", "[::2]:1", "[::3]:1"]
            .map(parse)
            .to_vec();
        assert_eq!(alternate_families(found), mixed);
    }
}
