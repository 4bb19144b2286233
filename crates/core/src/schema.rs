//! Every key of the state, drawn. The one place that knows where things lie.
//!
//! ```text
//! any key   +----------+-------+---------- - -
//!           | keyspace | table | the table's own part
//!           | u32 BE   | u8    |
//!           +----------+-------+---------- - -
//! ```
//!
//! Numbers in keys are big-endian, so that the order of bytes is the order of numbers. Every value
//! begins with a format version byte (`codec.rs`); the structs are in `record/state.rs`.
//!
//! Keyspace 0 is the system's, keyspace 1 the users'. Tables of a user keyspace:
//!
//! ```text
//! 01 latest    | key                                   -> version of the key, its value as tail
//! 02 history   | escaped key | revision u64            -> the same, or a tombstone
//! 03 changes   | revision u64 | sub u32                -> put or delete, what it superseded; key
//! 04 counts    | first key of a block                  -> how many keys the block holds
//! ```
//!
//! Tables of the system keyspace:
//!
//! ```text
//! 01 meta                                              -> the state as a whole
//! 02 leases          | lease i64, sign flipped         -> TTL, deadline
//! 03 lease keys      | lease | keyspace u32 | key      -> nothing
//! 04 deadlines       | clock_ms u64 | kind u8 | what   -> nothing
//!      kind 1: what = lease
//!      kind 2: what = session u128
//!      kind 3: what = keyspace u32 | key
//! 05 sessions        | session u128                    -> identity, TTL, deadline, ...
//! 06 session results | session u128 | sequence u64     -> payload digest, outcome
//! 07 clock marks     | clock_ms u64                    -> the revision at that time
//! 08 restore                                           -> which backup, how far
//! 09 desired size                                      -> how many pods there should be
//! 0a auth                                              -> enabled?, its revision, secret of tokens
//! 0b users           | name                            -> password's hash, roles
//! 0c roles           | name                            -> permissions
//! 0d frozen          | prefix                          -> nothing
//! 0e alarms          | kind u8 | member u64            -> nothing
//! 0f sweep place                                       -> how far a sweep came in the compacted revision
//! 80..ff the node's  | name                            -> applied position, membership, ...
//! ```
//!
//! **The escape.** A key may contain any byte, so where something follows it, its end must show,
//! and the order must stay. Each 00 becomes `00 ff`, and `00 01` ends the key:
//!
//! ```text
//! a      61 00 01           a shorter key ends with 00 01, which is
//! a\0    61 00 ff 00 01     below 00 ff (a zero byte follows) and
//! ab     61 62 00 01        below 01..ff (any other byte follows)
//! ```
//!
//! No escaped key begins another, so what is appended never disturbs the order.

use bytes::{BufMut, Bytes, BytesMut};
use podkv_api::{Alarm, AlarmKind, KeyRange, LeaseId, MemberId, RangeEnd, Revision, SessionId};

use crate::view::ViewError;

/// Sessions, leases, deadlines and the node's own records.
pub const SYSTEM_KEYSPACE: u32 = 0;
/// What users write.
pub const USER_KEYSPACE: u32 = 1;

const LATEST: u8 = 0x01;
const HISTORY: u8 = 0x02;
const CHANGES: u8 = 0x03;
const COUNTS: u8 = 0x04;

const META: u8 = 0x01;
const LEASES: u8 = 0x02;
const LEASE_KEYS: u8 = 0x03;
const DEADLINES: u8 = 0x04;
const SESSIONS: u8 = 0x05;
const SESSION_RESULTS: u8 = 0x06;
const CLOCK_MARKS: u8 = 0x07;
const RESTORE: u8 = 0x08;
const DESIRED_SIZE: u8 = 0x09;
const AUTH: u8 = 0x0a;
const USERS: u8 = 0x0b;
const ROLES: u8 = 0x0c;
const FROZEN: u8 = 0x0d;
const ALARMS: u8 = 0x0e;
const SWEEP_PLACE: u8 = 0x0f;
/// Tables from here on are the node's. The core neither reads nor digests them.
const NODE: u8 = 0x80;

