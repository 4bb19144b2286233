//! How many bytes of answers one connection may make a node hold.
//!
//! HTTP/2 stops what a client does not read, but only once the answer is made: thousands of calls at once, each
//! answered with megabytes, are gigabytes that wait. So a call whose answer may be large first takes the most that it
//! can be from the room of its connection, and what it did not need goes back:
//!
//! ```text
//!   call ──► reserve (waits for room) ──► read ──► answer ──► its bytes ──► sent, or the client is gone
//!             most that it can be                    └─ the rest goes back      └─ they go back
//! ```
//!
//! A client that reads never notices. One that does not waits for itself, and holds up no other connection.
//!
//! An answer of the etcd API may be larger than what was reserved for it: etcd's clients cannot read in parts. What it has
//! beyond that comes from one hall for all connections. It takes the most that it can need at once, and gives back what
//! it did not when that is known: who took it step by step could wait for others that wait for it. Twice, because the
//! message and its bytes are both there while it is encoded.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::Request as HttpRequest;
use hyper::Response as HttpResponse;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::service::Service;
use podkv_api::{Error, Reason, Result};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tonic::{Extensions, Request, Response};

use crate::unfinished::{Counted, Unfinished};

/// What a part of a streamed answer is at most, with what is encoded of it.
pub(crate) const STREAM_BYTES: usize = 1 << 20;

/// Smaller answers are not worth the account: all streams of a connection together have some megabytes of them.
const SMALL_BYTES: usize = 4096;

/// The room of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    bytes: usize,
    free: Arc<Semaphore>,
    /// One answer at a time may be larger than what was reserved for it.
    larger: Arc<Semaphore>,
    hall: Hall,
}

/// What all connections share, for answers that are larger than what was reserved in their rooms.
#[derive(Clone, Debug)]
pub(crate) struct Hall {
    bytes: usize,
    free: Arc<Semaphore>,
}

impl Hall {
    pub fn new(bytes: usize) -> Self {
        // Beyond 4 GiB it would bound nothing anyway.
        let bytes = bytes.min(u32::MAX as usize);
        Self {
            bytes,
            free: Arc::new(Semaphore::new(bytes)),
        }
    }

    /// Waits until there is room for `bytes`; more than all there is is all there is.
    async fn reserve(&self, bytes: usize, timeout: Duration) -> Result<OwnedSemaphorePermit> {
        let taken = self
            .free
            .clone()
            .acquire_many_owned(permits(bytes, self.bytes));
        match tokio::time::timeout(timeout, taken).await {
            Ok(Ok(permit)) => Ok(permit),
            // It is never closed; were it, nothing more should be answered.
            Ok(Err(_)) | Err(_) => {
                let text = format!(
                    "large answers have {} bytes for all connections together, and others are made or not read yet: try \
                     again later, or ask with a limit",
                    self.bytes
                );
                Err(Error::new(Reason::Overloaded, text))
            }
        }
    }
}

fn permits(bytes: usize, all: usize) -> u32 {
    // `all` is bounded by u32.
    u32::try_from(bytes.min(all)).unwrap_or(u32::MAX)
}

/// What a call took of its connection's room. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    room: Room,
    permit: OwnedSemaphorePermit,
    larger: Option<Larger>,
}

/// What an answer took that is larger than what was reserved for it.
#[derive(Debug)]
struct Larger {
    _turn: OwnedSemaphorePermit,
    hall: OwnedSemaphorePermit,
}

impl Room {
    pub fn new(bytes: usize, hall: Hall) -> Self {
        // Beyond 4 GiB it would bound nothing anyway.
        let bytes = bytes.min(u32::MAX as usize);
        Self {
            bytes,
            free: Arc::new(Semaphore::new(bytes)),
            larger: Arc::new(Semaphore::new(1)),
            hall,
        }
    }

    /// Waits until there is room for an answer of up to `bytes`; more than all there is is all there is.
    async fn reserve(&self, bytes: usize, timeout: Duration) -> Result<Reserved> {
        let permits = permits(bytes, self.bytes);
        let taken = self.free.clone().acquire_many_owned(permits);
        let permit = self.in_time(taken, timeout).await?;
        Ok(Reserved {
            room: self.clone(),
            permit,
            larger: None,
        })
    }

    async fn in_time(
        &self,
        taken: impl Future<Output = std::result::Result<OwnedSemaphorePermit, AcquireError>>,
        timeout: Duration,
    ) -> Result<OwnedSemaphorePermit> {
        let unread = || {
            let text = format!(
                "this connection has {} bytes of answers that are made or not read yet, and no more are allowed: read \
                 them first",
                self.bytes
            );
            Error::new(Reason::Overloaded, text)
        };
        match tokio::time::timeout(timeout, taken).await {
            Ok(Ok(permit)) => Ok(permit),
            // It is never closed; were it, nothing more should be answered.
            Ok(Err(_)) | Err(_) => Err(unread()),
        }
    }
}

