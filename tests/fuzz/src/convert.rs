//! What clients send, before a node hears of it: messages of both APIs, and JSON.

use podkv_api::{
    AuthStatus, DeleteResponse, LeaseGrantResponse, LeaseStatus, Limits, Member, NodeStatus, Op,
    Permission, Put, PutResponse, Range, RangeResponse, Txn, TxnResponse, Watch,
};
use podkv_core::{Command, check, check_range};
use podkv_proto::convert::{session_stamp, watch};
use podkv_proto::v1;
use podkv_server::fuzzing::Asked;
use prost::Message;

/// A message as the type that it stands for, and back.
type Rewrite = fn(&[u8]) -> Option<Vec<u8>>;

fn both_ways<Wire, Ours>(bytes: &[u8]) -> Option<Vec<u8>>
where
    Wire: Message + Default + From<Ours>,
    Ours: TryFrom<Wire>,
{
    let message = Wire::decode(bytes).ok()?;
    Some(Wire::from(Ours::try_from(message).ok()?).encode_to_vec())
}

/// The first byte says which message. Corpora name one by its place: append only.
const MESSAGES: &[Rewrite] = &[
    both_ways::<v1::PutRequest, Put>,
    both_ways::<v1::PutResponse, PutResponse>,
    both_ways::<v1::DeleteRequest, podkv_api::Delete>,
    both_ways::<v1::DeleteResponse, DeleteResponse>,
    both_ways::<v1::RangeRequest, Range>,
    both_ways::<v1::RangeResponse, RangeResponse>,
    both_ways::<v1::TxnRequest, Txn>,
    both_ways::<v1::TxnResponse, TxnResponse>,
    both_ways::<v1::WatchRequest, Watch>,
    both_ways::<v1::Event, podkv_api::Event>,
    both_ways::<v1::LeaseGrantResponse, LeaseGrantResponse>,
    both_ways::<v1::LeaseStatusResponse, LeaseStatus>,
    both_ways::<v1::Member, Member>,
    both_ways::<v1::StatusResponse, NodeStatus>,
    both_ways::<v1::AuthStatusResponse, AuthStatus>,
    both_ways::<v1::Permission, Permission>,
    both_ways::<v1::Operation, Op>,
    |bytes| {
        let error = podkv_api::Error::from(v1::Error::decode(bytes).ok()?);
        Some(v1::Error::from(&error).encode_to_vec())
    },
    |bytes| {
        let stamp = v1::SessionStamp::decode(bytes).ok()?;
        let stamp = session_stamp(Some(stamp)).ok()??;
        Some(v1::SessionStamp::from(stamp).encode_to_vec())
    },
    |bytes| {
        let answer = v1::LeaseKeepAliveResponse::decode(bytes).ok()?;
        let lease = podkv_api::LeaseId(answer.id);
        let result = answer.into_result();
        Some(v1::LeaseKeepAliveResponse::new(lease, result).encode_to_vec())
    },
];

/// Messages of `podkv.v1`: refused, or understood as something that says the same when it is sent on. Answers of a watch
/// come in fragments that a client puts together.
pub fn native(data: &[u8]) {
    let Some((number, rest)) = data.split_first() else {
        return;
    };
    let Some(rewrite) = MESSAGES.get(usize::from(*number)) else {
        return fragments(rest);
    };
    let Some(written) = rewrite(rest) else { return };
    assert_eq!(rewrite(&written), Some(written), "message {number}");
}

/// A stream of answers, each with its length before it as in a message that repeats them.
fn fragments(mut rest: &[u8]) {
    let mut joined = watch::Assembler::new(1 << 20);
    while let Ok(response) = v1::WatchResponse::decode_length_delimited(&mut rest) {
        let Ok(Some(message)) = joined.push(response) else {
            continue;
        };
        // What came whole is cut again, and comes whole again.
        let mut again = watch::Assembler::new(4 << 20);
        let parts = watch::fragments(message.clone(), 64);
        let whole = parts.into_iter().find_map(|part| {
            let part = again.push(part);
            part.expect("our own fragments fit")
        });
        assert_eq!(whole, Some(message));
    }
}

/// Requests of etcd: what is understood can be checked, and means the same after its way through the log.
pub fn etcd(data: &[u8]) {
    let limits = Limits::default();
    for asked in podkv_server::fuzzing::requests(data) {
        let command = match asked {
            Asked::Put(put) => Command::Put(put),
            Asked::Delete(delete) => Command::Delete(delete),
            Asked::Txn(txn) => Command::Txn(txn),
            Asked::Range(range) => {
                // Refused or not: there is no other promise.
                let _ = check_range(&range, &limits);
                continue;
            }
        };
        if check(&command, &limits).is_ok() {
            let proposal = podkv_core::Proposal::from(command);
            let mut expected = proposal.clone();
            forget_consistency(&mut expected.command);
            let decoded = podkv_core::Proposal::decode(&proposal.encode());
            assert_eq!(decoded.as_ref(), Ok(&expected));
        }
    }
}

/// A range inside a transaction has none: it is not sent.
fn forget_consistency(command: &mut Command) {
    fn within(txn: &mut Txn) {
        for op in txn.then.iter_mut().chain(&mut txn.or_else) {
            match op {
                Op::Range(range) => range.consistency = podkv_api::Consistency::default(),
                Op::Txn(txn) => within(txn),
                Op::Put(_) | Op::Delete(_) => {}
            }
        }
    }
    if let Command::Txn(txn) = command {
        within(txn);
    }
}

/// Bodies of the JSON gateway: a method's number, the size of the parts that it comes in, the text.
pub fn json(data: &[u8]) {
    let Some((&[route, part], text)) = data.split_first_chunk::<2>() else {
        return;
    };
    let (route, part) = (usize::from(route), usize::from(part));
    let (message, objects) = podkv_server::fuzzing::json(route, text, part);
    let (_, whole) = podkv_server::fuzzing::json(route, text, text.len());
    assert_eq!(objects, whole, "in parts of {part}");
    if let Some(message) = message {
        let (again, _) = podkv_server::fuzzing::json(route, message.as_bytes(), 1);
        assert_eq!(again, Some(message));
    }
}