/// Keyspace and table: five bytes.
const PREFIX_BYTES: usize = 5;

/// A key of the node in the system keyspace, written in the same batch as the data.
pub fn node_key(name: &str) -> Bytes {
    let mut key = start_key(SYSTEM_KEYSPACE, NODE, name.len());
    key.put_slice(name.as_bytes());
    key.freeze()
}

/// Whether apply finds the record again by its key. The others are written once, or read as a range.
pub fn is_found_by_key(key: &[u8]) -> bool {
    let Some((keyspace, [table, ..])) = key.split_first_chunk::<4>() else {
        return false;
    };
    match u32::from_be_bytes(*keyspace) {
        USER_KEYSPACE => matches!(*table, LATEST | COUNTS),
        SYSTEM_KEYSPACE => matches!(
            *table,
            META | LEASES | SESSIONS | RESTORE | DESIRED_SIZE | AUTH | USERS | ROLES
        ),
        _ => false,
    }
}

/// How many records every read looks at first.
pub const FIRST_LOOKS: usize = 2;

/// Which of those it is: the state as a whole, or whether auth is on.
pub fn first_look(key: &[u8]) -> Option<usize> {
    match key.split_first_chunk::<4>()? {
        (&keyspace, [META]) if u32::from_be_bytes(keyspace) == SYSTEM_KEYSPACE => Some(0),
        (&keyspace, [AUTH]) if u32::from_be_bytes(keyspace) == SYSTEM_KEYSPACE => Some(1),
        _ => None,
    }
}

/// The bounds of what the core owns, in order: everything but the node's tables.
pub fn core_bounds() -> [(Bytes, Bytes); 2] {
    let system = (
        start_key(SYSTEM_KEYSPACE, 0, 0).freeze(),
        start_key(SYSTEM_KEYSPACE, NODE, 0).freeze(),
    );
    let users = (
        Bytes::copy_from_slice(&USER_KEYSPACE.to_be_bytes()),
        Bytes::from_static(&[0xff; 4]),
    );
    [system, users]
}

fn start_key(keyspace: u32, table: u8, more: usize) -> BytesMut {
    let mut key = BytesMut::with_capacity(PREFIX_BYTES + more);
    key.put_u32(keyspace);
    key.put_u8(table);
    key
}

fn raw_key(keyspace: u32, table: u8, tail: &[u8]) -> Bytes {
    let mut key = start_key(keyspace, table, tail.len());
    key.put_slice(tail);
    key.freeze()
}

/// The first key after a table.
fn table_end(keyspace: u32, table: u8) -> Bytes {
    start_key(keyspace, table + 1, 0).freeze()
}

/// Cuts `prefix_bytes` off a key that was read from a table.
fn tail(key: &Bytes, prefix_bytes: usize) -> Result<Bytes, ViewError> {
    if key.len() < prefix_bytes {
        return Err(ViewError::corrupt(format!(
            "a key of the state is too short: {key:02x?}"
        )));
    }
    Ok(key.slice(prefix_bytes..))
}

fn read_u64(key: &Bytes, at: usize) -> Result<u64, ViewError> {
    let bytes = key
        .get(at..)
        .and_then(|bytes| bytes.first_chunk::<8>())
        .ok_or_else(|| ViewError::corrupt(format!("a key of the state is cut: {key:02x?}")))?;
    Ok(u64::from_be_bytes(*bytes))
}

pub(crate) fn meta_key() -> Bytes {
    start_key(SYSTEM_KEYSPACE, META, 0).freeze()
}

pub(crate) fn sweep_place_key() -> Bytes {
    start_key(SYSTEM_KEYSPACE, SWEEP_PLACE, 0).freeze()
}

pub(crate) fn desired_size_key() -> Bytes {
    start_key(SYSTEM_KEYSPACE, DESIRED_SIZE, 0).freeze()
}

pub(crate) fn frozen_key(prefix: &[u8]) -> Bytes {
    raw_key(SYSTEM_KEYSPACE, FROZEN, prefix)
}

