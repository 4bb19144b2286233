//! Unary calls: what is written is read, and what is refused says why.

use std::time::Duration;

use podkv_api::{Limits, Reason};
use podkv_proto::v1;
use podkv_proto::v1::cluster_client::ClusterClient;
use podkv_proto::v1::lease_client::LeaseClient;
use podkv_proto::v1::session_client::SessionClient;
use podkv_server::ApiSettings;
use tonic::Code;

use crate::harness::{Harness, error, get, prefix, put, refused};

#[tokio::test]
async fn retention_is_set_and_told() {
    let harness = Harness::start().await;
    let mut cluster = ClusterClient::new(harness.channel.clone());
    let retention = v1::Retention {
        keep_ms: None,
        max_revisions: Some(10),
    };
    let request = v1::SetRetentionRequest {
        retention: Some(retention),
    };
    cluster.set_retention(request).await.unwrap();
    let status = cluster.status(v1::StatusRequest {}).await.unwrap();
    assert_eq!(status.into_inner().retention, Some(retention));
    let nothing = v1::SetRetentionRequest { retention: None };
    refused(
        cluster.set_retention(nothing).await,
        Reason::InvalidArgument,
    );
}

#[tokio::test]
async fn a_frozen_prefix_refuses_writes_of_both_apis() {
    use podkv_proto::etcd::etcdserverpb as etcd;
    use podkv_proto::etcd::etcdserverpb::kv_client::KvClient as EtcdKvClient;

    let harness = Harness::start().await;
    let mut cluster = ClusterClient::new(harness.channel.clone());
    let prefix = |prefix: &'static str| v1::FreezeRequest {
        prefix: prefix.into(),
    };
    let frozen = cluster.freeze(prefix("app/")).await.unwrap().into_inner();
    assert_eq!(frozen.prefixes, ["app/"]);
    refused(harness.kv().put(put("app/a", "1")).await, Reason::Frozen);
    harness.kv().put(put("apple", "1")).await.unwrap();
    let mut kv = EtcdKvClient::new(harness.channel.clone());
    let request = etcd::PutRequest {
        key: "app/a".into(),
        ..Default::default()
    };
    let status = kv.put(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(error(&status).reason(), Reason::Frozen);

    let other = v1::ThawRequest {
        prefix: "app".into(),
    };
    refused(cluster.thaw(other).await, Reason::NotFrozen);
    let thaw = v1::ThawRequest {
        prefix: "app/".into(),
    };
    let frozen = cluster.thaw(thaw).await.unwrap().into_inner();
    assert!(frozen.prefixes.is_empty());
    kv.put(request).await.unwrap();
    let frozen = cluster.frozen(v1::FrozenRequest {}).await.unwrap();
    assert!(frozen.into_inner().prefixes.is_empty());
}

#[tokio::test]
async fn put_get_txn_delete_compact() {
    let harness = Harness::start().await;
    let mut kv = harness.kv();
    let first = kv.put(put("a", "1")).await.unwrap().into_inner();
    let again = v1::PutRequest {
        prev_kv: true,
        ..put("a", "2")
    };
    let second = kv.put(again).await.unwrap().into_inner();
    assert_eq!(second.prev_kv.unwrap().value, "1");
    let (first, second) = (first.header.unwrap(), second.header.unwrap());
    assert_eq!(second.revision, first.revision + 1);
    assert_eq!(first.member_id, harness.node().id().0);
    assert_ne!(first.cluster_id, 0);

    assert_eq!(
        kv.get(get("a"))
            .await
            .unwrap()
            .into_inner()
            .kv
            .unwrap()
            .value,
        "2"
    );
    let past = v1::GetRequest {
        revision: first.revision,
        ..get("a")
    };
    assert_eq!(
        kv.get(past.clone())
            .await
            .unwrap()
            .into_inner()
            .kv
            .unwrap()
            .value,
        "1"
    );
    assert_eq!(kv.get(get("b")).await.unwrap().into_inner().kv, None);

    let txn = v1::TxnRequest {
        then: vec![v1::Operation {
            operation: Some(v1::operation::Operation::Put(put("b", "3"))),
        }],
        ..Default::default()
    };
    let answer = kv.txn(txn).await.unwrap().into_inner();
    assert!(answer.succeeded);
    assert_eq!(answer.responses.len(), 1);

    let compact = v1::CompactRequest {
        revision: second.revision,
        session: None,
    };
    kv.compact(compact).await.unwrap();
    let error = refused(kv.get(past).await, Reason::Compacted);
    assert_eq!(error.revision(), second.revision);

    let all = v1::DeleteRequest {
        range: prefix(""),
        prev_kv: true,
        session: None,
    };
    let deleted = kv.delete(all).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (2, 2));
}

