//! Requests of the wrong form: refused by name, whatever service they go to. The forms themselves are
//! tested where they are converted, in podkv-proto.

use podkv_api::Reason;
use podkv_proto::v1;
use podkv_proto::v1::cluster_client::ClusterClient;
use podkv_proto::v1::lease_client::LeaseClient;
use podkv_proto::v1::session_client::SessionClient;
use podkv_proto::v1::watch_client::WatchClient;
use tonic::Status;

use crate::harness::{Harness, put, refused};

#[track_caller]
fn invalid<T: std::fmt::Debug>(result: Result<T, Status>, field: &str) {
    let error = refused(result, Reason::InvalidArgument);
    assert!(error.text().starts_with(field), "{error}");
    assert!(!error.outcome_unknown());
}

#[tokio::test]
async fn every_service_refuses_by_name() {
    let harness = Harness::start().await;
    let channel = || harness.channel.clone();
    let mut kv = harness.kv();
    invalid(
        kv.put(v1::PutRequest {
            lease: 1,
            ttl_ms: 1,
            ..put("a", "1")
        })
        .await,
        "ttl_ms",
    );
    invalid(
        kv.delete(v1::DeleteRequest::default()).await,
        "range: missing",
    );
    invalid(
        kv.range(v1::RangeRequest::default()).await,
        "range: missing",
    );
    let empty = v1::TxnRequest {
        then: vec![v1::Operation::default()],
        ..Default::default()
    };
    invalid(kv.txn(empty).await, "then[0].operation");
    let level = Some(v1::consistency::Level::Local(false));
    let consistency = Some(v1::Consistency { level });
    invalid(
        kv.get(v1::GetRequest {
            consistency,
            ..Default::default()
        })
        .await,
        "consistency.local",
    );
    let session = Some(v1::SessionStamp::default());
    let compact = v1::CompactRequest {
        revision: 1,
        session: session.clone(),
    };
    invalid(kv.compact(compact).await, "session.sequence");
    let watch = WatchClient::new(channel())
        .watch(v1::WatchRequest::default())
        .await;
    invalid(watch, "range: missing");

    let mut leases = LeaseClient::new(channel());
    invalid(leases.revoke(v1::LeaseRevokeRequest::default()).await, "id");
    invalid(leases.status(v1::LeaseStatusRequest::default()).await, "id");
    let sequence = v1::SessionStamp {
        session_id: vec![1; 16].into(),
        sequence: 1,
        acknowledged_below: 1,
    };
    let grant = v1::LeaseGrantRequest {
        ttl_ms: 5000,
        id: 0,
        session: Some(sequence),
    };
    invalid(leases.grant(grant).await, "id");
    let ttl = v1::LeaseGrantRequest::default();
    refused(leases.grant(ttl).await, Reason::InvalidTtl);

    let mut sessions = SessionClient::new(channel());
    invalid(sessions.open(v1::SessionOpenRequest::default()).await, "id");
    invalid(
        sessions
            .keep_alive(v1::SessionKeepAliveRequest::default())
            .await,
        "id",
    );
    invalid(
        sessions.close(v1::SessionCloseRequest::default()).await,
        "id",
    );

    let mut cluster = ClusterClient::new(channel());
    invalid(
        cluster.add_member(v1::AddMemberRequest::default()).await,
        "name",
    );
    invalid(
        cluster
            .promote_member(v1::PromoteMemberRequest::default())
            .await,
        "id",
    );
    invalid(
        cluster
            .remove_member(v1::RemoveMemberRequest::default())
            .await,
        "id",
    );
}