impl Reserved {
    pub fn bytes(&self) -> usize {
        self.permit.num_permits()
    }

    /// The answer is larger than what was reserved, and may have up to `most` bytes. Waits until no other of this connection
    /// is, and until there is room for it among those of all connections.
    pub async fn outgrow(&mut self, most: usize, timeout: Duration) -> Result<()> {
        if self.larger.is_some() {
            return Ok(());
        }
        let turn = self.room.larger.clone().acquire_owned();
        let turn = self.room.in_time(turn, timeout).await?;
        let beyond = 2 * most - self.bytes().min(most);
        self.larger = Some(Larger {
            _turn: turn,
            hall: self.room.hall.reserve(beyond, timeout).await?,
        });
        Ok(())
    }

    /// The answer is made, and will have `bytes`; while it is encoded it is there twice.
    pub fn made(&mut self, bytes: usize) {
        self.shrink_hall(2 * bytes);
    }

    /// Gives back what an answer of `bytes` does not need.
    fn shrink(&mut self, bytes: usize) {
        let surplus = self.permit.num_permits().saturating_sub(bytes);
        drop(self.permit.split(surplus));
        if bytes <= self.permit.num_permits() {
            self.larger = None;
        }
        self.shrink_hall(bytes);
    }

    fn shrink_hall(&mut self, bytes: usize) {
        let beyond = bytes.saturating_sub(self.permit.num_permits());
        if let Some(larger) = &mut self.larger {
            let surplus = larger.hall.num_permits().saturating_sub(beyond);
            drop(larger.hall.split(surplus));
        }
    }
}

/// Reserves room for the answer to `request`; nothing where a connection has no bounds: in somebody else's server.
pub(crate) async fn reserve<T>(
    request: &Request<T>,
    bytes: usize,
    timeout: Duration,
) -> Result<Option<Reserved>> {
    match request.extensions().get::<Room>() {
        Some(room) => room.reserve(bytes, timeout).await.map(Some),
        None => Ok(None),
    }
}

/// What is on its way from a handler to [`hold`]; extensions must be clonable.
#[derive(Clone)]
struct Attached(Arc<Reserved>, Until);

#[derive(Clone, Copy)]
enum Until {
    /// The one message is sent.
    Sent,
    /// The stream has ended.
    Ended,
}

/// Ties what was reserved to a unary answer.
pub(crate) fn attach<T>(answer: T, reserved: Option<Reserved>) -> Response<T> {
    attached(answer, reserved, Until::Sent)
}

/// The same for a stream: it holds what it reserved until its end.
pub(crate) fn attach_stream<T>(stream: T, reserved: Option<Reserved>) -> Response<T> {
    attached(stream, reserved, Until::Ended)
}

fn attached<T>(answer: T, reserved: Option<Reserved>, until: Until) -> Response<T> {
    let mut response = Response::new(answer);
    if let Some(reserved) = reserved {
        let extensions = response.extensions_mut();
        extensions.insert(Attached(Arc::new(reserved), until));
    }
    response
}

/// Moves what a handler attached from one response to another that is made of it.
pub(crate) fn pass_on(from: &mut Extensions, to: &mut Extensions) {
    if let Some(attached) = from.remove::<Attached>() {
        to.insert(attached);
    }
}

/// Ties what a handler reserved to the bytes of its answer.
pub(crate) fn hold(mut response: HttpResponse<Body>) -> HttpResponse<Body> {
    let Some(Attached(reserved, until)) = response.extensions_mut().remove::<Attached>() else {
        return response;
    };
    let reserved = Arc::into_inner(reserved);
    response.map(|inner| {
        Body::new(Held {
            inner,
            reserved,
            until,
        })
    })
}

struct Held {
    inner: Body,
    reserved: Option<Reserved>,
    until: Until,
}

impl Held {
    fn hold(&mut self, data: Bytes) -> Bytes {
        if matches!(self.until, Until::Ended) {
            return data;
        }
        let Some(mut reserved) = self.reserved.take() else {
            return data;
        };
        if data.len() <= SMALL_BYTES {
            return data;
        }
        reserved.shrink(data.len());
        Bytes::from_owner(Weighed {
            data,
            _reserved: reserved,
        })
    }
}

/// Bytes of an answer, wherever they wait.
struct Weighed {
    data: Bytes,
    _reserved: Reserved,
}

