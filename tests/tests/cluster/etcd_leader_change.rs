//! A leader dies, and clients of the etcd API keep what etcd's lose then: a write that was not answered can be repeated
//! and is applied once, and a lease does not begin anew.

use std::time::Duration;

use podkv_api::{SessionId, Store as _};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::v1;
use podkv_proto::v1::session_client::SessionClient;
use podkv_tests::etcd::{Etcd, PATIENCE, get, put};
use podkv_tests::process::ProcessCluster;
use tonic::{Code, Request};

use crate::proxy::Proxy;

/// A write with the metadata that makes it apply once: `proto/podkv/v1/session.proto` explains them.
fn stamped<T>(message: T, session: SessionId, sequence: u64) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    let id = format!("{:x}", session.0);
    metadata.insert("podkv-session", id.parse().unwrap());
    metadata.insert("podkv-sequence", sequence.into());
    metadata.insert("podkv-acknowledged-below", 1.into());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_not_answered_is_repeated_and_applied_once() {
    let mut cluster = ProcessCluster::start(3).await;
    let leader = cluster.wait_leader().await;
    let session = SessionId(rand::random());
    let etcd = Etcd::connect(&cluster.specs[leader].client).await;
    let open = v1::SessionOpenRequest {
        ttl_ms: 600_000,
        id: session.0.to_be_bytes().to_vec().into(),
    };
    SessionClient::new(etcd.0.clone()).open(open).await.unwrap();

    // What a counter would do: its retry must not find its own first attempt.
    let create = pb::TxnRequest {
        compare: vec![pb::Compare {
            key: "once".into(),
            result: pb::compare::CompareResult::Equal.into(),
            target: pb::compare::CompareTarget::Version.into(),
            target_union: Some(pb::compare::TargetUnion::Version(0)),
            ..Default::default()
        }],
        success: vec![pb::RequestOp {
            request: Some(pb::request_op::Request::RequestPut(put("once", "1"))),
        }],
        ..Default::default()
    };
    let proxy = Proxy::start(cluster.specs[leader].client.clone()).await;
    let writer = Etcd::connect(&proxy.address).await;
    proxy.hold_answers();
    let request = stamped(create.clone(), session, 1);
    let unanswered = tokio::spawn(async move { writer.kv().txn(request).await });
    let other = (leader + 1) % 3;
    let etcd = Etcd::connect(&cluster.specs[other].client).await;
    wait_written(&etcd, "once").await;
    assert!(!unanswered.is_finished(), "the answer is held back");
    cluster.kill(leader);
    drop(proxy);
    unanswered.await.unwrap().expect_err("it never learns");

    cluster.wait_ready(other).await;
    let again = etcd.kv().txn(stamped(create.clone(), session, 1)).await;
    let again = again.unwrap().into_inner();
    let kv = etcd
        .kv()
        .range(get("once"))
        .await
        .unwrap()
        .into_inner()
        .kvs
        .remove(0);
    assert!(
        again.succeeded,
        "the first answer, not that of a second attempt"
    );
    assert_eq!(again.header.unwrap().revision, kv.mod_revision);
    assert_eq!(kv.version, 1);
    // Without the session it is another transaction, and finds the key.
    let unstamped = etcd.kv().txn(create).await.unwrap().into_inner();
    assert!(!unstamped.succeeded);
    let other_payload = stamped(put("once", "2"), session, 1);
    let refused = etcd.kv().put(other_payload).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

/// From this node's own state: it has what a majority has.
async fn wait_written(etcd: &Etcd, key: &'static str) {
    let local = pb::RangeRequest {
        serializable: true,
        ..get(key)
    };
    let written = async {
        while etcd
            .kv()
            .range(local.clone())
            .await
            .unwrap()
            .into_inner()
            .kvs
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.unwrap();
}

/// In etcd a new leader gives every lease its whole TTL again.
#[tokio::test(flavor = "multi_thread")]
async fn what_remains_of_a_lease_survives_a_leader_change() {
    const TTL: i64 = 600;
    const LEASE: i64 = 7;
    let mut cluster = ProcessCluster::start(3).await;
    let leader = cluster.wait_leader().await;
    let other = (leader + 1) % 3;
    let etcd = Etcd::connect(&cluster.specs[other].client).await;
    let grant = pb::LeaseGrantRequest {
        ttl: TTL,
        id: LEASE,
    };
    etcd.lease().lease_grant(grant).await.unwrap();
    let leased = pb::PutRequest {
        lease: LEASE,
        ..put("leased", "1")
    };
    etcd.kv().put(leased).await.unwrap();
    // Some seconds pass, as the cluster counts them.
    let passed = async {
        loop {
            let left = remaining(&etcd, LEASE).await;
            if left <= TTL - 3 {
                return left;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let before = tokio::time::timeout(PATIENCE, passed).await.unwrap();
    cluster.kill(leader);
    cluster.wait_ready(other).await;
    assert_ne!(cluster.wait_leader().await, leader);
    let after = remaining(&etcd, LEASE).await;
    assert!(
        0 < after && after <= before,
        "{after} s left; it had {before} s"
    );
    let kv = cluster.client_of(other).get("leased").await.unwrap();
    assert!(kv.is_some());
}

async fn remaining(etcd: &Etcd, id: i64) -> i64 {
    let ask = pb::LeaseTimeToLiveRequest { id, keys: false };
    let found = etcd.lease().lease_time_to_live(ask).await;
    found.unwrap().into_inner().ttl
}
