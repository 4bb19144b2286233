//! The simulated network: connections between hosts, as TCP makes them.
//!
//! Within a connection bytes arrive whole and in order, or the connection breaks: that is what TCP promises. So loss,
//! reordering and duplication are seen as they are seen above TCP: as delay, as connections that overtake each other,
//! and as calls that are sent again over a new connection.
//!
//! | what is done | what hosts see |
//! | --- | --- |
//! | [`Network::cut`] | nothing arrives in one direction; both sides think that they are connected |
//! | [`Network::slow`] | every message over a link takes longer, each by another time |
//! | [`Network::reset`] | the connections between two hosts break |
//! | [`Network::down`], quiet | the host lost its power: nothing is heard of it, until it is there again |
//! | [`Network::down`] | its process died: its connections are reset |

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::future::BoxFuture;
use futures_util::stream::unfold;
use podkv_client::{Connection, Dialer, Dialing};
use podkv_node::transport::{ByteStream, Listener, Transport};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

use super::clock::{Clock, nanos};
use super::trace::Trace;
use crate::history::Nanos;

/// What fits into one direction of a connection: about a socket's buffer.
const PIPE_BYTES: usize = 256 << 10;
/// How often a dial that hears nothing looks again.
const DIAL_AGAIN: Duration = Duration::from_millis(25);

/// How long a message takes, at least and at most.
pub type Delay = (Duration, Duration);

/// Within one data centre.
const NEAR: Delay = (Duration::from_micros(50), Duration::from_micros(1500));

/// Clones are the same network.
#[derive(Clone)]
pub struct Network(Arc<Shared>);

struct Shared {
    clock: Clock,
    trace: Trace,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    hosts: BTreeMap<String, Host>,
    listeners: BTreeMap<String, Bound>,
    connections: BTreeMap<u64, [End; 2]>,
    next: u64,
    /// What arrives when, and for whom.
    due: BTreeMap<(Nanos, u64), (u64, usize)>,
    messages: u64,
    cuts: BTreeMap<(String, String), ()>,
    slow: BTreeMap<(String, String), Delay>,
}

#[derive(Default)]
struct Host {
    life: u64,
    up: bool,
    /// Its kernel answers nothing, either.
    quiet: bool,
}

struct Bound {
    host: String,
    accept: mpsc::UnboundedSender<ByteStream>,
}

/// One side of a connection.
struct End {
    host: String,
    inbox: VecDeque<(Nanos, Message)>,
    inbox_bytes: usize,
    /// Nothing that was sent later arrives before this.
    last_due: Nanos,
    /// The connection is broken, as this side learns then.
    reset_at: Option<Nanos>,
    /// Nobody is here any more.
    gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum Message {
    Data(Bytes),
    End,
}

impl Network {
    pub fn new(seed: u64, clock: Clock, trace: Trace) -> Self {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            hosts: BTreeMap::new(),
            listeners: BTreeMap::new(),
            connections: BTreeMap::new(),
            next: 0,
            due: BTreeMap::new(),
            messages: 0,
            cuts: BTreeMap::new(),
            slow: BTreeMap::new(),
        };
        Self(Arc::new(Shared {
            clock,
            trace,
            state: Mutex::new(state),
        }))
    }

    /// Nothing in here panics while it is locked, but for a bug that ends the run anyway.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host comes up: what it has of the network in this life of it.
    pub fn up(&self, host: &str) -> Link {
        self.down(host, false);
        let mut state = self.state();
        let entry = state.hosts.entry(host.into()).or_default();
        entry.life += 1;
        entry.up = true;
        entry.quiet = false;
        let life = entry.life;
        // Whoever still speaks to its last life is told that there is no such connection.
        let now = self.0.clock.now();
        state.break_all(now, |one, other| {
            one.gone && one.host == host && !other.gone
        });
        Link {
            network: self.clone(),
            host: host.into(),
            life,
        }
    }

