//! Slips in calls: 1 to 15, 22 to 27.

use bytes::Bytes;
use podkv_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use podkv_proto::etcd::etcdserverpb::{LeaseRevokeResponse, MemberListResponse, ResponseHeader};

use super::careless::*;
use super::{Kind, Plant};
use crate::step::{Request, Response};

macro_rules! plant {
    ($slip:literal, $name:literal, $kind:ident($wrong:expr)) => {
        Plant {
            slip: $slip,
            name: $name,
            kind: Kind::$kind($wrong),
        }
    };
    ($slip:literal, $name:literal, async $wrong:ident) => {
        plant!(
            $slip,
            $name,
            Call(|channel, request| Box::pin($wrong(channel, request)))
        )
    };
}

pub static PLANTS: &[Plant] = &[
    plant!(
        1,
        "a fresh store is at revision 0",
        Answer(|_, answer| {
            if let Ok(response) = answer
                && let Some(header) = response.header_mut()
            {
                header.revision -= 1;
            }
        })
    ),
    plant!(2, "the value of a missing key is not equal to any", async missing_value_differs),
    plant!(2, "a missing key holds for no compare", async missing_key_never_holds),
    plant!(2, "a compare of a range looks at its first key", async range_compare_of_first_key),
    plant!(
        3,
        "a range to \\0 ends there",
        Request(|request| each_range(request, &mut |range| {
            if *range.range_end == [0] {
                range.range_end = range.key.clone();
            }
        }))
    ),
    plant!(
        3,
        "an empty key is the first one",
        Request(|request| {
            if let Request::Range(range) = request
                && range.key.is_empty()
            {
                range.key = Bytes::from_static(b"\0");
            }
        })
    ),
    plant!(
        4,
        "count is what was returned",
        Answer(
            |request, answer| range_answer(request, answer, |asked, range| {
                if !asked.count_only {
                    range.count = returned(range);
                }
            })
        )
    ),
    plant!(
        4,
        "count is what passes the filters",
        Answer(
            |request, answer| range_answer(request, answer, |asked, range| {
                if is_filtered(asked) && !range.more && !asked.count_only {
                    range.count = returned(range);
                }
            })
        )
    ),
    plant!(
        4,
        "more is computed before the filters",
        Answer(
            |request, answer| range_answer(request, answer, |asked, range| {
                if !asked.count_only {
                    range.more = returned(range) < range.count;
                }
            })
        )
    ),
    plant!(5, "sorted after the limit", async limited_then_sorted),
    plant!(
        5,
        "no order is no order",
        Request(|request| each_range(request, &mut |range| {
            if range.sort_order() == SortOrder::None {
                range.set_sort_target(SortTarget::Key);
            }
        }))
    ),
    plant!(
        5,
        "no order of a target is ascending before the limit",
        Request(|request| each_range(request, &mut |range| {
            if range.sort_target() != SortTarget::Key && range.sort_order() == SortOrder::None {
                range.set_sort_order(SortOrder::Ascend);
            }
        }))
    ),
    plant!(
        6,
        "the header is of the revision that was read",
        Answer(|request, answer| {
            if let (Request::Range(asked), Ok(response)) = (request, answer)
                && asked.revision > 0
                && let Some(header) = response.header_mut()
            {
                header.revision = asked.revision;
            }
        })
    ),
    plant!(
        7,
        "lower bounds of filters are exclusive",
        Request(|request| each_range(request, &mut |range| {
            for bound in [&mut range.min_mod_revision, &mut range.min_create_revision] {
                *bound += i64::from(*bound > 0);
            }
        }))
    ),
    plant!(
        7,
        "upper bounds of filters are exclusive",
        Request(|request| each_range(request, &mut |range| {
            for bound in [&mut range.max_mod_revision, &mut range.max_create_revision] {
                *bound -= i64::from(*bound > 1);
            }
        }))
    ),
    plant!(
        7,
        "a negative revision is compacted",
        Answer(|request, answer| {
            if matches!(request, Request::Range(range) if range.revision < 0) && answer.is_ok() {
                *answer = Err(compacted());
            }
        })
    ),
    plant!(8, "deleting nothing takes a revision", async deleting_nothing_counts),
    plant!(8, "each deleted key takes a revision", async deleted_one_by_one),
    plant!(9, "duplicates are looked for in the branch that is taken", async duplicates_of_the_branch),
    plant!(
        9,
        "overlapping deletes are duplicates",
        Answer(|request, answer| {
            if let Request::Txn(txn) = request
                && [&txn.success, &txn.failure]
                    .iter()
                    .any(|branch| deletes(branch) > 1)
            {
                *answer = Err(duplicate());
            }
        })
    ),
    plant!(
        9,
        "the same put in both branches is a duplicate",
        Answer(|request, answer| {
            if let Request::Txn(txn) = request
                && put_keys(&txn.success)
                    .iter()
                    .any(|key| put_keys(&txn.failure).contains(key))
            {
                *answer = Err(duplicate());
            }
        })
    ),
    plant!(
        10,
        "an empty operation is skipped",
        Request(|request| {
            if let Request::Txn(txn) = request {
                txn.success.retain(|operation| operation.request.is_some());
                txn.failure.retain(|operation| operation.request.is_some());
            }
        })
    ),
    plant!(11, "operations are executed one by one", async one_by_one),
    plant!(11, "what comes before a missing lease is executed", async executed_until_the_error),
    plant!(12, "ranges of a txn see what was before it", async ranges_of_before),
    plant!(13, "the compacted revision cannot be read", async compacted_is_gone),
    plant!(
        14,
        "ignore_value with a value keeps the old one",
        Request(|request| {
            if let Request::Put(put) = request
                && put.ignore_value
            {
                put.value.clear();
            }
        })
    ),
    plant!(14, "ignore_value of a missing key creates it", async ignored_value_creates),
    plant!(14, "a put without a lease keeps the lease", async lease_is_kept),
    plant!(15, "a txn that only reads is served from an old state", async old_reads),
    plant!(
        22,
        "to keep a missing lease alive is an error",
        Answer(|_, answer| {
            if let Ok(Response::KeepAlive(kept)) = answer
                && kept.ttl <= 0
            {
                *answer = Err(lease_not_found());
            }
        })
    ),
    plant!(
        22,
        "the TTL of a missing lease is an error",
        Answer(|_, answer| {
            if let Ok(Response::TimeToLive(found)) = answer
                && found.ttl < 0
            {
                *answer = Err(lease_not_found());
            }
        })
    ),
    plant!(
        22,
        "to revoke a missing lease is fine",
        Answer(|request, answer| {
            if let (Request::Revoke(_), Err(_)) = (request, &answer) {
                *answer = Ok(Response::Revoke(LeaseRevokeResponse::default()));
            }
        })
    ),
    plant!(
        23,
        "a TTL is granted as it was asked for",
        Answer(|request, answer| {
            if let (Request::Grant(asked), Ok(Response::Grant(granted))) = (request, answer) {
                granted.ttl = asked.ttl;
            }
        })
    ),
    plant!(24, "without space, deletes are refused", async nospace_refuses_deletes),
    plant!(24, "without space, txns are executed", async nospace_lets_txns_pass),
    plant!(24, "without space, leases are granted", async nospace_lets_grants_pass),
    plant!(
        26,
        "the version is a word",
        Answer(|_, answer| {
            if let Ok(Response::Status(status)) = answer {
                status.version = "podkv-1".into();
            }
        })
    ),
    plant!(
        27,
        "defragment answers a header",
        Answer(|_, answer| {
            if let Ok(Response::Defragment(done)) = answer {
                done.header = Some(ResponseHeader {
                    revision: 1,
                    ..ResponseHeader::default()
                });
            }
        })
    ),
    plant!(
        27,
        "headers of members have a revision",
        Answer(|_, answer| {
            if let Ok(Response::Members(MemberListResponse {
                header: Some(header),
                ..
            })) = answer
            {
                header.revision = 1;
            }
        })
    ),
];
