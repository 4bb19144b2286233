//! One operation, from message to message. Unary calls and the pipe both come here.

use std::sync::Arc;
use std::time::Duration;

use podkv_api::{CompactResponse, Error, LeaseGrantResponse, Range, Reason, Result, Revision, Txn};
use podkv_core::{Answer, Command, Stamp};
use podkv_node::{Access, Node, Written};
use podkv_proto::convert::{self, Malformed, to_status};
use podkv_proto::v1;
use prost::Message;
use tonic::{Request, Response, Status};

use super::ApiSettings;
use super::caller::access;
use super::deadline::deadline;
use crate::room::{self, Reserved};

/// The parts of a unary call.
pub(crate) struct Call<T> {
    /// The node as the caller may use it.
    pub access: Access,
    /// `None` is the node's own limit.
    pub timeout: Option<Duration>,
    pub message: T,
}

impl<T> Call<T> {
    pub async fn of(request: Request<T>, calls: &Calls) -> Result<Self> {
        let (metadata, _, message) = request.into_parts();
        Ok(Self {
            timeout: deadline(&metadata, calls.settings.max_deadline)?,
            access: access(&calls.node, &metadata).await?,
            message,
        })
    }

    /// The same, for a handler.
    pub async fn native(request: Request<T>, calls: &Calls) -> Result<Self, Status> {
        let call = Self::of(request, calls).await;
        call.map_err(|error| to_status(&error))
    }
}

/// What a unary handler returns.
pub(super) fn answer<W, T: Into<W>>(result: Result<T>) -> Result<Response<W>, Status> {
    answer_in(result, None)
}

/// The same, with the room that was reserved for it.
pub(super) fn answer_in<W, T: Into<W>>(
    result: Result<T>,
    reserved: Option<Reserved>,
) -> Result<Response<W>, Status> {
    match result {
        Ok(answer) => Ok(room::attach(answer.into(), reserved)),
        Err(error) => Err(to_status(&error)),
    }
}

/// The node and how it is called. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Calls {
    pub node: Node,
    pub settings: Arc<ApiSettings>,
}

impl Calls {
    pub fn new(node: Node, settings: ApiSettings) -> Self {
        Self {
            node,
            settings: Arc::new(settings),
        }
    }

    pub async fn get(
        &self,
        get: v1::GetRequest,
        access: &Access,
        timeout: Option<Duration>,
    ) -> Result<v1::GetResponse> {
        let range = Range::try_from(get)?;
        Ok(access.range_within(range, timeout).await?.into())
    }

    /// A range in one message.
    pub async fn range(
        &self,
        range: v1::RangeRequest,
        access: &Access,
        timeout: Option<Duration>,
    ) -> Result<v1::RangeResponse> {
        let response = access.range_within(range.try_into()?, timeout).await?;
        self.fits(v1::RangeResponse::from(response))
    }

    pub async fn put(
        &self,
        mut put: v1::PutRequest,
        access: &Access,
        timeout: Option<Duration>,
    ) -> Result<v1::PutResponse> {
        let stamp = stamp(put.session.take(), access)?;
        let command = Command::Put(put.try_into()?);
        match access.propose(stamp, command, timeout).await?.answer {
            Answer::Put(response) => Ok(response.into()),
            _ => Err(unexpected()),
        }
    }

    pub async fn delete(
        &self,
        mut delete: v1::DeleteRequest,
        access: &Access,
        timeout: Option<Duration>,
    ) -> Result<v1::DeleteResponse> {
        let stamp = stamp(delete.session.take(), access)?;
        let command = Command::Delete(delete.try_into()?);
        match access.propose(stamp, command, timeout).await?.answer {
            Answer::Delete(response) => {
                let revision = response.header.revision;
                self.applied_and_fits(response.into(), revision)
            }
            _ => Err(unexpected()),
        }
    }

    pub async fn txn(
        &self,
        mut txn: v1::TxnRequest,
        access: &Access,
        timeout: Option<Duration>,
    ) -> Result<v1::TxnResponse> {
        let stamp = stamp(txn.session.take(), access)?;
        let consistency = convert::consistency(txn.consistency.take())?;
        let txn = Txn::try_from(txn)?;
        let is_read = txn.is_read_only();
        let response = access.txn_with(txn, stamp, consistency, timeout).await?;
        let revision = response.header.revision;
        if is_read {
            self.fits(response.into())
        } else {
            self.applied_and_fits(response.into(), revision)
        }
    }

