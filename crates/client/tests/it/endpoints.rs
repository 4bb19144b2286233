//! Finding the cluster, the leader, and a way around what is broken.

use std::time::Duration;

use futures_util::StreamExt;
use podkv_api::{KeyRange, MemberId, Put, Reason, Store, Watch, WatchMessage};
use podkv_client::{Client, NewMember};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::fake::{Cluster, dead_addresses};

/// Waits until the client has looked around.
async fn settled(client: &Client, nodes: usize) {
    while client.endpoints().len() < nodes || client.leader().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn from_one_node_the_others_are_learned() {
    let cluster = Cluster::start(3).await;
    let mut given = dead_addresses(2);
    given.push(cluster.nodes[1].address.clone());
    let client = cluster.builder(given).connect().await.unwrap();
    settled(&client, 3).await;
    let mut learned = client.endpoints();
    let mut all = cluster.addresses();
    learned.sort();
    all.sort();
    assert_eq!(learned, all);
}

#[tokio::test(start_paused = true)]
async fn writes_prefer_the_leader_and_follow_it() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    settled(&client, 3).await;
    for _ in 0..10 {
        client.put(Put::new("k", "v")).await.unwrap();
    }
    assert_eq!(cluster.world.state().seen.writes_at, [10, 0, 0]);
    let leader = client.transfer_leadership(Some(MemberId(3))).await.unwrap();
    assert_eq!(leader, MemberId(3));
    for _ in 0..10 {
        client.put(Put::new("k", "v")).await.unwrap();
    }
    assert_eq!(cluster.world.state().seen.writes_at, [10, 0, 10]);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_changed_in_silence_is_found_at_the_next_look() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    settled(&client, 3).await;
    {
        let mut state = cluster.world.state();
        state.leader = 1;
        state.term += 1;
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    client.put(Put::new("k", "v")).await.unwrap();
    assert_eq!(cluster.world.state().seen.writes_at, [0, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_hint_leads_to_the_leader() {
    let cluster = Cluster::start(3).await;
    let client = cluster
        .builder(cluster.addresses())
        .fixed(true)
        .build()
        .unwrap();
    // Whoever is asked first, the leader answers in the end.
    let leader = client.transfer_leadership(Some(MemberId(2))).await.unwrap();
    assert_eq!(leader, MemberId(2));
}

#[tokio::test(start_paused = true)]
async fn a_fixed_client_stays_where_it_was_put() {
    let cluster = Cluster::start(3).await;
    let client = cluster
        .builder(vec![cluster.nodes[2].address.clone()])
        .fixed(true)
        .connect()
        .await
        .unwrap();
    for _ in 0..10 {
        client.put(Put::new("k", "v")).await.unwrap();
        client.get("k").await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    let state = cluster.world.state();
    assert_eq!(state.seen.writes_at, [0, 0, 10]);
    assert_eq!(state.seen.reads_at, [0, 0, 10]);
}

#[tokio::test(start_paused = true)]
async fn members_that_cannot_be_reached_are_not_used() {
    // As behind a port-forward: what the members say of themselves leads nowhere, or to somebody else.
    let cluster = Cluster::start(3).await;
    let mut announced = dead_addresses(1);
    announced.push(cluster.nodes[0].address.clone());
    announced.push(String::new());
    *cluster.announced.lock().unwrap() = announced;
    let given = cluster.nodes[2].address.clone();
    let client = cluster
        .builder(vec![given.clone()])
        .connect()
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(client.endpoints(), [given]);
    client.put(Put::new("k", "v")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_draining_node_is_left_and_loses_nothing() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    settled(&client, 3).await;
    client.put(Put::new("k", "v")).await.unwrap();
    cluster.nodes[0].faults().go_away = true;
    for _ in 0..20 {
        client.put(Put::new("k", "v")).await.unwrap();
    }
    assert_eq!(cluster.world.value("k").unwrap().version, 21);
}

#[tokio::test]
async fn a_service_name_is_resolved() {
    let cluster = Cluster::start_on_tcp(1).await;
    let (_, port) = cluster.nodes[0].address.rsplit_once(':').unwrap();
    let client = Client::builder()
        .service(format!("localhost:{port}"))
        .connect()
        .await
        .unwrap();
    client.put(Put::new("k", "v")).await.unwrap();
    client.close().await;
}

#[tokio::test]
async fn on_sockets_too_a_lost_answer_a_dead_endpoint_and_a_broken_watch_do_no_harm() {
    let cluster = Cluster::start_on_tcp(3).await;
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut given = vec![unused.local_addr().unwrap().to_string()];
    drop(unused);
    given.extend(cluster.addresses());
    let client = Client::connect(given).await.unwrap();
    let mut watch = client.watch(Watch::new(KeyRange::key("k"))).await.unwrap();
    cluster.each(|faults| {
        faults.lose_answers = 1;
        faults.watch_breaks = [1].into();
    });
    client.put(Put::new("k", "v")).await.unwrap();
    assert_eq!(cluster.world.value("k").unwrap().version, 1);
    assert!(matches!(
        watch.next().await,
        Some(Ok(WatchMessage::Created { .. }))
    ));
    assert!(matches!(
        watch.next().await,
        Some(Ok(WatchMessage::Events { .. }))
    ));
    client.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_does_not_resolve_is_said_at_the_deadline() {
    let client = Client::builder()
        .service("podkv.invalid:2379")
        .build()
        .unwrap();
    let started = Instant::now();
    let error = client.status().await.unwrap_err();
    assert_eq!(error.reason(), Reason::Unreachable);
    assert!(error.text().contains("resolve"), "{error}");
    assert!(started.elapsed() >= Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_looks_around_now_and_then_only() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    settled(&client, 3).await;
    let before = cluster.world.state().seen.statuses;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let asked = cluster.world.state().seen.statuses - before;
    assert!((9..=12).contains(&asked), "{asked} in 100 s");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_members_is_sent_once() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let member = NewMember {
        id: MemberId(9),
        name: "podkv-9".into(),
        peer_address: "podkv-9:2380".into(),
        client_address: "podkv-9:2379".into(),
    };
    assert_eq!(client.add_member(member.clone()).await.unwrap().len(), 1);
    cluster.each(|faults| faults.lose_unary = 1);
    let error = client.add_member(member).await.unwrap_err();
    assert!(error.outcome_unknown());
    assert_eq!(cluster.world.state().seen.operations, 2);
    let error = client.promote_member(MemberId(9)).await.unwrap_err();
    assert_eq!(error.reason(), Reason::MembershipConflict);
    assert!(!error.outcome_unknown());
}

#[tokio::test(start_paused = true)]
async fn statuses_tell_of_every_node_also_of_the_dead() {
    let cluster = Cluster::start(2).await;
    let mut given = cluster.addresses();
    given.extend(dead_addresses(1));
    let client = cluster.builder(given).fixed(true).build().unwrap();
    let statuses = client.statuses().await;
    let names: Vec<_> = statuses
        .iter()
        .map(|(_, status)| status.as_ref().map(|status| status.name.as_str()).ok())
        .collect();
    assert_eq!(names, [Some("podkv-0"), Some("podkv-1"), None]);
}

#[tokio::test]
async fn bad_settings_name_themselves() {
    let nothing = Client::builder().build().err().unwrap();
    assert_eq!(nothing.reason(), Reason::Configuration);
    for bad in ["nohost", ":1", "host:0", "host:port", "a b:1"] {
        let error = Client::builder().endpoints([bad]).build().err().unwrap();
        assert!(error.text().contains(bad), "{error}");
    }
}
