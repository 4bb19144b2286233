//! Random programs, over few keys and numbers so that they meet.

use podkv_api::*;
use podkv_core::*;
use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;
use proptest::sample::select;

/// One entry of the log.
#[derive(Clone, Debug)]
pub struct Step {
    /// How far the clock moves before it.
    pub clock_ms: u64,
    pub proposals: Vec<Proposal>,
}

pub fn programs() -> impl Strategy<Value = Vec<Step>> {
    let step = (
        prop_oneof![3 => Just(0u64), 2 => 1u64..1_500, 1 => 1_500u64..20_000],
        vec(proposals(), 1..4),
    );
    vec(
        step.prop_map(|(clock_ms, proposals)| Step {
            clock_ms,
            proposals,
        }),
        1..25,
    )
}

pub fn ranges() -> impl Strategy<Value = Vec<Range>> {
    vec(range(Just(0).boxed()), 4)
}

fn proposals() -> impl Strategy<Value = Proposal> {
    (weighted(0.3, stamps()), commands()).prop_map(|(stamp, command)| Proposal { stamp, command })
}

fn stamps() -> impl Strategy<Value = Stamp> {
    // Sequences that lie close and far, so that windows and steps of forgetting are met.
    let sequence = prop_oneof![4 => 0u64..6, 2 => 60u64..80, 1 => 4_090u64..4_180];
    let below = prop_oneof![4 => Just(0u64), 2 => 0u64..6, 2 => 60u64..80];
    (sessions(), sequence, below, identities()).prop_map(
        |(session, sequence, acknowledged_below, identity)| Stamp {
            session: SessionStamp {
                session,
                sequence,
                acknowledged_below,
            },
            identity,
        },
    )
}

fn sessions() -> impl Strategy<Value = SessionId> {
    (1u128..3).prop_map(SessionId)
}

fn identities() -> impl Strategy<Value = Bytes> {
    prop_oneof![6 => Just(Bytes::new()), 1 => Just(Bytes::from_static(b"other"))]
}

fn lease_ids() -> impl Strategy<Value = LeaseId> {
    (-1i64..3).prop_map(LeaseId)
}

fn ttls() -> impl Strategy<Value = u64> {
    prop_oneof![1 => Just(0u64), 8 => 1u64..12_000]
}

fn commands() -> impl Strategy<Value = Command> {
    prop_oneof![
        10 => puts().prop_map(Command::Put),
        4 => deletes().prop_map(Command::Delete),
        6 => txns().prop_map(Command::Txn),
        2 => (0u64..30).prop_map(|revision| Command::Compact { revision }),
        3 => (lease_ids(), ttls()).prop_map(|(id, ttl_ms)| Command::LeaseGrant { id, ttl_ms }),
        1 => lease_ids().prop_map(|id| Command::LeaseRevoke { id }),
        1 => vec(lease_ids(), 0..3).prop_map(|ids| Command::LeaseKeepAlive { ids }),
        3 => (sessions(), ttls(), identities())
            .prop_map(|(id, ttl_ms, identity)| Command::SessionOpen { id, ttl_ms, identity }),
        1 => vec(sessions(), 0..3).prop_map(|ids| Command::SessionKeepAlive { ids }),
        1 => sessions().prop_map(|id| Command::SessionClose { id }),
        3 => (0u32..4).prop_map(|limit| Command::Expire { limit }),
        2 => (0u32..4).prop_map(|limit| Command::Sweep { limit }),
        1 => (0u64..60).prop_map(|revision| Command::RaiseRevision { revision }),
    ]
}

/// Keys that only differ in what the escape must keep apart, and now and then an empty one.
fn keys() -> impl Strategy<Value = Bytes> {
    let keys: [&'static [u8]; 8] = [
        b"a", b"a\0", b"a\0\xff", b"a\x01", b"ab", b"b", b"\0", b"\xff",
    ];
    prop_oneof![
        40 => select(keys.to_vec()).prop_map(Bytes::from_static),
        1 => Just(Bytes::new()),
    ]
}

fn values() -> impl Strategy<Value = Bytes> {
    // The long one is not kept for retries.
    prop_oneof![
        10 => (0u8..4).prop_map(|byte| Bytes::from(vec![byte; usize::from(byte)])),
        1 => Just(Bytes::from(vec![b'x'; 2_000])),
    ]
}

fn puts() -> impl Strategy<Value = Put> {
    (
        keys(),
        values(),
        weighted(0.3, lease_ids()),
        weighted(0.2, ttls()),
        any::<bool>(),
        weighted(0.15, any::<bool>()),
    )
        .prop_map(|(key, value, lease, ttl_ms, prev_kv, ignore)| Put {
            key,
            value: match ignore {
                Some(true) => Bytes::new(),
                _ => value,
            },
            lease: lease.filter(|_| ignore != Some(false)),
            ttl_ms: ttl_ms.filter(|_| ignore != Some(false) && lease.is_none()),
            prev_kv,
            ignore_value: ignore == Some(true),
            ignore_lease: ignore == Some(false),
        })
}

fn key_ranges() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        4 => keys().prop_map(KeyRange::key),
        3 => (keys(), keys()).prop_map(|(start, end)| KeyRange::between(start, end)),
        1 => keys().prop_map(KeyRange::from),
        1 => keys().prop_map(KeyRange::prefix),
        1 => Just(KeyRange::all()),
    ]
}

fn deletes() -> impl Strategy<Value = Delete> {
    (key_ranges(), any::<bool>()).prop_map(|(range, prev_kv)| Delete { range, prev_kv })
}

fn range(revisions: BoxedStrategy<Revision>) -> impl Strategy<Value = Range> {
    let flags = (any::<bool>(), any::<bool>(), weighted(0.1, Just(())));
    (key_ranges(), 0u64..4, revisions, flags).prop_map(
        |(range, limit, revision, (reverse, keys_only, count_only))| Range {
            limit,
            reverse,
            keys_only,
            count_only: count_only.is_some(),
            revision,
            ..Range::new(range)
        },
    )
}

fn compares() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        values().prop_map(CompareTarget::Value),
        (0u64..3).prop_map(CompareTarget::Version),
        (0u64..8).prop_map(CompareTarget::CreateRevision),
        (0u64..8).prop_map(CompareTarget::ModRevision),
        of(lease_ids()).prop_map(CompareTarget::Lease),
    ];
    let op = select(vec![
        CompareOp::Equal,
        CompareOp::NotEqual,
        CompareOp::Greater,
        CompareOp::Less,
    ]);
    (key_ranges(), op, target).prop_map(|(range, op, target)| Compare { range, op, target })
}

fn txns() -> impl Strategy<Value = Txn> {
    let revisions = prop_oneof![3 => Just(0u64), 1 => 0u64..10].boxed();
    let leaf = prop_oneof![
        puts().prop_map(Op::Put),
        deletes().prop_map(Op::Delete),
        range(revisions).prop_map(Op::Range),
    ];
    let op = leaf.prop_recursive(2, 12, 3, |op| txn_of(op.boxed()).prop_map(Op::Txn));
    txn_of(op.boxed())
}

fn txn_of(op: BoxedStrategy<Op>) -> impl Strategy<Value = Txn> {
    (vec(compares(), 0..3), vec(op.clone(), 0..4), vec(op, 0..3)).prop_map(
        |(compare, then, or_else)| Txn {
            compare,
            then,
            or_else,
        },
    )
}
