//! Group commit: many writers share an fsync.

use std::process::{Command, Stdio};

use futures_util::StreamExt as _;
use podkv_api::{Put, Store as _};
use podkv_tests::process::ProcessCluster;

const WRITERS: usize = 256;
const PUTS: usize = 5_000;

/// Counts the leader's fdatasync and fsync calls with strace.
#[tokio::test(flavor = "multi_thread")]
async fn under_256_writers_the_leader_syncs_at_most_once_in_ten_puts() {
    if Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        panic!("this test counts system calls: install strace");
    }
    let cluster = ProcessCluster::start(3).await;
    let leader = cluster.wait_leader().await;
    let pid = cluster.nodes[leader].as_ref().unwrap().pid();
    let counts = cluster.folder.path().join("strace");
    let mut strace = Command::new("strace")
        .args([
            "-f",
            "-c",
            "-e",
            "trace=fdatasync,fsync",
            "-p",
            &pid.to_string(),
            "-o",
        ])
        .arg(&counts)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // strace says nothing when it is attached; its tracer id in the process's status does.
    let status = format!("/proc/{pid}/status");
    while std::fs::read_to_string(&status)
        .unwrap()
        .contains("TracerPid:\t0")
    {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let client = cluster.client();
    let mut puts = futures_util::stream::iter(0..PUTS)
        .map(|number| client.put(Put::new(format!("k{number}"), "value")))
        .buffer_unordered(WRITERS);
    while let Some(result) = puts.next().await {
        result.unwrap();
    }
    drop(puts);
    assert_eq!(
        cluster.wait_leader().await,
        leader,
        "the count is of one leader"
    );
    let tracer = rustix::process::Pid::from_raw(i32::try_from(strace.id()).unwrap()).unwrap();
    rustix::process::kill_process(tracer, rustix::process::Signal::INT).unwrap();
    strace.wait().unwrap();
    let table = std::fs::read_to_string(&counts).unwrap();
    let syncs: usize = table
        .lines()
        .filter(|line| line.ends_with("fdatasync") || line.ends_with("fsync"))
        .map(|line| {
            line.split_whitespace()
                .nth(3)
                .unwrap()
                .parse::<usize>()
                .unwrap()
        })
        .sum();
    println!("{PUTS} puts of {WRITERS} writers: {syncs} syncs on the leader");
    assert!(syncs > 0, "strace saw nothing:\n{table}");
    assert!(syncs * 10 <= PUTS, "{syncs} syncs for {PUTS} puts");
    client.close().await;
}
