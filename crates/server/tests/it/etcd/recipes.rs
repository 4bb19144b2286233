//! Locks and elections on the server's side.

use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use podkv_proto::etcd::v3electionpb as election;
use podkv_proto::etcd::v3electionpb::election_client::ElectionClient;
use podkv_proto::etcd::v3lockpb as lock;
use podkv_proto::etcd::v3lockpb::lock_client::LockClient;
use tonic::transport::Channel;

use super::kv;
use crate::harness::{Harness, soon};

async fn lease(harness: &Harness) -> i64 {
    let mut leases = LeaseClient::new(harness.channel.clone());
    let grant = pb::LeaseGrantRequest { ttl: 600, id: 0 };
    leases.lease_grant(grant).await.unwrap().into_inner().id
}

fn lock(lease: i64) -> lock::LockRequest {
    lock::LockRequest {
        name: "l".into(),
        lease,
    }
}

async fn waiting(harness: &Harness, places: i64) {
    let mut kv = kv(harness);
    let queue = pb::RangeRequest {
        key: "l/".into(),
        range_end: "l0".into(),
        count_only: true,
        ..Default::default()
    };
    let all_there = async {
        while kv.range(queue.clone()).await.unwrap().into_inner().count != places {
            tokio::task::yield_now().await;
        }
    };
    soon(all_there).await;
}

#[tokio::test]
async fn who_stops_waiting_for_a_lock_leaves_the_queue() {
    let harness = Harness::start().await;
    let client = LockClient::new(harness.channel.clone());
    let (first, second, third) = (
        lease(&harness).await,
        lease(&harness).await,
        lease(&harness).await,
    );
    let mine = client.clone().lock(lock(first)).await.unwrap().into_inner();
    let mut impatient = client.clone();
    let impatient = tokio::spawn(async move { impatient.lock(lock(second)).await });
    waiting(&harness, 2).await;
    let mut patient: LockClient<Channel> = client.clone();
    let patient = tokio::spawn(async move { patient.lock(lock(third)).await });
    waiting(&harness, 3).await;
    impatient.abort();
    waiting(&harness, 2).await;
    let unlock = lock::UnlockRequest { key: mine.key };
    client.clone().unlock(unlock).await.unwrap();
    let theirs = soon(patient).await.unwrap().unwrap().into_inner();
    assert_eq!(theirs.key, format!("l/{third:x}"));
}

#[tokio::test]
async fn an_election_is_observed_from_leader_to_leader() {
    let harness = Harness::start().await;
    let client = ElectionClient::new(harness.channel.clone());
    let campaign = |lease, value: &'static str| {
        let mut client = client.clone();
        let request = election::CampaignRequest {
            name: "e".into(),
            lease,
            value: value.into(),
        };
        tokio::spawn(async move { client.campaign(request).await })
    };
    let nobody = client
        .clone()
        .leader(election::LeaderRequest { name: "e".into() })
        .await;
    assert_eq!(nobody.unwrap_err().message(), "election: no leader");
    let observed = election::LeaderRequest { name: "e".into() };
    let mut observed = client.clone().observe(observed).await.unwrap().into_inner();
    let one = campaign(lease(&harness).await, "one");
    let one = soon(one).await.unwrap().unwrap().into_inner();
    let mut value = async || {
        let kv = soon(observed.message()).await.unwrap().unwrap().kv;
        String::from_utf8(kv.unwrap().value.to_vec()).unwrap()
    };
    assert_eq!(value().await, "one");
    let proclaim = election::ProclaimRequest {
        leader: one.leader.clone(),
        value: "one again".into(),
    };
    client.clone().proclaim(proclaim).await.unwrap();
    assert_eq!(value().await, "one again");
    let two = campaign(lease(&harness).await, "two");
    let resign = election::ResignRequest {
        leader: one.leader.clone(),
    };
    client.clone().resign(resign).await.unwrap();
    soon(two).await.unwrap().unwrap();
    assert_eq!(value().await, "two");
    let late = election::ProclaimRequest {
        leader: one.leader,
        value: "still me".into(),
    };
    let late = client.clone().proclaim(late).await.unwrap_err();
    assert_eq!(late.message(), "election: not leader");
}
