//! How commands end when they are told to: as process 1 of a container nothing ends them but themselves.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use podkv_api::{Put, Store as _};
use podkv_tests::process::{ProcessCluster, podkv_binary};
use rustix::process::{Pid, Signal, kill_process};

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_terminated_exits_with_143() {
    let cluster = ProcessCluster::start(1).await;
    let mut watch = Command::new(podkv_binary())
        .args(["watch", "--prefix", "a", "--list"])
        .arg(format!("--endpoints={}", cluster.endpoints().join(",")))
        .env_clear()
        .stdout(Stdio::piped())
        .spawn()
        .expect("the podkv binary starts");
    let client = cluster.client();
    client.put(Put::new("a", "1")).await.unwrap();
    client.close().await;
    let out = watch.stdout.take().expect("standard output is piped");
    let ended = tokio::task::spawn_blocking(move || {
        // The first line means that it has begun, its handler long before.
        let mut lines = BufReader::new(out).lines();
        assert!(lines.next().expect("an event").is_ok());
        let pid = i32::try_from(watch.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), Signal::TERM).unwrap();
        watch.wait().unwrap()
    });
    // Killed by the signal, it would have no code at all.
    assert_eq!(ended.await.unwrap().code(), Some(143));
}
