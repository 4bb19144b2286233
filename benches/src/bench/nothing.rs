//! A gRPC server that does nothing: it speaks etcd's calls and keeps no data. What it reaches is what gRPC allows.

use std::net::SocketAddr;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use podkv_benches::Result;
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_server::{Kv, KvServer};
use podkv_proto::etcd::etcdserverpb::watch_server::{Watch, WatchServer};
use podkv_proto::etcd::mvccpb;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Puts that a watcher may be behind. None of those that measure is.
const BEHIND: usize = 1 << 16;

pub async fn serve(address: SocketAddr) -> Result<()> {
    let (puts, _) = broadcast::channel(BEHIND);
    let listener = TcpListener::bind(address).await?;
    let incoming = TcpListenerStream::new(listener).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(stream)
    });
    let server = tonic::transport::Server::builder()
        .add_service(KvServer::new(Nothing { puts: puts.clone() }))
        .add_service(WatchServer::new(Nothing { puts }));
    Ok(server.serve_with_incoming(incoming).await?)
}

/// Sends what is put to all who watch, and forgets it.
#[derive(Clone)]
struct Nothing {
    puts: broadcast::Sender<mvccpb::Event>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = std::result::Result<T, Status>> + Send>>;

fn undone<T>() -> std::result::Result<Response<T>, Status> {
    Err(Status::unimplemented("no measurement asks for it"))
}

#[tonic::async_trait]
impl Kv for Nothing {
    async fn range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> std::result::Result<Response<pb::RangeResponse>, Status> {
        let kv = mvccpb::KeyValue {
            key: request.into_inner().key,
            value: Bytes::from_static(&[b'v'; 256]),
            ..Default::default()
        };
        Ok(Response::new(pb::RangeResponse {
            header: Some(pb::ResponseHeader::default()),
            kvs: vec![kv],
            count: 1,
            ..Default::default()
        }))
    }

    async fn put(
        &self,
        request: Request<pb::PutRequest>,
    ) -> std::result::Result<Response<pb::PutResponse>, Status> {
        let request = request.into_inner();
        let event = mvccpb::Event {
            kv: Some(mvccpb::KeyValue {
                key: request.key,
                value: request.value,
                ..Default::default()
            }),
            ..Default::default()
        };
        // Nobody need watch.
        let _ = self.puts.send(event);
        Ok(Response::new(pb::PutResponse {
            header: Some(pb::ResponseHeader::default()),
            ..Default::default()
        }))
    }

    type RangeStreamStream = Answers<pb::RangeStreamResponse>;

    async fn range_stream(
        &self,
        _: Request<pb::RangeRequest>,
    ) -> std::result::Result<Response<Self::RangeStreamStream>, Status> {
        undone()
    }

    async fn delete_range(
        &self,
        _: Request<pb::DeleteRangeRequest>,
    ) -> std::result::Result<Response<pb::DeleteRangeResponse>, Status> {
        undone()
    }

    async fn txn(
        &self,
        _: Request<pb::TxnRequest>,
    ) -> std::result::Result<Response<pb::TxnResponse>, Status> {
        undone()
    }

    async fn compact(
        &self,
        _: Request<pb::CompactionRequest>,
    ) -> std::result::Result<Response<pb::CompactionResponse>, Status> {
        undone()
    }
}

#[tonic::async_trait]
impl Watch for Nothing {
    type WatchStream = Answers<pb::WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> std::result::Result<Response<Self::WatchStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?;
        let Some(_) = first else { return undone() };
        let created = pb::WatchResponse {
            header: Some(pb::ResponseHeader::default()),
            created: true,
            ..Default::default()
        };
        let events = BroadcastStream::new(self.puts.subscribe()).map(|event| {
            let event = event.map_err(|_| Status::data_loss("a watcher fell behind"))?;
            Ok(pb::WatchResponse {
                header: Some(pb::ResponseHeader::default()),
                events: vec![event],
                ..Default::default()
            })
        });
        let answers = futures_util::stream::iter([Ok(created)]).chain(events);
        // The client's side stays open as long as it watches.
        let answers = answers.map(move |answer| {
            let _ = &requests;
            answer
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
