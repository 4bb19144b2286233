//! The admin port: probes and metrics over plain HTTP.
//!
//! | path | says |
//! | --- | --- |
//! | `/livez` | 200: that this answer came is the proof. Never looks at quorum, disk or membership: a restart would not mend those. |
//! | `/startupz` | 200 once storage is open and the log is replayed. Joining is not part of starting. |
//! | `/readyz` | 200 while the node should get traffic, else why not |
//! | `/metrics` | numbers for Prometheus |
//! | `/status` | the same as JSON, and always 200: on the way through the API server the text of an error is lost |
//!
//! It listens before storage opens, so that a long replay is not taken for a dead process. Kubelets present no
//! certificate, so it stays plain HTTP; it changes nothing and shows no data.

mod metrics;

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use podkv_api::Result;
use podkv_node::Node;
use podkv_node::transport::Transport;
use podkv_node::transport::tcp::{TcpSettings, TcpTransport};
use serde_json::json;

use crate::connections::{Bounds, Connections, Http, listen};

/// Probes, a scraper or two, a person. More is a mistake somewhere.
const MAX_CONNECTIONS: usize = 64;
/// A client that has not sent its few lines by then never will.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers are small and instant.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

const NOT_OPEN: &str = "starting: storage is not open yet";

/// The admin port. Dropping it closes it.
pub struct AdminServer {
    node: Arc<OnceLock<Node>>,
    connections: Connections,
}

impl AdminServer {
    /// Listens on a TCP address, `host:port`, for a node that is yet to come. Port 0 takes any free one.
    pub async fn listen(address: &str) -> Result<Self> {
        Self::listen_over(&TcpTransport::new(TcpSettings::default()), address).await
    }

    /// Listens over another transport: pipes in memory, for tests.
    pub async fn listen_over(transport: &dyn Transport, address: &str) -> Result<Self> {
        let listener = listen(transport, "admin listen address", address).await?;
        let node = Arc::new(OnceLock::new());
        let asked = node.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let node: Arc<OnceLock<Node>> = asked.clone();
            async move {
                let (method, path) = (request.method(), request.uri().path());
                Ok::<_, Infallible>(answer(node.get(), method, path).await)
            }
        });
        let plain_http = |http: &mut Http| {
            *http = http.clone().http1_only();
            http.http1().header_read_timeout(HEADER_TIMEOUT);
        };
        let bounds = Bounds {
            max_connections: MAX_CONNECTIONS,
            greeting_timeout: HEADER_TIMEOUT,
        };
        let connections = Connections::serve(listener, move || service.clone(), bounds, plain_http);
        Ok(Self { node, connections })
    }

    /// From now on, answers speak of this node. The first one stays.
    pub fn serve(&self, node: Node) {
        let _ = self.node.set(node);
    }

    /// Where it listens, with the real port.
    pub fn local_address(&self) -> &str {
        self.connections.local_address()
    }

    /// Closes the port. To be called last: until then a probe learns why the node is not ready.
    pub async fn close(self) {
        self.connections.close(CLOSE_GRACE).await;
    }
}

/// The answer to one request: what [`AdminServer`] says, for an HTTP server of your own. `None` is a node
/// that is not there yet.
pub async fn answer(node: Option<&Node>, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
    }
    let health = node.map(|node| node.health().borrow().clone());
    match (path, health) {
        ("/livez", _) => text(StatusCode::OK, "ok"),
        ("/startupz" | "/readyz", None) => text(StatusCode::SERVICE_UNAVAILABLE, NOT_OPEN),
        ("/startupz", Some(health)) => verdict(health.started, &health.reason),
        ("/readyz", Some(health)) => verdict(health.ready, &health.reason),
        ("/status", health) => {
            let status = health.map_or_else(
                || json!({"started": false, "ready": false, "draining": false, "reason": NOT_OPEN}),
                |health| {
                    json!({
                        "started": health.started,
                        "ready": health.ready,
                        "draining": health.draining,
                        "reason": health.reason,
                    })
                },
            );
            let mut response = text(StatusCode::OK, status.to_string());
            let format = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, format);
            response
        }
        ("/metrics", _) => {
            let mut response = text(StatusCode::OK, metrics::render(node).await);
            // The version of Prometheus' text format.
            let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, format);
            response
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /livez, /startupz, /readyz, /status and /metrics",
        ),
    }
}

fn verdict(is_good: bool, reason: &str) -> Response<Full<Bytes>> {
    if is_good {
        text(StatusCode::OK, "ok")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, reason.to_owned())
    }
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    let mut body: String = body.into();
    if !body.ends_with('\n') {
        body.push('\n');
    }
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
