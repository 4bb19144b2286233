//! Calls that no client library makes: broken frames, broken messages, calls of nothing. podkv refuses each with the code
//! with which etcd does, or for a reason with another, and goes on serving everybody else.

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};
use podkv_compat::servers::{Etcd, Podkv};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use podkv_proto::etcd::etcdserverpb::watch_client::WatchClient;
use podkv_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// A call, byte by byte.
struct Frames {
    name: &'static str,
    path: &'static str,
    body: Vec<u8>,
    etcd: Code,
    podkv: Code,
}

fn frame(flag: u8, length: u32, message: &[u8]) -> Vec<u8> {
    let mut frame = BytesMut::new();
    frame.put_u8(flag);
    frame.put_u32(length);
    frame.put_slice(message);
    frame.to_vec()
}

fn message(bytes: &[u8]) -> Vec<u8> {
    frame(0, u32::try_from(bytes.len()).unwrap(), bytes)
}

fn cases() -> Vec<Frames> {
    let put = pb::PutRequest {
        key: "frames".into(),
        value: "1".into(),
        ..Default::default()
    };
    let put = put.encode_to_vec();
    let length = u32::try_from(put.len()).unwrap();
    let case = |name, path, body, etcd, podkv| Frames {
        name,
        path,
        body,
        etcd,
        podkv,
    };
    let same = |name, body, code| case(name, PUT, body, code, code);
    let none = |name, path| {
        case(
            name,
            path,
            message(&put),
            Code::Unimplemented,
            Code::Unimplemented,
        )
    };
    // podkv says of every request that is too large what etcd says of one that is a little too large.
    let large = |name, body| {
        case(
            name,
            PUT,
            body,
            Code::ResourceExhausted,
            Code::InvalidArgument,
        )
    };
    // An end of the stream is no end of a message: later releases of what etcd is built on say `Internal`, too.
    let cut = |name, body| case(name, PUT, body, Code::Unknown, Code::Internal);
    let mut cases = vec![
        same("a whole put", message(&put), Code::Ok),
        large(
            "a length of 4 GiB, and little behind it",
            frame(0, u32::MAX, &put),
        ),
        large("a length just above the limit", frame(0, 3 << 20, &put)),
        same(
            "a compressed message, with no encoding named",
            frame(1, length, &put),
            Code::Internal,
        ),
        same(
            "a flag that is none",
            frame(7, length, &put),
            Code::Internal,
        ),
        cut("no message", Vec::new()),
        cut("an end within the prefix", vec![0, 0, 0]),
        cut("an end within the message", frame(0, 100, &put)),
        none("a method that is none", "/etcdserverpb.KV/Nothing"),
        none("a service that is none", "/etcdserverpb.Nothing/Put"),
        // To etcd's library a malformed path is a resource that is exhausted.
        case(
            "a path that is none",
            "/",
            message(&put),
            Code::ResourceExhausted,
            Code::Unimplemented,
        ),
    ];
    // A field of an impossible wire type; a length beyond the end; a varint that never ends.
    let junk: [&[u8]; 3] = [&[0x0f, 0x01], &[0x0a, 0xff, 0xff, 0x03, b'x'], &[0xff; 11]];
    for bytes in junk {
        for path in [PUT, RANGE, WATCH, KEEP_ALIVE] {
            let junk = message(bytes);
            cases.push(case(
                "a message that is none",
                path,
                junk,
                Code::Internal,
                Code::Internal,
            ));
        }
    }
    cases
}

/// One connection with nothing between us and the frames.
async fn connect(address: &str) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    // Ends with its connection, which ends with the test.
    tokio::spawn(connection);
    send
}

/// The code of a call's answer.
async fn call(send: &SendRequest<Bytes>, frames: &Frames) -> Code {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://etcd{}", frames.path))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut send = send.clone().ready().await.unwrap();
    let (answer, mut body) = send.send_request(request, false).unwrap();
    body.send_data(Bytes::from(frames.body.clone()), true)
        .unwrap();
    let (head, mut body) = answer.await.unwrap().into_parts();
    assert_eq!(head.status, StatusCode::OK, "{}", frames.name);
    if let Some(code) = code(&head.headers) {
        return code;
    }
    while let Some(data) = body.data().await {
        let length = data.unwrap().len();
        body.flow_control().release_capacity(length).unwrap();
    }
    let trailers = body.trailers().await.unwrap();
    code(&trailers.unwrap()).expect("a call ends with a status")
}

fn code(headers: &HeaderMap) -> Option<Code> {
    let status = headers.get("grpc-status")?;
    Some(Code::from_bytes(status.as_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_are_refused_as_etcd_refuses_them() {
    let (etcd, podkv) = (Etcd::start().await, Podkv::start().await);
    let address = &podkv.addresses()[0];
    let mut bystander = Bystander::start(address).await;
    let (to_etcd, to_podkv) = (connect(&etcd.address).await, connect(address).await);
    let mut wrong = Vec::new();
    for case in cases() {
        let found = tokio::time::timeout(PATIENCE, call(&to_etcd, &case)).await;
        let found = found.unwrap_or_else(|_| panic!("etcd, {}: no answer", case.name));
        if found != case.etcd {
            wrong.push(format!("etcd, {} on {}: {found:?}", case.name, case.path));
        }
        let found = tokio::time::timeout(PATIENCE, call(&to_podkv, &case)).await;
        let found = found.unwrap_or_else(|_| panic!("podkv, {}: no answer", case.name));
        if found != case.podkv {
            wrong.push(format!("podkv, {} on {}: {found:?}", case.name, case.path));
        }
        bystander.is_served().await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Another client of the same node: it writes, and watches what it writes.
struct Bystander {
    kv: KvClient<Channel>,
    _requests: mpsc::Sender<pb::WatchRequest>,
    events: Streaming<pb::WatchResponse>,
    written: u64,
}

impl Bystander {
    async fn start(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let (requests, receiver) = mpsc::channel(1);
        let create = pb::WatchCreateRequest {
            key: "bystander".into(),
            ..Default::default()
        };
        let create = pb::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        requests.send(create).await.unwrap();
        let mut watch = WatchClient::new(channel.clone());
        let events = watch.watch(ReceiverStream::new(receiver)).await.unwrap();
        let mut events = events.into_inner();
        assert!(events.message().await.unwrap().unwrap().created);
        Self {
            kv: KvClient::new(channel),
            _requests: requests,
            events,
            written: 0,
        }
    }

    async fn is_served(&mut self) {
        self.written += 1;
        let put = pb::PutRequest {
            key: "bystander".into(),
            value: self.written.to_string().into(),
            ..Default::default()
        };
        self.kv.put(put).await.unwrap();
        let event = tokio::time::timeout(PATIENCE, self.events.message()).await;
        let event = event.expect("an event").unwrap().unwrap();
        let kv = event.events[0].kv.as_ref().unwrap();
        assert_eq!(kv.value, self.written.to_string());
    }
}
