//! The admin port: alive before there is a node, ready when the node is.

use podkv_api::{Put, Store};
use podkv_proto::v1;
use podkv_server::AdminServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Harness, soon};

/// Status and body, as a kubelet or Prometheus would see them.
async fn ask(admin: &AdminServer, request_line: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(admin.local_address()).await.unwrap();
    let request = format!("{request_line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

async fn get(admin: &AdminServer, path: &str) -> (u16, String) {
    ask(admin, &format!("GET {path}")).await
}

#[tokio::test]
async fn alive_before_there_is_a_node() {
    let admin = AdminServer::listen("127.0.0.1:0").await.unwrap();
    assert_eq!(get(&admin, "/livez").await, (200, "ok\n".into()));
    for path in ["/startupz", "/readyz"] {
        let (status, text) = get(&admin, path).await;
        assert_eq!(status, 503, "{path}");
        assert!(text.contains("storage is not open yet"), "{text}");
    }
    assert!(
        get(&admin, "/metrics")
            .await
            .1
            .contains("\npodkv_started 0\n")
    );
    assert_eq!(get(&admin, "/nothing").await.0, 404);
    assert_eq!(ask(&admin, "POST /livez").await.0, 405);
    assert_eq!(ask(&admin, "HEAD /livez").await, (200, String::new()));
    soon(admin.close()).await;
}

#[tokio::test]
async fn probes_and_metrics_follow_the_node() {
    let cluster = podkv_node::testing::cluster(1).await;
    let node = cluster.node(0);
    soon(node.health().wait_for(|health| health.ready))
        .await
        .unwrap();
    let admin = AdminServer::listen("127.0.0.1:0").await.unwrap();
    admin.serve(node.clone());
    for path in ["/livez", "/startupz", "/readyz"] {
        assert_eq!(get(&admin, path).await, (200, "ok\n".into()), "{path}");
    }
    let ready = r#"{"draining":false,"ready":true,"reason":"","started":true}"#;
    assert_eq!(get(&admin, "/status").await, (200, format!("{ready}\n")));
    node.put(Put::new("a", "1")).await.unwrap();
    let (_, page) = get(&admin, "/metrics").await;
    for line in [
        "podkv_ready 1",
        "podkv_is_leader 1",
        "podkv_has_leader 1",
        "podkv_keys 1",
        "podkv_durable 0",
        "podkv_members{role=\"voter\"} 1",
        "podkv_members{role=\"learner\"} 0",
    ] {
        assert!(
            page.lines().any(|found| found == line),
            "{line} not in\n{page}"
        );
    }
    let revision = format!("podkv_revision {}", node.header().revision);
    assert!(
        page.lines().any(|found| found == revision),
        "{revision} not in\n{page}"
    );
    // Prometheus wants each family's help and type before its samples, and each family once.
    let families: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    let distinct: std::collections::BTreeSet<_> = families.iter().collect();
    assert_eq!(families.len(), distinct.len());

    node.drain().await;
    assert_eq!(
        get(&admin, "/livez").await.0,
        200,
        "liveness looks at the event loop alone"
    );
    let (status, reason) = get(&admin, "/readyz").await;
    assert_eq!(status, 503);
    assert!(reason.contains("draining"), "{reason}");
    let (status, json) = get(&admin, "/status").await;
    assert_eq!(status, 200, "a proxy on the way hides the text of an error");
    assert!(json.contains(reason.trim()), "{json}");
    cluster.shutdown().await;
}

#[tokio::test]
async fn requests_are_counted_by_method_and_result() {
    let harness = Harness::start().await;
    let admin = AdminServer::listen("127.0.0.1:0").await.unwrap();
    admin.serve(harness.node());
    let put = |key: &str| v1::PutRequest {
        key: key.to_owned().into(),
        ..Default::default()
    };
    harness.kv().put(put("a")).await.unwrap();
    harness.kv().put(put("")).await.unwrap_err();
    // Two more through a pipe, one of them refused.
    let operation = |id, key| v1::PipeOperation {
        id,
        operation: Some(v1::pipe_operation::Operation::Put(put(key))),
        ..Default::default()
    };
    let request = v1::PipeRequest {
        operations: vec![operation(1, "b"), operation(2, "")],
    };
    let requests = tokio_stream::iter([request]);
    let mut answers = harness.kv().pipe(requests).await.unwrap().into_inner();
    while soon(answers.message()).await.unwrap().is_some() {}
    let (_, page) = get(&admin, "/metrics").await;
    for line in [
        r#"podkv_requests_total{method="kv.put",result="ok"} 2"#,
        r#"podkv_requests_total{method="kv.put",result="invalid_argument"} 2"#,
        r#"podkv_requests_total{method="kv.pipe",result="ok"} 1"#,
        r#"podkv_requests_total{method="kv.get",result="ok"} 0"#,
        r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV"} 0"#,
    ] {
        assert!(
            page.lines().any(|found| found == line),
            "{line} not in\n{page}"
        );
    }
    let applied = page
        .lines()
        .find_map(|line| line.strip_prefix("podkv_apply_seconds_count "));
    assert_ne!(applied, Some("0"), "{page}");
}
