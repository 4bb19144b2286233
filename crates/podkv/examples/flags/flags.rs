//! The application: feature flags that every replica knows.
//!
//! A flag is a JSON value under `flags/` in the store. A write is answered when a majority of the replicas has
//! it on disk. A read is a look-up in a [`Mirror`], in this process's memory: it needs no other replica, and
//! goes on while there is no leader. The mirror is behind the newest write by a network round trip or so.
//!
//! Everything here is written against [`Store`], so that its test runs on a cluster in memory. There is no
//! authentication: it belongs in a layer of the router, as in any axum application.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive};
use axum::response::{Html, IntoResponse, Response, Sse};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::{Stream, StreamExt, stream};
use podkv::recipes::{Mirror, Snapshot, Typed};
use podkv::{Error, ErrorKind, Reason, Revision, Store};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Other parts of an application would keep their keys under other prefixes.
const PREFIX: &str = "flags/";
const MAX_NAME_BYTES: usize = 64;
/// A flag is some tens of bytes.
const MAX_BODY_BYTES: usize = 4096;
/// Between two attempts to open the mirror of a cluster that is not up yet.
const REOPEN_AFTER: Duration = Duration::from_millis(500);
/// How long the answer to a write waits until this replica's reads show it. Mostly a millisecond; a replica
/// that is cut off must not keep its caller for longer.
const SHOW_WITHIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flag {
    enabled: bool,
    /// The share of users who see it while it is enabled.
    percent: Percent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64")]
struct Percent(u8);

impl TryFrom<u64> for Percent {
    type Error = &'static str;

    fn try_from(percent: u64) -> Result<Self, Self::Error> {
        match u8::try_from(percent) {
            Ok(percent @ 0..=100) => Ok(Self(percent)),
            _ => Err("percent must be from 0 to 100"),
        }
    }
}

/// What a PATCH changes; what it leaves out stays. A misspelt field must not pass for one that was left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlagChange {
    enabled: Option<bool>,
    percent: Option<Percent>,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct FlagName(String);

impl TryFrom<String> for FlagName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
        if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed) {
            return Ok(Self(name));
        }
        Err(format!(
            "a flag's name is 1 to {MAX_NAME_BYTES} of a-z, 0-9, '-', '_' and '.'"
        ))
    }
}

impl AsRef<[u8]> for FlagName {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

pub struct Flags<S> {
    store: S,
    values: Typed<S, Flag>,
    /// Empty until the cluster was reached for the first time.
    mirror: OnceLock<Mirror>,
    closed: CancellationToken,
}

impl<S: Store> Flags<S> {
    pub fn new(store: S) -> Arc<Self> {
        Arc::new(Self {
            values: Typed::new(store.clone(), PREFIX),
            store,
            mirror: OnceLock::new(),
            closed: CancellationToken::new(),
        })
    }

    /// Opens the mirror, however long the cluster takes to come up. From then on it follows by itself.
    pub async fn open(&self) {
        let mirror = loop {
            match Mirror::open(&self.store, self.values.key_range()).await {
                Ok(mirror) => break mirror,
                Err(error) => tracing::info!(%error, "no flags yet"),
            }
            sleep(REOPEN_AFTER).await;
        };
        if self.mirror.set(mirror).is_err() {
            tracing::warn!("the flags were open already");
        }
    }

    pub fn is_open(&self) -> bool {
        self.mirror.get().is_some()
    }

    /// Ends the event streams: a server that waits for its connections would wait for them for ever.
    pub fn close(&self) {
        self.closed.cancel();
    }

    pub fn closed(&self) -> WaitForCancellationFutureOwned {
        self.closed.clone().cancelled_owned()
    }

    fn mirror(&self) -> podkv::Result<&Mirror> {
        let starting = || Error::new(Reason::NodeNotReady, "this replica has no flags yet");
        self.mirror.get().ok_or_else(starting)
    }

    /// Waits until this replica's reads show the write. It is done and durable, whatever comes of this.
    async fn show(&self, revision: Revision) {
        if let Some(mirror) = self.mirror.get()
            && timeout(SHOW_WITHIN, mirror.wait_for(revision))
                .await
                .is_err()
        {
            tracing::warn!(revision, "written, but this replica is behind");
        }
    }

