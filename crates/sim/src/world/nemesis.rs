//! What is done to the world: drawn by lot, one thing after another, each with its end.

use std::collections::BTreeMap;
use std::time::Duration;

use podkv_node::storage::{Crash, MemoryDisk};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::clock::nanos;
use super::disk::Trap;
use super::plan::{LeaseReads, Planted};
use super::pod::Order;
use super::{Pause, World};
use crate::history::Nanos;

pub struct Nemesis {
    rng: StdRng,
    next: Nanos,
    /// What ends when.
    ends: Vec<(Nanos, End)>,
    /// How often each was done.
    pub made: BTreeMap<&'static str, u64>,
}

enum End {
    Mend(String, String),
    Hasten(String, String),
}

/// How far wall clocks go wrong. Nothing but the end of a token depends on them, and those hold for a day.
const WALL_CLOCK_MS: i64 = 3_600_000;

/// What there is, and how often of a hundred it is drawn.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Crash,
    CrashAtStep,
    DiskError,
    Pause,
    Isolate,
    Split,
    CutOneWay,
    Reset,
    Slow,
    Stall,
    Terminate,
    Transfer,
    Purge,
    Copy,
    LoseVolume,
    RewindVolume,
    WrongVolume,
    RotLog,
    Scale,
    PauseClients,
    CutClients,
    WallClock,
}

/// What is counted. One that was never made in many runs is a defect of the simulation.
pub const KINDS: &[&str] = &[
    "clients cut off",
    "compaction",
    "crash",
    "crash at a step of the disk",
    "cut in one direction",
    "disk error",
    "isolation",
    "jump of the wall clock",
    "lost volume",
    "partition",
    "pause",
    "pause of clients",
    "purge",
    "reset",
    "restart in order",
    "rewound volume",
    "rotten log",
    "rotten log noticed",
    "scale",
    "slow link",
    "stalled disk",
    "transfer of leadership",
    "volume snapshot",
    "wrong volume",
    "wrong volume refused",
];

const LOT: &[(Fault, u32)] = &[
    (Fault::Crash, 9),
    (Fault::CrashAtStep, 14),
    (Fault::DiskError, 4),
    (Fault::Pause, 10),
    (Fault::Isolate, 8),
    (Fault::Split, 5),
    (Fault::CutOneWay, 8),
    (Fault::Reset, 6),
    (Fault::Slow, 6),
    (Fault::Stall, 6),
    (Fault::Terminate, 4),
    (Fault::Transfer, 4),
    (Fault::Purge, 5),
    (Fault::Copy, 4),
    (Fault::LoseVolume, 5),
    (Fault::RewindVolume, 5),
    (Fault::WrongVolume, 3),
    (Fault::RotLog, 4),
    (Fault::Scale, 3),
    (Fault::PauseClients, 4),
    (Fault::CutClients, 4),
    (Fault::WallClock, 3),
];

impl Nemesis {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            next: 0,
            ends: Vec::new(),
            made: KINDS.iter().map(|kind| (*kind, 0)).collect(),
        }
    }

    fn draw(&mut self) -> Fault {
        let all = LOT.iter().map(|(_, weight)| weight).sum();
        let mut lot = self.rng.random_range(0..all);
        for (fault, weight) in LOT {
            match lot.checked_sub(*weight) {
                None => return *fault,
                Some(rest) => lot = rest,
            }
        }
        Fault::Crash
    }

    fn millis(&mut self, least: u64, most: u64) -> Nanos {
        nanos(Duration::from_millis(self.rng.random_range(least..=most)))
    }
}

impl World {
    /// Ends what is due, and makes the next fault if its time has come.
    pub(super) fn make_trouble(&mut self) {
        let now = self.clock.now();
        let (due, later) = std::mem::take(&mut self.nemesis.ends)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.nemesis.ends = later;
        let due: Vec<(Nanos, End)> = due;
        for (_, end) in due {
            match end {
                End::Mend(from, to) => self.network.mend(&from, &to),
                End::Hasten(from, to) => self.network.slow(&from, &to, None),
            }
        }
        if self.nemesis.next > now {
            return;
        }
        let calm = u64::try_from(self.plan.calm.as_millis()).unwrap_or(u64::MAX);
        self.nemesis.next = now + self.nemesis.millis(20, calm);
        let fault = self.nemesis.draw();
        if let Some((kind, what)) = self.make(fault) {
            self.count(kind);
            self.note(what);
        }
    }

    pub(super) fn count(&mut self, kind: &'static str) {
        *self.nemesis.made.entry(kind).or_default() += 1;
    }

    /// Everything works again; pods that are down are started.
    pub(super) fn heal(&mut self) {
        self.network.heal();
        let now = self.clock.now();
        for pod in &mut self.pods {
            pod.disk.heal();
            pod.start_at = pod
                .start_at
                .map(|at| at.min(now + nanos(Duration::from_secs(1))));
            if let Some(pause) = &mut pod.pause {
                pause.until = now;
            }
        }
        for crowd in &mut self.crowds {
            if let Some(pause) = &mut crowd.pause {
                pause.until = now;
            }
        }
        self.note("everything is healed".into());
    }

