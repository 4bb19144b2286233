//! JSON over HTTP/1.1 and HTTP/2, for curl and for languages without gRPC: etcd's gateway.
//!
//! ```text
//!   POST /v3/kv/range {"key":"Zm9v"} ──► method by the table ──► message by its descriptor ──► the gRPC handler
//!   {"header":…,"kvs":[…]}          ◄── JSON by its descriptor ◄── message, status ◄────────────────┘
//! ```
//!
//! Nothing here knows a method by itself: the table names them, the descriptors of `proto/etcd` say what they take. The
//! mapping is that of proto3, in etcd's form: fields by their names in the proto, bytes in base64, 64-bit numbers as
//! strings, defaults left out.
//!
//! Calls that stream answer with one JSON object a line, `{"result": …}` or `{"error": …}`; what they ask is one or more
//! JSON objects, one after another.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::{get, post};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::try_unfold;
use futures_util::{Stream, StreamExt};
use http_body_util::BodyExt;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method as HttpMethod, StatusCode, Uri};
use podkv_node::Node;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::{Code, Status};
use tower::ServiceExt;

use super::ETCD_VERSION;
use crate::{admin, room};

/// Where a method is found by path: below `/v3`, in service, by name.
const ROUTES: &[(&str, &str, &str)] = &[
    ("kv/range", "etcdserverpb.KV", "Range"),
    ("kv/put", "etcdserverpb.KV", "Put"),
    ("kv/deleterange", "etcdserverpb.KV", "DeleteRange"),
    ("kv/txn", "etcdserverpb.KV", "Txn"),
    ("kv/compaction", "etcdserverpb.KV", "Compact"),
    ("watch", "etcdserverpb.Watch", "Watch"),
    ("lease/grant", "etcdserverpb.Lease", "LeaseGrant"),
    ("lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("kv/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("lease/keepalive", "etcdserverpb.Lease", "LeaseKeepAlive"),
    ("lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    (
        "kv/lease/timetolive",
        "etcdserverpb.Lease",
        "LeaseTimeToLive",
    ),
    ("lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("kv/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("cluster/member/add", "etcdserverpb.Cluster", "MemberAdd"),
    (
        "cluster/member/remove",
        "etcdserverpb.Cluster",
        "MemberRemove",
    ),
    (
        "cluster/member/update",
        "etcdserverpb.Cluster",
        "MemberUpdate",
    ),
    ("cluster/member/list", "etcdserverpb.Cluster", "MemberList"),
    (
        "cluster/member/promote",
        "etcdserverpb.Cluster",
        "MemberPromote",
    ),
    ("maintenance/alarm", "etcdserverpb.Maintenance", "Alarm"),
    ("maintenance/status", "etcdserverpb.Maintenance", "Status"),
    (
        "maintenance/defragment",
        "etcdserverpb.Maintenance",
        "Defragment",
    ),
    ("maintenance/hash", "etcdserverpb.Maintenance", "Hash"),
    ("maintenance/hashkv", "etcdserverpb.Maintenance", "HashKV"),
    (
        "maintenance/snapshot",
        "etcdserverpb.Maintenance",
        "Snapshot",
    ),
    (
        "maintenance/transfer-leadership",
        "etcdserverpb.Maintenance",
        "MoveLeader",
    ),
    (
        "maintenance/downgrade",
        "etcdserverpb.Maintenance",
        "Downgrade",
    ),
    ("auth/enable", "etcdserverpb.Auth", "AuthEnable"),
    ("auth/disable", "etcdserverpb.Auth", "AuthDisable"),
    ("auth/status", "etcdserverpb.Auth", "AuthStatus"),
    ("auth/authenticate", "etcdserverpb.Auth", "Authenticate"),
    ("auth/user/add", "etcdserverpb.Auth", "UserAdd"),
    ("auth/user/get", "etcdserverpb.Auth", "UserGet"),
    ("auth/user/list", "etcdserverpb.Auth", "UserList"),
    ("auth/user/delete", "etcdserverpb.Auth", "UserDelete"),
    (
        "auth/user/changepw",
        "etcdserverpb.Auth",
        "UserChangePassword",
    ),
    ("auth/user/grant", "etcdserverpb.Auth", "UserGrantRole"),
    ("auth/user/revoke", "etcdserverpb.Auth", "UserRevokeRole"),
    ("auth/role/add", "etcdserverpb.Auth", "RoleAdd"),
    ("auth/role/get", "etcdserverpb.Auth", "RoleGet"),
    ("auth/role/list", "etcdserverpb.Auth", "RoleList"),
    ("auth/role/delete", "etcdserverpb.Auth", "RoleDelete"),
    (
        "auth/role/grant",
        "etcdserverpb.Auth",
        "RoleGrantPermission",
    ),
    (
        "auth/role/revoke",
        "etcdserverpb.Auth",
        "RoleRevokePermission",
    ),
    ("lock/lock", "v3lockpb.Lock", "Lock"),
    ("lock/unlock", "v3lockpb.Lock", "Unlock"),
    ("election/campaign", "v3electionpb.Election", "Campaign"),
    ("election/proclaim", "v3electionpb.Election", "Proclaim"),
    ("election/leader", "v3electionpb.Election", "Leader"),
    ("election/observe", "v3electionpb.Election", "Observe"),
    ("election/resign", "v3electionpb.Election", "Resign"),
];

/// Headers of a call that go on to the handler. The token may come under either name, as in etcd.
const PASSED_ON: [(&str, &str); 7] = [
    ("authorization", "token"),
    ("token", "token"),
    ("hasleader", "hasleader"),
    ("grpc-timeout", "grpc-timeout"),
    ("podkv-session", "podkv-session"),
    ("podkv-sequence", "podkv-sequence"),
    ("podkv-acknowledged-below", "podkv-acknowledged-below"),
];

/// JSON has bytes in base64, and some air.
fn max_json_bytes(max_request: usize) -> usize {
    max_request * 2
}

/// Adds the gateway, and what else etcd has beside gRPC on its port, to the routes of the gRPC services.
pub(crate) fn add(grpc: Router, node: &Node, max_request: usize) -> Router {
    let methods = match Methods::new() {
        Ok(methods) => methods,
        Err(error) => {
            // The descriptors are compiled in: only a broken build comes here, and gRPC works without them.
            tracing::error!(%error, "no JSON gateway");
            return grpc;
        }
    };
    let gateway = Arc::new(Gateway {
        methods,
        grpc: grpc.clone(),
        max_bytes: max_json_bytes(max_request),
    });
    let call = post(move |request: Request| {
        let gateway = gateway.clone();
        async move { gateway.call(request).await }
    });
    let health = node.clone();
    let mut routes = grpc
        .route("/v3/{*path}", call)
        .route("/health", get(async move || health_of(&health)))
        .route("/version", get(async || version()));
    for path in ["/livez", "/readyz", "/metrics"] {
        let node = node.clone();
        let answer = async move |request: Request| {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            admin::answer(Some(&node), &method, &path)
                .await
                .map(Body::new)
        };
        routes = routes.route(path, get(answer));
    }
    routes
}

/// In etcd's words: `health` is a string.
fn health_of(node: &Node) -> Response {
    let health = node.health().borrow().clone();
    let status = match health.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let answer = serde_json::json!({"health": health.ready.to_string(), "reason": health.reason});
    json(status, &answer)
}

fn version() -> Response {
    let answer = serde_json::json!({
        "etcdserver": ETCD_VERSION,
        "etcdcluster": ETCD_VERSION,
        "podkv": env!("CARGO_PKG_VERSION"),
    });
    json(StatusCode::OK, &answer)
}

/// What a method takes and gives.
struct Method {
    path: Uri,
    input: MessageDescriptor,
    output: MessageDescriptor,
    streams: bool,
}

/// Every method, by its path below `/v3`.
struct Methods(HashMap<&'static str, Method>);

impl Methods {
    fn new() -> Result<Self, String> {
        let pool = DescriptorPool::decode(podkv_proto::etcd::FILE_DESCRIPTOR_SET)
            .map_err(|error| error.to_string())?;
        let find = |(route, service, name): &(&'static str, &str, &str)| {
            let found = pool
                .get_service_by_name(service)
                .and_then(|found| found.methods().find(|method| method.name() == *name));
            let method = found.ok_or_else(|| format!("no method {service}/{name}"))?;
            let path = format!("/{service}/{name}");
            let method = Method {
                path: path.parse().map_err(|_| format!("{path} is no path"))?,
                input: method.input(),
                output: method.output(),
                streams: method.is_server_streaming(),
            };
            Ok((*route, method))
        };
        ROUTES
            .iter()
            .map(find)
            .collect::<Result<_, String>>()
            .map(Self)
    }
}

struct Gateway {
    methods: Methods,
    grpc: Router,
    max_bytes: usize,
}

impl Gateway {
    async fn call(&self, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let route = head.uri.path().trim_start_matches("/v3/");
        let Some(method) = self.methods.0.get(route) else {
            return refusal(&Status::unimplemented(format!("no method at /v3/{route}")));
        };
        let body = match method.streams {
            true => Body::from_stream(frames(body, method.input.clone(), self.max_bytes)),
            false => match self.one(body, method).await {
                Ok(frame) => Body::from(frame),
                Err(status) => return refusal(&status),
            },
        };
        let mut call = Request::new(body);
        *call.method_mut() = HttpMethod::POST;
        *call.uri_mut() = method.path.clone();
        *call.headers_mut() = metadata(&head.headers);
        *call.extensions_mut() = head.extensions;
        let mut answer = match self.grpc.clone().oneshot(call).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        if let Some(status) = Status::from_header_map(answer.headers())
            && status.code() != Code::Ok
        {
            return refusal(&status);
        }
        let mut extensions = std::mem::take(answer.extensions_mut());
        let mut response = match method.streams {
            true => stream(answer.into_body(), method.output.clone()),
            false => unary(answer.into_body(), &method.output).await,
        };
        room::pass_on(&mut extensions, response.extensions_mut());
        response
    }

    /// The one message of a unary call.
    async fn one(&self, body: Body, method: &Method) -> Result<Bytes, Status> {
        let text = axum::body::to_bytes(body, self.max_bytes)
            .await
            .map_err(|_| too_large(self.max_bytes))?;
        only_value(&text, &method.input).map(|message| frame(&message))
    }
}

/// No text is an empty message.
fn only_value(text: &[u8], input: &MessageDescriptor) -> Result<DynamicMessage, Status> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(DynamicMessage::new(input.clone()));
    }
    first_value(text, input)
}

fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    metadata.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    for (from, to) in PASSED_ON {
        if let Some(value) = headers.get(from) {
            metadata.insert(HeaderName::from_static(to), value.clone());
        }
    }
    metadata
}