    /// A host's process ends; `quiet`: its power fails, so nobody is told.
    pub fn down(&self, host: &str, quiet: bool) {
        let now = self.0.clock.now();
        let mut state = self.state();
        let entry = state.hosts.entry(host.into()).or_default();
        if !entry.up {
            return;
        }
        entry.up = false;
        entry.quiet = quiet;
        state.listeners.retain(|_, bound| bound.host != host);
        if !quiet {
            state.break_all(now, |one, _| one.host == host);
        }
        for ends in state.connections.values_mut() {
            for end in ends.iter_mut().filter(|end| end.host == host) {
                end.gone = true;
                end.wake();
            }
        }
    }

    /// Nothing from `from` arrives at `to`.
    pub fn cut(&self, from: &str, to: &str) {
        self.state().cuts.insert((from.into(), to.into()), ());
    }

    pub fn mend(&self, from: &str, to: &str) {
        let mut state = self.state();
        state.cuts.remove(&(from.into(), to.into()));
        state.wake_all();
    }

    /// From now on messages from `from` to `to` take as long as `delay` says.
    pub fn slow(&self, from: &str, to: &str, delay: Option<Delay>) {
        let link = (from.to_owned(), to.to_owned());
        let mut state = self.state();
        match delay {
            Some(delay) => state.slow.insert(link, delay),
            None => state.slow.remove(&link),
        };
    }

    /// Breaks the connections between two hosts.
    pub fn reset(&self, a: &str, b: &str) {
        let now = self.0.clock.now();
        self.state()
            .break_all(now, |one, other| one.host == a && other.host == b);
    }

    /// Everything works again.
    pub fn heal(&self) {
        let mut state = self.state();
        state.cuts.clear();
        state.slow.clear();
        state.wake_all();
    }

    /// Wakes whoever waits for what arrives now.
    pub fn deliver(&self) {
        let now = self.0.clock.now();
        let mut state = self.state();
        while let Some(first) = state.due.first_entry()
            && first.key().0 <= now
        {
            let (connection, side) = first.remove();
            if let Some(ends) = state.connections.get_mut(&connection) {
                ends[side].wake();
            }
        }
    }

    fn connect(&self, from: &str, to: &str) -> (Pipe, Pipe) {
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        let end = |host: &str| End {
            host: host.into(),
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            last_due: 0,
            reset_at: None,
            gone: false,
            reader: None,
            writer: None,
        };
        state.connections.insert(id, [end(from), end(to)]);
        let pipe = |side| Pipe {
            network: self.clone(),
            id,
            side,
        };
        (pipe(0), pipe(1))
    }
}

impl State {
    fn is_cut(&self, from: &str, to: &str) -> bool {
        !self.cuts.is_empty() && self.cuts.contains_key(&(from.into(), to.into()))
    }

    fn delay(&mut self, from: &str, to: &str) -> Duration {
        let link = (from.to_owned(), to.to_owned());
        let (least, most) = self.slow.get(&link).copied().unwrap_or(NEAR);
        self.rng.random_range(least..=most)
    }

    fn wake_all(&mut self) {
        for end in self.connections.values_mut().flatten() {
            end.wake();
        }
    }

    /// Tells the other side of those ends that the connection is broken.
    fn break_all(&mut self, now: Nanos, which: impl Fn(&End, &End) -> bool) {
        let mut broken = Vec::new();
        for (id, [a, b]) in &self.connections {
            if which(a, b) || which(b, a) {
                broken.push(*id);
            }
        }
        for id in broken {
            let Some([a, b]) = self.connections.get(&id) else {
                continue;
            };
            let (a, b) = (a.host.clone(), b.host.clone());
            for (side, (from, to)) in [(0, (&b, &a)), (1, (&a, &b))] {
                let at = now + nanos(self.delay(from, to));
                self.messages += 1;
                self.due.insert((at, self.messages), (id, side));
                if let Some(ends) = self.connections.get_mut(&id) {
                    ends[side].reset_at.get_or_insert(at);
                }
            }
        }
    }

