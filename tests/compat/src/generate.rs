//! Seeded random programs, over few keys, leases and watch ids, so that operations meet.
//!
//! Every field of every request is used, and every kind of bad value that a careful server has to refuse.

use bytes::Bytes;
use podkv_proto::etcd::etcdserverpb::alarm_request::AlarmAction;
use podkv_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use podkv_proto::etcd::etcdserverpb::request_op::Request as Operation;
use podkv_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use podkv_proto::etcd::etcdserverpb::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::program::{CHOSEN, Program};
use crate::step::{Request, Step};

const KEYS: [&[u8]; 6] = [b"a", b"aa", b"b", b"c", b"d", b"\xff\xff"];
const VALUES: [&str; 4] = ["", "x", "y", "z"];
/// etcd's own limit.
const MAX_TXN_OPS: usize = 128;
/// The one lease whose TTL is shorter than a test may take.
const SHORT_LEASE: i64 = 9;
/// No program gets there.
pub const FAR_FUTURE: i64 = 1 << 40;

/// What programs do not contain, because podkv answers otherwise on purpose. Reasons are `crates/server/src/etcd`'s.
pub const AVOIDED: &[(&str, &str)] = &[
    (
        "a negative revision inside a txn",
        "etcd says that it is compacted, or takes it for the newest, by whether there was a compaction; podkv refuses \
         the txn before it runs",
    ),
    (
        "a put that a delete of the same txn covers, where etcd's check does not see it: the delete ends in `\\0`, or \
         stands in a nested txn after the one with the put",
        "a key changes once in a revision; podkv says `duplicate key`, as etcd does of all others",
    ),
    (
        "whether a lease whose id the server chose is more or less than another such",
        "an id says nothing but which lease it is: etcd counts up, podkv draws",
    ),
    (
        "raising an alarm by hand (only where podkv is compared)",
        "podkv raises alarms by itself; etcd against etcd has them, for the slips in what they block",
    ),
];

/// The program of a seed, for a comparison with podkv.
pub fn program(seed: u64, length: usize) -> Program {
    generate(seed, length, false)
}

/// The same with alarms.
pub fn program_with_alarms(seed: u64, length: usize) -> Program {
    generate(seed, length, true)
}

fn generate(seed: u64, length: usize, alarms: bool) -> Program {
    let mut generator = Generator {
        alarms,
        rng: StdRng::seed_from_u64(seed),
        revision: 1,
        nospace: false,
        next: None,
    };
    let steps = std::iter::repeat_with(|| generator.step())
        .take(length)
        .collect();
    Program {
        fresh: false,
        steps,
    }
}

struct Generator {
    rng: StdRng,
    /// About where the store is: it is for choosing revisions that are interesting.
    revision: i64,
    alarms: bool,
    nospace: bool,
    /// What has to follow.
    next: Option<Request>,
}

impl Generator {
    fn step(&mut self) -> Step {
        if let Some(request) = self.next.take() {
            return Step::Call(request);
        }
        let request = match self.rng.random_range(0..1000) {
            0..230 => {
                self.revision += 1;
                Request::Put(self.put())
            }
            230..310 => Request::Delete(self.delete()),
            310..530 => Request::Range(self.range()),
            530..760 => {
                self.revision += 1;
                Request::Txn(self.clear_txn())
            }
            760..780 => Request::Compact(CompactionRequest {
                revision: self.revision(),
                physical: self.chance(2),
            }),
            780..820 => Request::Grant(LeaseGrantRequest {
                ttl: self.ttl(),
                id: if self.chance(3) { 0 } else { self.lease() },
            }),
            884..888 => {
                // Nothing is attached to it, and it is gone before it can end by itself.
                let id = SHORT_LEASE;
                self.next = Some(Request::Revoke(LeaseRevokeRequest { id }));
                let ttl = *[0, -5, 5].choose(&mut self.rng).unwrap_or(&0);
                Request::Grant(LeaseGrantRequest { ttl, id })
            }
            820..835 => Request::Revoke(LeaseRevokeRequest { id: self.lease() }),
            835..855 => Request::TimeToLive(LeaseTimeToLiveRequest {
                id: self.lease(),
                keys: self.chance(2),
            }),
            855..865 => Request::KeepAlive(LeaseKeepAliveRequest { id: self.lease() }),
            865..870 => Request::Leases(LeaseLeasesRequest {}),
            870..878 => Request::Alarm(self.alarm()),
            878..881 => Request::Status(StatusRequest {}),
            881..884 => Request::Members(MemberListRequest {
                linearizable: self.chance(2),
            }),
            888..890 => Request::Defragment(DefragmentRequest {}),
            _ => return self.watch(),
        };
        Step::Call(request)
    }

    /// True once in `n` times.
    fn chance(&mut self, n: u32) -> bool {
        self.rng.random_range(0..n) == 0
    }

    fn key(&mut self) -> Bytes {
        if self.chance(40) {
            return Bytes::new();
        }
        Bytes::from_static(KEYS.choose(&mut self.rng).unwrap_or(&KEYS[0]))
    }