/// The messages of a stream, as they come.
fn frames(
    body: Body,
    input: MessageDescriptor,
    max_bytes: usize,
) -> impl Stream<Item = Result<Bytes, Status>> + Send + 'static {
    let start = (body.into_data_stream(), BytesMut::new(), Ends::default());
    try_unfold(start, move |(mut body, mut text, mut ends)| {
        let input = input.clone();
        async move {
            loop {
                if let Some(end) = ends.first(&text) {
                    let value = text.split_to(end);
                    let message = first_value(&value, &input)?;
                    return Ok(Some((frame(&message), (body, text, Ends::default()))));
                }
                let Some(more) = body.next().await else {
                    let is_done = text.iter().all(u8::is_ascii_whitespace);
                    return match is_done {
                        true => Ok(None),
                        false => Err(Status::invalid_argument("the JSON ends in the middle")),
                    };
                };
                text.extend_from_slice(
                    &more.map_err(|error| Status::cancelled(error.to_string()))?,
                );
                if text.len() > max_bytes {
                    return Err(too_large(max_bytes));
                }
            }
        }
    })
}

fn first_value(text: &[u8], input: &MessageDescriptor) -> Result<DynamicMessage, Status> {
    let mut value = serde_json::Deserializer::from_slice(text);
    let message = DynamicMessage::deserialize(input.clone(), &mut value)
        .and_then(|message| value.end().map(|()| message));
    message.map_err(|error| malformed(&error))
}

