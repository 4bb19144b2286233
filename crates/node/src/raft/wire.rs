//! Between openraft's messages and the protobuf of `peer.proto`. Everything from a peer is checked.

use std::time::Duration;

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use podkv_core::codec::CodecError;
use podkv_proto::peer as wire;
use tonic::Status;

use super::record;
use super::types::{LogEntry, LogId, SnapshotMeta, TypeConfig, Vote, log_id, members, position};
use crate::membership::LogPosition;
use crate::storage::CheckpointFile;

/// Why a message from a peer cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("an entry does not decode: {0}")]
    Codec(#[from] CodecError),
    #[error("{0} do not follow one another")]
    NotConsecutive(&'static str),
    #[error("only a leader that was voted for appends")]
    NotLeading,
}

impl From<WireError> for Status {
    fn from(error: WireError) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

fn log_id_to_wire(id: &LogId) -> wire::LogId {
    let LogPosition { term, index } = position(id);
    wire::LogId { term, index }
}

fn log_id_from_wire(id: wire::LogId) -> LogId {
    log_id(LogPosition {
        term: id.term,
        index: id.index,
    })
}

pub(super) fn vote_to_wire(vote: &Vote) -> wire::VoteState {
    wire::VoteState {
        term: vote.leader_id.term,
        node_id: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(super) fn vote_from_wire(vote: Option<wire::VoteState>) -> Result<Vote, WireError> {
    let vote = vote.ok_or(WireError::Missing("the vote"))?;
    let make = if vote.committed {
        Vote::new_committed
    } else {
        Vote::new
    };
    Ok(make(vote.term, vote.node_id))
}

/// `quorum_age_ms` says how long ago the sender knew that a majority follows it.
pub(super) fn append_to_wire(
    header: Option<wire::PeerHeader>,
    request: AppendEntriesRequest<TypeConfig>,
    quorum_age_ms: Option<u32>,
) -> wire::AppendRequest {
    let entry = |entry: LogEntry| wire::LogEntry {
        log_id: Some(log_id_to_wire(&entry.log_id)),
        kind: record::entry_kind(&entry.payload).into(),
        payload_frame: record::entry_payload(&entry.payload),
    };
    wire::AppendRequest {
        header,
        vote: Some(vote_to_wire(&request.vote)),
        prev_log_id: request.prev_log_id.as_ref().map(log_id_to_wire),
        entries: request.entries.into_iter().map(entry).collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id_to_wire),
        quorum_age_ms,
    }
}

pub(super) fn append_from_wire(
    request: wire::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let prev_log_id = request.prev_log_id.map(log_id_from_wire);
    let mut next = prev_log_id
        .as_ref()
        .map_or(0, |id| id.index.saturating_add(1));
    let mut entries = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        let log_id = log_id_from_wire(
            entry
                .log_id
                .ok_or(WireError::Missing("an entry's log id"))?,
        );
        // openraft trusts this.
        if log_id.index != next {
            return Err(WireError::NotConsecutive("the entries of a request"));
        }
        next = next.saturating_add(1);
        let payload = record::decode_entry_payload(entry.kind, entry.payload_frame)?;
        entries.push(LogEntry { log_id, payload });
    }
    let vote = vote_from_wire(request.vote)?;
    if !vote.committed {
        return Err(WireError::NotLeading);
    }
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id,
        entries,
        leader_commit: request.leader_commit.map(log_id_from_wire),
    })
}

/// `promise` is for how long this node neither votes nor campaigns.
pub(super) fn appended_to_wire(
    result: StreamAppendResult<TypeConfig>,
    promise: Option<Duration>,
) -> wire::AppendResponse {
    use wire::append_response::Result as Wire;
    let (result, last_log_id) = match result {
        Ok(last) => (Wire::Success(true), last.as_ref().map(log_id_to_wire)),
        Err(StreamAppendError::Conflict(at)) => (Wire::Conflict(log_id_to_wire(&at)), None),
        Err(StreamAppendError::HigherVote(vote)) => (Wire::HigherVote(vote_to_wire(&vote)), None),
    };
    // Rounded down: no more is said than what is kept.
    let millis = |promise: Duration| u32::try_from(promise.as_millis()).unwrap_or(u32::MAX);
    wire::AppendResponse {
        result: Some(result),
        last_log_id,
        promise_ms: promise.map(millis),
    }
}

pub(super) fn appended_from_wire(
    response: wire::AppendResponse,
) -> Result<StreamAppendResult<TypeConfig>, WireError> {
    use wire::append_response::Result as Wire;
    Ok(
        match response.result.ok_or(WireError::Missing("the result"))? {
            Wire::Success(_) => Ok(response.last_log_id.map(log_id_from_wire)),
            Wire::Partial(at) => Ok(Some(log_id_from_wire(at))),
            Wire::Conflict(at) => Err(StreamAppendError::Conflict(log_id_from_wire(at))),
            Wire::HigherVote(vote) => {
                Err(StreamAppendError::HigherVote(vote_from_wire(Some(vote))?))
            }
        },
    )
}

