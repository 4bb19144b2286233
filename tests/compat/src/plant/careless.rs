//! What the slips of `calls` do.

use bytes::Bytes;
use podkv_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use podkv_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use podkv_proto::etcd::etcdserverpb::request_op::Request as Operation;
use podkv_proto::etcd::etcdserverpb::response_op::Response as Outcome;
use podkv_proto::etcd::etcdserverpb::*;
use podkv_proto::etcd::mvccpb::KeyValue;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::link::Answer;
use crate::step::{Request, Response};

pub(super) fn compacted() -> Status {
    Status::out_of_range("etcdserver: mvcc: required revision has been compacted")
}

pub(super) fn duplicate() -> Status {
    Status::invalid_argument("etcdserver: duplicate key given in txn request")
}

pub(super) fn lease_not_found() -> Status {
    Status::not_found("etcdserver: requested lease not found")
}

/// Calls `wrong` for every range of a request, nested ones included.
pub(super) fn each_range(request: &mut Request, wrong: &mut dyn FnMut(&mut RangeRequest)) {
    match request {
        Request::Range(range) => wrong(range),
        Request::Txn(txn) => each_range_of(txn, wrong),
        _ => {}
    }
}

pub(super) fn each_range_of(txn: &mut TxnRequest, wrong: &mut dyn FnMut(&mut RangeRequest)) {
    for operation in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut operation.request {
            Some(Operation::RequestRange(range)) => wrong(range),
            Some(Operation::RequestTxn(txn)) => each_range_of(txn, wrong),
            _ => {}
        }
    }
}

pub(super) fn range_answer(
    request: &Request,
    answer: &mut Answer,
    wrong: fn(&RangeRequest, &mut RangeResponse),
) {
    if let (Request::Range(asked), Ok(Response::Range(range))) = (request, answer) {
        wrong(asked, range);
    }
}

pub(super) fn returned(range: &RangeResponse) -> i64 {
    i64::try_from(range.kvs.len()).unwrap_or(i64::MAX)
}

pub(super) fn is_filtered(range: &RangeRequest) -> bool {
    range.min_mod_revision > 0
        || range.max_mod_revision > 0
        || range.min_create_revision > 0
        || range.max_create_revision > 0
}

pub(super) fn deletes(branch: &[RequestOp]) -> usize {
    let is_delete = |operation: &&RequestOp| {
        matches!(operation.request, Some(Operation::RequestDeleteRange(_)))
    };
    branch.iter().filter(is_delete).count()
}

pub(super) fn put_keys(branch: &[RequestOp]) -> Vec<Bytes> {
    let key = |operation: &RequestOp| match &operation.request {
        Some(Operation::RequestPut(put)) => Some(put.key.clone()),
        _ => None,
    };
    branch.iter().filter_map(key).collect()
}

/// The keys of a range now; none if the range is refused.
pub(super) async fn kvs(channel: &Channel, key: &Bytes, range_end: &Bytes) -> Vec<KeyValue> {
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

pub(super) async fn is_missing(channel: &Channel, key: &Bytes) -> bool {
    kvs(channel, key, &Bytes::new()).await.is_empty()
}

pub(super) async fn missing_value_differs(channel: Channel, mut request: Request) -> Answer {
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

pub(super) async fn missing_key_never_holds(channel: Channel, mut request: Request) -> Answer {
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

pub(super) async fn range_compare_of_first_key(channel: Channel, mut request: Request) -> Answer {
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

pub(super) async fn limited_then_sorted(channel: Channel, request: Request) -> Answer {
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

pub(super) async fn deleting_nothing_counts(channel: Channel, request: Request) -> Answer {
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

pub(super) async fn deleted_one_by_one(channel: Channel, request: Request) -> Answer {
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
pub(super) async fn succeeds(channel: &Channel, txn: &TxnRequest) -> Result<bool, Status> {
    let probe = TxnRequest {
        compare: txn.compare.clone(),
        ..TxnRequest::default()
    };
    match Request::Txn(probe).call(channel.clone()).await? {
        Response::Txn(txn) => Ok(txn.succeeded),
        _ => Ok(false),
    }
}

pub(super) async fn duplicates_of_the_branch(channel: Channel, request: Request) -> Answer {
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

pub(super) async fn one_by_one(channel: Channel, request: Request) -> Answer {
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

pub(super) async fn executed_until_the_error(channel: Channel, request: Request) -> Answer {
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

pub(super) async fn ranges_of_before(channel: Channel, request: Request) -> Answer {
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

pub(super) async fn compacted_is_gone(channel: Channel, request: Request) -> Answer {
    let answer = request.clone().call(channel.clone()).await;
    if let (Request::Range(mut range), true) = (request, answer.is_ok())
        && range.revision > 1
    {
        range.revision -= 1;
        Request::Range(range).call(channel).await?;
    }
    answer
}

pub(super) async fn ignored_value_creates(channel: Channel, request: Request) -> Answer {
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

pub(super) async fn lease_is_kept(channel: Channel, mut request: Request) -> Answer {
    if let Request::Put(put) = &mut request
        && put.lease == 0
        && !is_missing(&channel, &put.key).await
    {
        put.ignore_lease = true;
    }
    request.call(channel).await
}

/// The state before the last write.
pub(super) async fn old_reads(channel: Channel, request: Request) -> Answer {
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

pub(super) async fn is_full(channel: &Channel) -> bool {
    let get = Request::Alarm(AlarmRequest::default());
    matches!(get.call(channel.clone()).await, Ok(Response::Alarm(found)) if !found.alarms.is_empty())
}

pub(super) async fn nospace_refuses_deletes(channel: Channel, request: Request) -> Answer {
    if matches!(request, Request::Delete(_)) && is_full(&channel).await {
        return Err(Status::resource_exhausted(
            "etcdserver: mvcc: database space exceeded",
        ));
    }
    request.call(channel).await
}

/// As if there were space.
pub(super) async fn with_space(channel: Channel, request: Request) -> Answer {
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

pub(super) async fn nospace_lets_txns_pass(channel: Channel, request: Request) -> Answer {
    if matches!(request, Request::Txn(_)) && is_full(&channel).await {
        return with_space(channel, request).await;
    }
    request.call(channel).await
}

pub(super) async fn nospace_lets_grants_pass(channel: Channel, request: Request) -> Answer {
    if matches!(request, Request::Grant(_)) && is_full(&channel).await {
        return with_space(channel, request).await;
    }
    request.call(channel).await
}
