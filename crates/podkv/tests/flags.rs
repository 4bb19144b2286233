//! The application of `examples/flags` on a cluster in memory: what is written at one replica shows at the
//! others, also when the leader is killed in between, and a bad request gets a clear answer.

#[path = "../examples/flags/flags.rs"]
mod flags;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, BodyDataStream, to_bytes};
use axum::http::{Method, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use futures_util::StreamExt;
use podkv::node::Node;
use podkv::testing::TestCluster;
use podkv::{Error, Reason};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::flags::{Failure, Flags};

struct Service {
    cluster: TestCluster,
    replicas: Vec<(Arc<Flags<Node>>, Router)>,
}

impl Service {
    async fn start() -> Self {
        let cluster = podkv::testing::cluster(3).await;
        let mut replicas = Vec::new();
        for index in 0..cluster.size() {
            let flags = Flags::new(cluster.node(index));
            assert!(!flags.is_open());
            flags.open().await;
            assert!(flags.is_open());
            replicas.push((flags.clone(), flags::router(flags)));
        }
        Self { cluster, replicas }
    }

    async fn send(&self, replica: usize, request: Request<Body>) -> Response<Body> {
        let router = self.replicas[replica].1.clone();
        // Its error is `Infallible`.
        router.oneshot(request).await.unwrap()
    }

    async fn call(&self, replica: usize, request: Request<Body>) -> (StatusCode, Value) {
        let response = self.send(replica, request).await;
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        (status, value)
    }

    async fn events(&self, replica: usize) -> Events {
        let response = self
            .send(replica, request(Method::GET, "/events", None))
            .await;
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "text/event-stream"
        );
        Events {
            data: response.into_body().into_data_stream(),
            text: String::new(),
        }
    }
}

struct Events {
    data: BodyDataStream,
    text: String,
}

impl Events {
    /// The flags of the next event; `None` when the stream has ended.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                // Anything else keeps the connection alive.
                let data = event.strip_prefix("data: ").map(str::to_owned);
                self.text = rest.to_owned();
                match data {
                    Some(data) => return Some(serde_json::from_str(&data).unwrap()),
                    None => continue,
                }
            }
            let bytes = self.data.next().await?.unwrap();
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    /// Waits until the flags are these. States in between may be left out.
    async fn show(&mut self, flags: &Value) {
        while self.next().await.expect("the stream ended") != *flags {}
    }
}

fn request(method: Method, path: &str, body: Option<&str>) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    let body = body.map_or_else(Body::empty, |body| body.to_owned().into());
    request
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .unwrap()
}

