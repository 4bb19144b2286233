//! Each malformed form is refused, with the path of the field.

use bytes::Bytes;
use podkv_api::{Delete, Error, Event, Member, Op, Put, Range, Reason, Txn, TxnResponse, Watch};
use podkv_proto::convert::{self, Malformed, watch::Assembler};
use podkv_proto::v1;
use podkv_proto::v1::key_range::End;
use podkv_proto::v1::watch_response::{Bookmark, Events, Message};

/// Refused because of `field`, and typed as `reason`.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Malformed>, field: &str, reason: Reason) {
    let malformed = result.unwrap_err();
    assert_eq!(malformed.field(), field);
    let error = Error::from(malformed);
    assert_eq!(error.reason(), reason);
    assert!(error.text().contains(field), "{error}");
}

#[track_caller]
fn bad_request<T: std::fmt::Debug>(result: Result<T, Malformed>, field: &str) {
    refused(result, field, Reason::InvalidArgument);
}

#[track_caller]
fn bad_answer<T: std::fmt::Debug>(result: Result<T, Malformed>, field: &str) {
    refused(result, field, Reason::Corrupt);
}

fn range(end: Option<End>) -> Option<v1::KeyRange> {
    Some(v1::KeyRange {
        start: Bytes::from_static(b"a"),
        end,
    })
}

#[test]
fn ranges() {
    bad_request(convert::key_range(None), "range");
    bad_request(convert::key_range(range(None)), "range.end");
    bad_request(
        convert::key_range(range(Some(End::Single(false)))),
        "range.single",
    );
    bad_request(
        convert::key_range(range(Some(End::Unbounded(false)))),
        "range.unbounded",
    );
    bad_request(
        convert::key_range(range(Some(End::Prefix(false)))),
        "range.prefix",
    );
    bad_request(Range::try_from(v1::RangeRequest::default()), "range");
    bad_request(Delete::try_from(v1::DeleteRequest::default()), "range");
    bad_request(Watch::try_from(v1::WatchRequest::default()), "range");
}

#[test]
fn consistency_levels() {
    use v1::consistency::Level;
    let level = |level| Some(v1::Consistency { level: Some(level) });
    bad_request(
        convert::consistency(level(Level::Linearizable(false))),
        "consistency.linearizable",
    );
    bad_request(
        convert::consistency(level(Level::Local(false))),
        "consistency.local",
    );
    let get = v1::GetRequest {
        consistency: level(Level::Local(false)),
        ..Default::default()
    };
    bad_request(Range::try_from(get), "consistency.local");
    let unset = Some(v1::Consistency { level: None });
    assert_eq!(
        convert::consistency(unset),
        Ok(podkv_api::Consistency::Linearizable)
    );
    assert_eq!(
        convert::consistency(None),
        Ok(podkv_api::Consistency::Linearizable)
    );
}

#[test]
fn a_put_with_a_lease_and_a_ttl() {
    let put = v1::PutRequest {
        lease: 1,
        ttl_ms: 1,
        ..Default::default()
    };
    bad_request(Put::try_from(put), "ttl_ms");
}

#[test]
fn sessions() {
    let stamp = |bytes: &'static [u8], sequence| {
        let session_id = Bytes::from_static(bytes);
        Some(v1::SessionStamp {
            session_id,
            sequence,
            acknowledged_below: 0,
        })
    };
    assert_eq!(convert::session_stamp(None), Ok(None));
    bad_request(convert::session_stamp(stamp(b"", 1)), "session.session_id");
    bad_request(
        convert::session_stamp(stamp(b"fifteen-bytes..", 1)),
        "session.session_id",
    );
    bad_request(
        convert::session_stamp(stamp(b"seventeen-bytes..", 1)),
        "session.session_id",
    );
    bad_request(
        convert::session_stamp(stamp(b"sixteen-bytes...", 0)),
        "session.sequence",
    );
    bad_request(convert::session_id("id", b"short"), "id");
}

#[test]
fn transactions_name_the_place() {
    let operation = |operation| v1::Operation {
        operation: Some(operation),
    };
    let bad_put = v1::PutRequest {
        lease: 1,
        ttl_ms: 1,
        ..Default::default()
    };
    let inner = v1::TxnRequest {
        or_else: vec![operation(v1::operation::Operation::Put(bad_put))],
        ..Default::default()
    };
    let outer = v1::TxnRequest {
        then: vec![
            operation(v1::operation::Operation::Put(v1::PutRequest::default())),
            operation(v1::operation::Operation::Txn(inner)),
        ],
        ..Default::default()
    };
    bad_request(Txn::try_from(outer), "then[1].txn.or_else[0].put.ttl_ms");
    bad_request(Op::try_from(v1::Operation::default()), "operation");

    let compare = |operator, target| {
        let range = range(Some(End::Single(true)));
        let compare = v1::Compare {
            range,
            operator,
            target,
        };
        Txn::try_from(v1::TxnRequest {
            compare: vec![compare],
            ..Default::default()
        })
    };
    bad_request(compare(0, None), "compare[0].target");
    let version = || Some(v1::compare::Target::Version(1));
    bad_request(compare(9, version()), "compare[0].operator");
    compare(1, version()).unwrap();
}

