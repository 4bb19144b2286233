//! The bytes of what Raft keeps: our own versioned records, never openraft's derived layouts.
//!
//! Each record is a frame of [`podkv_core::codec`]: version, kind, group, length and crc32c stand
//! before the payload. The payloads, all integers little-endian:
//!
//! ```text
//! log entry        term u64 | index u64 | kind u8 | what it carries, to the end
//!                    kind 0, blank:       nothing
//!                    kind 1, proposals:   the frame of a podkv_core::Entry, as the leader encoded it
//!                    kind 2, membership:  a membership's payload, as below
//! vote             term u64 | node u64 | committed u8
//! log position     term u64 | index u64
//! membership       has_position u8 | position (16 bytes, zero if it has none)
//!                  | sets u8      | each set:  voters u16 | each voter: id u64
//!                  | nodes u16    | each node: id u64 | name | peer address | client address
//!                    a string:    length u16 | UTF-8
//! snapshot         has_position u8 | position, zero if it has none | a membership, to the end
//! ```
//!
//! They are written by hand because they are few, fixed, and outlive every library that could
//! derive them. A change is a new kind of entry, or a new version of the frame.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use podkv_api::MemberId;
use podkv_core::codec::{self, CodecError, FrameKind, MAX_FRAME_BYTES};

use super::types::{
    EntryPayload, LogEntry, Membership, Payload, StoredMembership, Vote, log_id, members, position,
};
use crate::membership::{LogPosition, Members, PeerAddress};

const KIND_BLANK: u8 = 0;
const KIND_PROPOSALS: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

const ENTRY_HEAD_BYTES: usize = 17;
const VOTE_BYTES: usize = 17;
const POSITION_BYTES: usize = 16;

/// Small records: anything longer is damage.
const SMALL_LIMIT: usize = 64;

/// A membership is at most a few dozen names.
const MEMBERSHIP_LIMIT: usize = 1 << 20;

/// The kind of an entry, as it is on disk and on the wire.
pub(super) fn entry_kind(payload: &EntryPayload) -> u8 {
    match payload {
        EntryPayload::Blank => KIND_BLANK,
        EntryPayload::Normal(_) => KIND_PROPOSALS,
        EntryPayload::Membership(_) => KIND_MEMBERSHIP,
    }
}

/// What an entry carries, as it is on the wire: a frame, or nothing.
pub(super) fn entry_payload(payload: &EntryPayload) -> Bytes {
    match payload {
        EntryPayload::Blank => Bytes::new(),
        EntryPayload::Normal(payload) => payload.encoded().clone(),
        EntryPayload::Membership(membership) => {
            let stored = StoredMembership::new(None, membership.clone());
            encode_members(&members(&stored))
        }
    }
}

/// Reads what a peer sent; checks everything.
pub(super) fn decode_entry_payload(kind: u32, frame: Bytes) -> Result<EntryPayload, CodecError> {
    match u8::try_from(kind) {
        Ok(KIND_BLANK) if frame.is_empty() => Ok(EntryPayload::Blank),
        Ok(KIND_PROPOSALS) => Ok(EntryPayload::Normal(Payload::check(frame)?)),
        Ok(KIND_MEMBERSHIP) => Ok(EntryPayload::Membership(membership(&decode_members(
            &frame,
        )?)?)),
        _ => Err(CodecError::malformed(
            ENTRY,
            format!("unknown kind {kind}, or a blank with bytes"),
        )),
    }
}

const ENTRY: &str = "log record";
const MEMBERSHIP: &str = "membership";

/// An entry, as it is in the log.
pub(super) fn encode_entry(entry: &LogEntry) -> Bytes {
    let carried = match &entry.payload {
        EntryPayload::Membership(membership) => {
            let stored = StoredMembership::new(None, membership.clone());
            members_payload(&members(&stored))
        }
        payload => entry_payload(payload),
    };
    let mut buffer = BytesMut::with_capacity(ENTRY_HEAD_BYTES + carried.len());
    put_position(&mut buffer, position(&entry.log_id));
    buffer.put_u8(entry_kind(&entry.payload));
    buffer.extend_from_slice(&carried);
    codec::frame(FrameKind::LogRecord, &buffer)
}