/// Finds where JSON objects end in a text that comes in parts. Each byte is looked at once: who sends a megabyte byte by
/// byte does not have it parsed a million times.
#[derive(Default)]
struct Ends {
    looked_at: usize,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Ends {
    /// Where the first object of `text` ends, which begins as it did the last time. What is no object ends at once: the
    /// parser says what is wrong.
    fn first(&mut self, text: &[u8]) -> Option<usize> {
        for (at, byte) in text.iter().enumerate().skip(self.looked_at) {
            self.looked_at = at + 1;
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_string => self.is_escaped = true,
                b'"' if self.depth > 0 => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' => self.depth += 1,
                b'}' if self.depth > 1 => self.depth -= 1,
                b' ' | b'\t' | b'\r' | b'\n' => {}
                _ if self.depth > 0 && *byte != b'}' => {}
                _ => return Some(at + 1),
            }
        }
        None
    }
}

/// A message as gRPC frames it.
fn frame(message: &DynamicMessage) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    // Requests are bounded far below 4 GiB.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.extend_from_slice(&message.encode_to_vec());
    frame.freeze()
}

async fn unary(body: Body, output: &MessageDescriptor) -> Response {
    let collected = match body.collect().await {
        Ok(collected) => collected,
        Err(error) => return refusal(&Status::internal(error.to_string())),
    };
    let trailers = collected.trailers().and_then(Status::from_header_map);
    if let Some(status) = trailers.filter(|status| status.code() != Code::Ok) {
        return refusal(&status);
    }
    let mut bytes = BytesMut::from(&collected.to_bytes()[..]);
    match take_frame(&mut bytes).map(|message| to_json(output, message)) {
        Some(Ok(answer)) => json_text(StatusCode::OK, answer),
        Some(Err(status)) => refusal(&status),
        None => refusal(&Status::internal("the call has no answer")),
    }
}

