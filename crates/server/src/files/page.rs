//! A projection's page: `/readyz` for a probe, `/metrics` for Prometheus, and the same as a JSON file.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use podkv_api::Result;
use podkv_files::Status;
use podkv_node::transport::tcp::{TcpSettings, TcpTransport};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::connections::{Bounds, Connections, Http, listen};

/// A probe, a scraper, a person.
const MAX_CONNECTIONS: usize = 16;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// How often a hook ran, and failed.
#[derive(Debug, Default)]
pub struct HookCounts {
    pub runs: AtomicU64,
    pub failures: AtomicU64,
}

/// A port with the page on it.
pub struct Page(Connections);

impl Page {
    pub async fn listen(
        address: &str,
        status: watch::Receiver<Status>,
        hooks: Arc<HookCounts>,
    ) -> Result<Self> {
        let transport = TcpTransport::new(TcpSettings::default());
        let listener = listen(&transport, "metrics address", address).await?;
        let service = service_fn(move |request: Request<Incoming>| {
            let status = status.borrow().clone();
            let response = answer(request.method(), request.uri().path(), &status, &hooks);
            async move { Ok::<_, Infallible>(response) }
        });
        let plain_http = |http: &mut Http| {
            *http = http.clone().http1_only();
            http.http1().header_read_timeout(HEADER_TIMEOUT);
        };
        let bounds = Bounds {
            max_connections: MAX_CONNECTIONS,
            greeting_timeout: HEADER_TIMEOUT,
        };
        Ok(Self(Connections::serve(
            listener,
            move || service.clone(),
            bounds,
            plain_http,
        )))
    }

    pub async fn close(self) {
        self.0.close(CLOSE_GRACE).await;
    }
}

fn answer(
    method: &Method,
    path: &str,
    status: &Status,
    hooks: &HookCounts,
) -> Response<Full<Bytes>> {
    let (code, text) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, "ok\n".to_owned()),
        // Files that are old are better than none: only a directory that never showed anything is not ready.
        (&Method::GET | &Method::HEAD, "/readyz") if status.revision > 0 => {
            (StatusCode::OK, "ok\n".to_owned())
        }
        (&Method::GET | &Method::HEAD, "/readyz") => {
            let why = status.problem.as_deref().unwrap_or("nothing is shown yet");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
        }
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, metrics(status, hooks)),
        (&Method::GET | &Method::HEAD, _) => (
            StatusCode::NOT_FOUND,
            "there are /livez, /readyz and /metrics\n".to_owned(),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = code;
    let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, format);
    response
}

fn metrics(status: &Status, hooks: &HookCounts) -> String {
    let files = status.shown.as_ref().map_or(0, |about| about.files);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let all: &[(&str, &str, &str, f64)] = &[
        (
            "revision",
            "gauge",
            "Every change up to this revision is shown",
            status.revision as f64,
        ),
        (
            "behind_seconds",
            "gauge",
            "How long the directory may be behind the store; a few seconds on a quiet one",
            status.behind.as_secs_f64(),
        ),
        ("files", "gauge", "Files that are shown", files as f64),
        (
            "refused_keys",
            "gauge",
            "Keys that cannot be files",
            status.refused.len() as f64,
        ),
        (
            "problem",
            "gauge",
            "1 while the directory does not follow; the log says why",
            f64::from(u8::from(status.problem.is_some())),
        ),
        (
            "swaps_total",
            "counter",
            "Swaps since the start",
            status.swaps as f64,
        ),
        (
            "files_written_total",
            "counter",
            "Files written in them, not linked",
            status.files_written as f64,
        ),
        (
            "hook_runs_total",
            "counter",
            "Commands or signals after swaps",
            count(&hooks.runs),
        ),
        (
            "hook_failures_total",
            "counter",
            "Those that failed",
            count(&hooks.failures),
        ),
    ];
    let mut page = String::new();
    for (name, kind, help, value) in all {
        // Writing to a string does not fail.
        let _ = write!(
            page,
            "# HELP podkv_project_{name} {help}\n# TYPE podkv_project_{name} {kind}\npodkv_project_{name} {value}\n"
        );
    }
    page
}

/// The status for scripts: what `--status` writes.
pub fn json(status: &Status) -> Value {
    let shown = status.shown.as_ref();
    let refused: Vec<String> = status.refused.iter().map(ToString::to_string).collect();
    json!({
        "cluster": shown.map(|about| &about.cluster),
        "prefix": shown.map(|about| &about.prefix),
        "revision": status.revision,
        "shown_revision": shown.map(|about| about.revision),
        "files": shown.map(|about| about.files),
        "digest": shown.map(|about| &about.digest),
        "behind_ms": u64::try_from(status.behind.as_millis()).unwrap_or(u64::MAX),
        "swaps": status.swaps,
        "problem": status.problem,
        "refused": refused,
    })
}
