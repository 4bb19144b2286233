//! `podkv doctor` as people run it: against nodes, and against a `kubectl` that answers from a file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use podkv_tests::process::{ProcessCluster, podkv_binary};
use serde_json::Value;

fn doctor(args: &[&str]) -> Command {
    let mut command = Command::new(podkv_binary());
    command.arg("doctor").args(args).env_clear();
    command
}

fn run(mut command: Command) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the podkv binary runs");
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.code(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_finds_nothing_then_a_dead_voter_then_a_lost_majority() {
    let mut cluster = ProcessCluster::start(3).await;
    let endpoints = format!("--endpoints={}", cluster.endpoints().join(","));
    let healthy = run(doctor(&[&endpoints]));
    assert_eq!(healthy.0, Some(0), "{}", healthy.1);
    assert!(
        healthy.1.contains("3 members, 3 of them vote"),
        "{}",
        healthy.1
    );

    // In a node's own environment it looks at the node as well.
    let spec = &cluster.specs[0];
    let mut inside = doctor(&[&format!("--endpoints={}", spec.client)]);
    inside
        .env("PODKV_NAME", &spec.name)
        .env("PODKV_PEERS", &spec.peers)
        .env("PODKV_DATA_DIR", &spec.data_dir)
        .env("PODKV_CLIENT_LISTEN", &spec.client)
        .env("PODKV_PEER_LISTEN", &spec.peer)
        .env("PODKV_ADMIN_LISTEN", &spec.admin);
    let (code, text) = run(inside);
    assert!(text.contains("this node is ready"), "{text}");
    assert!(text.contains("podkv-2 answers at"), "{text}");
    // The disk of whoever runs this test may be full, or slow: that is a warning.
    assert!(code == Some(0) || code == Some(1), "{code:?} {text}");

    cluster.kill(2);
    let (code, text) = run(doctor(&[&endpoints]));
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("podkv-2") && text.contains("does not answer"),
        "{text}"
    );

    cluster.kill(1);
    let (code, text) = run(doctor(&[&endpoints, "-o", "json"]));
    assert_eq!(code, Some(2), "{text}");
    for line in text.lines() {
        let finding: Value = serde_json::from_str(line).expect("one JSON value a line");
        assert!(finding["check"].is_string(), "{line}");
    }
}

#[test]
fn a_bad_setting_is_a_problem() {
    let mut inside = doctor(&["--endpoints=127.0.0.1:1"]);
    inside
        .env("PODKV_NAME", "podkv-0")
        .env("PODKV_MAX_VOTERS", "four");
    let (code, text) = run(inside);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("PODKV_MAX_VOTERS"), "{text}");
}

/// A `kubectl` that knows one cluster, notes what it is asked, and may not read the nodes.
fn fake_kubectl(folder: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../crates/server/src/doctor/fixtures/kube.json");
    let objects: Value = serde_json::from_str(&std::fs::read_to_string(root).unwrap()).unwrap();
    for (kind, name) in [
        ("pods", "pods"),
        ("claims", "persistentvolumeclaims"),
        ("events", "events"),
        ("services", "services"),
        ("slices", "endpointslices"),
        ("policies", "networkpolicies"),
        ("budgets", "poddisruptionbudgets"),
    ] {
        let list = serde_json::json!({ "items": objects[kind] });
        std::fs::write(folder.join(name), list.to_string()).unwrap();
    }
    std::fs::write(folder.join("podkv"), objects["statefulset"].to_string()).unwrap();
    let script = "#!/bin/sh\nhere=${0%/*}\necho \"$@\" >> \"$here/asked\"\ncase $2 in\n\
        nodes) echo 'Error from server (Forbidden): nodes is forbidden' >&2; exit 1;;\n\
        --raw) echo 'Error from server (Forbidden): pods/proxy' >&2; exit 1;;\n\
        statefulset) [ -e \"$here/$3\" ] && exec /bin/cat \"$here/$3\"; exit 0;;\n\
        *) exec /bin/cat \"$here/$2\";;\nesac\n";
    let path = folder.join("kubectl");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn with_kubectl_it_reads_objects_and_passes_on_where() {
    let folder = tempfile::tempdir().unwrap();
    fake_kubectl(folder.path());
    let kube = |args: &[&str]| {
        let mut command = doctor(&[&["--kube"], args].concat());
        command.env("PATH", folder.path());
        run(command)
    };
    let (code, text) = kube(&["--namespace", "state", "--context", "prod"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("all 3 pods are ready"), "{text}");
    let asked = std::fs::read_to_string(folder.path().join("asked")).unwrap();
    let get = |line: &&str| line.starts_with("get ");
    assert!(
        asked.lines().all(|line| get(&line)),
        "it only reads: {asked}"
    );
    assert!(
        asked
            .lines()
            .all(|line| line.contains("--namespace state") && line.contains("--context prod")),
        "{asked}"
    );

    let (code, text) = kube(&["--statefulset", "other"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("there is no StatefulSet other"), "{text}");
    std::fs::remove_file(folder.path().join("events")).unwrap();
    let (code, text) = kube(&[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("events cannot be read"), "{text}");
}

#[test]
fn without_kubectl_it_says_so() {
    let mut command = doctor(&["--kube"]);
    command.env("PATH", "/nowhere");
    let (code, text) = run(command);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("kubectl cannot be run"), "{text}");
}
