//! The two servers, each a process with a folder and ports of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

use super::Result;

/// How long a server may take until its first answer.
const START: Duration = Duration::from_secs(60);

/// Beyond what is measured: a pause must not be an error.
const QUOTA_BYTES: &str = "8589934592";

/// A running server. Killed when dropped.
pub struct Store {
    process: Child,
    pub channel: Channel,
}

impl Store {
    pub async fn etcd(binary: &Path, folder: &Path) -> Result<Self> {
        let [client, peer, _] = free_addresses()?.map(|address| format!("http://{address}"));
        let mut command = Command::new(binary);
        command
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--quota-backend-bytes", QUOTA_BYTES])
            .args(["--logger", "zap", "--log-level", "error"]);
        Self::start(command, client).await
    }

    pub async fn podkv(binary: Option<&Path>, folder: &Path) -> Result<Self> {
        let [client, peer, admin] = free_addresses()?;
        let binary = binary.map_or_else(this_trees, Path::to_path_buf);
        let data = folder.join("podkv");
        std::fs::create_dir_all(&data)?;
        let mut command = Command::new(binary);
        command
            .arg("serve")
            .arg("--name=podkv-0")
            .arg(format!("--data-dir={}", data.display()))
            .arg(format!("--client-listen={client}"))
            .arg(format!("--peer-listen={peer}"))
            .arg(format!("--admin-listen={admin}"))
            .arg(format!("--peers=podkv-0={peer}"));
        Self::start(command, format!("http://{client}")).await
    }

    async fn start(mut command: Command, address: String) -> Result<Self> {
        let program = command.as_std().get_program().to_owned();
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let endpoint = Endpoint::from_shared(address)?;
        let up = async {
            loop {
                if let Some(status) = process.try_wait()? {
                    return Err(format!("{} ended: {status}", program.display()).into());
                }
                if let Ok(channel) = endpoint.connect().await {
                    let first = pb::RangeRequest {
                        key: "first".into(),
                        ..Default::default()
                    };
                    if KvClient::new(channel.clone()).range(first).await.is_ok() {
                        return Ok(channel);
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let channel: Result<Channel> = tokio::time::timeout(START, up).await?;
        Ok(Self {
            channel: channel?,
            process,
        })
    }

    /// Ends it: the next one has the disk for itself.
    pub async fn stop(mut self) -> Result<()> {
        self.process.kill().await?;
        Ok(())
    }
}

fn this_trees() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR");
    target
        .map_or_else(|| root.join("target"), PathBuf::from)
        .join("debug/podkv")
}

fn free_addresses() -> Result<[String; 3]> {
    let mut addresses = [const { String::new() }; 3];
    let mut listeners = Vec::new();
    for address in &mut addresses {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *address = listener.local_addr()?.to_string();
        // All at once, so that no two are the same.
        listeners.push(listener);
    }
    Ok(addresses)
}