    /// Sends a message to `side` of a connection.
    fn send(&mut self, now: Nanos, id: u64, side: usize, message: Message) {
        let Some(ends) = self.connections.get(&id) else {
            return;
        };
        let (from, to) = (ends[1 - side].host.clone(), ends[side].host.clone());
        let at = now + nanos(self.delay(&from, &to));
        self.messages += 1;
        let number = self.messages;
        let Some(ends) = self.connections.get_mut(&id) else {
            return;
        };
        let end = &mut ends[side];
        let at = at.max(end.last_due);
        end.last_due = at;
        if let Message::Data(data) = &message {
            end.inbox_bytes += data.len();
        }
        end.inbox.push_back((at, message));
        self.due.insert((at, number), (id, side));
    }
}

impl End {
    fn wake(&mut self) {
        let wakers = [self.reader.take(), self.writer.take()];
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// One host's way to the network, for one life of it.
#[derive(Clone)]
pub struct Link {
    network: Network,
    host: String,
    life: u64,
}

/// What a dial meets.
enum Met {
    Nobody,
    Refused(&'static str),
    Accepted(Pipe),
}

impl Link {
    async fn dial_to(&self, address: String) -> io::Result<Pipe> {
        loop {
            let delay = {
                let mut state = self.network.state();
                state.delay(&self.host, &self.host)
            };
            tokio::time::sleep(2 * delay).await;
            match self.meet(&address) {
                Met::Accepted(pipe) => return Ok(pipe),
                Met::Refused(why) => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionRefused, why));
                }
                Met::Nobody => tokio::time::sleep(DIAL_AGAIN).await,
            }
        }
    }

    fn is_alive(&self, state: &State) -> bool {
        let host = state.hosts.get(&self.host);
        host.is_some_and(|host| host.up && host.life == self.life)
    }

    fn meet(&self, address: &str) -> Met {
        let target = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let accept = {
            let state = self.network.state();
            if !self.is_alive(&state) {
                return Met::Refused("this host is down");
            }
            let both = state.is_cut(&self.host, target) || state.is_cut(target, &self.host);
            if both || state.hosts.get(target).is_none_or(|host| host.quiet) {
                return Met::Nobody;
            }
            match state.listeners.get(address) {
                Some(bound) => bound.accept.clone(),
                None => return Met::Refused("nobody listens there"),
            }
        };
        let (near, far) = self.network.connect(&self.host, target);
        let id = near.id;
        self.network
            .0
            .trace
            .note(format_args!("connect {id} {} {address}", self.host), &[]);
        match accept.send(ByteStream::new(far, self.host.clone())) {
            Ok(()) => Met::Accepted(near),
            Err(_) => Met::Refused("nobody listens there"),
        }
    }

    fn bind(&self, address: &str) -> io::Result<Listener> {
        let (accept, incoming) = mpsc::unbounded_channel();
        let mut state = self.network.state();
        if !self.is_alive(&state) {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "this host is down",
            ));
        }
        let bound = Bound {
            host: self.host.clone(),
            accept,
        };
        state.listeners.insert(address.to_owned(), bound);
        drop(state);
        let incoming = unfold(incoming, |mut incoming| async move {
            incoming.recv().await.map(|stream| (stream, incoming))
        });
        Ok(Listener::new(address.to_owned(), incoming))
    }
}

