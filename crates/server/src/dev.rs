//! `podkv dev`: a cluster of child processes on this machine.
//!
//! Node *i* listens for clients on P + 10 i, for peers one above, for probes two above. A child that dies is
//! started again after a second, as a kubelet would; killing one is a fair way to see what happens.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use podkv_api::{Error, Reason};
use podkv_client::{Client, TlsOptions};
use tokio::process::{Child, Command};

use crate::cert::{self, NodeNames, Output};
use crate::cli::args::DevArgs;
use crate::cli::{Exit, Failure, interrupted};

/// What a kubelet waits at first.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// A child that was asked to end and did not is killed: nothing that was acknowledged is lost by it.
const GRACE: Duration = Duration::from_secs(10);
/// How often the leader is asked for, to report a change.
const LOOK: Duration = Duration::from_millis(500);

struct DevCluster {
    args: DevArgs,
    executable: PathBuf,
    /// Removed when the cluster ends, if it was not named.
    data_dir: Option<tempfile::TempDir>,
}

pub async fn run(args: DevArgs) -> Result<Exit, Failure> {
    if args.nodes == 0 || u32::from(args.port) + 10 * u32::from(args.nodes) > u32::from(u16::MAX) {
        let text = format!(
            "{} nodes from port {} on do not fit; expected 1 or more below 65536",
            args.nodes, args.port
        );
        return Err(Error::new(Reason::Configuration, text).into());
    }
    let data_dir = match (&args.data_dir, args.memory && !args.tls) {
        (None, false) => Some(tempfile::Builder::new().prefix("podkv-dev-").tempdir()?),
        _ => None,
    };
    let cluster = DevCluster {
        args,
        executable: std::env::current_exe()?,
        data_dir,
    };
    if cluster.args.tls {
        let (folder, nodes) = (cluster.tls_folder(), cluster.args.nodes);
        tokio::task::spawn_blocking(move || make_certificates(&folder, nodes))
            .await
            .map_err(|_| Failure::Io("making certificates did not come to an end".into()))??;
    }
    cluster.run().await
}

/// A CA and a certificate for each node; those that are there from the last time stay.
fn make_certificates(folder: &Path, nodes: u16) -> Result<(), Failure> {
    const DAYS: u32 = 3650;
    let out = |folder: PathBuf| Output {
        folder,
        force: false,
    };
    if !folder.join(cert::CA_CERT).exists() {
        cert::ca(&out(folder.to_path_buf()), DAYS)?;
    }
    for index in 0..nodes {
        let pod = format!("podkv-{index}");
        let own = folder.join(&pod);
        if own.join(cert::CERT).exists() {
            continue;
        }
        // Everything is on loopback, which every certificate names.
        let names = NodeNames {
            pod,
            services: Vec::new(),
            namespace: String::new(),
            cluster_domain: String::new(),
            also: Vec::new(),
        };
        cert::node(folder, &names, &out(own), DAYS)?;
    }
    Ok(())
}

impl DevCluster {
    async fn run(self) -> Result<Exit, Failure> {
        let endpoints: Vec<String> = (0..self.args.nodes)
            .map(|index| self.address(index, 0))
            .collect();
        if self.args.memory {
            println!("memory storage: NOT DURABLE, everything is gone at the end");
        }
        let tls = self.args.tls.then(|| TlsOptions {
            ca: self.tls_folder().join(cert::CA_CERT),
            ..TlsOptions::default()
        });
        let with_ca = tls
            .as_ref()
            .map_or_else(String::new, |tls| format!(" --tls-ca {}", tls.ca.display()));
        println!("clients: --endpoints {}{with_ca}", endpoints.join(","));
        let (stop, _) = tokio::sync::watch::channel(false);
        let mut nodes = tokio::task::JoinSet::new();
        for index in 0..self.args.nodes {
            let child = self.spawn(index)?;
            nodes.spawn(keep_running(
                index,
                child,
                self.command(index),
                self.args.no_restart,
                stop.subscribe(),
            ));
        }
        let reporter = tokio::spawn(report_leader(endpoints, tls));
        interrupted().await;
        println!("stopping");
        reporter.abort();
        stop.send_replace(true);
        while nodes.join_next().await.is_some() {}
        drop(self.data_dir);
        Ok(Exit::Ok)
    }

