//! Calls to a node that serves clients as `podkv serve` does: every method of `podkv.v1` and of etcd's API, and the JSON
//! gateway; with messages by their descriptors, and with bytes that are none.
//!
//! Nothing panics anywhere in the process, every call has an answer in bounded time, and afterwards the node takes a put
//! and gives it back.
//!
//! The node is kept from one input to the next, since its start takes longer than a hundred calls. What an input leaves
//! behind is taken away; after [`LIFE`] inputs there is a new node.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use podkv_api::{Consistency, Delete, KeyRange, Put, Store};
use podkv_node::Node;
use podkv_node::testing::{TestCluster, cluster_with};
use podkv_node::transport::Transport;
use podkv_proto::{etcd, v1};
use podkv_server::{ApiSettings, Server};
use prost::Message;
use prost_reflect::{DescriptorPool, MessageDescriptor};
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt, service_fn};

use crate::messages::message;

/// Not called, because they end the node or take its majority away, as they should:
const EXCLUDED: [&str; 5] = [
    // Takes itself out of its cluster, and stops.
    "/podkv.v1.Cluster/RemoveMember",
    "/etcdserverpb.Cluster/MemberRemove",
    // A learner that nobody is can be promoted by hand; then one of two is no majority.
    "/podkv.v1.Cluster/AddMember",
    // The only pod may be beyond the size: it leaves.
    "/podkv.v1.Cluster/Resize",
    // Not served for clients.
    "/podkv.peer.v1.Peer/",
];

/// Inputs for one node.
const LIFE: usize = 1_000;
/// Calls of one input.
const MAX_CALLS: usize = 8;
/// The longest that a call may wait for what may never come: a lock, another term.
const MAX_DEADLINE: Duration = Duration::from_millis(100);
/// A call that has no answer by then hangs. Far above [`MAX_DEADLINE`]: the machine may be busy.
const BOUND: Duration = Duration::from_secs(60);
/// A stream that says nothing for so long has said what it had to, for now.
const QUIET: Duration = Duration::from_millis(3);
const ADDRESS: &str = "podkv-0:2379";

/// What one input asks for.
struct Call {
    path: String,
    /// It may wait, or never end by itself.
    streams: bool,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<Bytes>,
    /// The client has more to say, some day.
    stays_open: bool,
}

pub fn run(data: &[u8]) {
    static WORLD: Mutex<Option<World>> = Mutex::new(None);
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    let world = match &mut *world {
        Some(world) if world.inputs < LIFE => world,
        place => {
            if let Some(old) = place.take() {
                old.end();
            }
            place.insert(World::new())
        }
    };
    world.inputs += 1;
    let mut input = Unstructured::new(data);
    let mut calls = Vec::new();
    while !input.is_empty() && calls.len() < MAX_CALLS {
        // Fewer bytes than it wants are the end of the program.
        let Ok(call) = call(&mut input, &world.methods) else {
            break;
        };
        calls.push(call);
    }
    let panics = PANICS.load(Ordering::SeqCst);
    world.runtime.block_on(async {
        // Streams stay until the end of the input: a watch sees what the calls behind it do.
        let mut open = Vec::new();
        for call in calls {
            open.push(made(&world.channel, call).await);
        }
        drop(open);
        world.still_serves().await;
    });
    let panicked = PANICS.load(Ordering::SeqCst) - panics;
    assert_eq!(panicked, 0, "a task of the node panicked");
}

/// Panics anywhere in the process. A task that panics ends by itself, and nobody would know.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            before(panic);
        }));
    });
}

struct World {
    runtime: Runtime,
    cluster: TestCluster,
    server: Server,
    node: Node,
    channel: Channel,
    methods: Vec<Method>,
    inputs: usize,
}

/// A method that is called.
struct Method {
    path: String,
    input: MessageDescriptor,
    streams: bool,
    takes_many: bool,
}