impl Transport for Link {
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<ByteStream>> {
        Box::pin(async move {
            let pipe = self.dial_to(address.to_owned()).await?;
            Ok(ByteStream::new(pipe, address))
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Listener>> {
        Box::pin(std::future::ready(self.bind(address)))
    }
}

impl Dialer for Link {
    fn dial(&self, address: &str) -> Dialing {
        let (link, address) = (self.clone(), address.to_owned());
        let dial = async move {
            let pipe = link.dial_to(address).await?;
            Ok(Box::new(pipe) as Box<dyn Connection>)
        };
        Box::pin(dial) as Pin<Box<dyn Future<Output = _> + Send>>
    }
}

/// One end of a connection.
struct Pipe {
    network: Network,
    id: u64,
    side: usize,
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &self.network.0;
        let now = shared.clock.now();
        let mut guard = self.network.state();
        let state = &mut *guard;
        let Some(ends) = state.connections.get(&self.id) else {
            return Poll::Ready(Err(broken()));
        };
        let cut = state.is_cut(&ends[1 - self.side].host, &ends[self.side].host);
        let Some(ends) = state.connections.get_mut(&self.id) else {
            return Poll::Ready(Err(broken()));
        };
        let end = &mut ends[self.side];
        if end.gone || (!cut && end.reset_at.is_some_and(|at| at <= now)) {
            return Poll::Ready(Err(broken()));
        }
        let before = buffer.filled().len();
        while !cut
            && buffer.remaining() > 0
            && let Some((due, message)) = end.inbox.front_mut()
            && *due <= now
        {
            let Message::Data(data) = message else {
                // It stays: whoever reads on reads the end again.
                break;
            };
            let part = data.len().min(buffer.remaining());
            buffer.put_slice(&data[..part]);
            data.advance(part);
            end.inbox_bytes -= part;
            if data.is_empty() {
                end.inbox.pop_front();
            }
        }
        let at_end = matches!(end.inbox.front(), Some((due, Message::End)) if !cut && *due <= now);
        let read = &buffer.filled()[before..];
        if read.is_empty() && !at_end && buffer.remaining() > 0 {
            end.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if !read.is_empty() {
            let (id, side) = (self.id, self.side);
            shared
                .trace
                .note(format_args!("read {id}.{side} {}", read.len()), read);
            if let Some(writer) = ends[1 - self.side].writer.take() {
                writer.wake();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let now = self.network.0.clock.now();
        let mut state = self.network.state();
        let Some(ends) = state.connections.get_mut(&self.id) else {
            return Poll::Ready(Err(broken()));
        };
        let (mine, theirs) = (self.side, 1 - self.side);
        if ends[mine].gone || ends[mine].reset_at.is_some_and(|at| at <= now) {
            return Poll::Ready(Err(broken()));
        }
        let room = PIPE_BYTES.saturating_sub(ends[theirs].inbox_bytes);
        if room == 0 {
            ends[mine].writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let part = bytes.len().min(room);
        let data = Bytes::copy_from_slice(&bytes[..part]);
        state.send(now, self.id, theirs, Message::Data(data));
        Poll::Ready(Ok(part))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = self.network.0.clock.now();
        let mut state = self.network.state();
        state.send(now, self.id, 1 - self.side, Message::End);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let now = self.network.0.clock.now();
        let mut state = self.network.state();
        let Some(ends) = state.connections.get_mut(&self.id) else {
            return;
        };
        let was_gone = std::mem::replace(&mut ends[self.side].gone, true);
        if ends[1 - self.side].gone {
            state.connections.remove(&self.id);
        } else if !was_gone {
            // As a kernel does for a socket that is closed: what was sent arrives, then nobody is there.
            state.send(now, self.id, 1 - self.side, Message::End);
            let host = ends_host(&state, self.id, self.side);
            let other = ends_host(&state, self.id, 1 - self.side);
            let later = now + 2 * nanos(state.delay(&host, &other)) + nanos(super::clock::TICK);
            state.messages += 1;
            let number = state.messages;
            state.due.insert((later, number), (self.id, 1 - self.side));
            if let Some(ends) = state.connections.get_mut(&self.id) {
                let end = &mut ends[1 - self.side];
                let later = later.max(end.last_due + 1);
                end.reset_at.get_or_insert(later);
            }
        }
    }
}

fn ends_host(state: &State, id: u64, side: usize) -> String {
    let ends = state.connections.get(&id);
    ends.map_or_else(String::new, |ends| ends[side].host.clone())
}
