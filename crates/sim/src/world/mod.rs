//! A seeded world: real nodes and real clients, on a simulated network, clock and disk.
//!
//! ```text
//!   tick ─► faults (nemesis) ─► what arrives (network) ─► each host is played for a tick, in an order drawn by lot
//!             │
//!   pods      podkv-0 … podkv-4   a runtime each: Node and Server, as `podkv serve` has them   disk, link
//!   crowds    clients-0 …         a runtime each: the Rust client, the callers of `clients`    link
//!             ▼
//!   heal ─► all is whole again, in bounded time ─► callers stop ─► every replica tells its history ─► checkers
//! ```
//!
//! What runs is what ships: gRPC over HTTP/2, Raft, storage adapters, watch hub, reconciler, client retries, sessions.
//! Replaced are: the sockets ([`network`]), the disk below the storage traits ([`disk`]), the clock and the threads
//! ([`host`]), and the StatefulSet's controller and kubelet (here).
//!
//! **One seed, one run.** All of it is on one thread. Whatever is drawn by lot is drawn from the seed; what libraries
//! draw is drawn from the operating system, which the runner replaces (`main.rs`). The [`trace`] tells whether two runs
//! were the same.

pub mod clock;
pub mod disk;
pub mod host;
mod nemesis;
pub mod network;
pub mod people;
pub mod plan;
pub mod pod;
pub mod trace;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use podkv_api::{KeyRange, MemberRole, Range, Result, Store as _};
use podkv_node::storage::{Crash, MemoryDisk};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::clock::{Clock, TICK, nanos};
use self::disk::Disk;
use self::host::Host;
use self::nemesis::Nemesis;
use self::network::Network;
use self::people::People;
use self::plan::{Plan, Planted};
use self::pod::{Ended, MOST_PODS, Order, Pod, Slot, StatefulSet};
use self::trace::Trace;
use crate::clients::FOREIGN;
use crate::harvest;
use crate::history::{History, Nanos, Replica, Setup};
use crate::recorder::Recorder;

/// After everything is healed, all must be whole again by then: an election, a replacement, a demotion after another,
/// each with its patience.
const HEAL_PATIENCE: Duration = Duration::from_secs(300);
/// Callers end, and replicas tell their history, by then.
const PATIENCE: Duration = Duration::from_secs(120);
/// Kubelet ends a pod that was told to by then.
const GRACE: Duration = Duration::from_secs(60);
/// At how many revisions digests are compared.
const DIGESTS: u64 = 5;

/// What a run came to.
pub struct Played {
    pub history: History,
    /// What went wrong besides what the checkers find.
    pub complaints: Vec<String>,
    pub faults: BTreeMap<&'static str, u64>,
    pub simulated: Duration,
    pub hash: u64,
    pub events: u64,
    pub disk_steps: u64,
}

/// What the runner hands in.
pub struct Outside {
    /// Called at each tick: whoever reads the time of the operating system is told that of the world.
    pub time: fn(Nanos),
    pub trace_file: Option<std::fs::File>,
    /// The command that plays the run again.
    pub command: String,
}

/// Plays a run.
///
/// # Errors
/// If the operating system does not let a runtime be made.
pub fn play(plan: &Plan, outside: Outside) -> std::io::Result<Played> {
    let mut world = World::new(plan, outside)?;
    world.trouble()?;
    let mut complaints = Vec::new();
    match world.calm_down()? {
        Ok(()) => {}
        Err(complaint) => complaints.push(complaint),
    }
    let replicas = match complaints.is_empty() {
        true => world.harvest()?,
        false => Ok(Vec::new()),
    };
    let mut history = world.recorder.take();
    match replicas {
        Ok(replicas) => history.replicas = replicas,
        Err(complaint) => complaints.push(complaint),
    }
    Ok(Played {
        history,
        complaints,
        faults: world.nemesis.made.clone(),
        simulated: world.clock.elapsed(),
        hash: world.trace.hash(),
        events: world.trace.events(),
        disk_steps: world.pods.iter().map(|pod| pod.disk.steps()).sum(),
    })
}

struct World {
    plan: Plan,
    clock: Clock,
    trace: Trace,
    network: Network,
    recorder: Recorder,
    rng: StdRng,
    time: fn(Nanos),
    set: StatefulSet,
    pods: Vec<PodHost>,
    crowds: Vec<CrowdHost>,
    stop: watch::Sender<bool>,
    nemesis: Nemesis,
}