impl World {
    fn new() -> Self {
        count_panics();
        let runtime = Runtime::new().expect("a runtime");
        let (cluster, node, server, channel) = runtime.block_on(async {
            let cluster = cluster_with(1, |config| {
                config.request_timeout = Duration::from_secs(20);
                // Or nobody could turn on what is to be fuzzed.
                config.auth_without_tls = true;
            });
            let cluster = cluster.await;
            let node = cluster.node(0);
            let settings = ApiSettings {
                max_deadline: MAX_DEADLINE,
                pipe_farewell: MAX_DEADLINE,
                ..ApiSettings::default()
            };
            let network = cluster.network().clone();
            let server = Server::builder(node.clone()).api(settings);
            let server = server.listen_over(&network.attach(ADDRESS), ADDRESS).await;
            let outside = Arc::new(network.attach("outside:1"));
            let connect = service_fn(move |_: http::Uri| {
                let outside = outside.clone();
                async move { outside.dial(ADDRESS).await.map(TokioIo::new) }
            });
            let endpoint = Endpoint::from_static("http://podkv-0:2379");
            let channel = endpoint.connect_with_connector_lazy(connect);
            (cluster, node, server.expect("a pipe to listen on"), channel)
        });
        Self {
            runtime,
            cluster,
            server,
            node,
            channel,
            methods: methods(),
            inputs: 0,
        }
    }

    fn end(self) {
        self.runtime.block_on(async {
            drop(self.server);
            self.cluster.shutdown().await;
        });
    }

    /// Takes away what the input left, by the node itself, which may do everything; then it serves a client.
    async fn still_serves(&self) {
        let node = &self.node;
        let _ = node.discard_restore().await;
        let trusted = node.trusted();
        trusted.auth_disable().await.expect("auth can be disabled");
        for name in trusted.user_list().await.expect("the users").1 {
            trusted.user_delete(&name).await.expect("a user");
        }
        for name in trusted.role_list().await.expect("the roles").1 {
            trusted.role_delete(&name).await.expect("a role");
        }
        for prefix in node.frozen().await.expect("the frozen prefixes").1 {
            node.thaw(prefix).await.expect("a frozen prefix");
        }
        let alarms = node.alarms(Consistency::Local).await.expect("the alarms");
        assert!(alarms.1.is_empty(), "nothing is wrong: {:?}", alarms.1);
        let all = Delete::new(KeyRange::all());
        node.delete(all).await.expect("keys can be deleted");
        let put = Put::new("served", "yes");
        node.put(put).await.expect("it takes a put");
        let get = v1::GetRequest {
            key: "served".into(),
            ..Default::default()
        };
        let path = "/podkv.v1.KV/Get".to_owned();
        let call = Call {
            path,
            streams: false,
            headers: Vec::new(),
            body: vec![framed(&get.encode_to_vec())],
            stays_open: false,
        };
        let (answer, _) = made(&self.channel, call).await;
        let message = answer.get(5..).unwrap_or_default();
        let got = v1::GetResponse::decode(message).expect("an answer");
        assert_eq!(got.kv.map(|kv| kv.value), Some("yes".into()));
    }
}

fn methods() -> Vec<Method> {
    let mut methods = Vec::new();
    for set in [v1::FILE_DESCRIPTOR_SET, etcd::FILE_DESCRIPTOR_SET] {
        let pool = DescriptorPool::decode(set).expect("our own descriptors");
        for service in pool.services() {
            for method in service.methods() {
                let path = format!("/{}/{}", service.full_name(), method.name());
                if EXCLUDED.iter().any(|excluded| path.starts_with(excluded)) {
                    continue;
                }
                methods.push(Method {
                    path,
                    input: method.input(),
                    streams: method.is_server_streaming(),
                    takes_many: method.is_client_streaming(),
                });
            }
        }
    }
    methods
}

fn call(input: &mut Unstructured, methods: &[Method]) -> Result<Call> {
    let number: u8 = input.arbitrary()?;
    let method = methods.get(usize::from(number) % methods.len());
    let method = method.expect("there are methods");
    let how: u8 = input.arbitrary()?;
    let mut headers = headers(input)?;
    if how % 8 == 7 {
        return json(input, method, headers);
    }
    headers.push(("content-type", "application/grpc"));
    let mut body = Vec::new();
    let count = match method.takes_many {
        true => input.int_in_range(0..=3)?,
        false => 1,
    };
    for _ in 0..count {
        let bytes = match how % 8 {
            6 => input.arbitrary::<Vec<u8>>()?,
            _ => message(input, &method.input)?.encode_to_vec(),
        };
        body.push(match how {
            // Not what gRPC frames look like: what comes is its own frame.
            240.. => Bytes::from(bytes),
            _ => framed(&bytes),
        });
    }
    Ok(Call {
        path: method.path.clone(),
        streams: method.streams,
        headers,
        body,
        stays_open: method.takes_many && how & 16 != 0,
    })
}