/// A line for each message of a stream.
fn stream(body: Body, output: MessageDescriptor) -> Response {
    let start = (body, BytesMut::new(), false);
    let lines = futures_util::stream::unfold(start, move |(mut body, mut bytes, ended)| {
        let output = output.clone();
        async move {
            if ended {
                return None;
            }
            loop {
                if let Some(message) = take_frame(&mut bytes) {
                    let (line, failed) = match to_json(&output, message) {
                        Ok(result) => (format!("{{\"result\":{result}}}\n"), false),
                        Err(status) => (stream_error(&status), true),
                    };
                    return Some((line_of(line), (body, bytes, failed)));
                }
                let frame = match body.frame().await? {
                    Ok(frame) => frame,
                    Err(error) => {
                        let line = stream_error(&Status::internal(error.to_string()));
                        return Some((line_of(line), (body, bytes, true)));
                    }
                };
                match frame.into_data() {
                    Ok(data) => bytes.extend_from_slice(&data),
                    Err(frame) => {
                        let status = frame.trailers_ref().and_then(Status::from_header_map);
                        let status = status.filter(|status| status.code() != Code::Ok)?;
                        return Some((line_of(stream_error(&status)), (body, bytes, true)));
                    }
                }
            }
        }
    });
    let mut response = Response::new(Body::from_stream(lines));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn line_of(line: String) -> Result<Bytes, std::convert::Infallible> {
    Ok(Bytes::from(line))
}

/// The first message of what a handler sent, once it is there as a whole. Handlers do not compress for us.
fn take_frame(bytes: &mut BytesMut) -> Option<Bytes> {
    let length = u32::from_be_bytes(bytes.get(1..5)?.try_into().ok()?) as usize;
    if bytes.len() < 5 + length {
        return None;
    }
    let mut frame = bytes.split_to(5 + length);
    Some(frame.split_off(5).freeze())
}

/// In the order of the fields, as etcd has it.
fn to_json(output: &MessageDescriptor, message: Bytes) -> Result<String, Status> {
    let message = DynamicMessage::decode(output.clone(), message)
        .map_err(|error| Status::internal(error.to_string()))?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut text = Vec::new();
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut text), &options)
        .map_err(|error| Status::internal(error.to_string()))?;
    String::from_utf8(text).map_err(|error| Status::internal(error.to_string()))
}