/// A pod, whether it runs or not.
struct PodHost {
    ordinal: u32,
    name: String,
    disk: Disk,
    slot: Slot,
    skew_ppm: i32,
    running: Option<RunningPod>,
    pause: Option<Pause>,
    /// Kubelet starts it then.
    start_at: Option<Nanos>,
    /// Kubelet ends it then.
    kill_at: Option<Nanos>,
    /// How often it was started.
    starts: u64,
    /// A volume snapshot, and how often the pod had been started then.
    copy: Option<(u64, MemoryDisk)>,
}

struct RunningPod {
    host: Host,
    main: JoinHandle<Ended>,
    orders: mpsc::UnboundedSender<Order>,
}

struct CrowdHost {
    name: String,
    host: Host,
    main: JoinHandle<Result<()>>,
    pause: Option<Pause>,
}

/// A host is not played.
#[derive(Clone, Copy)]
struct Pause {
    since: Nanos,
    until: Nanos,
    /// Its clock goes on: it is stopped, not suspended.
    clock_goes: bool,
}

impl PodHost {
    fn order(&self, order: Order) {
        if let Some(running) = &self.running {
            // It may have ended in this tick.
            let _ = running.orders.send(order);
        }
    }
}

impl World {
    fn new(plan: &Plan, outside: Outside) -> std::io::Result<Self> {
        let clock = Clock::default();
        (outside.time)(0);
        let mut rng = StdRng::seed_from_u64(plan.seed);
        let trace = Trace::new(clock.clone(), outside.trace_file);
        let network = Network::new(rng.random(), clock.clone(), trace.clone());
        let setup = Setup {
            seed: plan.seed,
            command: outside.command,
            foreign: FOREIGN.map(String::from).into(),
        };
        let stamps = clock.clone();
        let recorder = Recorder::with_clock(setup, move || stamps.stamp());
        let nemesis = Nemesis::new(rng.random());
        let mut world = Self {
            plan: plan.clone(),
            clock,
            trace,
            network,
            recorder,
            rng,
            time: outside.time,
            set: StatefulSet::new(plan.pods),
            pods: Vec::new(),
            crowds: Vec::new(),
            stop: watch::Sender::new(false),
            nemesis,
        };
        for ordinal in 0..MOST_PODS {
            world.add_pod(ordinal);
        }
        for nth in 0..plan.crowds {
            world.add_crowd(nth)?;
        }
        Ok(world)
    }

    fn add_pod(&mut self, ordinal: u32) {
        let name = pod::name(ordinal);
        let shared = (self.clock.clone(), self.trace.clone(), self.network.clone());
        let bug = (self.plan.temper, self.plan.planted);
        let disk = Disk::new(&name, self.rng.random(), bug, shared);
        let first = self.rng.random_range(0..nanos(Duration::from_secs(1)));
        let mut skew_ppm = -self.rng.random_range(0..=self.plan.skew_ppm);
        if self.plan.planted == Some(Planted::FastClock) {
            skew_ppm = 200_000;
        }
        self.pods.push(PodHost {
            ordinal,
            name,
            disk,
            slot: Slot::default(),
            skew_ppm,
            running: None,
            pause: None,
            start_at: (ordinal < self.plan.pods).then_some(first),
            kill_at: None,
            starts: 0,
            copy: None,
        });
    }

    fn add_crowd(&mut self, nth: u32) -> std::io::Result<()> {
        let name = format!("clients-{nth}");
        let host = Host::new(0)?;
        let people = People {
            link: self.network.up(&name),
            recorder: self.recorder.clone(),
            crowd: self.plan.crowd,
            planted: self.plan.planted,
            pods: self.plan.pods,
            first_number: nth * 1000,
            seed: self.rng.random(),
        };
        let main = host.spawn(people.run(self.stop.subscribe()));
        self.crowds.push(CrowdHost {
            name,
            host,
            main,
            pause: None,
        });
        Ok(())
    }

    /// Faults are made, and ended again.
    fn trouble(&mut self) -> std::io::Result<()> {
        let until = nanos(self.plan.trouble);
        while self.clock.now() < until {
            self.make_trouble();
            self.tick()?;
        }
        Ok(())
    }