/// The same through the gateway, or text that is no message.
fn json(
    input: &mut Unstructured,
    method: &Method,
    mut headers: Vec<(&'static str, &'static str)>,
) -> Result<Call> {
    const PATHS: [&str; 12] = [
        "kv/range",
        "kv/put",
        "kv/deleterange",
        "kv/txn",
        "kv/compaction",
        "watch",
        "lease/grant",
        "lease/keepalive",
        "lock/lock",
        "election/observe",
        "auth/user/add",
        "nothing/here",
    ];
    let path = input.choose(&PATHS)?;
    let text = match input.arbitrary()? {
        true => {
            let message = message(input, &method.input)?;
            serde_json::to_vec(&message).unwrap_or_default()
        }
        false => input.arbitrary()?,
    };
    headers.push(("content-type", "application/json"));
    Ok(Call {
        path: format!("/v3/{path}"),
        streams: true,
        headers,
        body: vec![text.into()],
        stays_open: false,
    })
}

fn headers(input: &mut Unstructured) -> Result<Vec<(&'static str, &'static str)>> {
    const TIMEOUTS: [&str; 6] = ["50m", "0m", "99999999H", "-1S", "abc", "1n"];
    const OTHERS: [(&str, &str); 7] = [
        ("authorization", "nonsense"),
        ("token", "AQ"),
        ("hasleader", "true"),
        ("podkv-session", "00000000000000000000000000000007"),
        ("podkv-sequence", "18446744073709551615"),
        ("podkv-acknowledged-below", "x"),
        ("grpc-encoding", "gzip"),
    ];
    let mut headers = Vec::new();
    let which: u8 = input.arbitrary()?;
    if which % 4 == 3 {
        headers.push(("grpc-timeout", *input.choose(&TIMEOUTS)?));
    }
    for (bit, header) in OTHERS.iter().enumerate() {
        // Seldom: most of them only have the call refused.
        if which >= 200 && which >> bit & 1 == 1 {
            headers.push(*header);
        }
    }
    Ok(headers)
}

/// A message as gRPC frames it.
fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// The body of an answer, as far as it came, and what is left of the stream.
async fn made(channel: &Channel, call: Call) -> (Bytes, Option<Body>) {
    let path = &call.path;
    let mut request = http::Request::post(path).header("te", "trailers");
    for (name, value) in &call.headers {
        request = request.header(*name, *value);
    }
    let frames = call
        .body
        .into_iter()
        .map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    let end = match call.stays_open {
        true => futures_util::future::Either::Left(stream::pending()),
        false => futures_util::future::Either::Right(stream::empty()),
    };
    let body = futures_util::StreamExt::chain(stream::iter(frames), end);
    let body = Body::new(StreamBody::new(body));
    let request = request.body(body).expect("a request");
    let mut channel = channel.clone();
    let answering = async move {
        let ready = channel.ready().await?;
        ready.call(request).await
    };
    let answer = tokio::time::timeout(BOUND, answering).await;
    let answer = answer.unwrap_or_else(|_| panic!("{path} has no answer"));
    // A connection may be cut for what was sent on it.
    let Ok(answer) = answer else {
        return (Bytes::new(), None);
    };
    let mut body = answer.into_body();
    let patience = if call.streams { QUIET } else { BOUND };
    let mut bytes = BytesMut::new();
    loop {
        let frame = match tokio::time::timeout(patience, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(_) => return (bytes.freeze(), None),
            Err(_) if call.streams => return (bytes.freeze(), Some(body)),
            Err(_) => panic!("the answer of {path} does not end"),
        };
        bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
    }
}