fn malformed(error: &serde_json::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

fn too_large(max_bytes: usize) -> Status {
    Status::invalid_argument(format!(
        "the request is larger than {max_bytes} bytes of JSON"
    ))
}

fn refusal(status: &Status) -> Response {
    let answer = serde_json::json!({
        "error": status.message(),
        "code": status.code() as i32,
        "message": status.message(),
    });
    json(http_status(status.code()), &answer)
}

fn stream_error(status: &Status) -> String {
    let http = http_status(status.code());
    let error = serde_json::json!({"error": {
        "grpc_code": status.code() as i32,
        "http_code": http.as_u16(),
        "message": status.message(),
        "http_status": http.canonical_reason(),
    }});
    format!("{error}\n")
}

/// As grpc-gateway maps them.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response {
    json_text(status, value.to_string())
}

fn json_text(status: StatusCode, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// What the method of this number in the table makes of JSON, and that as JSON again; for `tests/fuzz`.
#[cfg(feature = "fuzzing")]
pub(super) fn rewritten(route: usize, text: &[u8]) -> Option<String> {
    use std::sync::OnceLock;
    static METHODS: OnceLock<Option<Methods>> = OnceLock::new();
    let (route, ..) = ROUTES.get(route % ROUTES.len())?;
    let methods = METHODS.get_or_init(|| Methods::new().ok()).as_ref()?;
    let input = &methods.0.get(route)?.input;
    let message = only_value(text, input).ok()?;
    to_json(input, frame(&message).split_off(5)).ok()
}

/// The objects that a text holds which comes in parts of so many bytes; for `tests/fuzz`.
#[cfg(feature = "fuzzing")]
pub(super) fn objects(text: &[u8], part: usize) -> Vec<&[u8]> {
    let (mut found, mut begin, mut end, mut ends) = (Vec::new(), 0, 0, Ends::default());
    while end < text.len() {
        end = (end + part.max(1)).min(text.len());
        while let Some(length) = text.get(begin..end).and_then(|text| ends.first(text)) {
            found.extend(text.get(begin..begin + length));
            begin += length;
            ends = Ends::default();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::Ends;

    /// The values of a text that comes in parts of so many bytes.
    fn values(text: &str, part: usize) -> Vec<&str> {
        let (mut found, mut begin, mut end, mut ends) = (Vec::new(), 0, 0, Ends::default());
        while end < text.len() {
            end = (end + part).min(text.len());
            while let Some(length) = ends.first(&text.as_bytes()[begin..end]) {
                found.push(text[begin..begin + length].trim());
                begin += length;
                ends = Ends::default();
            }
        }
        found
    }

    #[test]
    fn values_end_where_their_braces_do_however_they_come() {
        let text = r#" {"a":{"b":"}{\"}"}}{} {"c":"\\"} 7 {"cut":"#;
        for part in [1, 2, 3, 7, 100] {
            let expected = [r#"{"a":{"b":"}{\"}"}}"#, "{}", r#"{"c":"\\"}"#, "7"];
            assert_eq!(values(text, part), expected, "in parts of {part}");
        }
        assert_eq!(values("}{}", 1), ["}", "{}"]);
        assert_eq!(values("[{}]", 1)[0], "[");
    }
}