impl AsRef<[u8]> for Weighed {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        polled.map_ok(|frame| match frame.into_data() {
            Ok(data) => Frame::data(self.hold(data)),
            Err(frame) => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The service of one connection: its calls share its room, and what they may leave unfinished.
#[derive(Clone, Debug)]
pub(crate) struct InRoom<S> {
    service: S,
    room: Room,
    unfinished: Unfinished,
}

impl<S> InRoom<S> {
    pub fn new(service: S, room: Room, unfinished: Unfinished) -> Self {
        Self {
            service,
            room,
            unfinished,
        }
    }
}

impl<S: Service<HttpRequest<Counted>>> Service<HttpRequest<Incoming>> for InRoom<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: HttpRequest<Incoming>) -> S::Future {
        let (mut head, body) = request.into_parts();
        let body = self.unfinished.count(&head.headers, body);
        head.extensions.insert(self.room.clone());
        self.service.call(HttpRequest::from_parts(head, body))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3600);

    fn answer(bytes: usize, reserved: Reserved) -> HttpResponse<Body> {
        let mut response = attach((), Some(reserved));
        let body = Full::new(Bytes::from(vec![1; bytes]));
        let mut http = HttpResponse::new(Body::new(body));
        pass_on(response.extensions_mut(), http.extensions_mut());
        hold(http)
    }

    #[tokio::test]
    async fn an_answer_gives_back_what_it_did_not_need_and_the_rest_when_its_bytes_are_gone() {
        let room = Room::new(100_000, Hall::new(1_000_000));
        let free = || room.free.available_permits();
        let reserved = room.reserve(80_000, PATIENCE).await.unwrap();
        let mut body = answer(30_000, reserved).into_body();
        assert_eq!(free(), 20_000, "nobody has asked for it yet");
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((frame.len(), free()), (30_000, 70_000));
        drop(body);
        let part = frame.slice(..10);
        drop(frame);
        assert_eq!(free(), 70_000, "a part of it still waits");
        drop(part);
        assert_eq!(free(), 100_000);
        let reserved = room.reserve(80_000, PATIENCE).await.unwrap();
        drop(answer(30_000, reserved));
        assert_eq!(free(), 100_000, "the client went away");
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_waits_for_it_and_then_is_told_why() {
        let room = Room::new(100, Hall::new(1000));
        let first = room.reserve(1000, PATIENCE).await.unwrap();
        assert_eq!(first.bytes(), 100, "more than all is all");
        let refused = room.reserve(1, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::Overloaded);
        assert!(!refused.outcome_unknown());
        let (next, ()) = tokio::join!(room.reserve(1, PATIENCE), async { drop(first) });
        assert!(next.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_answer_at_a_time_is_larger_than_what_was_reserved() {
        let room = Room::new(100_000, Hall::new(1_000_000));
        let mut first = room.reserve(10_000, PATIENCE).await.unwrap();
        let mut second = room.reserve(10_000, PATIENCE).await.unwrap();
        first.outgrow(60_000, PATIENCE).await.unwrap();
        first.outgrow(60_000, PATIENCE).await.unwrap();
        assert!(
            second
                .outgrow(60_000, Duration::from_secs(5))
                .await
                .is_err()
        );
        let mut body = answer(50_000, first).into_body();
        let frame = body.frame().await.unwrap().unwrap();
        assert!(
            second
                .outgrow(60_000, Duration::from_secs(5))
                .await
                .is_err()
        );
        drop(frame);
        second.outgrow(60_000, PATIENCE).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_outgrows_the_rooms_has_one_hall_for_all_connections() {
        let hall = Hall::new(200_000);
        let rooms = [(); 3].map(|()| Room::new(10_000, hall.clone()));
        let free = || hall.free.available_permits();
        let soon = Duration::from_secs(5);
        let mut first = rooms[0].reserve(10_000, PATIENCE).await.unwrap();
        first.outgrow(100_000, PATIENCE).await.unwrap();
        assert_eq!(free(), 10_000, "twice the most, but for its own room");
        let mut second = rooms[1].reserve(10_000, PATIENCE).await.unwrap();
        let refused = second.outgrow(100_000, soon).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::Overloaded);
        assert!(!refused.outcome_unknown());
        // It is refused, and its connection may try again.
        assert_eq!(rooms[1].larger.available_permits(), 1);
        first.made(50_000);
        assert_eq!(free(), 110_000, "twice what it is");
        let mut body = answer(50_000, first).into_body();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(free(), 160_000, "the message is gone, its bytes are there");
        assert!(second.outgrow(100_000, soon).await.is_err());
        let (taken, ()) = tokio::join!(second.outgrow(100_000, PATIENCE), async { drop(frame) });
        taken.unwrap();
        drop(second);
        assert_eq!(free(), 200_000);
        // More than all there is is all there is.
        let mut third = rooms[2].reserve(10_000, PATIENCE).await.unwrap();
        third.outgrow(1_000_000, PATIENCE).await.unwrap();
        assert_eq!(free(), 0);
    }
}
