//! Bytes of outcomes. Headers are not in them: a header knows the revision alone, and that is the
//! outcome's.

use podkv_api::{
    CompactResponse, DeleteResponse, KeyValue, LeaseGrantResponse, LeaseId, LeaseStatus,
    OpResponse, PutResponse, RangeResponse, Reason, Revision, TxnResponse,
};

use super::{Depth, KeyValueV1};
use crate::codec::{self, Blob, CodecError, Decode, Encode};
use crate::outcome::{Answer, Outcome, Rejection, header_at};

#[derive(Debug, Encode, Decode)]
pub(crate) struct OutcomeV1 {
    revision: u64,
    duplicate: bool,
    result: ResultV1,
}

#[derive(Debug, Encode, Decode)]
enum ResultV1 {
    Answer(AnswerV1),
    Rejection { reason: u16, revision: u64 },
}

/// Variants are numbered by their place: append only.
#[derive(Debug, Encode, Decode)]
enum AnswerV1 {
    Put { prev_kv: Option<KeyValueV1> },
    Delete(DeletedV1),
    Txn(TxnAnswerV1),
    Compact,
    LeaseGrant { lease: i64, ttl_ms: u64 },
    LeaseRevoke,
    LeaseKeepAlive(Vec<Option<LeaseStatusV1>>),
    SessionOpen { ttl_ms: u64 },
    SessionKeepAlive(Vec<Option<u64>>),
    SessionClose,
    Expire { removed: u64, more: bool },
    Sweep { more: bool },
    Done,
    RevisionOnly,
    Restore { records: u64, done: bool },
    RestoreDiscard { more: bool },
}

#[derive(Debug, Encode, Decode)]
struct DeletedV1 {
    deleted: u64,
    prev_kvs: Vec<KeyValueV1>,
}

#[derive(Debug, Encode, Decode)]
struct LeaseStatusV1 {
    lease: i64,
    granted_ttl_ms: u64,
    remaining_ms: u64,
    keys: Vec<Blob>,
}

#[derive(Debug, Encode, Decode)]
struct TxnAnswerV1 {
    succeeded: bool,
    responses: Vec<OpAnswerV1>,
}

#[derive(Debug, Encode, Decode)]
enum OpAnswerV1 {
    Put {
        prev_kv: Option<KeyValueV1>,
    },
    Delete(DeletedV1),
    Range {
        kvs: Vec<KeyValueV1>,
        count: u64,
        more: bool,
    },
    /// The bytes of a [`TxnAnswerV1`]; opaque for the same reason as in a command.
    Txn(Blob),
}

impl From<&Outcome> for OutcomeV1 {
    fn from(outcome: &Outcome) -> Self {
        Self {
            revision: outcome.revision,
            duplicate: outcome.duplicate,
            result: match &outcome.result {
                Ok(answer) => ResultV1::Answer(answer.into()),
                Err(rejection) => ResultV1::Rejection {
                    reason: rejection.reason as u16,
                    revision: rejection.revision,
                },
            },
        }
    }
}

impl TryFrom<OutcomeV1> for Outcome {
    type Error = CodecError;

    fn try_from(outcome: OutcomeV1) -> Result<Self, CodecError> {
        Ok(Self {
            revision: outcome.revision,
            duplicate: outcome.duplicate,
            result: match outcome.result {
                ResultV1::Answer(answer) => Ok(answer.into_answer(outcome.revision)?),
                ResultV1::Rejection { reason, revision } => Err(Rejection {
                    reason: Reason::from_code(reason),
                    revision,
                }),
            },
        })
    }
}

impl From<&Answer> for AnswerV1 {
    fn from(answer: &Answer) -> Self {
        match answer {
            Answer::Put(response) => Self::Put {
                prev_kv: response.prev_kv.as_ref().map(KeyValueV1::from),
            },
            Answer::Delete(response) => Self::Delete(response.into()),
            Answer::Txn(response) => Self::Txn(response.into()),
            Answer::Compact(_) => Self::Compact,
            Answer::LeaseGrant(response) => Self::LeaseGrant {
                lease: response.lease.0,
                ttl_ms: response.ttl_ms,
            },
            Answer::LeaseRevoke => Self::LeaseRevoke,
            Answer::LeaseKeepAlive(statuses) => {
                let statuses = statuses
                    .iter()
                    .map(|status| status.as_ref().map(Into::into));
                Self::LeaseKeepAlive(statuses.collect())
            }
            Answer::SessionOpen { ttl_ms } => Self::SessionOpen { ttl_ms: *ttl_ms },
            Answer::SessionKeepAlive(ttls) => Self::SessionKeepAlive(ttls.clone()),
            Answer::SessionClose => Self::SessionClose,
            Answer::Expire { removed, more } => Self::Expire {
                removed: *removed,
                more: *more,
            },
            Answer::Sweep { more } => Self::Sweep { more: *more },
            Answer::Done => Self::Done,
            Answer::RevisionOnly => Self::RevisionOnly,
            Answer::Restore { records, done } => Self::Restore {
                records: *records,
                done: *done,
            },
            Answer::RestoreDiscard { more } => Self::RestoreDiscard { more: *more },
        }
    }
}

