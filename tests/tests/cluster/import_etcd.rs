//! A real etcd moves into a podkv: `podkv import etcd`.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use podkv_api::{KeyRange, LeaseId, Range, Reason, Store as _};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use podkv_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use podkv_tests::process::{ProcessCluster, free_ports, podkv_binary};
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

const PATIENCE: Duration = Duration::from_secs(60);

struct Etcd {
    _process: Child,
    _folder: tempfile::TempDir,
    address: String,
    channel: Channel,
}

impl Etcd {
    /// `None`, and said aloud, where there is no etcd.
    async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let ports = free_ports(2);
        let urls = ports.iter().map(|port| format!("http://127.0.0.1:{port}"));
        let [clients, peers] = urls.collect::<Vec<_>>().try_into().unwrap();
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.path())
            .args([
                "--listen-client-urls",
                &clients,
                "--advertise-client-urls",
                &clients,
            ])
            .args([
                "--listen-peer-urls",
                &peers,
                "--initial-advertise-peer-urls",
                &peers,
            ])
            .args(["--initial-cluster", &format!("default={peers}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let Ok(process) = process else {
            eprintln!("SKIPPED: there is no etcd here (Debian: apt-get install etcd-server)");
            return None;
        };
        let endpoint = Endpoint::from_shared(clients.clone()).unwrap();
        let connected = async {
            loop {
                match endpoint.connect().await {
                    Ok(channel) => return channel,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        let channel = tokio::time::timeout(PATIENCE, connected).await.unwrap();
        Some(Self {
            _process: process,
            _folder: folder,
            address: clients,
            channel,
        })
    }

    async fn put(&self, key: &str, value: &str, lease: i64) -> u64 {
        let put = pb::PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            lease,
            ..Default::default()
        };
        let answer = KvClient::new(self.channel.clone()).put(put).await.unwrap();
        u64::try_from(answer.into_inner().header.unwrap().revision).unwrap()
    }

    async fn grant(&self, id: i64, ttl: i64) {
        let grant = pb::LeaseGrantRequest { ttl, id };
        let mut leases = LeaseClient::new(self.channel.clone());
        leases.lease_grant(grant).await.unwrap();
    }

    async fn revoke(&self, id: i64) {
        let mut leases = LeaseClient::new(self.channel.clone());
        leases
            .lease_revoke(pb::LeaseRevokeRequest { id })
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_etcd_is_copied_and_followed_until_the_cut_over() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    etcd.grant(77, 600).await;
    for number in 0..2500 {
        etcd.put(&format!("k{number:04}"), "first", 0).await;
    }
    etcd.put("k0007", "again", 0).await;
    etcd.put("leased", "here", 77).await;

    let cluster = ProcessCluster::start(3).await;
    let client = cluster.client();
    let folder = tempfile::tempdir().unwrap();
    let endpoints: Vec<_> = cluster
        .specs
        .iter()
        .map(|spec| spec.client.clone())
        .collect();
    let mut import = Command::new(podkv_binary());
    import
        .args(["import", "etcd", &etcd.address, "--follow", "--file"])
        .arg(folder.path().join("copy"))
        .args(["--endpoints", &endpoints.join(",")])
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let import = import.spawn().unwrap();

    // The copy is there, with what etcd says of each key.
    let restored = async {
        loop {
            match client.get("leased").await {
                Ok(Some(kv)) => return kv,
                Ok(None) => {}
                Err(error) => assert_eq!(error.reason(), Reason::Restoring, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let leased = tokio::time::timeout(PATIENCE, restored).await.unwrap();
    assert_eq!(
        (leased.lease, leased.mod_revision),
        (Some(LeaseId(77)), 2503)
    );
    let seven = client.get("k0007").await.unwrap().unwrap();
    assert_eq!(
        (seven.version, seven.create_revision, seven.mod_revision),
        (2, 9, 2502)
    );

    // What changes meanwhile comes over: values, deletes, leases that come and go.
    etcd.grant(78, 600).await;
    etcd.put("later", "1", 78).await;
    etcd.revoke(77).await;
    let delete = pb::DeleteRangeRequest {
        key: "k1".into(),
        range_end: "k2".into(),
        ..Default::default()
    };
    KvClient::new(etcd.channel.clone())
        .delete_range(delete)
        .await
        .unwrap();
    let last = etcd.put("later", "2", 78).await;

    // Ctrl-C: what is left is taken, and told.
    let id = i32::try_from(import.id().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(id).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = tokio::time::timeout(PATIENCE, import.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(ended.status.success(), "{said}");
    assert!(
        said.contains(&format!("everything up to etcd's revision {last} is here")),
        "{said}"
    );

    let later = client.get("later").await.unwrap().unwrap();
    assert_eq!(
        (&later.value[..], later.lease),
        (&b"2"[..], Some(LeaseId(78)))
    );
    assert!(
        later.mod_revision > 1 << 32,
        "no revision of etcd's is one of ours"
    );
    assert_eq!(client.get("leased").await.unwrap(), None);
    let keys = Range::new(KeyRange::prefix("k")).count_only();
    assert_eq!(client.range(keys).await.unwrap().count, 1500);
    client.close().await;
}
