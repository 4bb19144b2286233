//! The kubelet's probes: each with its own period, time-out and thresholds, as the manifest says.
//!
//! ```text
//!   container starts ─► startup probe, until it has succeeded ─► liveness ∥ readiness
//!                            │ failed so often                       │ failed so often    └► the pod's readiness
//!                            └───────────► the container is ended and started again ◄┘
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::manifests::{Container, Probe};
use super::world::World;

/// Probes one container until it must be restarted. Dropped when the container ends.
pub async fn watch(
    world: Arc<World>,
    uid: u64,
    ip: IpAddr,
    container: Arc<Container>,
) -> &'static str {
    if let Some(probe) = &container.startup_probe
        && !until_started(probe, ip, &container).await
    {
        return "the startup probe failed too often";
    }
    let liveness = until_dead(ip, &container);
    let readiness = async {
        match &container.readiness_probe {
            Some(probe) => follow(probe, ip, &container, |ready| world.set_ready(uid, ready)).await,
            // Without a probe a container that runs is ready.
            None => {
                world.set_ready(uid, true);
                std::future::pending().await
            }
        }
    };
    tokio::select! {
        () = liveness => "the liveness probe failed too often",
        () = readiness => "",
    }
}

/// Until the liveness probe has failed as often as it may; without one, never.
pub(super) async fn until_dead(ip: IpAddr, container: &Container) {
    match &container.liveness_probe {
        Some(probe) => until_failed(probe, ip, container).await,
        None => std::future::pending().await,
    }
}

async fn until_started(probe: &Probe, ip: IpAddr, container: &Container) -> bool {
    let mut failures = 0;
    let mut ticks = Ticks::start(probe).await;
    loop {
        ticks.next().await;
        if succeeds(probe, ip, container).await {
            return true;
        }
        failures += 1;
        if failures >= probe.failure_threshold {
            return false;
        }
    }
}

async fn until_failed(probe: &Probe, ip: IpAddr, container: &Container) {
    let mut failures = 0;
    let mut ticks = Ticks::start(probe).await;
    while failures < probe.failure_threshold {
        ticks.next().await;
        failures = match succeeds(probe, ip, container).await {
            true => 0,
            false => failures + 1,
        };
    }
}

/// Reports each change after as many equal results as the threshold asks for.
async fn follow(probe: &Probe, ip: IpAddr, container: &Container, report: impl Fn(bool)) {
    let (mut run, mut of) = (0_u32, false);
    let mut ticks = Ticks::start(probe).await;
    loop {
        ticks.next().await;
        let result = succeeds(probe, ip, container).await;
        run = if result == of {
            run.saturating_add(1)
        } else {
            1
        };
        of = result;
        let threshold = if of {
            probe.success_threshold
        } else {
            probe.failure_threshold
        };
        if run >= threshold {
            report(of);
        }
    }
}

struct Ticks(tokio::time::Interval);

impl Ticks {
    async fn start(probe: &Probe) -> Self {
        sleep(Duration::from_secs(probe.initial_delay_seconds)).await;
        let mut ticks = interval(Duration::from_secs(probe.period_seconds.max(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self(ticks)
    }

    async fn next(&mut self) {
        self.0.tick().await;
    }
}

pub(super) async fn succeeds(probe: &Probe, ip: IpAddr, container: &Container) -> bool {
    let limit = Duration::from_secs(probe.timeout_seconds.max(1));
    let address = |port| Some(SocketAddr::new(ip, container.port(port)?));
    let asked = async {
        if let Some(get_page) = &probe.http_get {
            let status = get(address(&get_page.port)?, &get_page.path).await.ok()?;
            return (200..400).contains(&status).then_some(());
        }
        let socket = probe.tcp_socket.as_ref()?;
        let connected = TcpStream::connect(address(&socket.port)?).await;
        connected.ok().map(drop)
    };
    matches!(timeout(limit, asked).await, Ok(Some(())))
}

/// The status of a page.
async fn get(address: SocketAddr, path: &str) -> std::io::Result<u16> {
    let answer = page(address, path).await?;
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok(status.unwrap_or(0))
}

/// A whole answer, head and all.
pub(super) async fn page(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
