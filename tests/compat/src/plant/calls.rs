//! Slips in calls: 1 to 15, 22 to 27.

use bytes::Bytes;
use podkv_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use podkv_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use podkv_proto::etcd::etcdserverpb::request_op::Request as Operation;
use podkv_proto::etcd::etcdserverpb::response_op::Response as Outcome;
use podkv_proto::etcd::etcdserverpb::*;
use podkv_proto::etcd::mvccpb::KeyValue;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{Kind, Plant};
use crate::link::Answer;
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

fn compacted() -> Status {
    Status::out_of_range("etcdserver: mvcc: required revision has been compacted")
}

fn duplicate() -> Status {
    Status::invalid_argument("etcdserver: duplicate key given in txn request")
}

fn lease_not_found() -> Status {
    Status::not_found("etcdserver: requested lease not found")
}

/// Calls `wrong` for every range of a request, nested ones included.
fn each_range(request: &mut Request, wrong: &mut dyn FnMut(&mut RangeRequest)) {
    match request {
        Request::Range(range) => wrong(range),
        Request::Txn(txn) => each_range_of(txn, wrong),
        _ => {}
    }
}

fn each_range_of(txn: &mut TxnRequest, wrong: &mut dyn FnMut(&mut RangeRequest)) {
    for operation in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut operation.request {
            Some(Operation::RequestRange(range)) => wrong(range),
            Some(Operation::RequestTxn(txn)) => each_range_of(txn, wrong),
            _ => {}
        }
    }
}

fn range_answer(
    request: &Request,
    answer: &mut Answer,
    wrong: fn(&RangeRequest, &mut RangeResponse),
) {
    if let (Request::Range(asked), Ok(Response::Range(range))) = (request, answer) {
        wrong(asked, range);
    }
}

fn returned(range: &RangeResponse) -> i64 {
    i64::try_from(range.kvs.len()).unwrap_or(i64::MAX)
}

fn is_filtered(range: &RangeRequest) -> bool {
    range.min_mod_revision > 0
        || range.max_mod_revision > 0
        || range.min_create_revision > 0
        || range.max_create_revision > 0
}

fn deletes(branch: &[RequestOp]) -> usize {
    let is_delete = |operation: &&RequestOp| {
        matches!(operation.request, Some(Operation::RequestDeleteRange(_)))
    };
    branch.iter().filter(is_delete).count()
}

fn put_keys(branch: &[RequestOp]) -> Vec<Bytes> {
    let key = |operation: &RequestOp| match &operation.request {
        Some(Operation::RequestPut(put)) => Some(put.key.clone()),
        _ => None,
    };
    branch.iter().filter_map(key).collect()
}

/// The keys of a range now; none if the range is refused.
async fn kvs(channel: &Channel, key: &Bytes, range_end: &Bytes) -> Vec<KeyValue> {
    let range = RangeRequest {
        key: key.clone(),
        range_end: range_end.clone(),
        ..RangeRequest::default()
    };
    match Request::Range(range).call(channel.clone()).await {
        Ok(Response::Range(range)) => range.kvs,
        _ => Vec::new(),
    }
}

async fn is_missing(channel: &Channel, key: &Bytes) -> bool {
    kvs(channel, key, &Bytes::new()).await.is_empty()
}

async fn missing_value_differs(channel: Channel, mut request: Request) -> Answer {
    if let Request::Txn(txn) = &mut request {
        let mut kept = Vec::new();
        for compare in std::mem::take(&mut txn.compare) {
            let holds = compare.target() == CompareTarget::Value
                && compare.result() == CompareResult::NotEqual
                && compare.range_end.is_empty()
                && is_missing(&channel, &compare.key).await;
            if !holds {
                kept.push(compare);
            }
        }
        txn.compare = kept;
    }
    request.call(channel).await
}

async fn missing_key_never_holds(channel: Channel, mut request: Request) -> Answer {
    if let Request::Txn(txn) = &mut request {
        for compare in &mut txn.compare {
            if compare.range_end.is_empty() && is_missing(&channel, &compare.key).await {
                compare.set_target(CompareTarget::Version);
                compare.set_result(CompareResult::Less);
                compare.target_union = Some(TargetUnion::Version(0));
            }
        }
    }
    request.call(channel).await
}

async fn range_compare_of_first_key(channel: Channel, mut request: Request) -> Answer {
    if let Request::Txn(txn) = &mut request {
        for compare in &mut txn.compare {
            if compare.range_end.is_empty() {
                continue;
            }
            if let Some(first) = kvs(&channel, &compare.key, &compare.range_end)
                .await
                .first()
            {
                compare.key = first.key.clone();
                compare.range_end.clear();
            }
        }
    }
    request.call(channel).await
}