pub(crate) fn frozen_bounds() -> (Bytes, Bytes) {
    let start = start_key(SYSTEM_KEYSPACE, FROZEN, 0).freeze();
    (start, table_end(SYSTEM_KEYSPACE, FROZEN))
}

pub(crate) fn read_frozen_key(key: &Bytes) -> Result<Bytes, ViewError> {
    tail(key, PREFIX_BYTES)
}

pub(crate) fn alarm_key(alarm: Alarm) -> Bytes {
    let mut key = start_key(SYSTEM_KEYSPACE, ALARMS, 9);
    key.put_u8(alarm.kind as u8);
    key.put_u64(alarm.member.0);
    key.freeze()
}

pub(crate) fn alarm_bounds() -> (Bytes, Bytes) {
    let start = start_key(SYSTEM_KEYSPACE, ALARMS, 0).freeze();
    (start, table_end(SYSTEM_KEYSPACE, ALARMS))
}

/// `None` for a kind that a newer release raised.
pub(crate) fn read_alarm_key(key: &Bytes) -> Result<Option<Alarm>, ViewError> {
    let number = tail(key, PREFIX_BYTES)?.first().copied().unwrap_or(0);
    let member = MemberId(read_u64(key, PREFIX_BYTES + 1)?);
    Ok(AlarmKind::from_number(number).map(|kind| Alarm { member, kind }))
}

pub(crate) fn restore_key() -> Bytes {
    start_key(SYSTEM_KEYSPACE, RESTORE, 0).freeze()
}

// latest

pub(crate) fn latest_key(key: &[u8]) -> Bytes {
    raw_key(USER_KEYSPACE, LATEST, key)
}

pub(crate) fn latest_bounds(range: &KeyRange) -> (Bytes, Bytes) {
    raw_bounds(LATEST, range)
}

/// The user's key in a key of `latest` or `counts`.
pub(crate) fn user_key(key: &Bytes) -> Result<Bytes, ViewError> {
    tail(key, PREFIX_BYTES)
}

fn raw_bounds(table: u8, range: &KeyRange) -> (Bytes, Bytes) {
    let start = raw_key(USER_KEYSPACE, table, &range.start);
    let end = match &range.end {
        RangeEnd::Single => just_after(&start),
        RangeEnd::Before(end) => raw_key(USER_KEYSPACE, table, end),
        RangeEnd::Unbounded => table_end(USER_KEYSPACE, table),
    };
    (start, end)
}

/// The smallest key above `key`.
pub(crate) fn just_after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

// history

fn put_escaped(target: &mut BytesMut, key: &[u8]) {
    for &byte in key {
        target.put_u8(byte);
        if byte == 0 {
            target.put_u8(0xff);
        }
    }
    target.put_slice(&[0x00, 0x01]);
}

/// Reads an escaped key from the start of `bytes`; says how many bytes it took.
fn read_escaped(bytes: &[u8]) -> Option<(Bytes, usize)> {
    let mut key = BytesMut::with_capacity(bytes.len());
    let mut rest = bytes.iter().enumerate();
    while let Some((_, &byte)) = rest.next() {
        if byte != 0 {
            key.put_u8(byte);
            continue;
        }
        match rest.next()? {
            (_, 0xff) => key.put_u8(0),
            (at, 0x01) => return Some((key.freeze(), at + 1)),
            _ => return None,
        }
    }
    None
}

/// All versions of one key: the part of a history key before the revision.
fn history_prefix(key: &[u8], more: usize) -> BytesMut {
    let mut prefix = start_key(USER_KEYSPACE, HISTORY, key.len() + 2 + more);
    put_escaped(&mut prefix, key);
    prefix
}

pub(crate) fn history_key(key: &[u8], revision: Revision) -> Bytes {
    let mut history = history_prefix(key, 8);
    history.put_u64(revision);
    history.freeze()
}

/// The versions of `key` up to `revision`.
pub(crate) fn history_bounds_of(key: &[u8], up_to: Revision) -> (Bytes, Bytes) {
    let end = just_after(&history_key(key, up_to));
    (history_key(key, 0), end)
}

