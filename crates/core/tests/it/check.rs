//! What is refused before it is proposed: one case for each reason, and the limits themselves pass.

use podkv_api::*;
use podkv_core::*;

const LIMITS: Limits = Limits {
    max_request_bytes: 10_000,
    max_txn_ops: 3,
    max_txn_depth: 2,
    max_key_bytes: 10,
};

fn checked(command: impl Into<Command>) -> Result<(), Reason> {
    check(&command.into(), &LIMITS).map_err(|error| {
        assert!(!error.text().is_empty());
        error.reason()
    })
}

fn put(put: Put) -> Result<(), Reason> {
    checked(Command::Put(put))
}

fn txn(txn: Txn) -> Result<(), Reason> {
    checked(Command::Txn(txn))
}

fn ops(count: usize) -> Vec<Op> {
    let put = |at: usize| Op::Put(Put::new(vec![at as u8 + 1], ""));
    (0..count).map(put).collect()
}

#[test]
fn keys_and_sizes() {
    assert_eq!(put(Put::new("", "1")), Err(Reason::EmptyKey));
    assert_eq!(put(Put::new("0123456789", "1")), Ok(()));
    assert_eq!(put(Put::new("0123456789a", "1")), Err(Reason::KeyTooLarge));
    assert_eq!(put(Put::new("a", vec![0; 9_900])), Ok(()));
    let large = Put::new("a", vec![0; 10_000]);
    assert_eq!(put(large), Err(Reason::RequestTooLarge));
    let delete = |range| checked(Command::Delete(Delete::new(range)));
    assert_eq!(delete(KeyRange::all()), Ok(()));
    assert_eq!(delete(KeyRange::key("")), Err(Reason::EmptyKey));
    // The end of a range just after a longest key has one byte more.
    assert_eq!(delete(KeyRange::between("a", vec![1; 11])), Ok(()));
    let beyond = KeyRange::between("a", vec![1; 12]);
    assert_eq!(delete(beyond), Err(Reason::KeyTooLarge));
    let range = Range::new(KeyRange::key(""));
    let error = podkv_core::check_range(&range, &LIMITS).unwrap_err();
    assert_eq!(error.reason(), Reason::EmptyKey);
}

#[test]
fn puts_that_contradict_themselves() {
    let base = Put::new("a", "");
    let keep_value = Put {
        ignore_value: true,
        ..base.clone()
    };
    assert_eq!(put(keep_value.clone()), Ok(()));
    let value = Put {
        value: "1".into(),
        ..keep_value
    };
    assert_eq!(put(value), Err(Reason::ValueProvided));
    let keep_lease = Put {
        ignore_lease: true,
        ..base.clone()
    };
    assert_eq!(put(keep_lease.clone()), Ok(()));
    let lease = keep_lease.clone().lease(LeaseId(1));
    assert_eq!(put(lease), Err(Reason::LeaseProvided));
    let ttl = Put {
        ttl_ms: Some(1),
        ..keep_lease
    };
    assert_eq!(put(ttl), Err(Reason::LeaseProvided));
    let both = Put {
        ttl_ms: Some(1),
        ..base.clone().lease(LeaseId(1))
    };
    assert_eq!(put(both), Err(Reason::InvalidArgument));
    assert_eq!(put(base.lease(LeaseId(0))), Err(Reason::InvalidArgument));
}

#[test]
fn ttls() {
    let put_ttl = |ttl_ms| {
        put(Put {
            ttl_ms: Some(ttl_ms),
            ..Put::new("a", "")
        })
    };
    let lease = |ttl_ms| {
        let id = LeaseId(1);
        checked(Command::LeaseGrant { id, ttl_ms })
    };
    let session = |ttl_ms| {
        checked(Command::SessionOpen {
            id: SessionId(1),
            ttl_ms,
            identity: Bytes::new(),
        })
    };
    let all: [&dyn Fn(u64) -> Result<(), Reason>; 3] = [&put_ttl, &lease, &session];
    for ttl in all {
        assert_eq!(ttl(0), Err(Reason::InvalidTtl));
        assert_eq!(ttl(1), Ok(()));
        assert_eq!(ttl(Limits::MAX_TTL_MS), Ok(()));
        assert_eq!(ttl(Limits::MAX_TTL_MS + 1), Err(Reason::InvalidTtl));
    }
}