/// Reads an entry of the own log. What it carries shares the record's memory.
pub(super) fn decode_entry(record: &Bytes) -> Result<LogEntry, CodecError> {
    let mut payload = codec::unframe(FrameKind::LogRecord, record, MAX_FRAME_BYTES)?;
    need(ENTRY, &payload, ENTRY_HEAD_BYTES)?;
    let at = get_position(&mut payload);
    let payload = match payload.get_u8() {
        KIND_BLANK => EntryPayload::Blank,
        KIND_PROPOSALS => EntryPayload::Normal(Payload::from_log(payload)),
        KIND_MEMBERSHIP => EntryPayload::Membership(membership(&read_members(payload)?)?),
        kind => return Err(CodecError::malformed(ENTRY, format!("unknown kind {kind}"))),
    };
    Ok(LogEntry {
        log_id: log_id(at),
        payload,
    })
}

pub(super) fn encode_vote(vote: &Vote) -> Bytes {
    let mut buffer = BytesMut::with_capacity(VOTE_BYTES);
    buffer.put_u64_le(vote.leader_id.term);
    buffer.put_u64_le(vote.leader_id.voted_for);
    buffer.put_u8(vote.committed.into());
    codec::frame(FrameKind::Vote, &buffer)
}

pub(super) fn decode_vote(record: &Bytes) -> Result<Vote, CodecError> {
    let mut payload = codec::unframe(FrameKind::Vote, record, SMALL_LIMIT)?;
    exactly("vote", &payload, VOTE_BYTES)?;
    let (term, node) = (payload.get_u64_le(), payload.get_u64_le());
    Ok(match payload.get_u8() {
        0 => Vote::new(term, node),
        1 => Vote::new_committed(term, node),
        flag => {
            return Err(CodecError::malformed(
                "vote",
                format!("committed flag {flag}"),
            ));
        }
    })
}

/// A place in the log, for the log's own bookkeeping.
pub(super) fn encode_log_state(at: LogPosition) -> Bytes {
    encode_position(FrameKind::LogState, at)
}

pub(super) fn decode_log_state(record: &Bytes) -> Result<LogPosition, CodecError> {
    decode_position(FrameKind::LogState, record)
}

/// The place in the log that the state has reached, as it is in the state.
pub(super) fn encode_applied(at: LogPosition) -> Bytes {
    encode_position(FrameKind::Applied, at)
}

pub(super) fn decode_applied(record: &Bytes) -> Result<LogPosition, CodecError> {
    decode_position(FrameKind::Applied, record)
}

fn encode_position(kind: FrameKind, at: LogPosition) -> Bytes {
    let mut buffer = BytesMut::with_capacity(POSITION_BYTES);
    put_position(&mut buffer, at);
    codec::frame(kind, &buffer)
}

fn decode_position(kind: FrameKind, record: &Bytes) -> Result<LogPosition, CodecError> {
    let mut payload = codec::unframe(kind, record, SMALL_LIMIT)?;
    exactly(kind.name(), &payload, POSITION_BYTES)?;
    Ok(get_position(&mut payload))
}

/// A membership: in the state, in snapshots and on the wire.
pub(super) fn encode_members(members: &Members) -> Bytes {
    codec::frame(FrameKind::Membership, &members_payload(members))
}

pub(super) fn decode_members(record: &Bytes) -> Result<Members, CodecError> {
    read_members(codec::unframe(
        FrameKind::Membership,
        record,
        MEMBERSHIP_LIMIT,
    )?)
}

/// Our membership as openraft's. Refuses what openraft would: a voter without a node.
pub(super) fn membership(members: &Members) -> Result<Membership, CodecError> {
    let voters = members
        .voters
        .iter()
        .map(|set| set.iter().map(|id| id.0).collect())
        .collect();
    let nodes: BTreeMap<u64, PeerAddress> = members
        .nodes
        .iter()
        .map(|(id, node)| (id.0, node.clone()))
        .collect();
    Membership::new(voters, nodes).map_err(|error| CodecError::malformed(MEMBERSHIP, error))
}

pub(super) fn stored_membership(members: &Members) -> Result<StoredMembership, CodecError> {
    // Before the first membership there is none at all, which `Membership::new` would refuse.
    if members.voters.is_empty() && members.nodes.is_empty() && members.position.is_none() {
        return Ok(StoredMembership::default());
    }
    Ok(StoredMembership::new(
        members.position.map(log_id),
        membership(members)?,
    ))
}