    /// One flag that cannot be read must not hide all others.
    fn readable(&self, snapshot: &Snapshot) -> BTreeMap<String, Flag> {
        let read = |kv| match self.values.decode(kv) {
            Ok(entry) => Some((
                String::from_utf8_lossy(&entry.key).into_owned(),
                entry.value,
            )),
            Err(error) => {
                tracing::warn!(%error, "left out");
                None
            }
        };
        snapshot.iter().filter_map(read).collect()
    }
}

pub fn router<S: Store>(flags: Arc<Flags<S>>) -> Router {
    let flag = get(read::<S>)
        .put(write::<S>)
        .patch(change::<S>)
        .delete(remove::<S>);
    Router::new()
        .route("/", get(async || Html(include_str!("page.html"))))
        .route("/flags", get(list::<S>))
        .route("/flags/{name}", flag)
        .route("/events", get(events::<S>))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(flags)
}

/// Taken as results, so that their errors look like all others of this service.
type Name = Result<Path<FlagName>, PathRejection>;
type Body<T> = Result<Json<T>, JsonRejection>;

async fn list<S: Store>(
    State(flags): State<Arc<Flags<S>>>,
) -> Result<Json<BTreeMap<String, Flag>>, Failure> {
    Ok(Json(flags.readable(&flags.mirror()?.snapshot())))
}

async fn read<S: Store>(
    State(flags): State<Arc<Flags<S>>>,
    name: Name,
) -> Result<Json<Flag>, Failure> {
    let Path(name) = name?;
    let found = flags.mirror()?.get(&flags.values.full_key(&name));
    let kv = found.ok_or_else(|| Failure::no_flag(&name))?;
    Ok(Json(flags.values.decode(&kv)?.value))
}

async fn write<S: Store>(
    State(flags): State<Arc<Flags<S>>>,
    name: Name,
    body: Body<Flag>,
) -> Result<Json<Flag>, Failure> {
    let (Path(name), Json(flag)) = (name?, body?);
    let revision = flags.values.put(&name, &flag).await?;
    flags.show(revision).await;
    Ok(Json(flag))
}

/// Compare and swap: of two people who change different fields at once, neither undoes the other.
async fn change<S: Store>(
    State(flags): State<Arc<Flags<S>>>,
    name: Name,
    body: Body<FlagChange>,
) -> Result<Json<Flag>, Failure> {
    let (Path(name), Json(change)) = (name?, body?);
    let merge = |old: Option<Flag>| {
        let old = old?;
        Some(Flag {
            enabled: change.enabled.unwrap_or(old.enabled),
            percent: change.percent.unwrap_or(old.percent),
        })
    };
    let updated = flags.values.update(&name, merge).await?;
    let entry = updated.ok_or_else(|| Failure::no_flag(&name))?;
    flags.show(entry.mod_revision).await;
    Ok(Json(entry.value))
}

async fn remove<S: Store>(
    State(flags): State<Arc<Flags<S>>>,
    name: Name,
) -> Result<StatusCode, Failure> {
    let Path(name) = name?;
    let deleted = flags.values.delete(&name).await?;
    flags
        .show(deleted.ok_or_else(|| Failure::no_flag(&name))?)
        .await;
    Ok(StatusCode::NO_CONTENT)
}

/// All flags at once, then again after each change. A slow reader gets the newest state and misses what was
/// in between, so nothing is queued for it.
async fn events<S: Store>(
    State(flags): State<Arc<Flags<S>>>,
) -> Result<Sse<impl Stream<Item = Result<Event, axum::Error>>>, Failure> {
    flags.mirror()?;
    let closed = flags.closed();
    let states = stream::unfold((flags, 0), async |(flags, since)| {
        // It fails only if the mirror's task panicked. The browser connects anew.
        let snapshot = flags.mirror().ok()?.changed(since).await.ok()?;
        let event = Event::default().json_data(flags.readable(&snapshot));
        Some((event, (flags, snapshot.revision())))
    });
    Ok(Sse::new(states.take_until(closed)).keep_alive(KeepAlive::default()))
}

/// An error as HTTP tells it.
pub struct Failure {
    status: StatusCode,
    problem: Problem,
}

#[derive(Serialize)]
struct Problem {
    error: String,
    /// True if a write may have been applied although it failed: read the flag to find out.
    outcome_unknown: bool,
}

impl Failure {
    fn new(status: StatusCode, error: String) -> Self {
        let problem = Problem {
            error,
            outcome_unknown: false,
        };
        Self { status, problem }
    }

    fn no_flag(name: &FlagName) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("no flag {:?}", name.0))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            // Not 503: proxies repeat that by themselves, and the late copy of an old write would undo a newer one.
            _ if error.outcome_unknown() => StatusCode::GATEWAY_TIMEOUT,
            // The stored value is bad, not the request.
            _ if error.reason() == Reason::BadValue => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Unavailable | ErrorKind::Exhausted => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(?error, "a request failed");
        }
        let mut failure = Self::new(status, error.text().to_owned());
        failure.problem.outcome_unknown = error.outcome_unknown();
        failure
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.problem)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            // An election takes about a second.
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