/// The versions of all keys of a range.
pub(crate) fn history_bounds(range: &KeyRange) -> (Bytes, Bytes) {
    let start = history_prefix(&range.start, 0).freeze();
    let end = match &range.end {
        RangeEnd::Single => just_after(&history_key(&range.start, u64::MAX)),
        RangeEnd::Before(end) => history_prefix(end, 0).freeze(),
        RangeEnd::Unbounded => table_end(USER_KEYSPACE, HISTORY),
    };
    (start, end)
}

pub(crate) fn read_history_key(key: &Bytes) -> Result<(Bytes, Revision), ViewError> {
    let corrupt = || ViewError::corrupt(format!("a key of the history is malformed: {key:02x?}"));
    let escaped = key.get(PREFIX_BYTES..).ok_or_else(corrupt)?;
    let (user_key, used) = read_escaped(escaped).ok_or_else(corrupt)?;
    Ok((user_key, read_u64(key, PREFIX_BYTES + used)?))
}

// changes

pub(crate) fn change_key(revision: Revision, sub: u32) -> Bytes {
    let mut key = start_key(USER_KEYSPACE, CHANGES, 12);
    key.put_u64(revision);
    key.put_u32(sub);
    key.freeze()
}

/// The changes of the revisions `from <= r < before`.
pub(crate) fn change_bounds(from: Revision, before: Revision) -> (Bytes, Bytes) {
    (change_key(from, 0), change_key(before, 0))
}

/// Where a change stands among those of its revision.
pub(crate) fn read_change_sub(key: &Bytes) -> Result<u32, ViewError> {
    let sub = key
        .get(PREFIX_BYTES + 8..)
        .and_then(|sub| sub.try_into().ok());
    sub.map(u32::from_be_bytes)
        .ok_or_else(|| ViewError::corrupt(format!("a key of the changes is malformed: {key:02x?}")))
}

pub(crate) fn read_change_revision(key: &Bytes) -> Result<Revision, ViewError> {
    read_u64(key, PREFIX_BYTES)
}

// counts

pub(crate) fn count_key(first: &[u8]) -> Bytes {
    raw_key(USER_KEYSPACE, COUNTS, first)
}

pub(crate) fn count_bounds(range: &KeyRange) -> (Bytes, Bytes) {
    raw_bounds(COUNTS, range)
}

// leases

/// i64 in an order that bytes have too: negative numbers first.
fn put_lease(target: &mut BytesMut, id: LeaseId) {
    target.put_u64((id.0 as u64) ^ (1 << 63));
}

fn read_lease(key: &Bytes, at: usize) -> Result<LeaseId, ViewError> {
    Ok(LeaseId((read_u64(key, at)? ^ (1 << 63)) as i64))
}

pub(crate) fn lease_key(id: LeaseId) -> Bytes {
    let mut key = start_key(SYSTEM_KEYSPACE, LEASES, 8);
    put_lease(&mut key, id);
    key.freeze()
}

pub(crate) fn lease_bounds() -> (Bytes, Bytes) {
    let start = start_key(SYSTEM_KEYSPACE, LEASES, 0).freeze();
    (start, table_end(SYSTEM_KEYSPACE, LEASES))
}

pub(crate) fn read_lease_key(key: &Bytes) -> Result<LeaseId, ViewError> {
    read_lease(key, PREFIX_BYTES)
}

fn lease_keys_prefix(id: LeaseId, keyspace: u32, more: usize) -> BytesMut {
    let mut prefix = start_key(SYSTEM_KEYSPACE, LEASE_KEYS, 12 + more);
    put_lease(&mut prefix, id);
    prefix.put_u32(keyspace);
    prefix
}

pub(crate) fn attached_key(id: LeaseId, key: &[u8]) -> Bytes {
    let mut attached = lease_keys_prefix(id, USER_KEYSPACE, key.len());
    attached.put_slice(key);
    attached.freeze()
}

