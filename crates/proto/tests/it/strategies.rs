//! Arbitrary values of the api's types, in the form that the wire can carry.

use std::time::Duration;

use bytes::Bytes;
use podkv_api::{
    Alarm, AlarmKind, ClusterId, Compare, CompareOp, CompareTarget, Consistency, Delete,
    DeleteResponse, DesiredSize, Error, Event, EventKind, Header, Incarnation, KeyRange, KeyValue,
    LeaderHint, LeaseId, LeaseStatus, Member, MemberId, MemberRole, NodeStatus, Op, OpResponse,
    Put, PutResponse, Range, RangeResponse, Reason, Retention, SessionId, SessionStamp, Txn,
    TxnResponse, Watch,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

pub fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..6).prop_map(Bytes::from)
}

pub fn lease_id() -> impl Strategy<Value = LeaseId> {
    any::<i64>().prop_filter_map("0 is no lease", |id| (id != 0).then_some(LeaseId(id)))
}

fn member_id() -> impl Strategy<Value = MemberId> {
    (1..=u64::MAX).prop_map(MemberId)
}

pub fn header() -> impl Strategy<Value = Header> {
    (
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
    )
        .prop_map(|(cluster, incarnation, member, term, revision)| Header {
            cluster: ClusterId(cluster),
            incarnation: Incarnation(incarnation),
            member: MemberId(member),
            term,
            revision,
        })
}

pub fn key_range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        bytes().prop_map(KeyRange::key),
        bytes().prop_map(KeyRange::from),
        bytes().prop_map(KeyRange::prefix),
        (bytes(), bytes()).prop_map(|(start, end)| KeyRange::between(start, end)),
    ]
}

fn consistency() -> impl Strategy<Value = Consistency> {
    prop_oneof![
        Just(Consistency::Linearizable),
        Just(Consistency::Local),
        any::<u32>().prop_map(|ms| Consistency::Bounded(Duration::from_millis(ms.into()))),
    ]
}

pub fn key_value() -> impl Strategy<Value = KeyValue> {
    (
        (bytes(), bytes()),
        (any::<u64>(), any::<u64>(), any::<u64>()),
        option::of(lease_id()),
        option::of(1..=u64::MAX),
    )
        .prop_map(
            |((key, value), (create_revision, mod_revision, version), lease, expires_at_ms)| {
                KeyValue {
                    key,
                    value,
                    create_revision,
                    mod_revision,
                    version,
                    lease,
                    expires_at_ms,
                }
            },
        )
}

pub fn put() -> impl Strategy<Value = Put> {
    let attached = prop_oneof![
        Just((None, None)),
        lease_id().prop_map(|lease| (Some(lease), None)),
        (1..=u64::MAX).prop_map(|ttl_ms| (None, Some(ttl_ms))),
    ];
    (bytes(), bytes(), attached, any::<[bool; 3]>()).prop_map(
        |(key, value, (lease, ttl_ms), [prev_kv, ignore_value, ignore_lease])| Put {
            key,
            value,
            lease,
            ttl_ms,
            prev_kv,
            ignore_value,
            ignore_lease,
        },
    )
}

pub fn put_response() -> impl Strategy<Value = PutResponse> {
    (header(), option::of(key_value()))
        .prop_map(|(header, prev_kv)| PutResponse { header, prev_kv })
}

pub fn delete() -> impl Strategy<Value = Delete> {
    (key_range(), any::<bool>()).prop_map(|(range, prev_kv)| Delete { range, prev_kv })
}

pub fn delete_response() -> impl Strategy<Value = DeleteResponse> {
    (header(), any::<u64>(), vec(key_value(), 0..3)).prop_map(|(header, deleted, prev_kvs)| {
        DeleteResponse {
            header,
            deleted,
            prev_kvs,
        }
    })
}

pub fn range() -> impl Strategy<Value = Range> {
    (
        key_range(),
        any::<u64>(),
        any::<[bool; 3]>(),
        any::<u64>(),
        consistency(),
    )
        .prop_map(
            |(range, limit, [reverse, keys_only, count_only], revision, consistency)| Range {
                range,
                limit,
                reverse,
                keys_only,
                count_only,
                revision,
                consistency,
            },
        )
}