#[tokio::test]
async fn a_session_answers_a_retry_with_the_first_answer() {
    let harness = Harness::start().await;
    let mut sessions = SessionClient::new(harness.channel.clone());
    let id = bytes::Bytes::from_static(b"sixteen bytes id");
    let open = v1::SessionOpenRequest {
        ttl_ms: 60_000,
        id: id.clone(),
    };
    let opened = sessions.open(open.clone()).await.unwrap().into_inner();
    assert_eq!(opened.id, id);
    assert!(opened.ttl_ms >= 60_000 && opened.window > 0);
    sessions.open(open).await.unwrap();

    let mut kv = harness.kv();
    let stamp = v1::SessionStamp {
        session_id: id.clone(),
        sequence: 1,
        acknowledged_below: 1,
    };
    let write = v1::PutRequest {
        session: Some(stamp),
        ..put("a", "1")
    };
    let first = kv.put(write.clone()).await.unwrap().into_inner();
    let retry = kv.put(write.clone()).await.unwrap().into_inner();
    assert_eq!(
        first.header.unwrap().revision,
        retry.header.unwrap().revision
    );
    assert_eq!(
        kv.get(get("a"))
            .await
            .unwrap()
            .into_inner()
            .kv
            .unwrap()
            .version,
        1
    );
    let other = v1::PutRequest {
        value: "2".into(),
        ..write.clone()
    };
    refused(kv.put(other).await, Reason::SessionPayloadMismatch);

    let kept = v1::SessionKeepAliveRequest { id: id.clone() };
    assert!(
        sessions
            .keep_alive(kept.clone())
            .await
            .unwrap()
            .into_inner()
            .remaining_ms
            > 0
    );
    sessions
        .close(v1::SessionCloseRequest { id })
        .await
        .unwrap();
    refused(sessions.keep_alive(kept).await, Reason::SessionNotFound);
    refused(kv.put(write).await, Reason::SessionNotFound);
}

#[tokio::test]
async fn leases_are_granted_looked_at_and_revoked() {
    let harness = Harness::start().await;
    let mut leases = LeaseClient::new(harness.channel.clone());
    let grant = v1::LeaseGrantRequest {
        ttl_ms: 60_000,
        ..Default::default()
    };
    let granted = leases.grant(grant).await.unwrap().into_inner();
    assert!(granted.id > 0 && granted.ttl_ms >= 60_000);
    let attached = v1::PutRequest {
        lease: granted.id,
        ..put("a", "1")
    };
    harness.kv().put(attached).await.unwrap();
    let look = v1::LeaseStatusRequest {
        id: granted.id,
        keys: true,
    };
    let status = leases.status(look).await.unwrap().into_inner();
    assert_eq!(status.keys, ["a"]);
    let list = leases
        .list(v1::LeaseListRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.ids, [granted.id]);
    let revoke = v1::LeaseRevokeRequest {
        id: granted.id,
        session: None,
    };
    leases.revoke(revoke.clone()).await.unwrap();
    refused(leases.revoke(revoke).await, Reason::LeaseNotFound);
    refused(leases.status(look).await, Reason::LeaseNotFound);
    assert_eq!(
        harness.kv().get(get("a")).await.unwrap().into_inner().kv,
        None
    );
}