impl AnswerV1 {
    fn into_answer(self, at: Revision) -> Result<Answer, CodecError> {
        let header = header_at(at);
        Ok(match self {
            Self::Put { prev_kv } => Answer::Put(PutResponse {
                header,
                prev_kv: prev_kv.map(KeyValue::from),
            }),
            Self::Delete(deleted) => Answer::Delete(deleted.into_response(at)),
            Self::Txn(txn) => Answer::Txn(txn.into_response(at, Depth::TOP)?),
            Self::Compact => Answer::Compact(CompactResponse { header }),
            Self::LeaseGrant { lease, ttl_ms } => Answer::LeaseGrant(LeaseGrantResponse {
                header,
                lease: LeaseId(lease),
                ttl_ms,
            }),
            Self::LeaseRevoke => Answer::LeaseRevoke,
            Self::LeaseKeepAlive(statuses) => {
                let statuses = statuses
                    .into_iter()
                    .map(|status| status.map(|status| status.into_status(at)));
                Answer::LeaseKeepAlive(statuses.collect())
            }
            Self::SessionOpen { ttl_ms } => Answer::SessionOpen { ttl_ms },
            Self::SessionKeepAlive(ttls) => Answer::SessionKeepAlive(ttls),
            Self::SessionClose => Answer::SessionClose,
            Self::Expire { removed, more } => Answer::Expire { removed, more },
            Self::Sweep { more } => Answer::Sweep { more },
            Self::Done => Answer::Done,
            Self::RevisionOnly => Answer::RevisionOnly,
            Self::Restore { records, done } => Answer::Restore { records, done },
            Self::RestoreDiscard { more } => Answer::RestoreDiscard { more },
        })
    }
}

impl From<&DeleteResponse> for DeletedV1 {
    fn from(response: &DeleteResponse) -> Self {
        Self {
            deleted: response.deleted,
            prev_kvs: response.prev_kvs.iter().map(KeyValueV1::from).collect(),
        }
    }
}

impl DeletedV1 {
    fn into_response(self, at: Revision) -> DeleteResponse {
        DeleteResponse {
            header: header_at(at),
            deleted: self.deleted,
            prev_kvs: self.prev_kvs.into_iter().map(KeyValue::from).collect(),
        }
    }
}

impl From<&LeaseStatus> for LeaseStatusV1 {
    fn from(status: &LeaseStatus) -> Self {
        Self {
            lease: status.lease.0,
            granted_ttl_ms: status.granted_ttl_ms,
            remaining_ms: status.remaining_ms,
            keys: status.keys.iter().map(Blob::from).collect(),
        }
    }
}

impl LeaseStatusV1 {
    fn into_status(self, at: Revision) -> LeaseStatus {
        LeaseStatus {
            header: header_at(at),
            lease: LeaseId(self.lease),
            granted_ttl_ms: self.granted_ttl_ms,
            remaining_ms: self.remaining_ms,
            keys: self.keys.into_iter().map(|key| key.0).collect(),
        }
    }
}

impl From<&TxnResponse> for TxnAnswerV1 {
    fn from(response: &TxnResponse) -> Self {
        Self {
            succeeded: response.succeeded,
            responses: response.responses.iter().map(OpAnswerV1::from).collect(),
        }
    }
}

impl TxnAnswerV1 {
    fn into_response(self, at: Revision, depth: Depth) -> Result<TxnResponse, CodecError> {
        let responses = self.responses.into_iter();
        Ok(TxnResponse {
            header: header_at(at),
            succeeded: self.succeeded,
            responses: responses
                .map(|response| response.into_response(at, depth))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&OpResponse> for OpAnswerV1 {
    fn from(response: &OpResponse) -> Self {
        match response {
            OpResponse::Put(response) => Self::Put {
                prev_kv: response.prev_kv.as_ref().map(KeyValueV1::from),
            },
            OpResponse::Delete(response) => Self::Delete(response.into()),
            OpResponse::Range(response) => Self::Range {
                kvs: response.kvs.iter().map(KeyValueV1::from).collect(),
                count: response.count,
                more: response.more,
            },
            OpResponse::Txn(response) => {
                Self::Txn(Blob(codec::encode(&TxnAnswerV1::from(response))))
            }
        }
    }
}

impl OpAnswerV1 {
    fn into_response(self, at: Revision, depth: Depth) -> Result<OpResponse, CodecError> {
        const WHAT: &str = "answer to a nested transaction";
        let header = header_at(at);
        Ok(match self {
            Self::Put { prev_kv } => OpResponse::Put(PutResponse {
                header,
                prev_kv: prev_kv.map(KeyValue::from),
            }),
            Self::Delete(deleted) => OpResponse::Delete(deleted.into_response(at)),
            Self::Range { kvs, count, more } => OpResponse::Range(RangeResponse {
                header,
                kvs: kvs.into_iter().map(KeyValue::from).collect(),
                count,
                more,
            }),
            Self::Txn(bytes) => {
                let txn: TxnAnswerV1 = codec::decode(WHAT, &bytes.0)?;
                OpResponse::Txn(txn.into_response(at, depth.below(WHAT)?)?)
            }
        })
    }
}
