//! What this folder reads from disks and peers, for `tests/fuzz`.

use bytes::Bytes;
use podkv_core::codec::FrameKind;
use podkv_core::fuzzing::Format;
use podkv_proto::peer;
use prost::Message;

use super::types::members;
use super::{record, wire};

/// Corpora name a format by its place: append only.
pub(crate) const FORMATS: &[Format] = &[
    Format::framed("log entry", FrameKind::LogRecord, |bytes| {
        let entry = record::decode_entry(bytes).ok()?;
        Some(record::encode_entry(&entry))
    }),
    Format::framed("vote", FrameKind::Vote, |bytes| {
        let vote = record::decode_vote(bytes).ok()?;
        Some(record::encode_vote(&vote))
    }),
    Format::framed("log state", FrameKind::LogState, |bytes| {
        let at = record::decode_log_state(bytes).ok()?;
        Some(record::encode_log_state(at))
    }),
    Format::framed("applied position", FrameKind::Applied, |bytes| {
        let at = record::decode_applied(bytes).ok()?;
        Some(record::encode_applied(at))
    }),
    Format::framed("membership", FrameKind::Membership, |bytes| {
        let read = record::decode_members(bytes).ok()?;
        // As the state machine does, which hands it to openraft.
        let stored = record::stored_membership(&read).ok()?;
        Some(record::encode_members(&members(&stored)))
    }),
    Format::framed("snapshot", FrameKind::PeerMessage, |bytes| {
        let meta = wire::snapshot_meta_from_wire(bytes).ok()?;
        Some(wire::snapshot_meta_to_wire(&meta))
    }),
    Format::bare("append", |bytes| {
        let request = wire::append_from_wire(read(bytes)?).ok()?;
        Some(written(&wire::append_to_wire(None, request, None)))
    }),
    Format::bare("answer to an append", |bytes| {
        let result = wire::appended_from_wire(read(bytes)?).ok()?;
        Some(written(&wire::appended_to_wire(result)))
    }),
    Format::bare("request for a vote", |bytes| {
        let request = wire::vote_request_from_wire(read(bytes)?).ok()?;
        let header = peer::PeerHeader::default();
        Some(written(&wire::vote_request_to_wire(header, &request)))
    }),
    Format::bare("answer to a request for a vote", |bytes| {
        let response = wire::vote_response_from_wire(read(bytes)?).ok()?;
        Some(written(&wire::vote_response_to_wire(&response)))
    }),
    Format::bare("transfer of leadership", |bytes| {
        let request = wire::transfer_from_wire(read(bytes)?).ok()?;
        let header = peer::PeerHeader::default();
        Some(written(&wire::transfer_to_wire(header, &request)))
    }),
];

fn read<T: Message + Default>(bytes: &Bytes) -> Option<T> {
    T::decode(bytes.clone()).ok()
}

fn written(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}