/// The keys from `start` on and before `end` that are attached to a lease; `None` is no end.
pub(crate) fn attached_between(id: LeaseId, start: &[u8], end: Option<&[u8]>) -> (Bytes, Bytes) {
    let end = match end {
        Some(end) => attached_key(id, end),
        None => attached_bounds(id).1,
    };
    (attached_key(id, start), end)
}

/// The keys attached to a lease, in key order.
pub(crate) fn attached_bounds(id: LeaseId) -> (Bytes, Bytes) {
    let start = lease_keys_prefix(id, USER_KEYSPACE, 0).freeze();
    (start, lease_keys_prefix(id, USER_KEYSPACE + 1, 0).freeze())
}

pub(crate) fn read_attached_key(key: &Bytes) -> Result<Bytes, ViewError> {
    tail(key, PREFIX_BYTES + 12)
}

// deadlines

/// What is due at a deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Lease(LeaseId),
    Session(SessionId),
    Key(Bytes),
}

const DUE_LEASE: u8 = 1;
const DUE_SESSION: u8 = 2;
const DUE_KEY: u8 = 3;

pub(crate) fn deadline_key(at_ms: u64, due: &Due) -> Bytes {
    let mut key = start_key(SYSTEM_KEYSPACE, DEADLINES, 32);
    key.put_u64(at_ms);
    match due {
        Due::Lease(id) => {
            key.put_u8(DUE_LEASE);
            put_lease(&mut key, *id);
        }
        Due::Session(id) => {
            key.put_u8(DUE_SESSION);
            key.put_u128(id.0);
        }
        Due::Key(user_key) => {
            key.put_u8(DUE_KEY);
            key.put_u32(USER_KEYSPACE);
            key.put_slice(user_key);
        }
    }
    key.freeze()
}

/// The deadlines up to and including `clock_ms`.
pub(crate) fn deadline_bounds(clock_ms: u64) -> (Bytes, Bytes) {
    let start = start_key(SYSTEM_KEYSPACE, DEADLINES, 0).freeze();
    let end = match clock_ms.checked_add(1) {
        Some(after) => raw_key(SYSTEM_KEYSPACE, DEADLINES, &after.to_be_bytes()),
        None => table_end(SYSTEM_KEYSPACE, DEADLINES),
    };
    (start, end)
}

pub(crate) fn read_deadline_key(key: &Bytes) -> Result<(u64, Due), ViewError> {
    let at_ms = read_u64(key, PREFIX_BYTES)?;
    let what = PREFIX_BYTES + 9;
    let due = match key.get(PREFIX_BYTES + 8) {
        Some(&DUE_LEASE) => Due::Lease(read_lease(key, what)?),
        Some(&DUE_SESSION) => {
            let (high, low) = (read_u64(key, what)?, read_u64(key, what + 8)?);
            Due::Session(SessionId(u128::from(high) << 64 | u128::from(low)))
        }
        Some(&DUE_KEY) => Due::Key(tail(key, what + 4)?),
        _ => {
            return Err(ViewError::corrupt(format!(
                "a deadline is malformed: {key:02x?}"
            )));
        }
    };
    Ok((at_ms, due))
}

// sessions

pub(crate) fn session_key(id: SessionId) -> Bytes {
    raw_key(SYSTEM_KEYSPACE, SESSIONS, &id.0.to_be_bytes())
}

pub(crate) fn session_bounds() -> (Bytes, Bytes) {
    let start = start_key(SYSTEM_KEYSPACE, SESSIONS, 0).freeze();
    (start, table_end(SYSTEM_KEYSPACE, SESSIONS))
}

pub(crate) fn read_session_key(key: &Bytes) -> Result<SessionId, ViewError> {
    let (high, low) = (
        read_u64(key, PREFIX_BYTES)?,
        read_u64(key, PREFIX_BYTES + 8)?,
    );
    Ok(SessionId(u128::from(high) << 64 | u128::from(low)))
}

pub(crate) fn session_result_key(id: SessionId, sequence: u64) -> Bytes {
    let mut key = start_key(SYSTEM_KEYSPACE, SESSION_RESULTS, 24);
    key.put_u128(id.0);
    key.put_u64(sequence);
    key.freeze()
}

