//! Pipes inside one process, in place of a network that can be broken at will.
//!
//! A [`Hub`] is the network. [`Hub::attach`] gives the node at an address its transport.
//!
//! | on the hub | what the nodes see | on a real network |
//! | --- | --- | --- |
//! | [`cut`](Hub::cut)`(a, b)` | bytes from a to b stay on the way; a's buffer fills up; dials hang | packets are dropped |
//! | [`heal`](Hub::heal)`(a, b)` | what was on the way arrives | packets flow again, TCP resends |
//! | [`kill`](Hub::kill)`(a)` | connections of a are reset, dials are refused, a's old handle is dead | `kill -9` |
//! | [`attach`](Hub::attach)`(a)` | a new life at the address; the handle of the old one is dead | the process starts again |
//!
//! A cut has a direction: `a → b` alone is the half-open link that real clusters meet.
//! Bytes are never lost, reordered or changed: that is what TCP promises, too.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use futures_util::future::BoxFuture;
use futures_util::stream::unfold;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::sync::{mpsc, watch};

use super::{ByteStream, Listener, Transport, split_address};

/// Bytes that fit into one direction of a connection: about a socket's buffer.
const PIPE_BYTES: usize = 256 << 10;

/// Connections that may wait to be accepted: a listen queue. More dials wait.
const BACKLOG: usize = 128;

/// A network inside the process. Clones are the same network.
#[derive(Clone, Default)]
pub struct Hub {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    network: Mutex<Network>,
    /// Told whenever the network changes: dials that hang look again.
    changed: watch::Sender<()>,
}

/// Ordered maps, so that a simulation which walks them does the same each time.
#[derive(Default)]
struct Network {
    /// How often each address has come to life.
    lives: BTreeMap<String, u64>,
    /// Addresses that have been killed and not attached again.
    dead: BTreeSet<String>,
    listeners: BTreeMap<String, mpsc::Sender<ByteStream>>,
    /// (from, to): bytes in this direction do not arrive.
    cuts: BTreeSet<(String, String)>,
    ends: Vec<Weak<End>>,
    next_port: u16,
}

impl Hub {
    pub fn new() -> Self {
        Self::default()
    }

    /// The transport of the node at `address`, for one life of it. A handle from before is dead from now on.
    pub fn attach(&self, address: impl Into<String>) -> MemoryTransport {
        let address = address.into();
        self.kill(&address);
        let mut network = self.shared.network();
        network.dead.remove(&address);
        let life = network.lives.entry(address.clone()).or_default();
        *life += 1;
        MemoryTransport {
            shared: self.shared.clone(),
            life: *life,
            address,
        }
    }

    /// Ends the node at `address`: resets its connections, stops its listener, kills its handle.
    pub fn kill(&self, address: &str) {
        let mut network = self.shared.network();
        network.dead.insert(address.into());
        network.listeners.remove(address);
        network.each_end(|end| {
            if end.local == address || end.remote == address {
                end.change(|state| state.reset = true);
            }
        });
        drop(network);
        self.shared.changed.send_replace(());
    }

    /// Holds back every byte from `from` to `to`. Connections stay open.
    pub fn cut(&self, from: &str, to: &str) {
        self.set_link(from, to, true);
    }

    /// Both directions.
    pub fn cut_both(&self, a: &str, b: &str) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Lets bytes pass again, those that were held back first.
    pub fn heal(&self, from: &str, to: &str) {
        self.set_link(from, to, false);
    }

    /// Both directions.
    pub fn heal_both(&self, a: &str, b: &str) {
        self.heal(a, b);
        self.heal(b, a);
    }

    /// Every link.
    pub fn heal_all(&self) {
        let mut network = self.shared.network();
        network.cuts.clear();
        network.each_end(|end| end.change(|state| state.cut = false));
        drop(network);
        self.shared.changed.send_replace(());
    }

    fn set_link(&self, from: &str, to: &str, cut: bool) {
        let mut network = self.shared.network();
        let link = (from.to_string(), to.to_string());
        if cut {
            network.cuts.insert(link);
        } else {
            network.cuts.remove(&link);
        }
        network.each_end(|end| {
            if end.remote == from && end.local == to {
                end.change(|state| state.cut = cut);
            }
        });
        drop(network);
        self.shared.changed.send_replace(());
    }
}

impl Shared {
    /// A panic while this was locked cannot have left it half changed in a way that matters to a test.
    fn network(&self) -> MutexGuard<'_, Network> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network {
    fn is_alive(&self, address: &str, life: u64) -> bool {
        !self.dead.contains(address) && self.lives.get(address) == Some(&life)
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.cuts.contains(&(from.to_string(), to.to_string()))
    }