    /// A pod to do something to: the leader more often than others.
    fn victim(&mut self) -> usize {
        let leads = |pod: &super::PodHost| pod.slot.get().is_some_and(|node| node.is_leader());
        let leader = self.pods.iter().position(leads);
        let by_lot = self
            .nemesis
            .rng
            .random_range(0..self.set.replicas() as usize);
        match leader.filter(|_| self.nemesis.rng.random_bool(0.4)) {
            Some(leader) => leader,
            None => by_lot,
        }
    }

    fn make(&mut self, fault: Fault) -> Option<(&'static str, String)> {
        match fault {
            Fault::Crash | Fault::CrashAtStep | Fault::DiskError | Fault::Stall => {
                self.disk_fault(fault)
            }
            Fault::Pause => {
                let nth = self.victim();
                let mut pause = self.pause()?;
                // What leases do not stand, as they say: a machine that is suspended.
                pause.clock_goes |= self.plan.lease_reads != LeaseReads::Off;
                let pod = &mut self.pods[nth];
                pod.running.as_ref()?;
                pod.pause = Some(pause);
                Some(("pause", format!("{} {}", pod.name, told(&pause))))
            }
            Fault::PauseClients => {
                let nth = self.nemesis.rng.random_range(0..self.crowds.len());
                let pause = self.pause()?;
                let crowd = &mut self.crowds[nth];
                crowd.pause = Some(pause);
                if !pause.clock_goes {
                    // Who wakes up after that finds its connections dead, and what it asked for done or not.
                    for pod in &self.pods {
                        self.network.reset(&crowd.name, &pod.name);
                    }
                }
                Some((
                    "pause of clients",
                    format!("{} {}", crowd.name, told(&pause)),
                ))
            }
            Fault::Isolate | Fault::Split | Fault::CutOneWay | Fault::CutClients => self.cut(fault),
            Fault::Reset => {
                let (a, b) = self.two()?;
                self.network.reset(&a, &b);
                Some(("reset", format!("connections between {a} and {b} break")))
            }
            Fault::Slow => {
                let (a, b) = self.two()?;
                let most = Duration::from_millis(self.nemesis.rng.random_range(5..400));
                let until = self.clock.now() + self.nemesis.millis(300, 6000);
                self.network.slow(&a, &b, Some((Duration::ZERO, most)));
                self.nemesis
                    .ends
                    .push((until, End::Hasten(a.clone(), b.clone())));
                Some(("slow link", format!("{a} to {b} takes up to {most:?}")))
            }
            Fault::Terminate | Fault::Transfer | Fault::Purge => {
                let nth = self.victim();
                let pod = &self.pods[nth];
                pod.running.as_ref()?;
                let (kind, order) = match fault {
                    Fault::Terminate => ("restart in order", Order::Terminate),
                    Fault::Transfer => ("transfer of leadership", Order::TransferLeadership),
                    _ => ("purge", Order::Purge),
                };
                pod.order(order);
                Some((kind, format!("{kind}: {}", pod.name)))
            }
            Fault::Copy
            | Fault::LoseVolume
            | Fault::RewindVolume
            | Fault::WrongVolume
            | Fault::RotLog => self.volume_fault(fault),
            Fault::WallClock => {
                let nth = self.victim();
                let most = WALL_CLOCK_MS;
                let pod = &mut self.pods[nth];
                pod.wall_ms = self.nemesis.rng.random_range(-most..=most);
                let what = format!("the wall clock of {} is {} ms off", pod.name, pod.wall_ms);
                Some(("jump of the wall clock", what))
            }
            Fault::Scale => {
                if !self.plan.scales || !self.is_settled() {
                    return None;
                }
                let to = if self.set.replicas() == 3 { 5 } else { 3 };
                self.set.scale(to);
                Some(("scale", format!("the StatefulSet is scaled to {to}")))
            }
        }
    }

    fn disk_fault(&mut self, fault: Fault) -> Option<(&'static str, String)> {
        let nth = self.victim();
        let power = self.nemesis.rng.random_bool(0.5);
        let crash = if power { Crash::Power } else { Crash::Process };
        let steps = self.nemesis.rng.random_range(0..80);
        let until = self.clock.now() + self.nemesis.millis(50, 4000);
        let pod = &self.pods[nth];
        pod.running.as_ref()?;
        let name = &pod.name;
        match fault {
            Fault::Crash => {
                pod.disk.crash(crash);
                Some(("crash", format!("{name} crashes: {crash:?}")))
            }
            Fault::CrashAtStep => {
                pod.disk.trap(steps, Trap::Crash(crash));
                let what = format!("{name} will crash at step {steps} of its disk: {crash:?}");
                Some(("crash at a step of the disk", what))
            }
            Fault::DiskError => {
                pod.disk.trap(steps, Trap::Error);
                let what = format!("{name} will meet an error at step {steps} of its disk");
                Some(("disk error", what))
            }
            _ => {
                pod.disk.stall(until);
                Some(("stalled disk", format!("the disk of {name} stalls")))
            }
        }
    }

