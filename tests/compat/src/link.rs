//! A store under test: connections to each of its nodes, and, if it plays a careless implementer, the slip that it makes.

use std::sync::Arc;
use std::time::Duration;

use podkv_proto::etcd::etcdserverpb::{RangeRequest, WatchRequest, watch_client::WatchClient};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::plant::{Plant, WatchMemory};
use crate::step::{Request, Response};
use crate::streams::Seen;

pub type Answer = Result<Response, Status>;

#[derive(Clone)]
pub struct Link {
    pub name: &'static str,
    nodes: Arc<[Channel]>,
    pub plant: Option<&'static Plant>,
}

impl Link {
    /// `addresses` are those of the nodes, `host:port`.
    ///
    /// # Panics
    /// If one cannot be reached.
    pub async fn dial(name: &'static str, addresses: &[String]) -> Self {
        let mut nodes = Vec::new();
        for address in addresses {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            let endpoint = endpoint
                .connect_timeout(Duration::from_secs(10))
                .tcp_nodelay(true);
            nodes.push(endpoint.connect().await.unwrap());
        }
        Self {
            name,
            nodes: nodes.into(),
            plant: None,
        }
    }

    pub fn with(self, plant: &'static Plant) -> Self {
        Self {
            plant: Some(plant),
            ..self
        }
    }

    /// The same store without its slip.
    pub fn honest(&self) -> Self {
        Self {
            plant: None,
            ..self.clone()
        }
    }

    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Asks the node whose turn it is: `turn` counts up.
    pub async fn call(&self, turn: usize, request: Request) -> Answer {
        let channel = self.node(turn);
        match self.plant {
            Some(plant) => plant.call(&channel, request).await,
            None => request.call(channel).await,
        }
    }

    /// Returns once the node has everything that any node had answered before.
    pub async fn settle(&self, turn: usize) {
        let request = RangeRequest {
            key: "settle".into(),
            ..RangeRequest::default()
        };
        // If it fails, what comes next does too, and that is compared.
        let _ = Request::Range(request).call(self.node(turn)).await;
    }

    /// The way to the node whose turn it is, for calls that are no steps of programs.
    pub fn node(&self, turn: usize) -> Channel {
        self.nodes[turn % self.nodes.len()].clone()
    }

    /// Opens a watch stream.
    pub fn watch(&self, turn: usize) -> WatchStream {
        let (requests, receiver) = mpsc::channel(16);
        let (sender, seen) = watch::channel(Vec::new());
        let plant = self.plant;
        let memory = Arc::new(WatchMemory::default());
        let mut client = WatchClient::new(self.node(turn)).max_decoding_message_size(64 << 20);
        let in_reader = memory.clone();
        let reader = tokio::spawn(async move {
            let mut responses = match client.watch(ReceiverStream::new(receiver)).await {
                Ok(responses) => responses.into_inner(),
                Err(status) => return sender.send_modify(|seen| seen.push(Seen::End(status))),
            };
            loop {
                match responses.message().await {
                    Ok(Some(response)) => {
                        let responses = match plant {
                            Some(plant) => plant.watched(&in_reader, response),
                            None => vec![response],
                        };
                        let responses = responses.into_iter().map(Seen::Response);
                        sender.send_modify(|seen| seen.extend(responses));
                    }
                    Ok(None) => {
                        let end = Status::ok("the stream ended");
                        return sender.send_modify(|seen| seen.push(Seen::End(end)));
                    }
                    Err(status) => {
                        return sender.send_modify(|seen| seen.push(Seen::End(status)));
                    }
                }
            }
        });
        WatchStream {
            turn,
            requests,
            seen,
            plant,
            memory,
            reader,
        }
    }
}

pub struct WatchStream {
    pub turn: usize,
    requests: mpsc::Sender<WatchRequest>,
    pub seen: watch::Receiver<Vec<Seen>>,
    plant: Option<&'static Plant>,
    memory: Arc<WatchMemory>,
    reader: JoinHandle<()>,
}

impl WatchStream {
    pub async fn send(&self, mut request: WatchRequest) {
        if let Some(plant) = self.plant {
            plant.watching(&self.memory, &mut request);
        }
        // A stream that has ended says so where responses are read.
        let _ = self.requests.send(request).await;
    }

    /// Waits until `enough` holds of what has come. False if it does not within `patience`.
    pub async fn wait(&self, patience: Duration, enough: impl FnMut(&Vec<Seen>) -> bool) -> bool {
        let mut seen = self.seen.clone();
        let waited = tokio::time::timeout(patience, seen.wait_for(enough)).await;
        matches!(waited, Ok(Ok(_)))
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
