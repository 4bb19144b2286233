//! JSON over HTTP/1.1: what curl sends and sees.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{kv, put};
use crate::harness::{Harness, soon};

struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One request over a connection of its own, as the bytes that a client without any library would send.
async fn send(harness: &Harness, method: &str, path: &str, body: &str) -> BufReader<TcpStream> {
    send_with(harness, method, path, "", body).await
}

/// `headers` are whole lines.
async fn send_with(
    harness: &Harness,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> BufReader<TcpStream> {
    let mut io = TcpStream::connect(harness.server.local_address())
        .await
        .unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: podkv\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    io.write_all(request.as_bytes()).await.unwrap();
    BufReader::new(io)
}

async fn head(io: &mut BufReader<TcpStream>) -> u16 {
    let mut line = String::new();
    io.read_line(&mut line).await.unwrap();
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    while line.trim() != "" {
        line.clear();
        io.read_line(&mut line).await.unwrap();
    }
    status
}

async fn ask(harness: &Harness, method: &str, path: &str, body: &str) -> Answer {
    answer(send(harness, method, path, body).await).await
}

async fn answer(mut io: BufReader<TcpStream>) -> Answer {
    let status = soon(head(&mut io)).await;
    let mut body = Vec::new();
    soon(io.read_to_end(&mut body)).await.unwrap();
    Answer { status, body }
}

async fn post(harness: &Harness, path: &str, body: Value) -> Answer {
    ask(harness, "POST", path, &body.to_string()).await
}

#[tokio::test]
async fn a_token_goes_in_a_header() {
    let settings = podkv_server::ApiSettings::default();
    let harness = Harness::with(settings, |config| config.auth_without_tls = true).await;
    for (path, body) in [
        (
            "/v3/auth/user/add",
            json!({"name": "root", "password": "pw"}),
        ),
        (
            "/v3/auth/user/grant",
            json!({"user": "root", "role": "root"}),
        ),
        ("/v3/auth/enable", json!({})),
    ] {
        assert_eq!(post(&harness, path, body).await.status, 200, "{path}");
    }
    let key = json!({"key": "Zm9v"});
    let refused = post(&harness, "/v3/kv/range", key.clone()).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["message"], "etcdserver: user name is empty");
    let body = json!({"name": "root", "password": "pw"});
    let given = post(&harness, "/v3/auth/authenticate", body).await.json();
    let token = given["token"].as_str().unwrap();
    for (token, status) in [(token, 200), ("forged", 401)] {
        let header = format!("Authorization: {token}\r\n");
        let body = key.to_string();
        let io = send_with(&harness, "POST", "/v3/kv/range", &header, &body).await;
        assert_eq!(answer(io).await.status, status);
    }
}

#[tokio::test]
async fn calls_and_their_errors() {
    let harness = Harness::start().await;
    let written = post(
        &harness,
        "/v3/kv/put",
        json!({"key": "Zm9v", "value": "YmFy"}),
    )
    .await;
    assert_eq!(written.status, 200);
    assert_eq!(written.json()["header"]["revision"], "2");
    let found = post(&harness, "/v3/kv/range", json!({"key": "Zm9v"})).await;
    let kv = json!({"key": "Zm9v", "create_revision": "2", "mod_revision": "2", "version": "1", "value": "YmFy"});
    assert_eq!(found.json()["kvs"], json!([kv]));
    let txn = json!({
        "compare": [{"result": "GREATER", "target": "CREATE", "key": "Zm9v", "create_revision": "0"}],
        "success": [{"request_delete_range": {"key": "Zm9v"}}],
    });
    let txn = post(&harness, "/v3/kv/txn", txn).await.json();
    assert_eq!(txn["succeeded"], true);
    assert_eq!(txn["responses"][0]["response_delete_range"]["deleted"], "1");
    for (path, body, status, code) in [
        ("/v3/kv/range", json!({}), 400, 3),
        ("/v3/kv/range", json!({"kee": "Zm9v"}), 400, 3),
        ("/v3/kv/range", json!({"key": "not base64!"}), 400, 3),
        ("/v3/kv/range", json!([1]), 400, 3),
        (
            "/v3/kv/range",
            json!({"key": "Zm9v", "revision": "99"}),
            400,
            11,
        ),
        ("/v3/lease/revoke", json!({"ID": "77"}), 404, 5),
        ("/v3/cluster/member/add", json!({}), 501, 12),
        ("/v3/what", json!({}), 501, 12),
    ] {
        let answer = post(&harness, path, body).await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (status, &json!(code)),
            "{path}"
        );
    }
    assert_eq!(
        ask(&harness, "POST", "/v3/kv/range", "{\"key\":")
            .await
            .status,
        400
    );
    assert_eq!(
        ask(&harness, "POST", "/v3/kv/range", "{} {}").await.status,
        400
    );
    assert_eq!(ask(&harness, "GET", "/v3/kv/range", "").await.status, 405);
}

#[tokio::test]
async fn a_watch_is_lines() {
    let harness = Harness::start().await;
    let two = format!(
        "{}\n{}",
        json!({"create_request": {"key": "YQ=="}}),
        json!({"create_request": {"key": "Yg==", "watch_id": "7"}})
    );
    let mut io = send(&harness, "POST", "/v3/watch", &two).await;
    assert_eq!(soon(head(&mut io)).await, 200);
    let mut next = async || loop {
        let mut line = String::new();
        soon(io.read_line(&mut line)).await.unwrap();
        // Between them stand the lengths of chunks.
        if let Ok(value @ Value::Object(_)) = serde_json::from_str(&line) {
            return value;
        }
    };
    for _ in 0..2 {
        assert_eq!(next().await["result"]["created"], true);
    }
    kv(&harness).put(put("b", "1")).await.unwrap();
    let event = next().await;
    assert_eq!(event["result"]["watch_id"], "7");
    assert_eq!(event["result"]["events"][0]["kv"]["key"], "Yg==");
    let drained = tokio::spawn(harness.server.drain());
    assert_eq!(next().await["error"]["http_code"], 503);
    drop(io);
    drop(harness.channel);
    soon(drained).await.unwrap();
}

#[tokio::test]
async fn what_else_is_on_the_port() {
    let harness = Harness::start().await;
    // It serves before it has looked at its own health for the first time.
    let mut health = harness.node().health();
    soon(health.wait_for(|health| health.ready)).await.unwrap();
    let health = ask(&harness, "GET", "/health", "").await;
    assert_eq!(
        (health.status, &health.json()["health"]),
        (200, &json!("true"))
    );
    let version = ask(&harness, "GET", "/version", "").await.json();
    assert_eq!(
        version["etcdserver"].as_str().unwrap().split('.').count(),
        3
    );
    let metrics = ask(&harness, "GET", "/metrics", "").await;
    assert!(String::from_utf8(metrics.body).unwrap().contains("podkv_"));
    assert_eq!(ask(&harness, "GET", "/readyz", "").await.status, 200);
}
