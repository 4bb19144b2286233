//! The promise: damaged, cut, foreign or hostile bytes are an error that says so, never another
//! value, never a panic, never a large allocation.

use podkv_api::*;
use podkv_core::codec::*;
use podkv_core::*;

fn entry() -> Entry {
    Entry {
        clock_ms: 1_234,
        proposals: vec![Command::Put(Put::new("key", "value").prev_kv()).into()],
    }
}

fn decode(bytes: &[u8]) -> Result<Entry, CodecError> {
    Entry::decode(&Bytes::copy_from_slice(bytes))
}

/// Writes the checksum that fits the bytes, as someone who means it would.
fn seal(bytes: &mut [u8]) {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..10]), &bytes[14..]);
    bytes[10..14].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn every_cut_is_noticed() {
    let bytes = entry().encode();
    for length in 0..bytes.len() {
        let error = decode(&bytes[..length]).unwrap_err();
        assert!(matches!(error, CodecError::Truncated { .. }), "{error}");
    }
    let longer = [bytes.as_ref(), b"x"].concat();
    assert!(matches!(
        decode(&longer).unwrap_err(),
        CodecError::Malformed { .. }
    ));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let bytes = entry().encode();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn frames_of_other_kinds_groups_and_versions_are_refused() {
    let bytes = entry().encode();
    let with = |at: usize, value: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        seal(&mut bytes);
        decode(&bytes).unwrap_err()
    };
    let what = "entry";
    assert_eq!(with(0, 9), CodecError::UnknownVersion { what, version: 9 });
    assert_eq!(with(1, 3), CodecError::WrongKind { what, found: 3 });
    assert_eq!(with(2, 7), CodecError::WrongGroup { what, found: 7 });
}

#[test]
fn lengths_are_checked_before_anything_is_allocated() {
    let error = decode_frame::<Blob>(FrameKind::Vote, &frame(FrameKind::Vote, &[0; 100]), 99);
    let (what, length, limit) = ("vote", 100, 99);
    let too_large = CodecError::TooLarge {
        what,
        length,
        limit,
    };
    assert_eq!(error.unwrap_err(), too_large);

    // A frame that says it has 4 GiB.
    let mut bytes = frame(FrameKind::Vote, b"x").to_vec();
    bytes[6..10].fill(0xff);
    let error = decode_frame::<Blob>(FrameKind::Vote, &bytes, usize::MAX).unwrap_err();
    assert!(matches!(error, CodecError::TooLarge { .. }), "{error}");

    // A payload whose blob says it has 2^60 bytes, in a frame that is whole.
    let mut payload = vec![253];
    payload.extend((1u64 << 60).to_le_bytes());
    let bytes = frame(FrameKind::Vote, &payload);
    let error = decode_frame::<Blob>(FrameKind::Vote, &bytes, 100).unwrap_err();
    assert!(matches!(error, CodecError::Malformed { .. }), "{error}");
}

/// A proposal whose transaction nests, in bytes: what a peer could send, not what we could build.
fn nested(levels: usize) -> Bytes {
    let mut txn = vec![0, 0, 0];
    for _ in 1..levels {
        let length = u32::try_from(txn.len()).unwrap().to_le_bytes();
        let one_op = [vec![0, 1, 3, 252], length.to_vec(), txn, vec![0]];
        txn = one_op.concat();
    }
    frame(FrameKind::Proposal, &[vec![0, 2], txn].concat())
}

#[test]
fn transactions_that_nest_too_deep_do_not_reach_the_stack() {
    let two = Txn::new().then([Op::Txn(Txn::new())]);
    let decoded = Proposal::decode(&nested(2)).unwrap();
    assert_eq!(decoded.command, Command::Txn(two));
    assert!(Proposal::decode(&nested(32)).is_ok());
    let error = Proposal::decode(&nested(33)).unwrap_err();
    assert!(matches!(error, CodecError::Malformed { .. }), "{error}");
    assert!(Proposal::decode(&nested(5_000)).is_err());
}

#[test]
fn raw_frames_share_their_memory_and_tell_their_length() {
    let bytes = frame(FrameKind::LogRecord, b"payload");
    let payload = unframe(FrameKind::LogRecord, &bytes, 100).unwrap();
    assert_eq!(payload, "payload");
    assert_eq!(payload.as_ptr(), bytes[FRAME_HEADER_BYTES..].as_ptr());
    let two = [bytes.as_ref(), bytes.as_ref()].concat();
    assert_eq!(frame_length("log", &two, 100).unwrap(), bytes.len());
    assert!(frame_length("log", &two[..13], 100).is_err());
}

#[test]
fn a_size_covers_what_is_encoded() {
    let put = Put::new(vec![1; 300], vec![2; 5_000]).lease(LeaseId(i64::MIN));
    let delete = Delete::new(KeyRange::between(vec![1; 200], vec![2; 200]));
    let txn = Txn::new()
        .when([Compare::value(vec![1; 90], vec![2; 800])])
        .then([put.clone().into(), delete.clone().into()])
        .or_else([Op::Txn(Txn::new().then([put.clone().into()]))]);
    let stamp = Stamp {
        session: SessionStamp {
            session: SessionId(u128::MAX),
            sequence: u64::MAX,
            acknowledged_below: u64::MAX,
        },
        identity: vec![0; 70].into(),
    };
    for command in [
        Command::Put(put),
        Command::Delete(delete),
        Command::Txn(txn),
    ] {
        let proposal = Proposal {
            stamp: Some(stamp.clone()),
            command,
        };
        let encoded = proposal.encode().len() - FRAME_HEADER_BYTES;
        assert!(proposal.size() >= encoded, "{} {encoded}", proposal.size());
        assert!(proposal.size() <= encoded + 200);
    }
}

#[test]
fn records_of_other_versions_are_refused() {
    let record = encode_record(&7u64);
    assert_eq!(decode_record::<u64>("record", &record), Ok(7));
    let what = "record";
    let newer = [&[FORMAT_VERSION + 1], &record[1..]].concat();
    let error = decode_record::<u64>(what, &newer).unwrap_err();
    assert_eq!(error, CodecError::UnknownVersion { what, version: 2 });
    let (have, need) = (0, 1);
    let error = decode_record::<u64>(what, b"").unwrap_err();
    assert_eq!(error, CodecError::Truncated { what, have, need });
}