#[test]
fn watches() {
    let request = v1::WatchRequest {
        range: range(Some(End::Prefix(true))),
        start_revision: 3,
        list: true,
        ..Default::default()
    };
    bad_request(Watch::try_from(request), "start_revision");
}

#[test]
fn leases_and_members() {
    bad_request(convert::lease_id(0), "id");
    bad_request(convert::member_id(0), "id");
    let good = v1::AddMemberRequest {
        id: 7,
        name: "podkv-3".into(),
        peer_address: "podkv-3.podkv:2380".into(),
        client_address: "[::1]:2379".into(),
    };
    Member::try_from(good.clone()).unwrap();
    bad_request(
        Member::try_from(v1::AddMemberRequest {
            id: 0,
            ..good.clone()
        }),
        "id",
    );
    bad_request(
        Member::try_from(v1::AddMemberRequest {
            name: String::new(),
            ..good.clone()
        }),
        "name",
    );
    for address in [
        "",
        "podkv-3",
        ":2380",
        "podkv-3:",
        "podkv-3:0",
        "podkv-3:65536",
        "podkv-3:x",
    ] {
        let peer = v1::AddMemberRequest {
            peer_address: address.into(),
            ..good.clone()
        };
        bad_request(Member::try_from(peer), "peer_address");
        let client = v1::AddMemberRequest {
            client_address: address.into(),
            ..good.clone()
        };
        bad_request(Member::try_from(client), "client_address");
    }
}

#[test]
fn answers() {
    bad_answer(convert::header(None), "header");
    bad_answer(
        podkv_api::PutResponse::try_from(v1::PutResponse::default()),
        "header",
    );
    bad_answer(Event::try_from(v1::Event::default()), "kv");
    let kv = Some(v1::KeyValue::default());
    bad_answer(
        Event::try_from(v1::Event {
            kind: 5,
            kv,
            prev_kv: None,
        }),
        "kind",
    );
    let txn = v1::TxnResponse {
        header: Some(v1::Header::default()),
        succeeded: true,
        responses: vec![v1::OperationResponse::default()],
    };
    bad_answer(TxnResponse::try_from(txn), "responses[0].response");
    let member = |id, role| v1::MembersResponse {
        header: Some(v1::Header::default()),
        members: vec![v1::Member {
            id,
            role,
            ..Default::default()
        }],
    };
    type List = (podkv_api::Header, Vec<Member>);
    bad_answer(List::try_from(member(0, 1)), "members[0].id");
    bad_answer(List::try_from(member(1, 0)), "members[0].role");
    bad_answer(List::try_from(member(1, 9)), "members[0].role");
    let kept = v1::LeaseKeepAliveResponse {
        header: Some(v1::Header::default()),
        ..Default::default()
    };
    assert_eq!(kept.into_result().unwrap_err().reason(), Reason::Corrupt);
}

#[test]
fn watch_streams_out_of_step() {
    let message = |revision, message| v1::WatchResponse {
        header: Some(v1::Header::default()),
        revision,
        message,
    };
    let events = |revision, count, fragment| {
        let event = v1::Event {
            kv: Some(v1::KeyValue::default()),
            ..Default::default()
        };
        let events = vec![event; count];
        message(revision, Some(Message::Events(Events { events, fragment })))
    };

    bad_answer(Assembler::default().push(message(1, None)), "message");

    let mut assembler = Assembler::default();
    assert_eq!(assembler.push(events(4, 1, true)), Ok(None));
    bad_answer(assembler.push(events(5, 1, false)), "revision");

    let mut assembler = Assembler::default();
    assert_eq!(assembler.push(events(4, 1, true)), Ok(None));
    bad_answer(
        assembler.push(message(4, Some(Message::Bookmark(Bookmark {})))),
        "message",
    );

    let mut assembler = Assembler::new(100);
    assert_eq!(assembler.push(events(4, 10, true)), Ok(None));
    bad_answer(assembler.push(events(4, 100, true)), "events");
}
