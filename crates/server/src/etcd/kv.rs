//! KV: range, put, delete, transactions, compaction.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use podkv_api::{Error, Range, Reason, SessionId, SessionStamp, Store};
use podkv_core::{Answer, Command, Stamp};
use podkv_node::{Access, Written};
use podkv_proto::etcd::etcdserverpb as pb;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::convert::{self, delete_response, header, put_response};
use super::error::status;
use super::range::{self, Gathered, Shape};
use super::{require_leader, txn};
use crate::api::calls::{Call, Calls};
use crate::room::{self, Reserved};

pub(super) struct Kv(pub Calls);

/// A unary call of an etcd client.
struct Asked<T> {
    /// The node as the caller may use it.
    access: Access,
    message: T,
    timeout: Option<Duration>,
    stamp: Option<Stamp>,
}

impl Kv {
    async fn asked<T>(&self, request: Request<T>) -> Result<Asked<T>, Status> {
        require_leader(&self.0.node, request.metadata())?;
        let session = session(request.metadata())?;
        let call = Call::of(request, &self.0).await;
        let call = call.map_err(|error| status(&error))?;
        let identity = call.access.identity();
        Ok(Asked {
            access: call.access,
            message: call.message,
            timeout: call.timeout,
            stamp: session.map(|session| Stamp { session, identity }),
        })
    }

    /// Room for the answer to `request`, if it may be large.
    async fn room<T>(&self, request: &Request<T>, most: usize) -> Result<Option<Reserved>, Status> {
        let reserved = self.0.room(request, most).await;
        reserved.map_err(|error| status(&error))
    }

    /// Reads all of a range in parts, and keeps what can be in the answer.
    async fn gather(
        &self,
        access: &Access,
        read: Range,
        shape: &Shape,
        timeout: Option<Duration>,
        reserved: &mut Option<Reserved>,
    ) -> Result<pb::RangeResponse, Error> {
        let opening = access.range_stream(read);
        let mut parts = self.0.within(timeout, opening).await?;
        let most = self.0.settings.max_etcd_answer_bytes;
        let mut gathered = Gathered::default();
        let mut last = None;
        while let Some(part) = parts.next().await {
            let mut part = part?;
            shape.gather(&mut gathered, std::mem::take(&mut part.kvs));
            if gathered.bytes > most {
                let text = format!(
                    "the answer has more than {most} bytes of keys and values: ask with a limit, or use RangeStream"
                );
                return Err(Error::new(Reason::Overloaded, text));
            }
            if let Some(reserved) = reserved
                && gathered.bytes > reserved.bytes()
            {
                let longest = self.0.settings.max_deadline;
                reserved.outgrow(most, timeout.unwrap_or(longest)).await?;
            }
            last = Some(part);
        }
        if let Some(reserved) = reserved {
            reserved.made(gathered.bytes);
        }
        let last = last.ok_or_else(|| Error::internal("a range ended without an answer"))?;
        Ok(shape.finish(gathered, last.count, last.more, header(last.header)))
    }
}