    /// Nothing is broken any more: everything must be whole again in bounded time. Then the callers stop.
    fn calm_down(&mut self) -> std::io::Result<Result<(), String>> {
        self.heal();
        let until = self.clock.now() + nanos(HEAL_PATIENCE);
        while !self.is_whole() {
            if self.clock.now() > until {
                let state = self.describe();
                return Ok(Err(format!(
                    "not whole {HEAL_PATIENCE:?} after the last fault: {state}"
                )));
            }
            self.tick()?;
        }
        self.stop.send_replace(true);
        let until = self.clock.now() + nanos(PATIENCE);
        while self.crowds.iter().any(|crowd| !crowd.main.is_finished()) {
            if self.clock.now() > until {
                return Ok(Err("the callers do not end".into()));
            }
            self.tick()?;
        }
        for crowd in &mut self.crowds {
            match (&mut crowd.main).now_or_never() {
                Some(Ok(Ok(()))) => {}
                other => return Ok(Err(format!("{} ended badly: {other:?}", crowd.name))),
            }
        }
        Ok(Ok(()))
    }

    fn tick(&mut self) -> std::io::Result<()> {
        self.clock.advance();
        let now = self.clock.now();
        (self.time)(now);
        self.network.deliver();
        let mut order: Vec<usize> = (0..self.pods.len() + self.crowds.len()).collect();
        order.shuffle(&mut self.rng);
        for nth in order {
            match nth.checked_sub(self.pods.len()) {
                None => self.play_pod(nth)?,
                Some(crowd) => {
                    let crowd = &mut self.crowds[crowd];
                    if resumed(&mut crowd.pause, &mut crowd.host, now) {
                        crowd.host.play();
                    }
                }
            }
        }
        Ok(())
    }

    fn play_pod(&mut self, nth: usize) -> std::io::Result<()> {
        let now = self.clock.now();
        let wanted = self.pods[nth].ordinal < self.set.replicas();
        if self.pods[nth].running.is_none() {
            let pod = &mut self.pods[nth];
            if wanted && pod.start_at.is_none_or(|at| at <= now) {
                self.start(nth)?;
            }
            return Ok(());
        }
        let pod = &mut self.pods[nth];
        if !wanted && pod.kill_at.is_none() {
            pod.kill_at = Some(now + nanos(GRACE));
            pod.order(Order::Terminate);
        }
        if pod.kill_at.is_some_and(|at| at <= now) {
            pod.disk.crash(Crash::Process);
        }
        let Some(running) = &mut pod.running else {
            return Ok(());
        };
        // What crashed is not played any more, and not resumed either.
        if !pod.disk.has_crashed() {
            if !resumed(&mut pod.pause, &mut running.host, now) {
                return Ok(());
            }
            running.host.play();
        }
        if pod.disk.has_crashed() {
            self.ended(nth, "crashed");
        } else if running.main.is_finished() {
            let ended = (&mut running.main).now_or_never();
            let how = match ended {
                Some(Ok(Ok(()))) => "stopped in order".to_string(),
                Some(Ok(Err(error))) => format!("ended: {error}"),
                other => format!("ended badly: {other:?}"),
            };
            self.ended(nth, &how);
        }
        Ok(())
    }

    fn start(&mut self, nth: usize) -> std::io::Result<()> {
        let plan = self.plan.clone();
        let set = self.set.clone();
        let pod = &mut self.pods[nth];
        let host = Host::new(pod.skew_ppm)?;
        let (orders, taken) = mpsc::unbounded_channel();
        let process = Pod {
            ordinal: pod.ordinal,
            link: self.network.up(&pod.name),
            storage: pod.disk.attach(),
            set,
            slot: pod.slot.clone(),
            configure: Arc::new(move |config| plan.configure(config)),
        };
        let main = host.spawn(process.run(taken));
        pod.running = Some(RunningPod { host, main, orders });
        pod.start_at = None;
        pod.kill_at = None;
        pod.pause = None;
        pod.starts += 1;
        let name = pod.name.clone();
        self.note(format!("{name} starts"));
        Ok(())
    }

    /// The process of a pod is gone; kubelet starts it again after a while.
    fn ended(&mut self, nth: usize, how: &str) {
        let most = match self.rng.random_range(0..10) {
            0 => 15_000,
            1..4 => 3_000,
            _ => 400,
        };
        let pause = Duration::from_millis(self.rng.random_range(20..most));
        let now = self.clock.now();
        let pod = &mut self.pods[nth];
        if let Some(running) = pod.running.take() {
            self.network.down(&pod.name, false);
            running.host.kill();
        }
        pod.slot.clear();
        pod.pause = None;
        pod.start_at = Some(now + nanos(pause));
        let text = format!("{} {how}", pod.name);
        self.note(text);
    }

    fn note(&self, what: String) {
        self.trace.note(format_args!("{what}"), &[]);
        self.recorder.fault(what);
    }

    /// Every pod that there should be serves, they agree on who they are, and hold the same.
    fn is_whole(&self) -> bool {
        self.whole().is_some()
    }

