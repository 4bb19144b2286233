//! The life of one pod: its container is started, probed, restarted with a back-off, and ended.
//!
//! A task, which owns the pod's process and ends with it.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::kubelet::{Kubelet, Order};
use super::manifests::Container;
use super::network::Attachment;
use super::probe;
use crate::Result;

/// Kubernetes waits 10 s and doubles it up to 5 minutes. That is time in which nothing happens; what matters to
/// podkv is that a container that fails at once does not come back at once.
const BACK_OFF: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(4);
/// A process that was sent SIGKILL and is still there is a defect of the stage.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

/// One pod.
pub(super) struct PodTask {
    pub kubelet: Arc<Kubelet>,
    pub uid: u64,
    pub name: String,
    pub container: Arc<Container>,
    pub attachment: Attachment,
    pub spec: PathBuf,
    pub grace: Duration,
    pub pre_stop: Duration,
    pub orders: mpsc::Receiver<Order>,
}

/// Why a container's run came to an end.
enum End {
    Exited,
    Unhealthy(&'static str),
    Delete,
    Lose,
}

impl PodTask {
    pub async fn run(mut self) {
        let world = self.kubelet.world().clone();
        let mut back_off = BACK_OFF;
        loop {
            let started = Instant::now();
            let mut child = match self.spawn() {
                Ok(child) => child,
                Err(error) => {
                    self.note(&format!("cannot be started: {error}"));
                    break;
                }
            };
            let end = self.supervise(&mut child).await;
            match end {
                End::Exited => {}
                End::Unhealthy(why) => {
                    self.note(why);
                    self.stop(&mut child, Duration::ZERO).await;
                }
                End::Delete => {
                    world.set_terminating(self.uid);
                    self.note("terminating");
                    self.stop(&mut child, self.pre_stop).await;
                    break;
                }
                End::Lose => {
                    self.note("lost");
                    kill(&mut child).await;
                    break;
                }
            }
            let status = child.try_wait().ok().flatten();
            self.note(&format!("ended: {status:?}; starting again"));
            world.set_ready(self.uid, false);
            if started.elapsed() > BACK_OFF_MAX {
                back_off = BACK_OFF;
            }
            if !self.wait_out(back_off).await {
                break;
            }
            back_off = (back_off * 2).min(BACK_OFF_MAX);
        }
        world.remove(self.uid);
        if let Err(error) = self.kubelet.network().detach(&self.attachment).await {
            self.note(&format!("its network stays: {error}"));
        }
        self.note("gone");
    }

    fn note(&self, text: &str) {
        self.kubelet
            .note(&self.name, &format!("pod {}: {text}", self.uid));
    }

    fn spawn(&self) -> Result<Child> {
        let log = self.kubelet.open_log(&self.name)?;
        let namespace = format!("--net=/run/netns/{}", self.attachment.namespace);
        let child = Command::new("nsenter")
            .arg(namespace)
            .args(["--", "unshare", "--mount", "--uts", "--pid", "--ipc"])
            .args(["--fork", "--kill-child=KILL", "--"])
            .arg(std::env::current_exe()?)
            .arg("sandbox")
            .arg(&self.spec)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        Ok(child)
    }

    /// Until the container ends, is unhealthy, or must go.
    async fn supervise(&mut self, child: &mut Child) -> End {
        let probes = probe::watch(
            self.kubelet.world().clone(),
            self.uid,
            self.attachment.ip,
            self.container.clone(),
        );
        tokio::pin!(probes);
        loop {
            let outer = child.id();
            tokio::select! {
                _ = child.wait() => return End::Exited,
                why = &mut probes => return End::Unhealthy(why),
                order = self.orders.recv() => match order {
                    Some(Order::Delete) => return End::Delete,
                    None | Some(Order::Lose) => return End::Lose,
                    Some(Order::Signal(signal)) => send(outer, signal).await,
                },
            }
        }
    }

    /// preStop, SIGTERM, grace, SIGKILL. Readiness is probed on meanwhile, as Kubernetes does; it changes nothing
    /// for a pod that is terminating.
    async fn stop(&mut self, child: &mut Child, pre_stop: Duration) {
        let deadline = Instant::now() + self.grace;
        let pre_stopped = Instant::now() + pre_stop.min(self.grace);
        let mut asked = false;
        loop {
            let outer = child.id();
            let next = if asked { deadline } else { pre_stopped };
            tokio::select! {
                _ = child.wait() => return,
                () = tokio::time::sleep_until(next) => {
                    if asked {
                        self.note("its grace is over");
                        kill(child).await;
                        return;
                    }
                    asked = true;
                    send(outer, Signal::TERM).await;
                }
                order = self.orders.recv() => match order {
                    Some(Order::Delete) => {}
                    None | Some(Order::Lose) => {
                        kill(child).await;
                        return;
                    }
                    Some(Order::Signal(signal)) => send(outer, signal).await,
                },
            }
        }
    }

    /// False if the pod must go meanwhile.
    async fn wait_out(&mut self, back_off: Duration) -> bool {
        let waiting = sleep(back_off);
        tokio::pin!(waiting);
        loop {
            tokio::select! {
                () = &mut waiting => return true,
                order = self.orders.recv() => match order {
                    Some(Order::Signal(_)) => {}
                    None | Some(Order::Delete | Order::Lose) => return false,
                },
            }
        }
    }
}

/// SIGKILL, and waits until the pod's processes are gone: with its process 1 the whole namespace ends.
async fn kill(child: &mut Child) {
    send(child.id(), Signal::KILL).await;
    if timeout(KILL_TIMEOUT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// To process 1 of the container. `unshare`, which waits for it, is what was started here.
async fn send(outer: Option<u32>, signal: Signal) {
    let Some(outer) = outer else { return };
    let path = format!("/proc/{outer}/task/{outer}/children");
    // A container that is just starting has no process 1 yet.
    loop {
        match fs::read_to_string(&path) {
            Err(_) => return,
            Ok(children) => {
                let inner = children.split_whitespace().next();
                let inner = inner
                    .and_then(|pid| pid.parse().ok())
                    .and_then(Pid::from_raw);
                if let Some(pid) = inner {
                    // It may have ended meanwhile.
                    let _ = kill_process(pid, signal);
                    return;
                }
            }
        }
        // One that has ended and was not yet waited for has none either.
        let ended = fs::read_to_string(format!("/proc/{outer}/stat"))
            .map_or(true, |stat| stat.contains(") Z "));
        if ended {
            return;
        }
        sleep(Duration::from_millis(2)).await;
    }
}