#[tokio::test]
async fn members_and_status() {
    let harness = Harness::start().await;
    let mut cluster = ClusterClient::new(harness.channel.clone());
    for local in [false, true] {
        let members = cluster
            .members(v1::MembersRequest { local })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(members.members.len(), 1);
        assert_eq!(members.members[0].name, "podkv-0");
        assert_eq!(members.members[0].role, i32::from(v1::member::Role::Voter));
    }
    let status = cluster
        .status(v1::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.name, "podkv-0");
    assert_eq!(status.leader_id, harness.node().id().0);
    assert!(!status.durable, "memory storage says so");
    let unknown = v1::PromoteMemberRequest { id: 12345 };
    refused(
        cluster.promote_member(unknown).await,
        Reason::MemberNotFound,
    );
}

#[tokio::test]
async fn limits_are_typed() {
    let harness = Harness::start().await;
    let mut kv = harness.kv();
    refused(kv.put(put("", "1")).await, Reason::EmptyKey);
    refused(kv.get(get("")).await, Reason::EmptyKey);
    let limit = Limits::DEFAULT_MAX_REQUEST_BYTES;
    refused(
        kv.put(put("a", vec![0; limit])).await,
        Reason::RequestTooLarge,
    );
    // Beyond the decode limit no handler sees it; the reason is the same.
    let error = refused(
        kv.put(put("a", vec![0; limit + (512 << 10)])).await,
        Reason::RequestTooLarge,
    );
    assert!(!error.outcome_unknown());
    let future = v1::GetRequest {
        revision: 1 << 40,
        ..get("a")
    };
    refused(kv.get(future).await, Reason::FutureRevision);
    let lease = v1::PutRequest {
        lease: 99,
        ..put("a", "1")
    };
    refused(kv.put(lease).await, Reason::LeaseNotFound);
}

#[tokio::test]
async fn an_answer_that_fits_no_message() {
    let api = ApiSettings {
        max_answer_bytes: 0,
        ..Default::default()
    };
    // The smallest answer limit is the largest request.
    let harness = Harness::with(api, |_| {}).await;
    let mut kv = harness.kv();
    for key in ["a", "b", "c"] {
        kv.put(put(key, vec![7; 1 << 20])).await.unwrap();
    }
    let all = v1::DeleteRequest {
        range: prefix(""),
        prev_kv: true,
        session: None,
    };
    let error = refused(kv.delete(all).await, Reason::AnswerNotKept);
    assert_eq!(
        kv.get(get("a")).await.unwrap().into_inner().kv,
        None,
        "it was applied"
    );
    assert_eq!(error.revision(), harness.node().header().revision);
}

#[tokio::test]
async fn our_answer_comes_before_the_callers_own_timer() {
    let harness = Harness::stuck(ApiSettings::default()).await;
    let mut request = tonic::Request::new(put("a", "1"));
    request.set_timeout(Duration::from_millis(1000));
    // The caller's timer would make a status without a detail.
    let error = error(&harness.kv().put(request).await.unwrap_err());
    assert!(error.outcome_unknown());
    let mut request = tonic::Request::new(put("a", "1"));
    request
        .metadata_mut()
        .insert("grpc-timeout", "soon".parse().unwrap());
    refused(harness.kv().put(request).await, Reason::InvalidArgument);
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let harness = Harness::start().await;
    let mut grpc = tonic::client::Grpc::new(harness.channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<v1::StatusRequest, v1::StatusResponse>::default();
    let path = "/podkv.v9.KV/Get".parse().unwrap();
    let call = grpc
        .unary(tonic::Request::new(v1::StatusRequest {}), path, codec)
        .await;
    assert_eq!(call.unwrap_err().code(), Code::Unimplemented);
}