pub fn range_response() -> impl Strategy<Value = RangeResponse> {
    (
        header(),
        vec(key_value(), 0..3),
        any::<u64>(),
        any::<bool>(),
    )
        .prop_map(|(header, kvs, count, more)| RangeResponse {
            header,
            kvs,
            count,
            more,
        })
}

fn compare() -> impl Strategy<Value = Compare> {
    let op = prop_oneof![
        Just(CompareOp::Equal),
        Just(CompareOp::NotEqual),
        Just(CompareOp::Greater),
        Just(CompareOp::Less),
    ];
    let target = prop_oneof![
        bytes().prop_map(CompareTarget::Value),
        any::<u64>().prop_map(CompareTarget::Version),
        any::<u64>().prop_map(CompareTarget::CreateRevision),
        any::<u64>().prop_map(CompareTarget::ModRevision),
        option::of(lease_id()).prop_map(CompareTarget::Lease),
    ];
    (key_range(), op, target).prop_map(|(range, op, target)| Compare { range, op, target })
}

pub fn txn() -> impl Strategy<Value = Txn> {
    let leaf = prop_oneof![
        put().prop_map(Op::Put),
        delete().prop_map(Op::Delete),
        range().prop_map(Op::Range),
    ];
    let op = leaf.prop_recursive(3, 12, 3, |op| {
        (vec(compare(), 0..2), vec(op.clone(), 0..3), vec(op, 0..3)).prop_map(
            |(compare, then, or_else)| {
                Op::Txn(Txn {
                    compare,
                    then,
                    or_else,
                })
            },
        )
    });
    (vec(compare(), 0..3), vec(op.clone(), 0..3), vec(op, 0..3)).prop_map(
        |(compare, then, or_else)| Txn {
            compare,
            then,
            or_else,
        },
    )
}

pub fn txn_response() -> impl Strategy<Value = TxnResponse> {
    let leaf = prop_oneof![
        put_response().prop_map(OpResponse::Put),
        delete_response().prop_map(OpResponse::Delete),
        range_response().prop_map(OpResponse::Range),
    ];
    let make = |(header, succeeded, responses, same)| {
        let mut response = TxnResponse {
            header,
            succeeded,
            responses,
        };
        if same {
            inherit(&mut response);
        }
        response
    };
    let response = leaf.prop_recursive(3, 12, 3, move |response| {
        (header(), any::<bool>(), vec(response, 0..3), any::<bool>())
            .prop_map(move |parts| OpResponse::Txn(make(parts)))
    });
    (header(), any::<bool>(), vec(response, 0..4), any::<bool>()).prop_map(make)
}

/// Gives the answers inside a transaction its header: the usual case, which the wire leaves out.
fn inherit(response: &mut TxnResponse) {
    for inner in &mut response.responses {
        match inner {
            OpResponse::Put(put) => put.header = response.header,
            OpResponse::Delete(delete) => delete.header = response.header,
            OpResponse::Range(range) => range.header = response.header,
            OpResponse::Txn(txn) => txn.header = response.header,
        }
    }
}

pub fn watch() -> impl Strategy<Value = Watch> {
    let start = prop_oneof![
        Just((true, 0)),
        any::<u64>().prop_map(|start_revision| (false, start_revision)),
    ];
    (key_range(), start, any::<[bool; 4]>()).prop_map(
        |(range, (list, start_revision), [prev_kv, no_put, no_delete, bookmarks])| Watch {
            range,
            start_revision,
            list,
            prev_kv,
            no_put,
            no_delete,
            bookmarks,
        },
    )
}

pub fn event() -> impl Strategy<Value = Event> {
    let kind = prop_oneof![Just(EventKind::Put), Just(EventKind::Delete)];
    (kind, key_value(), option::of(key_value())).prop_map(|(kind, kv, prev_kv)| Event {
        kind,
        kv,
        prev_kv,
    })
}

