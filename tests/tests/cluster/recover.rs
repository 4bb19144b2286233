//! Promise 5 after a majority of volumes is lost: `podkv recover` goes on from what is left, as the next incarnation,
//! and whoever comes back from before finds out, puts its data aside and joins anew.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use podkv_api::{Incarnation, MemberRole, Put, Store as _};
use podkv_tests::process::ProcessCluster;

use crate::{local_state, on_volume, text};

const RAISE: u64 = 1 << 32;

/// `podkv recover` on the volume of a node that is stopped.
fn recover(cluster: &ProcessCluster, index: usize, args: &[&str]) -> Output {
    on_volume(cluster, index, &["recover"], args)
}

/// Asks, reads the word, confirms.
fn recover_confirmed(cluster: &ProcessCluster, index: usize, args: &[&str]) -> String {
    let asked = recover(cluster, index, args);
    assert_eq!(asked.status.code(), Some(4), "{}", text(&asked));
    let asked = text(&asked);
    assert!(asked.contains("LOST"), "{asked}");
    let (_, word) = asked.trim_end().rsplit_once(' ').expect("a word");
    let done = recover(cluster, index, &[args, &["--confirm", word]].concat());
    assert!(done.status.success(), "{}", text(&done));
    text(&done)
}

fn survivor(cluster: &ProcessCluster, index: usize) -> String {
    let report = recover(cluster, index, &["--inspect"]);
    assert!(report.status.success(), "{}", text(&report));
    let report = text(&report);
    let (_, word) = report.trim_end().rsplit_once(' ').expect("a word");
    word.to_owned()
}

