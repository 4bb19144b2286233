//! More than one learner, each of which serves: etcd allows one, and it serves almost nothing.

use podkv_node::testing::cluster_with;
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::cluster_client::ClusterClient;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use podkv_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use podkv_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use podkv_server::Server;

use super::{get, put};
use crate::harness::connect;

#[tokio::test]
async fn three_learners_serve_reads_writes_and_leases() {
    let cluster = cluster_with(6, |config| config.max_voters = 3).await;
    let mut learners = 0;
    for index in 0..cluster.size() {
        let server = Server::builder(cluster.node(index));
        let server = server.listen("127.0.0.1:0").await.unwrap();
        let channel = connect(&server).await;
        let list = pb::MemberListRequest { linearizable: true };
        let members = ClusterClient::new(channel.clone()).member_list(list).await;
        let members = members.unwrap().into_inner().members;
        let listed = members.iter().filter(|member| member.is_learner).count();
        assert_eq!((members.len(), listed), (6, 3));

        let mut maintenance = MaintenanceClient::new(channel.clone());
        let status = maintenance.status(pb::StatusRequest {}).await.unwrap();
        learners += usize::from(status.into_inner().is_learner);
        let mut kv = KvClient::new(channel.clone());
        let written = kv.put(put("a", "1")).await.unwrap().into_inner();
        // Linearizable: what was just written is there.
        let found = kv.range(get("a")).await.unwrap().into_inner();
        assert_eq!(found.kvs[0].mod_revision, written.header.unwrap().revision);
        let grant = pb::LeaseGrantRequest { ttl: 60, id: 0 };
        LeaseClient::new(channel).lease_grant(grant).await.unwrap();
    }
    assert_eq!(learners, 3);
}