pub fn lease_status() -> impl Strategy<Value = LeaseStatus> {
    (
        header(),
        lease_id(),
        any::<u64>(),
        any::<u64>(),
        vec(bytes(), 0..3),
    )
        .prop_map(
            |(header, lease, granted_ttl_ms, remaining_ms, keys)| LeaseStatus {
                header,
                lease,
                granted_ttl_ms,
                remaining_ms,
                keys,
            },
        )
}

pub fn session_stamp() -> impl Strategy<Value = SessionStamp> {
    (any::<u128>(), 1..=u64::MAX, any::<u64>()).prop_map(
        |(session, sequence, acknowledged_below)| SessionStamp {
            session: SessionId(session),
            sequence,
            acknowledged_below,
        },
    )
}

fn role() -> impl Strategy<Value = MemberRole> {
    prop_oneof![Just(MemberRole::Voter), Just(MemberRole::Learner)]
}

pub fn member() -> impl Strategy<Value = Member> {
    (member_id(), ".{0,8}", ".{0,8}", ".{0,8}", role()).prop_map(
        |(id, name, peer_address, client_address, role)| Member {
            id,
            name,
            peer_address,
            client_address,
            role,
        },
    )
}

pub fn node_status() -> impl Strategy<Value = NodeStatus> {
    (
        header(),
        ".{0,8}",
        ".{0,8}",
        option::of(role()),
        option::of(member_id()),
        any::<[u64; 9]>(),
        any::<bool>(),
        (option::of(any::<u64>()), option::of(any::<u64>())),
        (any::<u32>(), option::of(desired_size()), vec(alarm(), 0..3)),
    )
        .prop_map(
            |(header, name, version, role, leader, numbers, durable, kept, agreed)| NodeStatus {
                header,
                name,
                version,
                role,
                leader,
                committed_index: numbers[0],
                applied_index: numbers[1],
                first_log_index: numbers[2],
                last_log_index: numbers[3],
                snapshot_index: numbers[4],
                compacted_revision: numbers[5],
                keys: numbers[6],
                disk_bytes: numbers[7],
                durable,
                clock_ms: numbers[8],
                retention: Retention {
                    keep_ms: kept.0,
                    max_revisions: kept.1,
                },
                feature_level: agreed.0,
                desired_size: agreed.1,
                alarms: agreed.2,
            },
        )
}

fn alarm() -> impl Strategy<Value = Alarm> {
    let kind = prop_oneof![Just(AlarmKind::NoSpace), Just(AlarmKind::Corrupt)];
    (member_id(), kind).prop_map(|(member, kind)| Alarm { member, kind })
}

fn desired_size() -> impl Strategy<Value = DesiredSize> {
    (".{0,8}", any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
        |(source, generation, start, replicas)| DesiredSize {
            source,
            generation,
            start,
            replicas,
        },
    )
}

/// Every reason that this release knows: the codes from 1 on, up to the first gap.
pub fn reasons() -> Vec<Reason> {
    (1..u16::MAX)
        .take_while(|code| Reason::from_code(*code) as u16 == *code)
        .map(Reason::from_code)
        .collect()
}

pub fn error() -> impl Strategy<Value = Error> {
    let leader = (any::<u64>(), ".{0,8}").prop_map(|(member, client_address)| LeaderHint {
        member: MemberId(member),
        client_address,
    });
    let reason = proptest::sample::select(reasons());
    (
        reason,
        ".{0,20}",
        any::<bool>(),
        option::of(leader),
        any::<u64>(),
        option::of(1..=u32::MAX),
    )
        .prop_map(
            |(reason, text, outcome_unknown, leader, revision, advice)| {
                let error = Error::new(reason, text)
                    .with_leader(leader)
                    .with_revision(revision)
                    .with_retry_after(advice.map(|ms| Duration::from_millis(ms.into())));
                if outcome_unknown {
                    error.with_unknown_outcome()
                } else {
                    error
                }
            },
        )
}