/// What a snapshot that is offered holds: up to where, and the membership there.
pub(super) fn encode_snapshot_meta(at: Option<LogPosition>, members: &Members) -> Bytes {
    let members = members_payload(members);
    let mut buffer = BytesMut::with_capacity(1 + POSITION_BYTES + members.len());
    buffer.put_u8(at.is_some().into());
    put_position(&mut buffer, at.unwrap_or_default());
    buffer.extend_from_slice(&members);
    codec::frame(FrameKind::PeerMessage, &buffer)
}

pub(super) fn decode_snapshot_meta(
    record: &Bytes,
) -> Result<(Option<LogPosition>, Members), CodecError> {
    let mut payload = codec::unframe(FrameKind::PeerMessage, record, MEMBERSHIP_LIMIT)?;
    need("snapshot", &payload, 1 + POSITION_BYTES)?;
    let has_position = payload.get_u8() != 0;
    let at = get_position(&mut payload);
    Ok((has_position.then_some(at), read_members(payload)?))
}

fn members_payload(members: &Members) -> Bytes {
    let mut buffer = BytesMut::with_capacity(64 + members.nodes.len() * 128);
    buffer.put_u8(members.position.is_some().into());
    put_position(&mut buffer, members.position.unwrap_or_default());
    // Counts and names are bounded far below these types when a member is added.
    buffer.put_u8(members.voters.len() as u8);
    for set in &members.voters {
        buffer.put_u16_le(set.len() as u16);
        set.iter().for_each(|id| buffer.put_u64_le(id.0));
    }
    buffer.put_u16_le(members.nodes.len() as u16);
    for (id, node) in &members.nodes {
        buffer.put_u64_le(id.0);
        for text in [&node.name, &node.peer_address, &node.client_address] {
            buffer.put_u16_le(text.len() as u16);
            buffer.put_slice(text.as_bytes());
        }
    }
    buffer.freeze()
}

fn read_members(mut payload: Bytes) -> Result<Members, CodecError> {
    need(MEMBERSHIP, &payload, 1 + POSITION_BYTES + 1)?;
    let has_position = payload.get_u8() != 0;
    let at = get_position(&mut payload);
    let mut members = Members {
        position: has_position.then_some(at),
        ..Members::default()
    };
    for _ in 0..payload.get_u8() {
        need(MEMBERSHIP, &payload, 2)?;
        let count = usize::from(payload.get_u16_le());
        need(MEMBERSHIP, &payload, count * 8)?;
        let set: BTreeSet<MemberId> = (0..count).map(|_| MemberId(payload.get_u64_le())).collect();
        members.voters.push(set);
    }
    need(MEMBERSHIP, &payload, 2)?;
    for _ in 0..payload.get_u16_le() {
        need(MEMBERSHIP, &payload, 8)?;
        let id = MemberId(payload.get_u64_le());
        let node = PeerAddress {
            name: read_text(&mut payload)?,
            peer_address: read_text(&mut payload)?,
            client_address: read_text(&mut payload)?,
        };
        members.nodes.insert(id, node);
    }
    exactly(MEMBERSHIP, &payload, 0)?;
    Ok(members)
}

fn read_text(payload: &mut Bytes) -> Result<String, CodecError> {
    need(MEMBERSHIP, payload, 2)?;
    let length = usize::from(payload.get_u16_le());
    need(MEMBERSHIP, payload, length)?;
    let text = payload.split_to(length).to_vec();
    String::from_utf8(text).map_err(|error| CodecError::malformed(MEMBERSHIP, error))
}

fn put_position(buffer: &mut BytesMut, at: LogPosition) {
    buffer.put_u64_le(at.term);
    buffer.put_u64_le(at.index);
}

/// Of a payload that is known to be long enough.
fn get_position(payload: &mut Bytes) -> LogPosition {
    LogPosition {
        term: payload.get_u64_le(),
        index: payload.get_u64_le(),
    }
}

fn need(what: &'static str, payload: &Bytes, need: usize) -> Result<(), CodecError> {
    let have = payload.len();
    if have < need {
        Err(CodecError::Truncated { what, have, need })
    } else {
        Ok(())
    }
}

fn exactly(what: &'static str, payload: &Bytes, length: usize) -> Result<(), CodecError> {
    need(what, payload, length)?;
    match payload.len() - length {
        0 => Ok(()),
        extra => Err(CodecError::malformed(
            what,
            format!("{extra} bytes after its end"),
        )),
    }
}

#[cfg(test)]
mod tests;
