//! Golden bytes: what is on disk today must be read for ever.

use podkv_core::Entry;

use super::*;

/// The payload of a frame, in hexadecimal: the frame's own head is the codec's to pin.
fn payload_hex(kind: FrameKind, record: &Bytes) -> String {
    let payload = codec::unframe(kind, record, MAX_FRAME_BYTES).unwrap();
    payload.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entry(payload: EntryPayload) -> LogEntry {
    LogEntry {
        log_id: log_id(LogPosition {
            term: 3,
            index: 258,
        }),
        payload,
    }
}

fn some_members(position: Option<LogPosition>) -> Members {
    let node = |name: &str| PeerAddress {
        name: name.into(),
        peer_address: format!("{name}:2380"),
        client_address: String::new(),
    };
    Members {
        position,
        voters: vec![
            BTreeSet::from([MemberId(1)]),
            BTreeSet::from([MemberId(1), MemberId(2)]),
        ],
        nodes: BTreeMap::from([(MemberId(1), node("a")), (MemberId(2), node("b"))]),
    }
}

#[test]
fn golden_vote() {
    for (vote, flag) in [(Vote::new(2, 9), "00"), (Vote::new_committed(2, 9), "01")] {
        let record = encode_vote(&vote);
        let expected = format!("02000000000000000900000000000000{flag}");
        assert_eq!(payload_hex(FrameKind::Vote, &record), expected);
        assert_eq!(decode_vote(&record).unwrap(), vote);
    }
    assert_eq!(
        encode_vote(&Vote::new(2, 9)).len(),
        codec::FRAME_HEADER_BYTES + VOTE_BYTES,
        "a vote is a frame"
    );
}

#[test]
fn golden_positions() {
    let at = LogPosition {
        term: 3,
        index: 258,
    };
    let expected = "03000000000000000201000000000000";
    let state = encode_log_state(at);
    assert_eq!(payload_hex(FrameKind::LogState, &state), expected);
    assert_eq!(decode_log_state(&state).unwrap(), at);
    let applied = encode_applied(at);
    assert_eq!(payload_hex(FrameKind::Applied, &applied), expected);
    assert_eq!(decode_applied(&applied).unwrap(), at);
    assert!(decode_applied(&state).is_err(), "kinds are not mixed up");
}

#[test]
fn golden_entries() {
    let head = "03000000000000000201000000000000";
    let blank = encode_entry(&entry(EntryPayload::Blank));
    assert_eq!(
        payload_hex(FrameKind::LogRecord, &blank),
        format!("{head}00")
    );

    let payload = Payload::new(Entry {
        clock_ms: 5,
        proposals: Vec::new(),
    });
    let inner: String = payload
        .encoded()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let proposals = encode_entry(&entry(EntryPayload::Normal(payload)));
    assert_eq!(
        payload_hex(FrameKind::LogRecord, &proposals),
        format!("{head}01{inner}")
    );
    let decoded = decode_entry(&proposals).unwrap();
    let EntryPayload::Normal(payload) = decoded.payload else {
        panic!("not proposals")
    };
    assert_eq!(payload.entry().unwrap().clock_ms, 5);
}

#[test]
fn golden_membership() {
    let expected_position = "01 0300000000000000 0201000000000000";
    let rest = "02 0100 0100000000000000 0200 0100000000000000 0200000000000000 \
                0200 0100000000000000 0100 61 0600 613a32333830 0000 \
                0200000000000000 0100 62 0600 623a32333830 0000";
    let at = LogPosition {
        term: 3,
        index: 258,
    };
    let members = some_members(Some(at));
    let record = encode_members(&members);
    let expected = format!("{expected_position}{rest}").replace(' ', "");
    assert_eq!(payload_hex(FrameKind::Membership, &record), expected);
    assert_eq!(decode_members(&record).unwrap(), members);

    // In an entry the position is the entry's own.
    let inner = membership(&some_members(None)).unwrap();
    let record = encode_entry(&entry(EntryPayload::Membership(inner.clone())));
    let head = "0300000000000000 0201000000000000 02";
    let none = "00 0000000000000000 0000000000000000";
    let expected = format!("{head}{none}{rest}").replace(' ', "");
    assert_eq!(payload_hex(FrameKind::LogRecord, &record), expected);
    let decoded = decode_entry(&record).unwrap();
    assert!(matches!(decoded.payload, EntryPayload::Membership(m) if m == inner));
}

#[test]
fn golden_snapshot_meta() {
    let at = LogPosition {
        term: 3,
        index: 258,
    };
    let members = some_members(Some(at));
    let record = encode_snapshot_meta(Some(at), &members);
    let inner: String = members_payload(&members)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let expected = format!("0103000000000000000201000000000000{inner}");
    assert_eq!(payload_hex(FrameKind::PeerMessage, &record), expected);
    assert_eq!(decode_snapshot_meta(&record).unwrap(), (Some(at), members));
}

#[test]
fn an_entry_crosses_the_wire_as_it_is() {
    let inner = membership(&some_members(None)).unwrap();
    let payload = Payload::new(Entry::default());
    for payload in [
        EntryPayload::Blank,
        EntryPayload::Normal(payload),
        EntryPayload::Membership(inner),
    ] {
        let kind = entry_kind(&payload);
        let read = decode_entry_payload(kind.into(), entry_payload(&payload)).unwrap();
        assert_eq!(entry_kind(&read), kind);
        assert_eq!(entry_payload(&read), entry_payload(&payload));
    }
    assert!(decode_entry_payload(3, Bytes::new()).is_err());
    assert!(
        decode_entry_payload(257, Bytes::new()).is_err(),
        "the kind is not cut to a byte"
    );
}

#[test]
fn every_cut_and_every_flipped_bit_is_refused() {
    let inner = membership(&some_members(None)).unwrap();
    let record = encode_entry(&entry(EntryPayload::Membership(inner)));
    for cut in 0..record.len() {
        assert!(decode_entry(&record.slice(..cut)).is_err(), "cut at {cut}");
    }
    for bit in 0..record.len() * 8 {
        let mut damaged = record.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_entry(&damaged.into()).is_err(), "bit {bit}");
    }
    // Also behind a checksum that holds: a length that points beyond the end.
    let payload = members_payload(&some_members(None));
    for cut in 0..payload.len() {
        let short = codec::frame(FrameKind::Membership, &payload[..cut]);
        assert!(decode_members(&short).is_err(), "payload cut at {cut}");
    }
}

#[test]
fn a_voter_without_a_node_is_refused() {
    let mut members = some_members(None);
    members.nodes.remove(&MemberId(2));
    assert!(membership(&members).is_err());
}
