//! A range in chunks that survives its node: `KV.Range`.
//!
//! The first chunk fixes the revision. When a stream breaks, the next one asks for what is left, at
//! that revision, from whichever node is next:
//!
//! ```text
//!   forward   [start ........ last][last+\0 .......... end)      at the same revision,
//!   reverse   [start ........ last)[last ............. end)      less of the limit
//!                  what is left ^          ^ what is left
//! ```
//!
//! One chunk is held back, because only the last one carries the count, and of a resumed range the
//! count is what was delivered before plus what the last node counted.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use podkv_api::{
    Consistency, Error, KeyRange, Range, RangeEnd, RangeResponse, RangeStream, Reason, Result,
};
use podkv_proto::v1;
use podkv_proto::v1::kv_client::KvClient;
use tokio::time::timeout_at;
use tonic::Streaming;

use crate::core::Core;
use crate::endpoints::Route;
use crate::failure::{Failure, closed, corrupt};
use crate::fence::{Begun, Freshness};
use crate::retry::{Attempt, Attempts};

/// What is left of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rest {
    range: Range,
    /// Keys delivered so far, in all.
    delivered: u64,
    /// The user's limit is reached; only the count is missing.
    limit_reached: bool,
}

impl Rest {
    pub fn new(range: Range) -> Self {
        Self {
            range,
            delivered: 0,
            limit_reached: false,
        }
    }

    /// Fixes the revision, if it is not fixed.
    fn pin(&mut self, response: &RangeResponse) {
        if self.range.revision == 0 {
            self.range.revision = response.header.revision;
        }
    }

    /// These keys have been delivered.
    fn advance(&mut self, response: &RangeResponse) {
        let Some(last) = response.kvs.last() else {
            return;
        };
        let count = response.kvs.len() as u64;
        self.delivered += count;
        self.range.range = after(&self.range.range, &last.key, self.range.reverse);
        if self.range.limit > 0 {
            self.range.limit = self.range.limit.saturating_sub(count);
            self.limit_reached = self.range.limit == 0;
        }
    }

    fn request(&self) -> Range {
        let mut request = self.range.clone();
        // A limit of 0 would be no limit.
        request.count_only |= self.limit_reached;
        request
    }

    /// Makes the last chunk of a resumed range speak of the whole. `before` is what had been delivered
    /// when the node was asked.
    fn finish(&self, before: u64, mut last: RangeResponse) -> RangeResponse {
        if self.limit_reached && last.kvs.is_empty() {
            last.more = last.count > 0;
        }
        last.count += before;
        last
    }
}

/// The part of `range` that comes after `last` in the order of the scan.
pub(crate) fn after(range: &KeyRange, last: &Bytes, reverse: bool) -> KeyRange {
    if range.is_single() {
        return KeyRange::between(range.start.clone(), range.start.clone());
    }
    if reverse {
        return KeyRange::between(range.start.clone(), last.clone());
    }
    let mut next = BytesMut::with_capacity(last.len() + 1);
    next.put_slice(last);
    next.put_u8(0);
    let start = next.freeze();
    let end = match &range.end {
        RangeEnd::Before(end) => RangeEnd::Before(end.clone()),
        RangeEnd::Unbounded | RangeEnd::Single => RangeEnd::Unbounded,
    };
    KeyRange { start, end }
}

struct Source {
    attempt: Attempt,
    stream: Streaming<v1::RangeResponse>,
    /// Delivered or held when this node was asked.
    before: u64,
}

pub(crate) struct Scan {
    core: Arc<Core>,
    rest: Rest,
    freshness: Freshness,
    begun: Begun,
    attempts: Attempts,
    source: Option<Source>,
    held: Option<RangeResponse>,
    /// A node has answered: the revision is ours, and a node that does not know it yet lags.
    is_pinned: bool,
    done: bool,
}

impl Scan {
    pub fn new(core: &Arc<Core>, range: Range, is_pinned: bool) -> Self {
        let freshness = freshness(range.consistency);
        Self {
            begun: core.fence.begin(),
            attempts: core.attempts(Route::Any, Some(core.deadline())),
            core: core.clone(),
            rest: Rest::new(range),
            freshness,
            source: None,
            held: None,
            is_pinned,
            done: false,
        }
    }

    /// Gets the first answer, so that what is wrong with the request is told at once.
    pub async fn start(mut self) -> Result<RangeStream> {
        let first = self.receive().await?;
        self.held = first;
        Ok(self.into_stream())
    }

    pub fn into_stream(self) -> RangeStream {
        Box::pin(stream::unfold(self, |mut scan| async move {
            if scan.done {
                return None;
            }
            let next = scan.next().await;
            scan.done |= !matches!(next, Some(Ok(_)));
            next.map(|item| (item, scan))
        }))
    }

    /// The next chunk, with the count on the last one.
    pub async fn next(&mut self) -> Option<Result<RangeResponse>> {
        loop {
            if self.done {
                return None;
            }
            let before = self.source.as_ref().map_or(0, |source| source.before);
            match self.receive().await {
                Err(error) => return Some(Err(error)),
                Ok(Some(chunk)) => {
                    if let Some(mut earlier) = self.held.replace(chunk) {
                        (earlier.count, earlier.more) = (0, false);
                        return Some(Ok(earlier));
                    }
                }
                Ok(None) => {
                    self.done = true;
                    let last = self.held.take()?;
                    return Some(Ok(self.rest.finish(before, last)));
                }
            }
        }
    }

