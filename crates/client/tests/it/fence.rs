//! Answers of another cluster, or from this cluster's past, are refused.

use podkv_api::{Consistency, KeyRange, Put, Range, Reason, Store};
use podkv_client::Client;
use podkv_proto::v1::Header;

use crate::fake::Cluster;

async fn client(cluster: &Cluster) -> Client {
    let client = cluster.client().await;
    for _ in 0..5 {
        client.put(Put::new("k", "v")).await.unwrap();
    }
    client
}

fn forge(cluster: &Cluster, alter: fn(&mut Header)) {
    cluster.each(|faults| faults.forge = Some(Box::new(alter)));
}

#[tokio::test(start_paused = true)]
async fn another_cluster_is_refused() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster).await;
    forge(&cluster, |header| header.cluster_id = 0xbad);
    let error = client.get("k").await.unwrap_err();
    assert_eq!(error.reason(), Reason::WrongCluster);
    // The write went through, somewhere.
    let error = client.put(Put::new("k", "v")).await.unwrap_err();
    assert_eq!(error.reason(), Reason::WrongCluster);
    assert!(error.outcome_unknown());
    let local = Range::new(KeyRange::key("k")).consistency(Consistency::Local);
    assert_eq!(
        client.range(local).await.unwrap_err().reason(),
        Reason::WrongCluster
    );
}

#[tokio::test(start_paused = true)]
async fn a_former_incarnation_is_refused_and_a_later_one_taken() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster).await;
    forge(&cluster, |header| header.incarnation = 2);
    client.get("k").await.unwrap();
    forge(&cluster, |header| header.incarnation = 1);
    assert_eq!(
        client.get("k").await.unwrap_err().reason(),
        Reason::WrongIncarnation
    );
    let watch = client.watch(podkv_api::Watch::new(KeyRange::all())).await;
    assert_eq!(watch.err().unwrap().reason(), Reason::WrongIncarnation);
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_runs_backwards_is_refused_but_not_of_a_local_read() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster).await;
    forge(&cluster, |header| header.revision -= 2);
    assert_eq!(
        client.get("k").await.unwrap_err().reason(),
        Reason::RevisionWentBack
    );
    let local = Range::new(KeyRange::key("k")).consistency(Consistency::Local);
    client.range(local).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_on_one_node_remembers_the_cluster_of_its_parent() {
    let ours = Cluster::start(1).await;
    let other = Cluster::start_on(1, ours.network.clone()).await;
    forge(&other, |header| header.cluster_id = 0xbad);
    let client = client(&ours).await;
    let strayed = client.at(other.nodes[0].address.clone()).unwrap();
    assert_eq!(
        strayed.status().await.unwrap_err().reason(),
        Reason::WrongCluster
    );
}