    fn whole(&self) -> Option<()> {
        let expected = self.set.replicas();
        let mut nodes = Vec::new();
        for pod in &self.pods {
            let node = pod.slot.get();
            match pod.ordinal < expected {
                true => nodes.push((pod.name.clone(), node?)),
                false if pod.running.is_some() => return None,
                false => {}
            }
        }
        let first = nodes.first()?.1.header();
        let mut names = Vec::new();
        for (name, node) in &nodes {
            let header = node.header();
            let same = (header.cluster, header.term, header.revision)
                == (first.cluster, first.term, first.revision);
            if !same || !node.health().borrow().ready {
                return None;
            }
            names.push((name.clone(), node.id()));
        }
        let voters = match expected {
            2 => 2,
            odd if odd % 2 == 1 => odd,
            even => even - 1,
        };
        for (_, node) in &nodes {
            let members = node.members_known();
            let mut known: Vec<_> = members
                .iter()
                .map(|member| (member.name.clone(), member.id))
                .collect();
            known.sort();
            let voting = members
                .iter()
                .filter(|member| member.role == MemberRole::Voter);
            if known != names || voting.count() != voters as usize {
                return None;
            }
        }
        Some(())
    }

    /// For people: what is not whole.
    fn describe(&self) -> String {
        let one = |pod: &PodHost| match pod.slot.get() {
            None => format!("{} (runs: {})", pod.name, pod.running.is_some()),
            Some(node) => {
                let header = node.header();
                let members: Vec<_> = node
                    .members_known()
                    .iter()
                    .map(|member| format!("{}={}:{:?}", member.name, member.id, member.role))
                    .collect();
                format!(
                    "{} id {} term {} revision {} leader {:?} {:?} members {members:?} waits {:?} {:?}",
                    pod.name,
                    node.id(),
                    header.term,
                    header.revision,
                    node.leader(),
                    *node.health().borrow(),
                    node.membership_waits(),
                    node.size_waits(),
                )
            }
        };
        let all: Vec<_> = self.pods.iter().map(one).collect();
        all.join("; ")
    }

    /// Every replica tells its history, over the network, to a client that stays on it.
    fn harvest(&mut self) -> std::io::Result<Result<Vec<Replica>, String>> {
        let name = "harvester";
        let mut host = Host::new(0)?;
        let link = self.network.up(name);
        let pods: Vec<_> = self
            .pods
            .iter()
            .filter_map(|pod| Some((pod.ordinal, pod.running.as_ref()?.orders.clone())))
            .collect();
        let mut telling = host.spawn(tell(link, pods));
        let until = self.clock.now() + nanos(PATIENCE);
        while !telling.is_finished() {
            if self.clock.now() > until {
                let state = self.describe();
                return Ok(Err(format!("replicas do not tell their history: {state}")));
            }
            self.tick()?;
            host.play();
        }
        Ok(match (&mut telling).now_or_never() {
            Some(Ok(Ok(replicas))) => Ok(replicas),
            other => Err(format!("replicas did not tell their history: {other:?}")),
        })
    }
}

/// True if the host is to be played.
fn resumed(pause: &mut Option<Pause>, host: &mut Host, now: Nanos) -> bool {
    let Some(Pause {
        since,
        until,
        clock_goes,
    }) = *pause
    else {
        return true;
    };
    if now < until {
        return false;
    }
    *pause = None;
    if clock_goes {
        let missed = Duration::from_nanos(now - since).saturating_sub(TICK);
        host.skip(missed);
    }
    true
}

async fn tell(
    link: network::Link,
    pods: Vec<(u32, mpsc::UnboundedSender<Order>)>,
) -> Result<Vec<Replica>> {
    let all = people::client(&link, 1, None)?;
    let revision = loop {
        match all.range(Range::new(KeyRange::key("none"))).await {
            Ok(read) => break read.header.revision,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    all.close().await;
    let mut replicas = Vec::new();
    for (ordinal, orders) in pods {
        let client = people::client(&link, 1, Some(ordinal))?;
        let mut replica = harvest::replica(&client, pod::name(ordinal), revision).await?;
        client.close().await;
        for nth in 1..=DIGESTS {
            let at = (revision * nth / DIGESTS).max(1);
            let (answer, digest) = oneshot::channel();
            // Who does not take it drops the other end.
            let _ = orders.send(Order::Digest(at, answer));
            if let Ok(digest) = digest.await {
                replica.digests.push((at, digest?));
            }
        }
        replicas.push(replica);
    }
    Ok(replicas)
}