#[test]
fn transactions() {
    assert_eq!(txn(Txn::new().then(ops(3)).or_else(ops(3))), Ok(()));
    let many = Txn::new().then(ops(4));
    assert_eq!(txn(many), Err(Reason::TooManyOperations));
    let many = Txn::new().or_else(ops(4));
    assert_eq!(txn(many), Err(Reason::TooManyOperations));
    let many = Txn::new().when((0..4).map(|_| Compare::exists("a")));
    assert_eq!(txn(many), Err(Reason::TooManyOperations));
    let nest = |inner| Txn::new().then([Op::Txn(inner)]);
    assert_eq!(txn(nest(Txn::new())), Ok(()));
    assert_eq!(txn(nest(nest(Txn::new()))), Err(Reason::TxnTooDeep));
    let empty = Txn::new().when([Compare::exists("")]);
    assert_eq!(txn(empty), Err(Reason::EmptyKey));
    let inside = nest(Txn::new().or_else([Op::Put(Put::new("", ""))]));
    assert_eq!(txn(inside), Err(Reason::EmptyKey));
}

/// The order of the operations does not matter, nor does the level.
#[test]
fn keys_that_are_written_twice() {
    let put = |key: &'static str| Op::Put(Put::new(key, ""));
    let delete =
        |from: &'static str, to: &'static str| Op::Delete(Delete::new(KeyRange::between(from, to)));
    let nested = |then: Vec<Op>, or_else: Vec<Op>| Op::Txn(Txn::new().then(then).or_else(or_else));
    let twice = [
        [put("a"), put("a")],
        [put("b"), delete("a", "c")],
        [put("a"), nested(vec![put("a")], vec![])],
        [put("a"), nested(vec![], vec![put("a")])],
        [put("b"), nested(vec![], vec![delete("a", "c")])],
        [delete("a", "c"), nested(vec![put("b")], vec![])],
        [
            nested(vec![put("b")], vec![put("c")]),
            nested(vec![put("d")], vec![delete("b", "bb")]),
        ],
    ];
    for [one, other] in twice {
        for ops in [[one.clone(), other.clone()], [other, one]] {
            let both = Txn::new().then(ops.clone());
            assert_eq!(txn(both), Err(Reason::DuplicateKey), "{ops:?}");
            let both = Txn::new().or_else(ops);
            assert_eq!(txn(both), Err(Reason::DuplicateKey));
        }
    }
    let fine = [
        vec![put("a"), put("b"), delete("c", "d")],
        vec![put("c"), delete("a", "c"), delete("cc", "d")],
        vec![delete("a", "c"), delete("b", "d")],
        vec![delete("a", "d"), nested(vec![delete("b", "c")], vec![])],
        vec![nested(vec![put("a")], vec![put("a")])],
        vec![nested(vec![put("b")], vec![delete("a", "c")])],
        vec![put("b"), delete("c", "a")],
    ];
    for ops in fine {
        assert_eq!(txn(Txn::new().then(ops.clone()).or_else(ops)), Ok(()));
    }
}

/// It would be executed by releases that know it, and here it would be guessed.
#[test]
fn a_feature_level_that_this_release_does_not_understand() {
    let newer = Command::SetFeatureLevel(FEATURE_LEVEL + 1);
    assert_eq!(checked(newer.clone()), Err(Reason::InvalidArgument));
    let view = MemoryView::new();
    let entry = Entry {
        clock_ms: 0,
        proposals: vec![newer.into()],
    };
    let failure = Applier::new(&view).unwrap().apply(&entry).unwrap_err();
    assert!(failure.to_string().contains("feature level"), "{failure}");
}