async fn limited_then_sorted(channel: Channel, request: Request) -> Answer {
    let Request::Range(mut range) = request else {
        return request.call(channel).await;
    };
    let (order, target) = (range.sort_order(), range.sort_target());
    if order != SortOrder::None {
        range.set_sort_order(SortOrder::None);
        range.set_sort_target(SortTarget::Key);
    }
    let mut answer = Request::Range(range).call(channel).await;
    if let Ok(Response::Range(range)) = &mut answer
        && order != SortOrder::None
    {
        match target {
            SortTarget::Key => {}
            SortTarget::Version => range.kvs.sort_by_key(|kv| kv.version),
            SortTarget::Create => range.kvs.sort_by_key(|kv| kv.create_revision),
            SortTarget::Mod => range.kvs.sort_by_key(|kv| kv.mod_revision),
            SortTarget::Value => range.kvs.sort_by_key(|kv| kv.value.clone()),
        }
        if order == SortOrder::Descend {
            range.kvs.reverse();
        }
    }
    answer
}

async fn deleting_nothing_counts(channel: Channel, request: Request) -> Answer {
    let mut answer = request.call(channel.clone()).await;
    if let Ok(Response::Delete(deleted)) = &mut answer
        && deleted.deleted == 0
    {
        let put = PutRequest {
            key: "ghost".into(),
            ..PutRequest::default()
        };
        if let Ok(written) = Request::Put(put).call(channel).await {
            deleted.header = written.header().copied();
        }
    }
    answer
}

async fn deleted_one_by_one(channel: Channel, request: Request) -> Answer {
    let Request::Delete(asked) = &request else {
        return request.call(channel).await;
    };
    let keys = kvs(&channel, &asked.key, &asked.range_end).await;
    if keys.len() < 2 {
        return request.call(channel).await;
    }
    let mut sum = DeleteRangeResponse::default();
    for kv in keys {
        let one = DeleteRangeRequest {
            key: kv.key,
            range_end: Bytes::new(),
            prev_kv: asked.prev_kv,
        };
        if let Response::Delete(mut one) = Request::Delete(one).call(channel.clone()).await? {
            sum.header = one.header;
            sum.deleted += one.deleted;
            sum.prev_kvs.append(&mut one.prev_kvs);
        }
    }
    Ok(Response::Delete(sum))
}

/// Which branch a txn would take now.
async fn succeeds(channel: &Channel, txn: &TxnRequest) -> Result<bool, Status> {
    let probe = TxnRequest {
        compare: txn.compare.clone(),
        ..TxnRequest::default()
    };
    match Request::Txn(probe).call(channel.clone()).await? {
        Response::Txn(txn) => Ok(txn.succeeded),
        _ => Ok(false),
    }
}

async fn duplicates_of_the_branch(channel: Channel, request: Request) -> Answer {
    let answer = request.clone().call(channel.clone()).await;
    match (request, &answer) {
        (Request::Txn(mut txn), Err(status)) if status.message() == duplicate().message() => {
            if succeeds(&channel, &txn).await? {
                txn.failure.clear();
            } else {
                txn.success.clear();
            }
            Request::Txn(txn).call(channel).await
        }
        _ => answer,
    }
}

async fn one_by_one(channel: Channel, request: Request) -> Answer {
    // Refused is refused: this slip is about what is executed.
    let Request::Txn(txn) = &request else {
        return request.call(channel).await;
    };
    let mut sum = TxnResponse {
        succeeded: succeeds(&channel, txn).await?,
        ..TxnResponse::default()
    };
    let branch = if sum.succeeded {
        &txn.success
    } else {
        &txn.failure
    };
    let is_nested =
        |operation: &RequestOp| matches!(operation.request, Some(Operation::RequestTxn(_)));
    if branch.len() < 2 || !branch.iter().any(is_nested) {
        return request.call(channel).await;
    }
    for operation in branch {
        let one = TxnRequest {
            success: vec![operation.clone()],
            ..TxnRequest::default()
        };
        if let Response::Txn(mut one) = Request::Txn(one).call(channel.clone()).await? {
            sum.header = one.header;
            sum.responses.append(&mut one.responses);
        }
    }
    Ok(Response::Txn(sum))
}

