//! What is no request at all. Broken frames of gRPC are held against etcd, in `tests/compat`.

use std::time::Duration;

use podkv_server::{Server, ServerSettings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{get, kv, put};
use crate::harness::{Harness, connect, soon};

/// A server that waits less long than others.
async fn impatient(harness: &Harness) -> Server {
    let settings = ServerSettings {
        greeting_timeout: Duration::from_millis(200),
        http1_header_timeout: Duration::from_millis(200),
        keep_alive_interval: Duration::from_millis(200),
        keep_alive_timeout: Duration::from_millis(200),
        ..ServerSettings::default()
    };
    let server = Server::builder(harness.node()).settings(settings);
    server.listen("127.0.0.1:0").await.unwrap()
}

/// Sends bytes, and nothing more. Returns what came until the server closed.
async fn say(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.local_address()).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end, too, and may come before all is said.
    let _ = stream.write_all(bytes).await;
    let _ = soon(stream.read_to_end(&mut answer)).await;
    answer
}

#[tokio::test]
async fn who_speaks_no_http_is_cut_and_others_are_served() {
    let harness = Harness::start().await;
    let server = impatient(&harness).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let before = connect(&server).await;
    // A frame of 16 MiB; a frame on a stream that never was; settings of half a field.
    let broken: [&[u8]; 3] = [
        &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1],
        &[0, 0, 1, 0, 0, 0, 0, 0, 9, b'x'],
        &[0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5],
    ];
    let mut said: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"P".to_vec(),
        preface[..23].to_vec(),
        preface.to_vec(),
        b"GET /heal".to_vec(),
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: ".to_vec(),
        vec![0; 1 << 16],
        vec![0xff; 1 << 16],
        // A hello of TLS, at a port that has none.
        [&[0x16, 3, 1, 2, 0, 1][..], &[7; 512]].concat(),
    ];
    said.extend(broken.map(|frame| [&preface[..], frame].concat()));
    for bytes in said {
        let answer = say(&server, &bytes).await;
        assert!(answer.len() < 4096, "{:?} for {bytes:?}", answer.len());
    }
    // Who was there before, and says nothing wrong, still is.
    let mut kv = podkv_proto::etcd::etcdserverpb::kv_client::KvClient::new(before);
    kv.put(put("a", "1")).await.unwrap();
    let found = self::kv(&harness).range(get("a")).await.unwrap();
    assert_eq!(found.into_inner().count, 1);
}
