//! Three replicas on this machine, only to try it: child processes in the place of pods, and this process in the
//! place of the kubelet. Nothing of it is needed in Kubernetes.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Error;

const REPLICAS: u16 = 3;
/// Replica *i* serves on this port plus *i*.
const HTTP_PORT: u16 = 8080;
const PEER_PORT: u16 = 9080;
/// What a kubelet waits at first.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// A replica that was asked to end and did not is killed.
const GRACE: Duration = Duration::from_secs(20);

pub async fn run() -> Result<(), Error> {
    let stop_requested = crate::stop_signal()?;
    let data = tempfile::Builder::new().prefix("podkv-flags-").tempdir()?;
    let stop = CancellationToken::new();
    let mut replicas = JoinSet::new();
    for ordinal in 0..REPLICAS {
        println!(
            "{} serves on {}",
            name(ordinal),
            address(HTTP_PORT, ordinal)
        );
        let replica = command(ordinal, data.path())?;
        replicas.spawn(keep_running(name(ordinal), replica, stop.clone()));
    }
    println!("kill any of them with kill -9; end all with ctrl-c");
    tokio::select! {
        () = stop_requested => {}
        // It could not be started at all. The others end with their handles.
        Some(failed) = replicas.join_next() => failed??,
    }
    stop.cancel();
    while let Some(ended) = replicas.join_next().await {
        ended??;
    }
    // The data of all replicas goes with it.
    data.close()?;
    Ok(())
}

fn name(ordinal: u16) -> String {
    format!("flags-{ordinal}")
}

fn address(port: u16, ordinal: u16) -> String {
    format!("127.0.0.1:{}", port + ordinal)
}

fn command(ordinal: u16, data: &Path) -> io::Result<Command> {
    let peer = |ordinal| format!("{}={}", name(ordinal), address(PEER_PORT, ordinal));
    let peers: Vec<String> = (0..REPLICAS).map(peer).collect();
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("serve")
        .env("NAME", name(ordinal))
        .env("PEERS", peers.join(","))
        .env("DATA_DIR", data.join(name(ordinal)))
        .env("HTTP_LISTEN", address(HTTP_PORT, ordinal))
        .env("PEER_LISTEN", address(PEER_PORT, ordinal))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        // Ctrl-C goes to this process alone, which ends its children in order.
        .process_group(0);
    Ok(command)
}

/// Starts a replica, and starts it again whenever it ends.
async fn keep_running(
    name: String,
    mut command: Command,
    stop: CancellationToken,
) -> io::Result<()> {
    while !stop.is_cancelled() {
        let mut child = command.spawn()?;
        println!("{name} | process {}", child.id().unwrap_or_default());
        let output = child.stderr.take();
        let printing = print_lines(&name, output);
        let ending = async {
            tokio::select! {
                status = child.wait() => {
                    println!("{name} | ended ({}), starts again in {RESTART_AFTER:?}", status?);
                    stop.run_until_cancelled(sleep(RESTART_AFTER)).await;
                    Ok(())
                }
                () = stop.cancelled() => end(&name, &mut child).await,
            }
        };
        tokio::try_join!(printing, ending)?;
    }
    Ok(())
}

async fn print_lines(name: &str, output: Option<impl AsyncRead + Unpin>) -> io::Result<()> {
    let Some(output) = output else { return Ok(()) };
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await? {
        println!("{name} | {line}");
    }
    Ok(())
}

async fn end(name: &str, child: &mut Child) -> io::Result<()> {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = id.and_then(Pid::from_raw) {
        // It may have ended by itself this very moment.
        let _ = kill_process(pid, Signal::TERM);
    }
    match timeout(GRACE, child.wait()).await {
        Ok(status) => println!("{name} | ended ({})", status?),
        Err(_) => {
            println!("{name} | did not end within {GRACE:?}: killed");
            child.kill().await?;
        }
    }
    Ok(())
}