    fn range_end(&mut self) -> Bytes {
        match self.rng.random_range(0..10) {
            0..3 => Bytes::new(),
            3..6 => Bytes::from_static(b"\0"),
            // Often before the key.
            _ => self.key(),
        }
    }

    fn value(&mut self) -> Bytes {
        Bytes::from_static(
            VALUES
                .choose(&mut self.rng)
                .unwrap_or(&VALUES[0])
                .as_bytes(),
        )
    }

    /// Past, present, future, or nonsense.
    fn revision(&mut self) -> i64 {
        match self.rng.random_range(0..20) {
            0 => -self.rng.random_range(1..5),
            1 => FAR_FUTURE,
            2..5 => self.revision + self.rng.random_range(0..3),
            5..12 => (self.revision - self.rng.random_range(0..6)).max(1),
            _ => self.rng.random_range(1..=self.revision),
        }
    }

    fn bound(&mut self) -> i64 {
        if self.chance(10) { self.revision() } else { 0 }
    }

    fn lease(&mut self) -> i64 {
        match self.rng.random_range(0..20) {
            0 => 77,
            1 => -3,
            2 => 0,
            3..8 => CHOSEN + self.rng.random_range(0..3),
            _ => self.rng.random_range(1..5),
        }
    }

    fn ttl(&mut self) -> i64 {
        let ttls = [
            300,
            300,
            600,
            600,
            900,
            9_000_000_000,
            9_000_000_001,
            i64::MAX,
        ];
        *ttls.choose(&mut self.rng).unwrap_or(&300)
    }

    fn alarm(&mut self) -> AlarmRequest {
        let action = match self.rng.random_range(0..4) {
            0 => AlarmAction::Get,
            _ if !self.alarms => AlarmAction::Get,
            _ if self.nospace => AlarmAction::Deactivate,
            _ => AlarmAction::Activate,
        };
        if action != AlarmAction::Get {
            self.nospace = !self.nospace;
        }
        AlarmRequest {
            action: action.into(),
            member_id: 0,
            alarm: AlarmType::Nospace.into(),
        }
    }

