//! How many bytes of requests that are not whole yet one connection may make a node hold.
//!
//! HTTP/2 bounds what is on its way, not what was taken from it: a message is collected until it is whole, and 4096 calls
//! at once may each have sent all but the last byte of theirs. A client that never ends them would have gigabytes here,
//! so what is collected is counted, for all calls of a connection together, and beyond the bound a call is refused.
//!
//! ```text
//!   DATA DATA DATA …        gRPC:  flag, length (5 bytes), message │ flag, length, message │ …
//!                                  └── counted until it is whole ─┘
//! ```
//!
//! What is whole is the handler's: writes are counted by the node's admission, and all else is small.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderMap};
use podkv_api::{Error, Reason};
use podkv_proto::convert::to_status;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the calls of one connection may hold together.
#[derive(Clone, Debug)]
pub(crate) struct Unfinished(Arc<Semaphore>);

impl Unfinished {
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// Counts what comes of a request's body.
    pub fn count<B>(&self, headers: &HeaderMap, body: B) -> Counted<B> {
        let is_grpc = headers
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        Counted {
            body,
            room: self.0.clone(),
            // Anything else is one message.
            messages: is_grpc.then(Messages::default),
            held: None,
        }
    }
}

/// The body of a request.
pub(crate) struct Counted<B = Incoming> {
    body: B,
    room: Arc<Semaphore>,
    messages: Option<Messages>,
    held: Option<OwnedSemaphorePermit>,
}

impl<B> Counted<B> {
    fn take(&mut self, data: &[u8]) -> Result<(), BoxError> {
        let unfinished = match &mut self.messages {
            Some(messages) => messages.unfinished(data),
            None => self.held() + data.len(),
        };
        if unfinished < self.held() {
            self.held = None;
        }
        let more = unfinished - self.held();
        let permits = u32::try_from(more).unwrap_or(u32::MAX);
        let Ok(permit) = self.room.clone().try_acquire_many_owned(permits) else {
            let text =
                "this connection has too many bytes of requests that are not whole: end them first";
            return Err(to_status(&Error::new(Reason::Overloaded, text)).into());
        };
        match &mut self.held {
            Some(held) => held.merge(permit),
            held => *held = Some(permit),
        }
        Ok(())
    }

    fn held(&self) -> usize {
        let held = self.held.as_ref();
        held.map_or(0, OwnedSemaphorePermit::num_permits)
    }
}

impl<B> Body for Counted<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        polled.map(|frame| {
            let frame = frame?.map_err(Into::into);
            Some(frame.and_then(|frame| {
                if let Some(data) = frame.data_ref() {
                    self.take(data)?;
                }
                Ok(frame)
            }))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Tells where gRPC's messages end.
#[derive(Debug, Default)]
struct Messages {
    /// The beginning of the next message: a flag, and its length.
    head: [u8; 5],
    head_bytes: usize,
    /// What is still to come of it, once its head is here.
    missing: usize,
    /// What is here of it, with its head.
    here: usize,
}

impl Messages {
    /// How much of a message that is not whole is here, after `data`.
    fn unfinished(&mut self, mut data: &[u8]) -> usize {
        while !data.is_empty() {
            if self.head_bytes < self.head.len() {
                let (byte, rest) = (data[0], &data[1..]);
                self.head[self.head_bytes] = byte;
                self.head_bytes += 1;
                self.here += 1;
                data = rest;
                let [_, length @ ..] = self.head;
                self.missing = u32::from_be_bytes(length) as usize;
            } else {
                let part = data.len().min(self.missing);
                self.missing -= part;
                self.here += part;
                data = &data[part..];
            }
            if self.head_bytes == self.head.len() && self.missing == 0 {
                *self = Self::default();
            }
        }
        self.here
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};
    use podkv_proto::convert::{Call, from_status};

    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut message = vec![0];
        message.extend(length.to_be_bytes());
        message.resize(5 + length as usize, 7);
        message
    }

    #[test]
    fn messages_end_where_their_lengths_say_however_they_come() {
        let all = [
            message(0),
            message(3),
            message(70_000),
            message(0),
            message(1),
        ]
        .concat();
        for part in [1, 2, 5, 7, 4096, 1 << 20] {
            let (mut messages, mut here) = (Messages::default(), 0);
            for (at, data) in all.chunks(part).enumerate() {
                here = messages.unfinished(data);
                let before = (at * part + data.len()).min(all.len());
                assert!(here <= before);
            }
            assert_eq!(here, 0, "in parts of {part}");
        }
        let mut messages = Messages::default();
        assert_eq!(messages.unfinished(&message(100)[..50]), 50);
        assert_eq!(
            messages.unfinished(&[&message(100)[50..], &[0, 0]].concat()),
            2
        );
        // A length that nobody would take costs nothing until it comes.
        let mut messages = Messages::default();
        assert_eq!(messages.unfinished(&[0, 0xff, 0xff, 0xff, 0xff, 1]), 6);
    }

    #[tokio::test]
    async fn calls_that_do_not_end_are_refused_and_give_back_what_they_held() {
        let unfinished = Unfinished::new(1000);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, "application/grpc".parse().unwrap());
        let free = || unfinished.0.available_permits();
        let body = |parts: Vec<Vec<u8>>| {
            let frames = parts
                .into_iter()
                .map(|part| Ok::<_, BoxError>(Frame::data(Bytes::from(part))));
            unfinished.count(&headers, StreamBody::new(stream::iter(frames).boxed()))
        };
        // Whole ones are not counted, however many.
        let mut whole = body(vec![message(600); 10]);
        while let Some(frame) = whole.frame().await {
            frame.unwrap();
        }
        assert_eq!(free(), 1000);
        let half = || message(1_000_000)[..600].to_vec();
        let mut first = body(vec![half()]);
        first.frame().await.unwrap().unwrap();
        assert_eq!(free(), 400);
        let mut second = body(vec![half()]);
        let refused = second.frame().await.unwrap().unwrap_err();
        let status = refused.downcast::<tonic::Status>().unwrap();
        let error = from_status(&status, Call::Write);
        assert_eq!(error.reason(), Reason::Overloaded);
        assert!(!error.outcome_unknown(), "it was not executed");
        drop(first);
        assert_eq!(free(), 1000);
        // JSON is one message.
        let part = Frame::data(Bytes::from(vec![b' '; 600]));
        let parts = stream::iter([Ok::<_, BoxError>(part)]).boxed();
        let mut json = unfinished.count(&HeaderMap::new(), StreamBody::new(parts));
        json.frame().await.unwrap().unwrap();
        assert_eq!(free(), 400);
    }
}