    fn volume_fault(&mut self, fault: Fault) -> Option<(&'static str, String)> {
        if !self.plan.loses_volumes {
            return None;
        }
        let nth = self.victim();
        if let Fault::Copy = fault {
            let pod = &mut self.pods[nth];
            if pod.own_volume.is_some() {
                return None;
            }
            pod.copy = Some((pod.starts, pod.disk.copy()));
            return Some(("volume snapshot", format!("{} is copied", pod.name)));
        }
        // One at a time: with two of three volumes gone, so is the cluster. A rotten one may be as good as gone.
        if !self.is_settled() || self.pods.iter().any(|pod| pod.is_rotten) {
            return None;
        }
        let pods = self.set.replicas() as usize;
        let other = self.nemesis.rng.random_range(0..pods);
        let others = self.pods[other].disk.copy();
        let pod = &mut self.pods[nth];
        pod.running.as_ref()?;
        if let Fault::RotLog = fault {
            pod.disk.crash(Crash::Process);
            // The disk is in memory, and does not fail.
            pod.is_rotten = pod.disk.rot_log().ok()?;
            let what = format!("a bit of the log of {} turns", pod.name);
            return pod.is_rotten.then_some(("rotten log", what));
        }
        let (kind, volume) = match fault {
            Fault::WrongVolume if other != nth => {
                // To be put back when somebody has noticed.
                pod.own_volume = Some(MemoryDisk::new());
                ("wrong volume", others)
            }
            Fault::WrongVolume => return None,
            Fault::LoseVolume => ("lost volume", MemoryDisk::new()),
            _ => {
                // A start in between is how its peers know.
                let (_, copy) = pod.copy.take_if(|(starts, _)| *starts < pod.starts)?;
                ("rewound volume", copy)
            }
        };
        pod.disk.crash(Crash::Process);
        if pod.own_volume.is_some() {
            // As it is after the crash.
            pod.own_volume = Some(pod.disk.copy());
        }
        match self.plan.planted {
            // Nothing can fail here: the disk is in memory, and nobody is attached.
            Some(Planted::ReusedNodeId) => pod.disk.empty_but_named().ok()?,
            _ => pod.disk.replace(volume),
        }
        Some((kind, format!("{kind}: {}", pod.name)))
    }

    fn pause(&mut self) -> Option<Pause> {
        let now = self.clock.now();
        let most = [300, 1500, 8000][self.nemesis.rng.random_range(0..3)];
        Some(Pause {
            since: now,
            until: now + self.nemesis.millis(20, most),
            clock_goes: self.nemesis.rng.random_bool(0.7),
        })
    }

    /// Two pods.
    fn two(&mut self) -> Option<(String, String)> {
        let pods = self.set.replicas() as usize;
        let a = self.victim();
        let b = self.nemesis.rng.random_range(0..pods);
        (a != b).then(|| (self.pods[a].name.clone(), self.pods[b].name.clone()))
    }

    fn cut(&mut self, fault: Fault) -> Option<(&'static str, String)> {
        let until = self.clock.now() + self.nemesis.millis(100, 8000);
        let victim = self.victim();
        let names: Vec<String> = self.pods.iter().map(|pod| pod.name.clone()).collect();
        let name = names[victim].clone();
        let others = names.iter().filter(|other| **other != name);
        let (kind, links): (_, Vec<(String, String)>) = match fault {
            Fault::Isolate => {
                let both = self.nemesis.rng.random_range(0..3);
                let links = others.flat_map(|other| {
                    let (to, from) = ((name.clone(), other.clone()), (other.clone(), name.clone()));
                    match both {
                        0 => vec![to],
                        1 => vec![from],
                        _ => vec![to, from],
                    }
                });
                ("isolation", links.collect())
            }
            Fault::Split => {
                let side: Vec<bool> = names
                    .iter()
                    .map(|_| self.nemesis.rng.random_bool(0.5))
                    .collect();
                let mut links = Vec::new();
                for (a, one) in names.iter().zip(&side) {
                    for (b, other) in names.iter().zip(&side) {
                        if one != other {
                            links.push((a.clone(), b.clone()));
                        }
                    }
                }
                ("partition", links)
            }
            Fault::CutOneWay => ("cut in one direction", vec![self.two()?]),
            _ => {
                let crowd = self.nemesis.rng.random_range(0..self.crowds.len());
                let crowd = self.crowds[crowd].name.clone();
                let mut links = vec![(name.clone(), crowd.clone()), (crowd, name)];
                if self.nemesis.rng.random_bool(0.5) {
                    links.truncate(1);
                }
                ("clients cut off", links)
            }
        };
        let what = format!("{kind}: {links:?}");
        for (from, to) in links {
            self.network.cut(&from, &to);
            self.nemesis.ends.push((until, End::Mend(from, to)));
        }
        Some((kind, what))
    }
}

fn told(pause: &Pause) -> String {
    let time = Duration::from_nanos(pause.until - pause.since);
    match pause.clock_goes {
        true => format!("is stopped for {time:?}"),
        false => format!("is suspended for {time:?}"),
    }
}