    fn range(&mut self) -> RangeRequest {
        RangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            limit: if self.chance(2) {
                self.rng.random_range(-1..4)
            } else {
                0
            },
            revision: if self.chance(3) { self.revision() } else { 0 },
            sort_order: if self.chance(2) {
                self.rng.random_range(0..3)
            } else {
                0
            },
            sort_target: if self.chance(2) {
                self.rng.random_range(0..5)
            } else {
                0
            },
            serializable: self.chance(8),
            keys_only: self.chance(6),
            count_only: self.chance(10),
            min_mod_revision: self.bound(),
            max_mod_revision: self.bound(),
            min_create_revision: self.bound(),
            max_create_revision: self.bound(),
        }
    }

    fn range_in_txn(&mut self) -> RangeRequest {
        let range = self.range();
        RangeRequest {
            revision: range.revision.max(0),
            ..range
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.chance(12);
        PutRequest {
            key: self.key(),
            value: if ignore_value && !self.chance(4) {
                Bytes::new()
            } else {
                self.value()
            },
            lease: if self.chance(3) { self.lease() } else { 0 },
            prev_kv: self.chance(3),
            ignore_value,
            ignore_lease: self.chance(12),
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        DeleteRangeRequest {
            key: self.key(),
            range_end: if self.chance(3) {
                self.range_end()
            } else {
                Bytes::new()
            },
            prev_kv: self.chance(2),
        }
    }

    /// A txn without the first two of [`AVOIDED`].
    fn clear_txn(&mut self) -> TxnRequest {
        loop {
            let txn = self.txn(0);
            if ![&txn.success, &txn.failure]
                .into_iter()
                .any(|branch| hides_overlap(branch))
            {
                return txn;
            }
        }
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        if self.chance(100) {
            return self.too_long();
        }
        let count = self.rng.random_range(0..3);
        TxnRequest {
            compare: (0..count).map(|_| self.compare()).collect(),
            success: self.operations(depth),
            failure: self.operations(depth),
        }
    }

    fn operations(&mut self, depth: u32) -> Vec<RequestOp> {
        let count = self.rng.random_range(0..4);
        (0..count).map(|_| self.operation(depth)).collect()
    }

    fn operation(&mut self, depth: u32) -> RequestOp {
        let request = match self.rng.random_range(0..100) {
            0..2 => None,
            2..35 => Some(Operation::RequestRange(self.range_in_txn())),
            35..65 => Some(Operation::RequestPut(self.put())),
            65..82 => Some(Operation::RequestDeleteRange(self.delete())),
            _ if depth < 2 => Some(Operation::RequestTxn(self.txn(depth + 1))),
            _ => Some(Operation::RequestPut(self.put())),
        };
        RequestOp { request }
    }

    /// At the limit, or one beyond it.
    fn too_long(&mut self) -> TxnRequest {
        let count = MAX_TXN_OPS + usize::from(self.chance(2));
        let operation = RequestOp {
            request: Some(Operation::RequestRange(RangeRequest {
                key: self.key(),
                ..RangeRequest::default()
            })),
        };
        let mut txn = TxnRequest::default();
        match self.rng.random_range(0..3) {
            0 => txn.compare = vec![self.compare(); count],
            1 => txn.success = vec![operation; count],
            _ => txn.failure = vec![operation; count],
        }
        txn
    }

    fn compare(&mut self) -> Compare {
        let target = self.rng.random_range(0..5);
        // Now and then of another target than the compare's, or missing.
        let union = match self.rng.random_range(0..30) {
            0 => None,
            1 => Some(self.rng.random_range(0..5)),
            _ => Some(target),
        };
        let number = self.rng.random_range(0..4);
        let target_union = union.and_then(|union| {
            Some(match CompareTarget::try_from(union).ok()? {
                CompareTarget::Version => TargetUnion::Version(number),
                CompareTarget::Create => TargetUnion::CreateRevision(self.compared_revision()),
                CompareTarget::Mod => TargetUnion::ModRevision(self.compared_revision()),
                CompareTarget::Value => TargetUnion::Value(self.value()),
                CompareTarget::Lease => TargetUnion::Lease(self.lease()),
            })
        });
        let mut results = vec![CompareResult::Equal, CompareResult::NotEqual];
        if !matches!(target_union, Some(TargetUnion::Lease(CHOSEN..))) {
            results.extend([CompareResult::Greater, CompareResult::Less]);
        }
        let result = results.choose(&mut self.rng).copied().unwrap_or_default();
        Compare {
            result: result.into(),
            target,
            key: self.key(),
            target_union,
            range_end: if self.chance(3) {
                self.range_end()
            } else {
                Bytes::new()
            },
        }
    }

    fn compared_revision(&mut self) -> i64 {
        if self.chance(3) { 0 } else { self.revision() }
    }

    fn watch(&mut self) -> Step {
        let union = match self.rng.random_range(0..10) {
            0..6 => RequestUnion::CreateRequest(self.create()),
            6..9 => RequestUnion::CancelRequest(WatchCancelRequest {
                watch_id: self.rng.random_range(0..5),
            }),
            _ => RequestUnion::ProgressRequest(WatchProgressRequest {}),
        };
        Step::Watch {
            stream: self.rng.random_range(1..4),
            request: WatchRequest {
                request_union: Some(union),
            },
        }
    }

    fn create(&mut self) -> WatchCreateRequest {
        let filters = if self.chance(4) {
            let count = self.rng.random_range(1..3);
            (0..count).map(|_| self.rng.random_range(0..2)).collect()
        } else {
            Vec::new()
        };
        WatchCreateRequest {
            key: self.key(),
            range_end: self.range_end(),
            start_revision: if self.chance(2) { self.revision() } else { 0 },
            progress_notify: self.chance(5),
            filters,
            prev_kv: self.chance(2),
            watch_id: if self.chance(2) {
                self.rng.random_range(1..5)
            } else {
                0
            },
            fragment: self.chance(5),
        }
    }
}

/// Whether a put and a delete of it are both in the operations, where etcd does not look for them.
fn hides_overlap(operations: &[RequestOp]) -> bool {
    let mut puts_before: Vec<Bytes> = Vec::new();
    for operation in operations {
        let Some(Operation::RequestTxn(nested)) = &operation.request else {
            continue;
        };
        let branches = [&nested.success, &nested.failure];
        let deletes: Vec<_> = branches.iter().flat_map(|branch| deletes(branch)).collect();
        let is_deleted = |key: &Bytes| deletes.iter().any(|delete| covers(delete, key));
        if branches.iter().any(|branch| hides_overlap(branch)) || puts_before.iter().any(is_deleted)
        {
            return true;
        }
        puts_before.extend(branches.iter().flat_map(|branch| puts(branch)));
    }
    let open_ended = deletes(operations)
        .into_iter()
        .filter(|delete| *delete.range_end == [0]);
    let puts = puts(operations);
    open_ended
        .into_iter()
        .any(|delete| puts.iter().any(|key| covers(&delete, key)))
}

fn covers(delete: &DeleteRangeRequest, key: &Bytes) -> bool {
    match &delete.range_end[..] {
        [] => key == &delete.key,
        [0] => key >= &delete.key,
        end => key >= &delete.key && &key[..] < end,
    }
}

/// Of all levels.
fn deletes(operations: &[RequestOp]) -> Vec<DeleteRangeRequest> {
    let of = |operation: &RequestOp| match &operation.request {
        Some(Operation::RequestDeleteRange(delete)) => vec![delete.clone()],
        Some(Operation::RequestTxn(txn)) => [deletes(&txn.success), deletes(&txn.failure)].concat(),
        _ => Vec::new(),
    };
    operations.iter().flat_map(of).collect()
}

fn puts(operations: &[RequestOp]) -> Vec<Bytes> {
    let of = |operation: &RequestOp| match &operation.request {
        Some(Operation::RequestPut(put)) => vec![put.key.clone()],
        Some(Operation::RequestTxn(txn)) => [puts(&txn.success), puts(&txn.failure)].concat(),
        _ => Vec::new(),
    };
    operations.iter().flat_map(of).collect()
}
