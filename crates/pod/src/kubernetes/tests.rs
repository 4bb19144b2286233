//! Against an API server of the test's own: TLS, tokens, and every answer that a real one gives.

use std::sync::Mutex;

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::*;

const CA: &str = include_str!("fixtures/ca.crt");
const CERTIFICATE: &str = include_str!("fixtures/server.crt");
const KEY: &str = include_str!("fixtures/server.key");

/// What the server answers with: a status line and a body.
#[derive(Default)]
struct Said {
    status: &'static str,
    body: String,
    requests: Vec<String>,
}

struct ApiServer {
    said: Arc<Mutex<Said>>,
    account: TempDir,
    source: StatefulSetSource,
    _tasks: JoinSet<()>,
}

impl ApiServer {
    async fn start() -> Self {
        let chain = CertificateDer::pem_slice_iter(CERTIFICATE.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.map(Result::unwrap).collect(), key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let said = Arc::new(Mutex::new(Said::default()));
        let mut tasks = JoinSet::new();
        let answers = said.clone();
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut request = String::new();
                while !request.ends_with("\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read_exact(&mut byte).await.is_err() {
                        break;
                    }
                    request.push(byte[0].into());
                }
                let answer = {
                    let mut said = answers.lock().unwrap();
                    said.requests.push(request);
                    let (status, body) = (said.status, &said.body);
                    let length = body.len();
                    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}")
                };
                // Who hung up has its reasons.
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        let account = TempDir::new().unwrap();
        std::fs::write(account.path().join("token"), "first\n").unwrap();
        std::fs::write(account.path().join("ca.crt"), CA).unwrap();
        let source = StatefulSetSource {
            host: "127.0.0.1".into(),
            port,
            account_dir: account.path().into(),
            namespace: "prod".into(),
            name: "podkv".into(),
        };
        Self {
            said,
            account,
            source,
            _tasks: tasks,
        }
    }

    async fn answer(&self, status: &'static str, body: Value) -> Result<Option<DesiredSize>> {
        {
            let mut said = self.said.lock().unwrap();
            said.status = status;
            said.body = body.to_string();
        }
        self.source.read().await
    }

    fn last_request(&self) -> String {
        self.said.lock().unwrap().requests.last().unwrap().clone()
    }
}

/// As an API server of 1.34 shows it, shortened where nothing of ours is.
fn stateful_set(generation: u64, replicas: u32) -> Value {
    json!({
        "kind": "StatefulSet",
        "apiVersion": "apps/v1",
        "metadata": {
            "name": "podkv",
            "namespace": "prod",
            "uid": "0f8f1d9e-6f0e-4c8c-b4d9-6d8b1f5c9a51",
            "resourceVersion": "184467",
            "generation": generation,
            "creationTimestamp": "2026-11-22T09:00:00Z",
            "labels": {"app.kubernetes.io/name": "podkv"},
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app.kubernetes.io/name": "podkv"}},
            "serviceName": "podkv-headless",
            "podManagementPolicy": "Parallel",
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        },
        "status": {"observedGeneration": generation, "replicas": 1, "readyReplicas": 1},
    })
}

fn size(generation: u64, start: u32, replicas: u32) -> DesiredSize {
    DesiredSize {
        source: "0f8f1d9e-6f0e-4c8c-b4d9-6d8b1f5c9a51".into(),
        generation,
        start,
        replicas,
    }
}

#[tokio::test]
async fn the_size_is_read_from_the_statefulset() {
    let server = ApiServer::start().await;
    for (generation, replicas) in [(1, 3), (2, 1000), (3, 0)] {
        let read = server
            .answer("200 OK", stateful_set(generation, replicas))
            .await;
        assert_eq!(read.unwrap(), Some(size(generation, 0, replicas)));
    }
    let mut from_five = stateful_set(4, 3);
    from_five["spec"]["ordinals"] = json!({"start": 5});
    let read = server.answer("200 OK", from_five).await;
    assert_eq!(read.unwrap(), Some(size(4, 5, 3)));
    let request = server.last_request().to_lowercase();
    assert!(
        request.starts_with("get /apis/apps/v1/namespaces/prod/statefulsets/podkv http/1.1\r\n"),
        "{request}"
    );
    assert!(!request.contains("resourceversion"), "{request}");
}

#[tokio::test]
async fn what_is_being_deleted_says_nothing() {
    let server = ApiServer::start().await;
    let mut deleted = stateful_set(7, 0);
    deleted["metadata"]["deletionTimestamp"] = json!("2026-11-22T10:00:00Z");
    assert_eq!(server.answer("200 OK", deleted).await.unwrap(), None);
}

#[tokio::test]
async fn every_refusal_says_what_to_do() {
    let server = ApiServer::start().await;
    let status = json!({"kind": "Status", "status": "Failure"});
    for (line, reason, said) in [
        (
            "403 Forbidden",
            Reason::PermissionDenied,
            "its Role needs the verb get",
        ),
        ("401 Unauthorized", Reason::Unauthenticated, "token"),
        (
            "404 Not Found",
            Reason::Configuration,
            "there is no StatefulSet prod/podkv",
        ),
        ("503 Service Unavailable", Reason::Unreachable, "503"),
        ("200 OK", Reason::Corrupt, "not understood"),
    ] {
        let error = server.answer(line, status.clone()).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{line}");
        assert!(error.text().contains(said), "{line}: {error}");
    }
    let mut nameless = stateful_set(1, 3);
    nameless["metadata"]["uid"] = json!("");
    let error = server.answer("200 OK", nameless).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Corrupt);
}

#[tokio::test]
async fn the_token_is_read_for_each_request() {
    let server = ApiServer::start().await;
    for token in ["first", "second"] {
        std::fs::write(server.account.path().join("token"), format!("{token}\n")).unwrap();
        server.answer("200 OK", stateful_set(1, 3)).await.unwrap();
        let expected = format!("authorization: bearer {token}\r\n");
        let request = server.last_request().to_lowercase();
        assert!(request.contains(&expected), "{request}");
    }
    std::fs::remove_file(server.account.path().join("token")).unwrap();
    let error = server
        .answer("200 OK", stateful_set(1, 3))
        .await
        .unwrap_err();
    assert!(
        error.text().contains("automountServiceAccountToken"),
        "{error}"
    );
}

#[tokio::test]
async fn a_token_is_shown_to_the_true_api_server_alone() {
    let server = ApiServer::start().await;
    let ca = server.account.path().join("ca.crt");
    std::fs::write(&ca, include_str!("fixtures/other.crt")).unwrap();
    let error = server.source.read().await.unwrap_err();
    assert_eq!(error.reason(), Reason::Unreachable);
    assert!(error.text().contains("certificate"), "{error}");
    assert!(server.said.lock().unwrap().requests.is_empty());
}