fn flag(enabled: bool, percent: u8) -> Value {
    json!({ "enabled": enabled, "percent": percent })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_shows_at_every_replica_also_after_the_leader_is_killed() {
    let mut service = Service::start().await;
    let leader = service.cluster.leader().await;
    let (writer, reader) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut events = service.events(reader).await;
    assert_eq!(events.next().await, Some(json!({})));

    let body = flag(true, 50).to_string();
    let put = || request(Method::PUT, "/flags/dark-mode", Some(&body));
    let get = || request(Method::GET, "/flags/dark-mode", None);
    let written = (StatusCode::OK, flag(true, 50));
    assert_eq!(service.call(leader, put()).await, written);
    // Where it was written it shows at once, elsewhere by an event.
    assert_eq!(service.call(leader, get()).await, written);
    events.show(&json!({ "dark-mode": flag(true, 50) })).await;
    assert_eq!(service.call(reader, get()).await, written);

    service.cluster.kill(leader).await;
    let patch = request(
        Method::PATCH,
        "/flags/dark-mode",
        Some(r#"{"enabled":false}"#),
    );
    let changed = (StatusCode::OK, flag(false, 50));
    assert_eq!(service.call(writer, patch).await, changed);
    assert_eq!(service.call(writer, get()).await, changed);
    events.show(&json!({ "dark-mode": flag(false, 50) })).await;

    let delete = || request(Method::DELETE, "/flags/dark-mode", None);
    let deleted = service.call(writer, delete()).await;
    assert_eq!(deleted.0, StatusCode::NO_CONTENT);
    events.show(&json!({})).await;
    assert_eq!(
        service.call(writer, delete()).await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(service.call(reader, get()).await.0, StatusCode::NOT_FOUND);

    // What lets a server end although somebody listens.
    service.replicas[reader].0.close();
    assert_eq!(events.next().await, None);
    service.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_without_a_majority_and_writes_say_so() {
    let mut service = Service::start().await;
    let leader = service.cluster.leader().await;
    let body = flag(true, 1).to_string();
    let put = |name| request(Method::PUT, name, Some(&body));
    assert_eq!(
        service.call(leader, put("/flags/a")).await.0,
        StatusCode::OK
    );
    for other in 1..3 {
        service.cluster.kill((leader + other) % 3).await;
    }
    let list = service
        .call(leader, request(Method::GET, "/flags", None))
        .await;
    assert_eq!(list, (StatusCode::OK, json!({ "a": flag(true, 1) })));
    // Unknown, if it stands in the leader's log: the others may yet accept it.
    let (status, problem) = service.call(leader, put("/flags/b")).await;
    let expected = match problem["outcome_unknown"].as_bool() {
        Some(true) => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    assert_eq!(status, expected, "{problem}");
    service.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_says_what_is_wrong() {
    let service = Service::start().await;
    let good = flag(true, 1).to_string();
    let much = r#"{"enabled":true,"percent":500}"#;
    let huge = format!("{}{good}", " ".repeat(5000));
    let long = format!("/flags/{}", "x".repeat(65));
    let (put, patch) = (Method::PUT, Method::PATCH);
    for (method, path, body, status, said) in [
        (&put, "/flags/Dark", &good[..], 400, "a-z"),
        (&put, "/flags/a%2Fb", &good, 400, "a-z"),
        (&put, &long, &good, 400, "64"),
        (&put, "/flags/a", "{", 400, "JSON"),
        (&put, "/flags/a", &huge, 413, "limit"),
        (&put, "/flags/a", r#"{"enabled":true}"#, 422, "percent"),
        (
            &put,
            "/flags/a",
            &flag(true, 101).to_string(),
            422,
            "0 to 100",
        ),
        (&put, "/flags/a", much, 422, "0 to 100"),
        (&patch, "/flags/a", r#"{"enabeld":true}"#, 422, "enabeld"),
        (&patch, "/flags/a", r#"{"enabled":true}"#, 404, "\"a\""),
        (&Method::GET, "/flags/a", "", 404, "\"a\""),
    ] {
        let request = request(method.clone(), path, Some(body));
        let (got, problem) = service.call(0, request).await;
        assert_eq!(got.as_u16(), status, "{method} {path}: {problem}");
        let error = problem["error"].as_str().unwrap_or_default();
        assert!(error.contains(said), "{method} {path}: {problem}");
    }
    // Nothing of it was written.
    let list = service.call(0, request(Method::GET, "/flags", None)).await;
    assert_eq!(list, (StatusCode::OK, json!({})));
    service.cluster.shutdown().await;
}

#[test]
fn errors_of_the_store_become_statuses() {
    let status = |error: Error| Failure::from(error).into_response().status().as_u16();
    for (reason, expected) in [
        (Reason::RequestTooLarge, 400),
        (Reason::Contention, 409),
        (Reason::BadValue, 500),
        (Reason::Internal, 500),
        (Reason::NoLeader, 503),
        (Reason::NoSpace, 503),
    ] {
        assert_eq!(status(Error::new(reason, "")), expected, "{reason:?}");
    }
    let unknown = Error::new(Reason::DeadlineExceeded, "").with_unknown_outcome();
    assert_eq!(status(unknown), 504);
    let unavailable = Failure::from(Error::new(Reason::NoLeader, "")).into_response();
    assert_eq!(unavailable.headers()[header::RETRY_AFTER], "1");
}
