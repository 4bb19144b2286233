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

pub mod chronicle;
pub mod clock;
pub mod disk;
mod healed;
pub mod host;
mod nemesis;
pub mod network;
pub mod people;
pub mod plan;
pub mod pod;
pub mod trace;
mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use podkv_api::{Error, Reason, Result};
use podkv_node::storage::Crash;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use self::chronicle::Chronicle;
use self::clock::{Clock, TICK, nanos};
use self::disk::{Disk, Volume};
use self::host::Host;
use self::nemesis::Nemesis;
use self::network::Network;
use self::people::People;
use self::plan::{Plan, Planted};
use self::pod::{Ended, MOST_PODS, Order, Pod, Slot, StatefulSet};
use self::trace::Trace;
use crate::clients::FOREIGN;
use crate::history::{History, Nanos, Setup};
use crate::recorder::Recorder;

/// After everything is healed, all must be whole again by then: an election, a replacement, a demotion after another,
/// each with its patience.
const HEAL_PATIENCE: Duration = Duration::from_secs(300);
/// Callers end, and replicas tell their history, by then.
const PATIENCE: Duration = Duration::from_secs(120);
/// Kubelet ends a pod that was told to by then.
const GRACE: Duration = Duration::from_secs(60);

/// What a run came to.
pub struct Played {
    pub history: History,
    /// What went wrong besides what the checkers find.
    pub complaints: Vec<String>,
    pub faults: BTreeMap<&'static str, u64>,
    pub simulated: Duration,
    pub hash: u64,
    pub events: u64,
    /// How often each step of a disk was made.
    pub disk_steps: BTreeMap<&'static str, u64>,
}

/// What the runner hands in.
pub struct Outside {
    /// Called at each tick: whoever reads the time of the operating system is told that of the world.
    pub time: fn(Nanos),
    /// The same before a host is played, of how many milliseconds its wall clock is off.
    pub wall: fn(i64),
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
    complaints.extend(world.pods.iter().flat_map(|pod| pod.disk.complaints()));
    let mut faults = world.nemesis.made.clone();
    faults.insert("compaction", world.chronicle.told().compactions);
    let of_snapshots = |pod: &PodHost| pod.disk.steps().get(disk::ROTTEN_SNAPSHOT).copied();
    let rotten = world.pods.iter().filter_map(of_snapshots).sum();
    faults.insert(disk::ROTTEN_SNAPSHOT, rotten);
    let mut disk_steps = BTreeMap::<_, u64>::new();
    for (what, count) in world.pods.iter().flat_map(|pod| pod.disk.steps()) {
        *disk_steps.entry(what).or_default() += count;
    }
    Ok(Played {
        history,
        complaints,
        faults,
        simulated: world.clock.elapsed(),
        hash: world.trace.hash(),
        events: world.trace.events(),
        disk_steps,
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
    wall: fn(i64),
    chronicle: Chronicle,
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
    /// Kubelet does not wait before it starts it again.
    start_soon: bool,
    /// A volume snapshot, and how often the pod had been started then.
    copy: Option<(u64, Volume)>,
    /// A bit on its volume has turned, and nobody has noticed yet: as what that will be counted.
    rotten: Option<&'static str>,
    /// Its own volume, while another one is mounted.
    own_volume: Option<Volume>,
    /// How far its wall clock is off.
    wall_ms: i64,
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
            wall: outside.wall,
            chronicle: Chronicle::default(),
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
        if plan.compacts {
            world.add_chronicler()?;
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
            start_soon: false,
            copy: None,
            rotten: None,
            own_volume: None,
            wall_ms: 0,
        });
    }

    fn add_crowd(&mut self, nth: u32) -> std::io::Result<()> {
        let name = format!("clients-{nth}");
        let host = Host::new(0)?;
        let people = People {
            link: self.network.up(&name),
            door: self.plan.door,
            enables_auth: self.plan.door.auth && nth == 0,
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

    fn add_chronicler(&mut self) -> std::io::Result<()> {
        let name = "chronicler".to_string();
        let host = Host::new(0)?;
        let way = (self.network.up(&name), self.plan.door);
        let (chronicle, seed) = (self.chronicle.clone(), self.rng.random());
        let told = self.stop.subscribe();
        let main = host.spawn(chronicle::run(way, self.plan.pods, chronicle, seed, told));
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
        let mut mark = None;
        while !self.is_whole(&mut mark) {
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
                    (self.wall)(0);
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
        (self.wall)(pod.wall_ms);
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
                Some(Ok(Err(error))) => {
                    self.attend(nth, &error);
                    format!("ended: {error}")
                }
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

    /// What a person does about a pod that says why it cannot go on.
    fn attend(&mut self, nth: usize, error: &Error) {
        let pod = &mut self.pods[nth];
        match error.reason() {
            Reason::Corrupt => {
                if let Some(noticed) = pod.rotten.take() {
                    pod.disk.crash(Crash::Process);
                    pod.disk.replace(Volume::default());
                    self.count(noticed);
                }
            }
            Reason::DataFolder => {
                if let Some(own) = pod.own_volume.take() {
                    pod.disk.crash(Crash::Process);
                    pod.disk.replace(own);
                    self.count("wrong volume refused");
                }
            }
            _ => {}
        }
    }

    /// The process of a pod is gone; kubelet starts it again after a while.
    fn ended(&mut self, nth: usize, how: &str) {
        let most = match self.rng.random_range(0..10) {
            _ if std::mem::take(&mut self.pods[nth].start_soon) => 400,
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