    /// Where the data is. Nowhere on memory storage, unless there are certificates.
    fn root(&self) -> PathBuf {
        let made = || self.data_dir.as_ref().map(|dir| dir.path().into());
        self.args.data_dir.clone().or_else(made).unwrap_or_default()
    }

    fn tls_folder(&self) -> PathBuf {
        self.root().join("tls")
    }

    fn address(&self, index: u16, offset: u16) -> String {
        format!("127.0.0.1:{}", self.args.port + 10 * index + offset)
    }

    fn command(&self, index: u16) -> impl Fn() -> Command + Send + 'static {
        let peers: Vec<String> = (0..self.args.nodes)
            .map(|peer| format!("podkv-{peer}={}", self.address(peer, 1)))
            .collect();
        let mut arguments = vec![
            "serve".to_string(),
            format!("--name=podkv-{index}"),
            format!("--client-listen={}", self.address(index, 0)),
            format!("--peer-listen={}", self.address(index, 1)),
            format!("--admin-listen={}", self.address(index, 2)),
            format!("--peers={}", peers.join(",")),
            "--timing=fast".to_string(),
            // Nothing leaves this machine.
            "--auth-without-tls=true".to_string(),
            // openraft warns at each heartbeat that a dead peer does not answer.
            "--log=warn,openraft=error".to_string(),
        ];
        if self.args.memory {
            arguments.push("--storage=memory".into());
        } else {
            let folder = self.root().join(format!("podkv-{index}"));
            arguments.push(format!("--data-dir={}", folder.display()));
        }
        if self.args.tls {
            let folder = self.tls_folder();
            let own = folder.join(format!("podkv-{index}"));
            arguments.extend([
                "--tls=require".into(),
                format!("--tls-ca={}", folder.join(cert::CA_CERT).display()),
                format!("--tls-cert={}", own.join(cert::CERT).display()),
                format!("--tls-key={}", own.join(cert::KEY).display()),
            ]);
        }
        let executable = self.executable.clone();
        move || {
            let mut command = Command::new(&executable);
            command
                .args(&arguments)
                .stdin(Stdio::null())
                .kill_on_drop(true);
            // Ctrl-C goes to this process alone; it ends its children in order.
            command.process_group(0);
            command
        }
    }

    fn spawn(&self, index: u16) -> std::io::Result<Child> {
        let child = self.command(index)().spawn()?;
        println!(
            "podkv-{index}: process {} on {}",
            child.id().unwrap_or_default(),
            self.address(index, 0)
        );
        Ok(child)
    }
}

async fn keep_running(
    index: u16,
    mut child: Child,
    command: impl Fn() -> Command,
    no_restart: bool,
    mut stop: tokio::sync::watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            _ = stop.changed() => {
                end(child).await;
                return;
            }
            status = child.wait() => match status {
                Ok(status) => println!("podkv-{index}: ended ({status})"),
                Err(error) => println!("podkv-{index}: {error}"),
            },
        }
        if no_restart {
            return;
        }
        tokio::select! {
            _ = stop.changed() => return,
            () = tokio::time::sleep(RESTART_AFTER) => {}
        }
        match command().spawn() {
            Ok(started) => {
                println!(
                    "podkv-{index}: process {}",
                    started.id().unwrap_or_default()
                );
                child = started;
            }
            Err(error) => {
                println!("podkv-{index}: cannot be started: {error}");
                return;
            }
        }
    }
}

async fn end(mut child: Child) {
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself this very moment.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

async fn report_leader(endpoints: Vec<String>, tls: Option<TlsOptions>) {
    let client = Client::builder()
        .endpoints(endpoints)
        .fixed(true)
        .deadline(LOOK);
    let client = match tls {
        Some(tls) => client.tls(tls),
        None => client,
    };
    // Its settings are constants above; nobody need listen yet.
    let Ok(client) = client.build() else { return };
    let mut known = None;
    loop {
        let statuses = client.statuses().await;
        let answered = statuses.into_iter().filter_map(|(_, status)| status.ok());
        // A node that was cut off may still name an older leader.
        if let Some(status) = answered.max_by_key(|status| status.header.term)
            && let Some(leader) = status.leader
            && known != Some((leader, status.header.term))
        {
            known = Some((leader, status.header.term));
            let members = client.local_members().await.unwrap_or_default();
            let name = members
                .into_iter()
                .find(|member| member.id == leader)
                .map(|member| member.name);
            println!(
                "{} leads (term {})",
                name.unwrap_or_else(|| leader.to_string()),
                status.header.term
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}