pub(super) fn vote_request_to_wire(
    header: wire::PeerHeader,
    request: &VoteRequest<TypeConfig>,
) -> wire::VoteRequest {
    wire::VoteRequest {
        header: Some(header),
        vote: Some(vote_to_wire(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(log_id_to_wire),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn vote_request_from_wire(
    request: wire::VoteRequest,
) -> Result<VoteRequest<TypeConfig>, WireError> {
    Ok(VoteRequest {
        vote: vote_from_wire(request.vote)?,
        last_log_id: request.last_log_id.map(log_id_from_wire),
        leadership_transfer: request.leadership_transfer,
    })
}

pub(super) fn vote_response_to_wire(response: &VoteResponse<TypeConfig>) -> wire::VoteResponse {
    wire::VoteResponse {
        vote: Some(vote_to_wire(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(log_id_to_wire),
    }
}

pub(super) fn vote_response_from_wire(
    response: wire::VoteResponse,
) -> Result<VoteResponse<TypeConfig>, WireError> {
    Ok(VoteResponse {
        vote: vote_from_wire(response.vote)?,
        vote_granted: response.granted,
        last_log_id: response.last_log_id.map(log_id_from_wire),
    })
}

pub(super) fn transfer_to_wire(
    header: wire::PeerHeader,
    request: &TransferLeaderRequest<TypeConfig>,
) -> wire::TransferLeaderRequest {
    wire::TransferLeaderRequest {
        header: Some(header),
        from_leader: Some(vote_to_wire(request.from_leader())),
        to: *request.to_node_id(),
        last_log_id: request.last_log_id().map(log_id_to_wire),
    }
}

pub(super) fn transfer_from_wire(
    request: wire::TransferLeaderRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, WireError> {
    let last_log_id = request.last_log_id.map(log_id_from_wire);
    Ok(TransferLeaderRequest::new(
        vote_from_wire(request.from_leader)?,
        request.to,
        last_log_id,
    ))
}

pub(super) fn snapshot_meta_to_wire(meta: &SnapshotMeta) -> Bytes {
    let at = meta.last_log_id.as_ref().map(position);
    record::encode_snapshot_meta(at, &members(&meta.last_membership))
}

pub(super) fn snapshot_meta_from_wire(frame: &Bytes) -> Result<SnapshotMeta, WireError> {
    let (at, members) = record::decode_snapshot_meta(frame)?;
    let last_membership = record::stored_membership(&members)?;
    Ok(SnapshotMeta {
        last_log_id: at.map(log_id),
        last_membership,
    })
}

pub(super) fn file_to_wire(file: &CheckpointFile) -> wire::SnapshotFile {
    wire::SnapshotFile {
        name: file.name.clone(),
        length: file.length,
        crc32c: file.crc32c,
    }
}

pub(super) fn file_from_wire(file: wire::SnapshotFile) -> CheckpointFile {
    CheckpointFile {
        name: file.name,
        length: file.length,
        crc32c: file.crc32c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::EntryPayload;

    fn at(term: u64, index: u64) -> LogId {
        log_id(LogPosition { term, index })
    }

    fn request(prev: Option<LogId>, indexes: &[u64]) -> AppendEntriesRequest<TypeConfig> {
        let entry = |index: &u64| LogEntry {
            log_id: at(2, *index),
            payload: EntryPayload::Blank,
        };
        AppendEntriesRequest {
            vote: Vote::new_committed(2, 7),
            prev_log_id: prev,
            entries: indexes.iter().map(entry).collect(),
            leader_commit: Some(at(1, 1)),
        }
    }

    #[test]
    fn appends_cross_the_wire() {
        let sent = request(Some(at(1, 4)), &[5, 6]);
        let got = append_from_wire(append_to_wire(None, sent.clone(), Some(3))).unwrap();
        assert_eq!(format!("{got:?}"), format!("{sent:?}"));
        let empty = request(None, &[]);
        let got = append_from_wire(append_to_wire(None, empty.clone(), None)).unwrap();
        assert_eq!(format!("{got:?}"), format!("{empty:?}"));
    }

    #[test]
    fn entries_with_a_gap_are_refused() {
        for (prev, indexes) in [
            (Some(at(1, 4)), vec![6]),
            (None, vec![1]),
            (None, vec![0, 2]),
        ] {
            let sent = append_to_wire(None, request(prev, &indexes), None);
            assert!(matches!(
                append_from_wire(sent),
                Err(WireError::NotConsecutive(_))
            ));
        }
    }

    #[test]
    fn answers_and_votes_cross_the_wire() {
        let answers: [StreamAppendResult<TypeConfig>; 4] = [
            Ok(None),
            Ok(Some(at(3, 9))),
            Err(StreamAppendError::Conflict(at(1, 2))),
            Err(StreamAppendError::HigherVote(Vote::new(8, 1))),
        ];
        for answer in answers {
            assert_eq!(
                appended_from_wire(appended_to_wire(answer.clone(), None)).unwrap(),
                answer
            );
        }
        let request = VoteRequest {
            vote: Vote::new(3, 4),
            last_log_id: Some(at(2, 2)),
            leadership_transfer: true,
        };
        let wire = vote_request_to_wire(wire::PeerHeader::default(), &request);
        assert_eq!(
            vote_request_from_wire(wire).unwrap(),
            request,
            "a transfer is told apart"
        );
        let response = VoteResponse::new(Vote::new(3, 4), None, true);
        let got = vote_response_from_wire(vote_response_to_wire(&response)).unwrap();
        assert_eq!(got, response);
        assert!(vote_from_wire(None).is_err());
    }

    #[test]
    fn a_candidate_does_not_append() {
        let candidate = AppendEntriesRequest {
            vote: Vote::new(2, 7),
            ..request(None, &[])
        };
        let got = append_from_wire(append_to_wire(None, candidate, None));
        assert!(matches!(got, Err(WireError::NotLeading)));
    }
}