    /// True if the last chunk has been given.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The next message of this node or of the one that takes over; `None` at the end of the range.
    async fn receive(&mut self) -> Result<Option<RangeResponse>> {
        loop {
            let mut source = match self.source.take() {
                Some(source) => source,
                None => self.ask().await?,
            };
            let until = self.core.deadline();
            let message = tokio::select! {
                () = self.core.runtime.stop.cancelled() => return Err(closed()),
                message = timeout_at(until, source.stream.message()) => message,
            };
            let failure = match message {
                Ok(Ok(None)) => {
                    self.attempts.succeeded(&source.attempt);
                    // Kept for its `before`; the caller asks no more.
                    self.source = Some(source);
                    return Ok(None);
                }
                Ok(Ok(Some(message))) => {
                    let response = RangeResponse::try_from(message)?;
                    self.core
                        .fence
                        .admit(self.begun, response.header, self.freshness)?;
                    source.attempt.endpoint.answered(response.header.member);
                    self.rest.pin(&response);
                    self.rest.advance(&response);
                    self.is_pinned = true;
                    let deadline = self.core.deadline();
                    self.attempts = self.core.attempts(Route::Any, Some(deadline));
                    self.source = Some(source);
                    return Ok(Some(response));
                }
                Ok(Err(status)) => Failure::from_status(&status),
                Err(_elapsed) => Failure::lost(crate::endpoint::no_answer()),
            };
            let attempt = &source.attempt;
            let judged = attempt
                .endpoint
                .judged(Err::<(), _>(failure), attempt.generation);
            if let Err(failure) = judged.await {
                self.attempts.failed(attempt, &failure);
                self.judge(failure)?;
            }
        }
    }

    async fn ask(&mut self) -> Result<Source> {
        loop {
            let Some(attempt) = self.attempts.next().await else {
                return Err(self.attempts.exhausted());
            };
            let endpoint = &attempt.endpoint;
            let limit = endpoint.max_response_bytes();
            let mut client = KvClient::new(endpoint.channel()).max_decoding_message_size(limit);
            let request = v1::RangeRequest::from(self.rest.request());
            match endpoint.unary(attempt.until, client.range(request)).await {
                Ok(stream) => {
                    return Ok(Source {
                        attempt,
                        stream,
                        before: self.rest.delivered,
                    });
                }
                Err(failure) => {
                    self.attempts.failed(&attempt, &failure);
                    self.judge(failure)?;
                }
            }
        }
    }

    /// Whether the rest may be asked for elsewhere.
    fn judge(&self, failure: Failure) -> Result<()> {
        let lags = self.is_pinned && failure.error.reason() == Reason::FutureRevision;
        if failure.is_retryable() || lags {
            Ok(())
        } else {
            Err(failure.error)
        }
    }
}

pub(crate) fn freshness(consistency: Consistency) -> Freshness {
    match consistency {
        Consistency::Linearizable => Freshness::Linearizable,
        Consistency::Bounded(_) | Consistency::Local => Freshness::Any,
    }
}

/// Gathers a whole range in memory.
pub(crate) async fn collect(mut scan: Scan) -> Result<RangeResponse> {
    let mut whole: Option<RangeResponse> = None;
    while let Some(chunk) = scan.next().await {
        let chunk = chunk?;
        match &mut whole {
            None => whole = Some(chunk),
            Some(whole) => {
                whole.kvs.extend(chunk.kvs);
                whole.count = chunk.count;
                whole.more = chunk.more;
            }
        }
    }
    whole.ok_or_else(|| -> Error { corrupt("a range was answered without a message").error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use podkv_api::{Header, KeyValue};

    fn chunk(keys: &[&'static str], count: u64) -> RangeResponse {
        let kv = |key: &&'static str| KeyValue {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::new(),
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: None,
            expires_at_ms: None,
        };
        RangeResponse {
            header: Header {
                revision: 9,
                ..Header::default()
            },
            kvs: keys.iter().map(kv).collect(),
            count,
            more: false,
        }
    }

    fn rest_after(range: Range, keys: &[&'static str]) -> Rest {
        let mut rest = Rest::new(range);
        let chunk = chunk(keys, 0);
        rest.pin(&chunk);
        rest.advance(&chunk);
        rest
    }

    #[test]
    fn what_is_left_begins_after_the_last_key_at_the_same_revision() {
        let rest = rest_after(Range::new(KeyRange::prefix("k")), &["k1", "k2"]);
        let request = rest.request();
        assert_eq!(request.range, KeyRange::between("k2\0", "l"));
        assert_eq!(request.revision, 9);
        assert_eq!(rest.finish(2, chunk(&["k3"], 1)).count, 3);
    }

    #[test]
    fn in_reverse_what_is_left_ends_before_the_last_key() {
        let rest = rest_after(Range::new(KeyRange::all()).reverse(), &["k2", "k1"]);
        assert_eq!(rest.request().range, KeyRange::between("", "k1"));
    }

    #[test]
    fn a_reached_limit_leaves_only_the_count() {
        let rest = rest_after(Range::new(KeyRange::prefix("k")).limit(2), &["k1", "k2"]);
        let request = rest.request();
        assert!(request.count_only);
        let last = rest.finish(2, chunk(&[], 5));
        assert_eq!((last.count, last.more), (7, true));
    }

    #[test]
    fn a_single_key_leaves_nothing() {
        let rest = rest_after(Range::new(KeyRange::key("k")), &["k"]);
        assert!(rest.request().range.is_empty());
    }

    #[test]
    fn a_revision_that_was_asked_for_stays() {
        let rest = rest_after(Range::new(KeyRange::prefix("k")).at(4), &["k1"]);
        assert_eq!(rest.request().revision, 4);
    }
}
