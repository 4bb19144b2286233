//! A real etcd moves into a podkv: `podkv import etcd`.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use podkv_api::{KeyRange, LeaseId, Range, Reason, Store as _};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use podkv_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use podkv_tests::process::{ProcessCluster, free_ports, podkv_binary};
use podkv_tls::testing::{Leaf, TestCa};
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

/// An etcd that asks for certificates and passwords, and what `etcdctl` needs to come in.
struct GuardedEtcd {
    _process: Child,
    folder: tempfile::TempDir,
    address: String,
}

impl GuardedEtcd {
    const PASSWORD: &str = "a password, with: more";

    /// Its tokens live for a second, whether they are used or not. `None`, and said aloud, where there is no etcd.
    async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let ca = TestCa::new();
        ca.install(
            &folder.path().join("etcd"),
            &Leaf::new(&["127.0.0.1", "localhost"]),
        );
        ca.install(&folder.path().join("client"), &Leaf::new(&["importer"]));
        std::fs::write(folder.path().join("jwt"), "the key that signs the tokens").unwrap();
        let ports = free_ports(2);
        let clients = format!("https://127.0.0.1:{}", ports[0]);
        let peers = format!("http://127.0.0.1:{}", ports[1]);
        let file = |name: &str| folder.path().join(name).display().to_string();
        let token = format!("jwt,sign-method=HS256,priv-key={},ttl=1s", file("jwt"));
        let process = Command::new("etcd")
            .args(["--data-dir", &file("data")])
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .args(["--cert-file", &file("etcd/tls.crt")])
            .args(["--key-file", &file("etcd/tls.key")])
            .args(["--trusted-ca-file", &file("etcd/ca.crt")])
            .args([
                "--client-cert-auth",
                "--bcrypt-cost",
                "4",
                "--auth-token",
                &token,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let Ok(process) = process else {
            eprintln!("SKIPPED: there is no etcd here (Debian: apt-get install etcd-server)");
            return None;
        };
        let etcd = Self {
            _process: process,
            folder,
            address: clients,
        };
        let up = async {
            while !etcd.ctl(&["endpoint", "health"]).await.success() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, up).await.unwrap();
        let user = format!("root:{}", Self::PASSWORD);
        etcd.must(&["user", "add", &user]).await;
        etcd.must(&["user", "grant-role", "root", "root"]).await;
        etcd.must(&["auth", "enable"]).await;
        Some(etcd)
    }

    async fn ctl(&self, arguments: &[&str]) -> std::process::ExitStatus {
        let file = |name: &str| self.folder.path().join("client").join(name);
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.address])
            .arg("--cacert")
            .arg(file("ca.crt"))
            .arg("--cert")
            .arg(file("tls.crt"))
            .arg("--key")
            .arg(file("tls.key"))
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
            .status()
            .await
            .expect("etcdctl (Debian's etcd-client) runs")
    }

    async fn must(&self, arguments: &[&str]) {
        assert!(self.ctl(arguments).await.success(), "etcdctl {arguments:?}");
    }

    async fn put(&self, key: &str, value: &str) {
        let user = format!("root:{}", Self::PASSWORD);
        self.must(&["--user", &user, "put", key, value]).await;
    }

    /// `podkv import etcd`, with one of two passwords.
    fn import(&self, cluster: &ProcessCluster, password: &str) -> Command {
        let file = |name: &str| self.folder.path().join("client").join(name);
        let mut import = Command::new(podkv_binary());
        import
            .args(["import", "etcd", &self.address, "--follow", "--file"])
            .arg(self.folder.path().join(format!("copy-{}", password.len())))
            .args(["--endpoints", &cluster.endpoints().join(",")])
            .arg("--from-ca")
            .arg(file("ca.crt"))
            .arg("--from-cert")
            .arg(file("tls.crt"))
            .arg("--from-key")
            .arg(file("tls.key"))
            .args(["--from-user", "root"])
            .env("PODKV_FROM_PASSWORD", password)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        import
    }
}

/// With TLS on both sides, a password, and tokens that end while it is at work.
#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_with_certificates_and_users_moves_in() {
    let Some(etcd) = GuardedEtcd::start().await else {
        return;
    };
    etcd.put("before", "1").await;
    let cluster = ProcessCluster::start(1).await;
    let client = cluster.client();

    let refused = etcd.import(&cluster, "wrong").output().await.unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && said.contains("authentication failed"),
        "{said}"
    );

    let import = etcd
        .import(&cluster, GuardedEtcd::PASSWORD)
        .spawn()
        .unwrap();
    wait_value(&client, "before", "1").await;
    // Each of its tokens has ended by then, and the next one as well.
    for number in 0..3 {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let value = number.to_string();
        etcd.put("after", &value).await;
        wait_value(&client, "after", &value).await;
    }
    let user = format!("root:{}", GuardedEtcd::PASSWORD);
    // A change of users makes every token old.
    etcd.must(&["--user", &user, "user", "add", "other:other"])
        .await;
    etcd.put("after", "last").await;
    wait_value(&client, "after", "last").await;

    let id = i32::try_from(import.id().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(id).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = tokio::time::timeout(PATIENCE, import.wait_with_output()).await;
    let ended = ended.unwrap().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
    client.close().await;
}

async fn wait_value(client: &podkv_client::Client, key: &'static str, value: &str) {
    let there = async {
        loop {
            match client.get(key).await {
                Ok(Some(kv)) if kv.value == value => return,
                Ok(_) => {}
                Err(error) => assert_eq!(error.reason(), Reason::Restoring, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, there).await;
    assert!(waited.is_ok(), "{key} never is {value}");
}