    pub async fn compact(
        &self,
        compact: v1::CompactRequest,
        access: &Access,
        timeout: Option<Duration>,
    ) -> Result<CompactResponse> {
        let stamp = stamp(compact.session, access)?;
        let command = Command::Compact {
            revision: compact.revision,
        };
        match access.propose(stamp, command, timeout).await?.answer {
            Answer::Compact(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    pub async fn lease_grant(
        &self,
        grant: v1::LeaseGrantRequest,
        access: &Access,
        timeout: Option<Duration>,
    ) -> Result<LeaseGrantResponse> {
        let stamp = stamp(grant.session, access)?;
        let id = match convert::optional_lease_id(grant.id) {
            Some(id) => id,
            // A retry that chose another id would be another request.
            None if stamp.is_some() => {
                let problem =
                    "0; within a session the caller chooses the id, so that a retry is the same";
                return Err(Malformed::request("id", problem).into());
            }
            // Positive, as etcd's are.
            None => podkv_api::LeaseId(rand::random_range(1..=i64::MAX)),
        };
        let command = Command::LeaseGrant {
            id,
            ttl_ms: grant.ttl_ms,
        };
        match access.propose(stamp, command, timeout).await?.answer {
            Answer::LeaseGrant(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    pub async fn lease_revoke(
        &self,
        revoke: v1::LeaseRevokeRequest,
        access: &Access,
        timeout: Option<Duration>,
    ) -> Result<v1::LeaseRevokeResponse> {
        let stamp = stamp(revoke.session, access)?;
        let id = convert::lease_id(revoke.id)?;
        let command = Command::LeaseRevoke { id };
        let written: Written = access.propose(stamp, command, timeout).await?;
        Ok(v1::LeaseRevokeResponse {
            header: Some(written.header.into()),
        })
    }

    /// Room for the answer to `request`, of at most `most` bytes.
    pub async fn room<T>(&self, request: &Request<T>, most: usize) -> Result<Option<Reserved>> {
        if most == 0 {
            return Ok(None);
        }
        let longest = self.settings.max_deadline;
        let timeout = deadline(request.metadata(), longest)?.unwrap_or(longest);
        room::reserve(request, most, timeout).await
    }

    /// The most that an answer with one value has, in bytes.
    pub fn one_value(&self) -> usize {
        self.node.limits().max_request_bytes + room::STREAM_BYTES
    }

    /// Waits for a read that has no deadline of its own in the node for as long as the caller does.
    pub async fn within<T>(
        &self,
        timeout: Option<Duration>,
        read: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let Some(timeout) = timeout else {
            return read.await;
        };
        tokio::time::timeout(timeout, read)
            .await
            .unwrap_or_else(|_| {
                Err(Error::new(
                    Reason::DeadlineExceeded,
                    format!("no answer within {timeout:?}"),
                ))
            })
    }

    /// Refuses an answer that is too large for one message.
    fn fits<M: Message>(&self, answer: M) -> Result<M> {
        let (bytes, max) = (answer.encoded_len(), self.settings.max_answer_bytes);
        if bytes <= max {
            return Ok(answer);
        }
        let text = format!(
            "the answer has {bytes} bytes; at most {max} fit in one message: \
             ask for less at once, or use the Range stream"
        );
        Err(Error::new(Reason::RequestTooLarge, text))
    }

    /// The same for the answer to a write, which has been applied all the same.
    fn applied_and_fits<M: Message>(&self, answer: M, revision: Revision) -> Result<M> {
        let (bytes, max) = (answer.encoded_len(), self.settings.max_answer_bytes);
        if bytes <= max {
            return Ok(answer);
        }
        let text = format!(
            "the write was applied at revision {revision}, but its answer has {bytes} bytes and at \
             most {max} fit in one message: read what it did at that revision"
        );
        Err(Error::new(Reason::AnswerNotKept, text).with_revision(revision))
    }
}

/// The stamp of a write, bound to its caller.
fn stamp(session: Option<v1::SessionStamp>, access: &Access) -> Result<Option<Stamp>> {
    let session = convert::session_stamp(session)?;
    Ok(session.map(|session| Stamp {
        session,
        identity: access.identity(),
    }))
}

fn unexpected() -> Error {
    Error::internal("a command was answered by something else")
}
