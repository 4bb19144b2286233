//! A node on memory storage with its server, and channels to it.

use std::time::Duration;

use bytes::Bytes;
use podkv_api::{Error, Reason};
use podkv_node::testing::{TestCluster, cluster_with};
use podkv_node::{Node, NodeConfig};
use podkv_proto::convert::{Call, from_status};
use podkv_proto::v1;
use podkv_proto::v1::key_range::End;
use podkv_proto::v1::kv_client::KvClient;
use podkv_server::{ApiSettings, Server, ServerSettings};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Longer than anything here takes, on a machine that does other things as well.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Harness {
    pub cluster: TestCluster,
    pub server: Server,
    pub channel: Channel,
}

impl Harness {
    pub async fn start() -> Self {
        Self::with(ApiSettings::default(), |_| {}).await
    }

    /// One node whose API and node settings are not the default.
    pub async fn with(
        api: ApiSettings,
        configure: impl Fn(&mut NodeConfig) + Send + Sync + 'static,
    ) -> Self {
        let cluster = cluster_with(1, configure).await;
        let settings = ServerSettings {
            drain_grace: PATIENCE,
            ..ServerSettings::default()
        };
        let server = Server::builder(cluster.node(0)).api(api).settings(settings);
        let server = server.listen("127.0.0.1:0").await.unwrap();
        let channel = connect(&server).await;
        Self {
            cluster,
            server,
            channel,
        }
    }

    /// A leader that cannot commit, because the other voters are dead. A write to it stays unanswered
    /// until its deadline, and then its outcome is unknown.
    pub async fn stuck(api: ApiSettings) -> Self {
        let mut cluster = podkv_node::testing::cluster(3).await;
        let leader = cluster.leader().await;
        for other in (0..3).filter(|index| *index != leader) {
            cluster.kill(other).await;
        }
        let server = Server::builder(cluster.node(leader)).api(api);
        let server = server.listen("127.0.0.1:0").await.unwrap();
        let channel = connect(&server).await;
        Self {
            cluster,
            server,
            channel,
        }
    }

    pub fn node(&self) -> Node {
        self.cluster.node(0)
    }

    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }
}

/// A new connection.
pub async fn connect(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.local_address())).unwrap();
    endpoint.connect().await.unwrap()
}

/// The error behind a status. Every refusal of ours carries its detail.
#[track_caller]
pub fn error(status: &Status) -> Error {
    assert!(!status.details().is_empty(), "no detail: {status:?}");
    from_status(status, Call::Write)
}

#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, reason: Reason) -> Error {
    let error = error(&result.unwrap_err());
    assert_eq!(error.reason(), reason, "{error}");
    error
}

pub fn put(key: &'static str, value: impl Into<Bytes>) -> v1::PutRequest {
    v1::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

pub fn get(key: &'static str) -> v1::GetRequest {
    v1::GetRequest {
        key: key.into(),
        ..Default::default()
    }
}

pub fn prefix(start: &'static str) -> Option<v1::KeyRange> {
    Some(v1::KeyRange {
        start: start.into(),
        end: Some(End::Prefix(true)),
    })
}

/// Waits for what must come.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("did not happen in time")
}