fn folders_aside(data_dir: &Path) -> Vec<String> {
    std::fs::read_dir(data_dir.join("podkv"))
        .expect("the node's folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.starts_with("retired-"))
        .collect()
}

/// Three voters, all of them of this incarnation.
async fn wait_three_voters(cluster: &ProcessCluster, asked: usize, incarnation: Incarnation) {
    let healed = async {
        loop {
            let client = cluster.client_of(asked);
            let members = client.members().await;
            client.close().await;
            if let Ok(members) = members {
                let voters = members
                    .iter()
                    .filter(|member| member.role == MemberRole::Voter);
                if voters.count() == 3 {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), healed)
        .await
        .expect("three voters within a minute");
    for index in 0..cluster.specs.len() {
        let status = cluster.status(index).await.expect("it serves");
        assert_eq!(status.header.incarnation, incarnation);
    }
}

/// Nodes 0 and 1 hold a write that was acknowledged without node 2, from which the cluster goes on.
async fn lose_the_majority() -> (ProcessCluster, u64) {
    let mut cluster = ProcessCluster::start(3).await;
    let client = cluster.client();
    let mut revision = 0;
    for number in 0..200 {
        let put = Put::new(format!("k{number:03}"), number.to_string());
        revision = client.put(put).await.unwrap().header.revision;
    }
    // All of it is on the survivor's volume.
    local_state(&cluster.client_of(2), revision).await;
    cluster.kill(2);
    client.put(Put::new("late", "lost")).await.unwrap();
    client.close().await;
    cluster.kill(0);
    cluster.kill(1);
    (cluster, revision)
}

async fn put_refused(cluster: &ProcessCluster, index: usize) {
    let client = cluster.client_of(index);
    let error = client.put(Put::new("refused", "")).await.unwrap_err();
    assert!(
        error.is_retryable() && !error.text().is_empty(),
        "{error:?}"
    );
    client.close().await;
}

async fn check_survivor(cluster: &mut ProcessCluster, revision: u64) {
    cluster.restart(2);
    cluster.wait_ready(2).await;
    let client = cluster.client_of(2);
    let put = client.put(Put::new("after", "1")).await.unwrap();
    assert!(
        put.header.revision > revision + RAISE,
        "{}",
        put.header.revision
    );
    assert_eq!(put.header.incarnation, Incarnation(2));
    let state = local_state(&client, put.header.revision).await;
    for number in 0..200 {
        let key = format!("k{number:03}");
        let kv = state
            .iter()
            .find(|kv| kv.key == key)
            .expect("it was on the volume");
        assert_eq!(kv.value, number.to_string());
    }
    assert!(!state.iter().any(|kv| kv.key == "late"));
    client.close().await;
}

/// Not while the node runs, not without a word on the others, not if they are better, not with another word.
fn check_refusals(cluster: &mut ProcessCluster, lost: &[&str]) {
    let running = recover(cluster, 2, &[]);
    assert!(
        text(&running).contains("in use by another process"),
        "{}",
        text(&running)
    );
    cluster.kill(2);
    let silent = recover(cluster, 2, &[]);
    assert!(
        text(&silent).contains("podkv-0, podkv-1"),
        "{}",
        text(&silent)
    );
    let others = [survivor(cluster, 0), survivor(cluster, 1)];
    let better = recover(cluster, 2, &["--survivor", &others[0], "--lost", "podkv-1"]);
    assert!(
        text(&better).contains("better survivor") || text(&better).contains("a majority"),
        "{}",
        text(&better)
    );
    assert!(!better.status.success());
    let wrong = recover(
        cluster,
        2,
        &[lost, &["--confirm", "recover-00000000"]].concat(),
    );
    assert_eq!(wrong.status.code(), Some(4), "{}", text(&wrong));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_majority_comes_back_and_is_refused() {
    let (mut cluster, revision) = lose_the_majority().await;
    cluster.restart(2);
    put_refused(&cluster, 2).await;

    let lost = ["--lost", "podkv-0", "--lost", "podkv-1"];
    check_refusals(&mut cluster, &lost);
    let done = recover_confirmed(&cluster, 2, &lost);
    assert!(done.contains("incarnation 2"), "{done}");
    let again = recover(&cluster, 2, &lost);
    assert!(
        text(&again).contains("nothing to recover"),
        "{}",
        text(&again)
    );
    check_survivor(&mut cluster, revision).await;

    // Together they were the majority. Each ends before it takes part in anything.
    for index in [0, 1] {
        cluster.restart(index);
    }
    for index in [0, 1] {
        let mut node = cluster.nodes[index].take().expect("it was started");
        let (code, log) = tokio::task::spawn_blocking(move || (node.wait(), node.log()))
            .await
            .unwrap();
        assert_eq!(code, Some(4), "{log}");
        assert!(log.contains("goes on in incarnation 2"), "{log}");
        assert!(!log.contains("serving"), "it took part: {log}");
    }
    for index in [0, 1] {
        cluster.restart(index);
        cluster.wait_ready(index).await;
    }
    wait_three_voters(&cluster, 2, Incarnation(2)).await;
    let client = cluster.client();
    let last = client
        .put(Put::new("after", "2"))
        .await
        .unwrap()
        .header
        .revision;
    for index in 0..3 {
        let state = local_state(&cluster.client_of(index), last).await;
        assert_eq!(state.len(), 201, "200 keys and `after`");
    }
    client.close().await;
    // What was lost is kept until a person removes it.
    for index in [0, 1] {
        assert_eq!(folders_aside(&cluster.specs[index].data_dir).len(), 1);
        cluster.kill(index);
        let discarded = recover(&cluster, index, &["--discard-old"]);
        assert!(discarded.status.success(), "{}", text(&discarded));
        assert!(folders_aside(&cluster.specs[index].data_dir).is_empty());
        cluster.restart(index);
        cluster.wait_ready(index).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_volumes_join_the_recovered_node_until_three_vote_again() {
    let (mut cluster, revision) = lose_the_majority().await;
    for index in [0, 1] {
        std::fs::remove_dir_all(&cluster.specs[index].data_dir).unwrap();
    }
    recover_confirmed(&cluster, 2, &["--lost", "podkv-0", "--lost", "podkv-1"]);
    check_survivor(&mut cluster, revision).await;
    for index in [0, 1] {
        cluster.restart(index);
    }
    for index in [0, 1] {
        cluster.wait_ready(index).await;
    }
    wait_three_voters(&cluster, 2, Incarnation(2)).await;
    // Any one of them may go now.
    cluster.kill(2);
    let client = cluster.client();
    client.put(Put::new("after", "2")).await.unwrap();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_that_was_given_up_and_runs_stops_when_it_meets_the_recovered_node() {
    let (mut cluster, revision) = lose_the_majority().await;
    recover_confirmed(&cluster, 2, &["--lost", "podkv-0", "--lost", "podkv-1"]);
    // They are alive after all, and lead: nobody can tell them yet.
    for index in [0, 1] {
        cluster.restart(index);
    }
    cluster.wait_ready(0).await;
    check_survivor(&mut cluster, revision).await;
    for index in [0, 1] {
        let mut node = cluster.nodes[index].take().expect("it was started");
        let (code, log) = tokio::task::spawn_blocking(move || (node.wait(), node.log()))
            .await
            .unwrap();
        assert_eq!(code, Some(4), "{log}");
        cluster.restart(index);
    }
    for index in [0, 1] {
        cluster.wait_ready(index).await;
    }
    wait_three_voters(&cluster, 2, Incarnation(2)).await;
    for index in [0, 1] {
        assert_eq!(folders_aside(&cluster.specs[index].data_dir).len(), 1);
    }
}