    fn each_end(&mut self, mut visit: impl FnMut(&End)) {
        self.ends.retain(|end| match end.upgrade() {
            Some(end) => {
                visit(&end);
                true
            }
            None => false,
        });
    }

    /// Two ends of a new connection: the dialer's, and the listener's.
    fn connect(&mut self, dialer: &str, listener: &str) -> (ByteStream, ByteStream) {
        let (near, far) = duplex(PIPE_BYTES);
        let near = self.end(near, dialer, listener);
        let far = self.end(far, listener, dialer);
        (near, far)
    }

    fn end(&mut self, pipe: DuplexStream, local: &str, remote: &str) -> ByteStream {
        let state = EndState {
            cut: self.is_cut(remote, local),
            ..EndState::default()
        };
        let end = Arc::new(End {
            local: local.into(),
            remote: remote.into(),
            state: Mutex::new(state),
        });
        self.each_end(|_| ());
        self.ends.push(Arc::downgrade(&end));
        ByteStream::new(Pipe { pipe, end }, remote)
    }
}

/// One node's hold on a [`Hub`].
pub struct MemoryTransport {
    shared: Arc<Shared>,
    address: String,
    life: u64,
}

/// What a dial meets when it looks at the network.
enum Way {
    Open(mpsc::Sender<ByteStream>),
    /// Packets are dropped: only time will tell.
    Cut,
    Refused(io::Error),
}

impl MemoryTransport {
    fn look(&self, to: &str) -> Way {
        let network = self.shared.network();
        if !network.is_alive(&self.address, self.life) {
            return Way::Refused(dead(&self.address));
        }
        // The answer to the first packet has to come back, too.
        if network.is_cut(&self.address, to) || network.is_cut(to, &self.address) {
            return Way::Cut;
        }
        match network.listeners.get(to) {
            Some(listener) if !listener.is_closed() => Way::Open(listener.clone()),
            _ => Way::Refused(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("nobody listens at {to}"),
            )),
        }
    }

    async fn connect(&self, to: &str) -> io::Result<ByteStream> {
        split_address(to)?;
        let mut changed = self.shared.changed.subscribe();
        loop {
            let listener = match self.look(to) {
                Way::Open(listener) => listener,
                Way::Refused(error) => return Err(error),
                Way::Cut => {
                    // The sender lives in `self.shared`.
                    let _ = changed.changed().await;
                    continue;
                }
            };
            let Ok(place) = listener.reserve().await else {
                continue;
            };
            // The network may have changed while we waited for a place in the queue.
            if !matches!(self.look(to), Way::Open(_)) {
                continue;
            }
            let (near, far) = self.shared.network().connect(&self.address, to);
            place.send(far);
            return Ok(near);
        }
    }

    fn bind(&self, address: &str) -> io::Result<Listener> {
        let (host, port) = split_address(address)?;
        let mut network = self.shared.network();
        if !network.is_alive(&self.address, self.life) {
            return Err(dead(&self.address));
        }
        let address = if port == 0 {
            network.next_port += 1;
            format!("{host}:{}", network.next_port)
        } else {
            address.to_string()
        };
        let taken = network
            .listeners
            .get(&address)
            .is_some_and(|listener| !listener.is_closed());
        if taken {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{address} is in use"),
            ));
        }
        let (sender, receiver) = mpsc::channel(BACKLOG);
        network.listeners.insert(address.clone(), sender);
        let incoming = unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|stream| (stream, receiver))
        });
        Ok(Listener::new(address, incoming))
    }
}

impl Transport for MemoryTransport {
    /// Hangs while the link is cut in either direction: the caller brings the timeout.
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<ByteStream>> {
        Box::pin(self.connect(address))
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Listener>> {
        Box::pin(async move { self.bind(address) })
    }
}

fn dead(address: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        format!("the node at {address} was killed"),
    )
}

/// What the hub can do to one end of a connection.
struct End {
    local: String,
    remote: String,
    state: Mutex<EndState>,
}