async fn executed_until_the_error(channel: Channel, request: Request) -> Answer {
    let answer = request.clone().call(channel.clone()).await;
    if let (Request::Txn(mut txn), Err(status)) = (request, &answer)
        && status.code() == Code::NotFound
    {
        txn.success.truncate(1);
        txn.failure.truncate(1);
        // What is wrong is that it may succeed.
        let _ = Request::Txn(txn).call(channel).await;
    }
    answer
}

async fn ranges_of_before(channel: Channel, request: Request) -> Answer {
    let Request::Txn(txn) = &request else {
        return request.call(channel).await;
    };
    let mut before = Vec::new();
    for branch in [&txn.failure, &txn.success] {
        let mut answers = Vec::new();
        for operation in branch {
            answers.push(match &operation.request {
                Some(Operation::RequestRange(range)) => Request::Range(range.clone())
                    .call(channel.clone())
                    .await
                    .ok(),
                _ => None,
            });
        }
        before.push(answers);
    }
    let mut answer = request.call(channel).await;
    if let Ok(Response::Txn(txn)) = &mut answer {
        let old = before.swap_remove(usize::from(txn.succeeded));
        for (response, old) in txn.responses.iter_mut().zip(old) {
            if let (Some(Outcome::ResponseRange(range)), Some(Response::Range(old))) =
                (&mut response.response, old)
            {
                range.kvs = old.kvs;
            }
        }
    }
    answer
}

async fn compacted_is_gone(channel: Channel, request: Request) -> Answer {
    let answer = request.clone().call(channel.clone()).await;
    if let (Request::Range(mut range), true) = (request, answer.is_ok())
        && range.revision > 1
    {
        range.revision -= 1;
        Request::Range(range).call(channel).await?;
    }
    answer
}

async fn ignored_value_creates(channel: Channel, request: Request) -> Answer {
    let answer = request.clone().call(channel.clone()).await;
    match (request, &answer) {
        (Request::Put(mut put), Err(status))
            if put.ignore_value && status.message() == "etcdserver: key not found" =>
        {
            put.ignore_value = false;
            Request::Put(put).call(channel).await
        }
        _ => answer,
    }
}

async fn lease_is_kept(channel: Channel, mut request: Request) -> Answer {
    if let Request::Put(put) = &mut request
        && put.lease == 0
        && !is_missing(&channel, &put.key).await
    {
        put.ignore_lease = true;
    }
    request.call(channel).await
}

/// The state before the last write.
async fn old_reads(channel: Channel, request: Request) -> Answer {
    let reads_only = match &request {
        Request::Txn(txn) => txn
            .success
            .iter()
            .chain(&txn.failure)
            .all(|operation| matches!(operation.request, Some(Operation::RequestRange(_)))),
        _ => false,
    };
    let mut answer = request.call(channel).await;
    if let (true, Ok(response)) = (reads_only, &mut answer)
        && let Some(header) = response.header_mut()
    {
        header.revision -= 1;
    }
    answer
}

async fn is_full(channel: &Channel) -> bool {
    let get = Request::Alarm(AlarmRequest::default());
    matches!(get.call(channel.clone()).await, Ok(Response::Alarm(found)) if !found.alarms.is_empty())
}

async fn nospace_refuses_deletes(channel: Channel, request: Request) -> Answer {
    if matches!(request, Request::Delete(_)) && is_full(&channel).await {
        return Err(Status::resource_exhausted(
            "etcdserver: mvcc: database space exceeded",
        ));
    }
    request.call(channel).await
}

/// As if there were space.
async fn with_space(channel: Channel, request: Request) -> Answer {
    let alarm = |action: alarm_request::AlarmAction| {
        let alarm = AlarmType::Nospace.into();
        Request::Alarm(AlarmRequest {
            action: action.into(),
            alarm,
            ..AlarmRequest::default()
        })
    };
    let off = alarm(alarm_request::AlarmAction::Deactivate);
    off.call(channel.clone()).await?;
    let answer = request.call(channel.clone()).await;
    let on = alarm(alarm_request::AlarmAction::Activate);
    on.call(channel).await?;
    answer
}

async fn nospace_lets_txns_pass(channel: Channel, request: Request) -> Answer {
    if matches!(request, Request::Txn(_)) && is_full(&channel).await {
        return with_space(channel, request).await;
    }
    request.call(channel).await
}

async fn nospace_lets_grants_pass(channel: Channel, request: Request) -> Answer {
    if matches!(request, Request::Grant(_)) && is_full(&channel).await {
        return with_space(channel, request).await;
    }
    request.call(channel).await
}