#[tonic::async_trait]
impl pb::kv_server::Kv for Kv {
    async fn range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let asked = request.get_ref();
        let most = match asked {
            _ if asked.count_only => 0,
            _ if asked.range_end.is_empty() => self.0.one_value(),
            _ => self.0.settings.max_answer_bytes,
        };
        let mut reserved = self.room(&request, most).await?;
        let call = self.asked(request).await?;
        let (read, shape) = range::range(call.message)?;
        let is_small =
            read.range.is_single() || read.count_only || (1..=SMALL).contains(&read.limit);
        let answer = if is_small && shape.is_plain() {
            let response = call.access.range_within(read, call.timeout).await;
            response.map(|response| {
                let header = header(response.header);
                shape.apply(response, header)
            })
        } else {
            self.gather(&call.access, read, &shape, call.timeout, &mut reserved)
                .await
        };
        let answer = answer.map_err(|error| status(&error))?;
        Ok(room::attach(answer, reserved))
    }

    type RangeStreamStream =
        Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let reserved = self.room(&request, room::STREAM_BYTES).await?;
        let call = self.asked(request).await?;
        let (read, shape) = range::range(call.message)?;
        if !shape.is_plain() || read.reverse {
            let text = "etcdserver: RangeStream takes no filters, and no order but the key's";
            return Err(Status::unimplemented(text));
        }
        let opening = call.access.range_stream(read);
        let parts = self
            .0
            .within(call.timeout, opening)
            .await
            .map_err(|error| status(&error))?;
        let parts = parts.map(move |part| {
            let part = part.map_err(|error| status(&error))?;
            // The count stands in the last part.
            let is_last = part.count > 0 || part.kvs.is_empty();
            let head = header(part.header);
            let mut range = shape.apply(part, head);
            if !is_last {
                range.header = None;
            }
            Ok(pb::RangeStreamResponse {
                range_response: Some(range),
            })
        });
        let parts: Self::RangeStreamStream = Box::pin(parts);
        Ok(room::attach_stream(parts, reserved))
    }

    async fn put(
        &self,
        request: Request<pb::PutRequest>,
    ) -> Result<Response<pb::PutResponse>, Status> {
        let most = match request.get_ref().prev_kv {
            true => self.0.one_value(),
            false => 0,
        };
        let reserved = self.room(&request, most).await?;
        let call = self.asked(request).await?;
        let command = Command::Put(convert::put(call.message)?);
        let written = write(&call.access, command, call.stamp, call.timeout).await?;
        match written.answer {
            Answer::Put(response) => {
                let answer = put_response(response, header(written.header));
                Ok(room::attach(answer, reserved))
            }
            _ => Err(unexpected()),
        }
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let asked = request.get_ref();
        let most = match asked {
            _ if !asked.prev_kv => 0,
            _ if asked.range_end.is_empty() => self.0.one_value(),
            _ => self.0.settings.max_answer_bytes,
        };
        let reserved = self.room(&request, most).await?;
        let call = self.asked(request).await?;
        let command = Command::Delete(convert::delete(call.message)?);
        let written = write(&call.access, command, call.stamp, call.timeout).await?;
        match written.answer {
            Answer::Delete(response) => {
                let answer = delete_response(response, header(written.header));
                Ok(room::attach(answer, reserved))
            }
            _ => Err(unexpected()),
        }
    }

    async fn txn(
        &self,
        request: Request<pb::TxnRequest>,
    ) -> Result<Response<pb::TxnResponse>, Status> {
        let all = self.0.settings.max_answer_bytes;
        let most = txn::most_bytes(request.get_ref(), self.0.one_value(), all);
        let reserved = self.room(&request, most).await?;
        let call = self.asked(request).await?;
        let max_ops = self.0.node.limits().max_txn_ops;
        let (txn, consistency, branches) = txn::txn(call.message, max_ops)?;
        let response = call
            .access
            .txn_with(txn, call.stamp, consistency, call.timeout)
            .await
            .map_err(|error| status(&error))?;
        Ok(room::attach(txn::response(response, branches), reserved))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let call = self.asked(request).await?;
        // Below 1 everything is compacted already.
        let revision = u64::try_from(call.message.revision).unwrap_or(0);
        let command = Command::Compact { revision };
        let written = write(&call.access, command, call.stamp, call.timeout).await?;
        Ok(Response::new(pb::CompactionResponse {
            header: Some(header(written.header)),
        }))
    }
}

/// Up to so many keys are read as one.
const SMALL: u64 = 4096;

async fn write(
    access: &Access,
    command: Command,
    stamp: Option<Stamp>,
    timeout: Option<Duration>,
) -> Result<Written, Status> {
    let written = access.propose(stamp, command, timeout);
    written.await.map_err(|error| status(&error))
}

fn unexpected() -> Status {
    status(&Error::internal("a command was answered by something else"))
}

/// What makes a write of an etcd client apply exactly once: three metadata that `proto/podkv/v1/session.proto` explains.
/// Without them a client that lost an answer cannot know.
fn session(metadata: &MetadataMap) -> Result<Option<SessionStamp>, Status> {
    const ID: &str = "podkv-session";
    const SEQUENCE: &str = "podkv-sequence";
    const ACKNOWLEDGED: &str = "podkv-acknowledged-below";
    let text = |name: &str| {
        let value = metadata.get(name)?;
        Some(value.to_str().unwrap_or("not text"))
    };
    let Some(id) = text(ID) else {
        return Ok(None);
    };
    let bad = |name: &str, expected: &str| {
        let found = text(name).unwrap_or("missing");
        Status::invalid_argument(format!("metadata {name}: {found}; expected {expected}"))
    };
    let number = |name: &str| {
        text(name)
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| bad(name, "a number"))
    };
    let session =
        u128::from_str_radix(id, 16).map_err(|_| bad(ID, "the session's id in hexadecimal"))?;
    Ok(Some(SessionStamp {
        session: SessionId(session),
        sequence: number(SEQUENCE)?,
        acknowledged_below: number(ACKNOWLEDGED)?,
    }))
}