#[derive(Default)]
struct EndState {
    /// Nothing arrives here.
    cut: bool,
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl End {
    fn state(&self) -> MutexGuard<'_, EndState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes both tasks, so that they meet it.
    fn change(&self, change: impl FnOnce(&mut EndState)) {
        let mut state = self.state();
        change(&mut state);
        let wakers = [state.reader.take(), state.writer.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// May bytes be read now? Remembers the task either way: a cut or reset may come while it waits.
    fn poll_readable(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        if state.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        state.reader = Some(cx.waker().clone());
        if state.cut {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }

    fn check_writable(&self, cx: &Context<'_>) -> io::Result<()> {
        let mut state = self.state();
        if state.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        state.writer = Some(cx.waker().clone());
        Ok(())
    }
}

/// One end of a connection.
struct Pipe {
    pipe: DuplexStream,
    end: Arc<End>,
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.end.poll_readable(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.pipe).poll_read(cx, buffer),
            waiting_or_reset => waiting_or_reset,
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.end.check_writable(cx)?;
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.end.check_writable(cx)?;
        Pin::new(&mut self.pipe).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.pipe.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end.check_writable(cx)?;
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const A: &str = "a-0:1";
    const B: &str = "b-0:1";

    /// A connection from A to B: the hub, A's end, B's end.
    async fn connected() -> (Hub, MemoryTransport, ByteStream, ByteStream) {
        let hub = Hub::new();
        let (a, b) = (hub.attach(A), hub.attach(B));
        let mut listener = b.listen(B).await.unwrap();
        let near = a.dial(B).await.unwrap();
        let far = listener.next().await.unwrap();
        (hub, a, near, far)
    }

    /// Reads one byte if there is one now.
    fn read_now(stream: &mut ByteStream) -> Option<io::Result<u8>> {
        stream.read_u8().now_or_never()
    }

    #[tokio::test]
    async fn a_cut_holds_bytes_back_in_one_direction() {
        let (hub, _a, mut near, mut far) = connected().await;
        hub.cut(A, B);
        near.write_all(b"1").await.unwrap();
        far.write_all(b"2").await.unwrap();
        assert!(read_now(&mut far).is_none());
        assert_eq!(near.read_u8().await.unwrap(), b'2');

        hub.heal(A, B);
        assert_eq!(far.read_u8().await.unwrap(), b'1');
    }

    #[tokio::test]
    async fn a_cut_wakes_nobody_and_a_heal_wakes_the_reader() {
        let (hub, _a, mut near, mut far) = connected().await;
        let reader = tokio::spawn(async move { far.read_u8().await });
        tokio::task::yield_now().await;
        hub.cut(A, B);
        near.write_all(b"1").await.unwrap();
        tokio::task::yield_now().await;
        assert!(!reader.is_finished());
        hub.heal_all();
        assert_eq!(reader.await.unwrap().unwrap(), b'1');
    }

    #[tokio::test]
    async fn a_hung_up_connection_is_noticed_only_through_an_open_link() {
        let (hub, _a, near, mut far) = connected().await;
        hub.cut(A, B);
        drop(near);
        assert!(read_now(&mut far).is_none());
        hub.heal(A, B);
        let error = far.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn buffers_are_bounded() {
        let (hub, _a, mut near, _far) = connected().await;
        hub.cut(A, B);
        let write = async {
            near.write_all(&vec![0; PIPE_BYTES]).await.unwrap();
            near.write_all(b"one more").await
        };
        assert!(write.now_or_never().is_none());
    }

    #[tokio::test]
    async fn killing_resets_refuses_and_ends_the_old_handle() {
        let (hub, a, mut near, mut far) = connected().await;
        let reader = tokio::spawn(async move { near.read_u8().await });
        tokio::task::yield_now().await;
        hub.kill(B);
        let error = reader.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(
            far.write_all(b"1").await.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        assert_eq!(
            a.dial(B).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );

        hub.kill(A);
        let _second_life = hub.attach(A);
        assert_eq!(
            a.dial(B).await.unwrap_err().kind(),
            io::ErrorKind::NotConnected
        );
        assert_eq!(
            a.listen(A).await.unwrap_err().kind(),
            io::ErrorKind::NotConnected
        );
    }

    #[tokio::test]
    async fn a_dial_over_a_cut_link_hangs_until_it_heals() {
        for (from, to) in [(A, B), (B, A)] {
            let hub = Hub::new();
            let (a, b) = (hub.attach(A), hub.attach(B));
            let _listener = b.listen(B).await.unwrap();
            hub.cut(from, to);
            let mut dial = tokio::spawn(async move { a.dial(B).await });
            assert!((&mut dial).now_or_never().is_none());
            tokio::task::yield_now().await;
            assert!(!dial.is_finished());
            hub.heal(from, to);
            dial.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn an_address_is_taken_until_its_listener_is_dropped() {
        let hub = Hub::new();
        let a = hub.attach(A);
        let listener = a.listen(A).await.unwrap();
        assert_eq!(
            a.listen(A).await.unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(listener);
        let error = a.dial(A).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        a.listen(A).await.unwrap();
        let any = a.listen("a-0:0").await.unwrap();
        assert_ne!(any.local_address(), "a-0:0");
    }
}