/// The results of a session below a sequence; `None` is all of them.
pub(crate) fn session_result_bounds(id: SessionId, below: Option<u64>) -> (Bytes, Bytes) {
    let end = match below {
        Some(below) => session_result_key(id, below),
        None => just_after(&session_result_key(id, u64::MAX)),
    };
    (session_result_key(id, 0), end)
}

// clock marks

pub(crate) fn clock_mark_key(clock_ms: u64) -> Bytes {
    raw_key(SYSTEM_KEYSPACE, CLOCK_MARKS, &clock_ms.to_be_bytes())
}

/// The marks up to and including `clock_ms`.
pub(crate) fn clock_mark_bounds(clock_ms: u64) -> (Bytes, Bytes) {
    let start = start_key(SYSTEM_KEYSPACE, CLOCK_MARKS, 0).freeze();
    (start, just_after(&clock_mark_key(clock_ms)))
}

// auth

pub(crate) fn auth_key() -> Bytes {
    start_key(SYSTEM_KEYSPACE, AUTH, 0).freeze()
}

pub(crate) fn auth_user_key(name: &str) -> Bytes {
    raw_key(SYSTEM_KEYSPACE, USERS, name.as_bytes())
}

pub(crate) fn auth_user_bounds() -> (Bytes, Bytes) {
    (auth_user_key(""), table_end(SYSTEM_KEYSPACE, USERS))
}

pub(crate) fn auth_role_key(name: &str) -> Bytes {
    raw_key(SYSTEM_KEYSPACE, ROLES, name.as_bytes())
}

pub(crate) fn auth_role_bounds() -> (Bytes, Bytes) {
    (auth_role_key(""), table_end(SYSTEM_KEYSPACE, ROLES))
}

/// The name in a key of `users` or `roles`.
pub(crate) fn read_auth_name(key: &Bytes) -> Result<String, ViewError> {
    let name = tail(key, PREFIX_BYTES)?;
    String::from_utf8(name.to_vec())
        .map_err(|_| ViewError::corrupt(format!("a user or role is not text: {key:02x?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_keys_keep_their_order_and_come_back() {
        let mut keys: Vec<&[u8]> = vec![
            b"",
            b"\0",
            b"\0\0",
            b"\0\x01",
            b"\0\xff",
            b"\x01",
            b"a",
            b"a\0",
            b"a\0\0",
            b"a\0\x01",
            b"a\0b",
            b"a\x01",
            b"aa",
            b"ab",
            b"\xff",
            b"\xff\0",
            b"\xff\xff",
        ];
        keys.sort();
        let stored: Vec<Bytes> = keys
            .iter()
            .flat_map(|key| [history_key(key, 1), history_key(key, u64::MAX)])
            .collect();
        assert!(stored.is_sorted());
        for (at, key) in keys.iter().enumerate() {
            let (read, revision) = read_history_key(&stored[2 * at]).unwrap();
            assert_eq!((read.as_ref(), revision), (*key, 1));
        }
    }

    #[test]
    fn malformed_escapes_are_refused() {
        assert_eq!(read_escaped(b"a"), None);
        assert_eq!(read_escaped(b"a\0"), None);
        assert_eq!(read_escaped(b"a\0\x02"), None);
    }

    #[test]
    fn deadlines_come_back_and_sort_by_time() {
        let due = [
            Due::Lease(LeaseId(-5)),
            Due::Session(SessionId(u128::MAX - 3)),
            Due::Key(Bytes::from_static(b"k\0")),
        ];
        for due in due {
            let key = deadline_key(77, &due);
            assert_eq!(read_deadline_key(&key).unwrap(), (77, due));
            assert!(key < deadline_bounds(77).1 && key >= deadline_bounds(76).1);
        }
    }

    #[test]
    fn leases_sort_by_number() {
        let keys = [i64::MIN, -1, 0, 1, i64::MAX].map(|id| lease_key(LeaseId(id)));
        assert!(keys.is_sorted());
        assert_eq!(read_lease_key(&keys[1]).unwrap(), LeaseId(-1));
    }
}
