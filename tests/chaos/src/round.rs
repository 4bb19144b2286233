//! One round: a new cluster, clients, the nemesis, the harvest, the checkers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podkv_sim::check;
use podkv_sim::history::{Fault, History, Setup};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::Result;
use crate::harvest;
use crate::nemesis::{Faults, Nemesis, Wanted};
use crate::nodes::Nodes;
use crate::place::{NODES, Place};
use podkv_sim::clients::lookouts::LastLeader;
use podkv_sim::clients::{
    self, Caller, FOREIGN, large, lease_holders, lockers, lookouts, mix, watchers,
};
use podkv_sim::recorder::Recorder;

/// Clients that know all nodes, and clients of one node each.
const EVERYWHERE: u32 = 20;
const OF_EACH_NODE: u32 = 2;
const LEASE_HOLDERS: u32 = 3;
/// Each writes many keys for one value, and all of it is history.
const LARGE: u32 = 2;
const LOCKERS: u32 = 4;
const WATCHERS: u32 = 4;

/// What a round is told.
#[derive(Clone, Debug, clap::Args)]
pub struct RoundArgs {
    #[arg(long)]
    pub seed: u64,
    #[arg(long)]
    pub seconds: u64,
    #[arg(long)]
    pub folder: PathBuf,
    #[arg(long)]
    pub binary: PathBuf,
    #[arg(long)]
    pub namespaces: bool,
    #[arg(long)]
    pub corruption: bool,
    #[arg(long)]
    pub sick_disks: bool,
    #[arg(long)]
    pub fail_points: bool,
    /// How to play it again
    #[arg(long)]
    pub again: String,
}

/// What a round came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    pub faults: Faults,
    pub calls: u64,
    pub acknowledged: u64,
    pub unknown: u64,
    pub refused: u64,
    /// What each checker looked at, and what that is.
    pub looked_at: Vec<(String, u64, String)>,
    pub longest_outage: Duration,
    /// What was done around it.
    pub outage_faults: Vec<String>,
    pub violations: Vec<String>,
}

/// Plays a round. The history stays in the folder if a promise was broken.
pub fn play(arguments: &RoundArgs) -> Result<Summary> {
    std::fs::create_dir_all(&arguments.folder)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (history, faults, complaints) = runtime.block_on(play_until_done(arguments))?;
    let mut summary = judge(&history);
    summary.faults = faults;
    summary.violations.extend(complaints);
    if !summary.violations.is_empty() {
        history.save(&history_path(&arguments.folder))?;
    }
    Ok(summary)
}

/// Runs the checkers.
pub fn judge(history: &History) -> Summary {
    let report = check::all(history);
    let (longest_outage, outage_faults) = longest_outage(history);
    Summary {
        faults: Faults::default(),
        calls: history.calls.len() as u64,
        acknowledged: report.acknowledged,
        unknown: report.unknown,
        refused: report.refused,
        looked_at: report
            .looked_at
            .iter()
            .map(|(name, count, what)| (name.to_string(), *count, what.to_string()))
            .collect(),
        longest_outage,
        outage_faults,
        violations: report
            .violations
            .iter()
            .map(|found| format!("{}: {}", found.promise, found.what))
            .collect(),
    }
}

/// The longest time in which no linearizable call of any client was answered, and what was done just before and
/// during it.
fn longest_outage(history: &History) -> (Duration, Vec<String>) {
    let answered = history
        .calls
        .iter()
        .filter(|call| call.is_ok() && !call.is_local());
    let mut answered: Vec<_> = answered.map(|call| call.returned).collect();
    answered.sort_unstable();
    let pauses = answered.windows(2).map(|pair| (pair[1] - pair[0], pair[0]));
    let (pause, begun) = pauses.max().unwrap_or_default();
    let around = begun.saturating_sub(1_000_000_000)..begun + pause;
    let faults = history.faults.iter();
    let faults = faults.filter(|fault| around.contains(&fault.at));
    let told = |fault: &Fault| {
        let first = fault.what.lines().next().unwrap_or_default();
        let ms = (i128::from(fault.at) - i128::from(begun)) / 1_000_000;
        format!("{ms:+} ms {first}")
    };
    (Duration::from_nanos(pause), faults.map(told).collect())
}

async fn play_until_done(arguments: &RoundArgs) -> Result<(History, Faults, Vec<String>)> {
    let place = Arc::new(Place::create(&arguments.folder, arguments.namespaces)?);
    let nodes = Nodes::new(
        place.clone(),
        &arguments.binary,
        &arguments.folder.join("logs"),
    )?;
    let recorder = Recorder::new(Setup {
        seed: arguments.seed,
        command: arguments.again.clone(),
        foreign: FOREIGN.map(String::from).into(),
    });
    let mut rng = StdRng::seed_from_u64(arguments.seed);
    let leader = LastLeader::default();
    let mut nemesis = Nemesis {
        nodes: &nodes,
        recorder: recorder.clone(),
        rng: StdRng::seed_from_u64(rng.random()),
        leader: leader.clone(),
        wanted: Wanted {
            corruption: arguments.corruption,
            sick_disks: arguments.sick_disks,
            fail_points: arguments.fail_points,
        },
        faults: Faults::default(),
        complaints: Vec::new(),
        bad_files: Default::default(),
        failing: Default::default(),
        armed: Default::default(),
    };
    for node in 0..NODES {
        nemesis.start(node)?;
    }
    nemesis.wait_whole().await?;
    let clients = Clients::start(&place, &recorder, &mut rng, &leader)?;
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    let played = nemesis.run(until).await;
    let whole = match played {
        Ok(()) => nemesis.wait_whole().await,
        Err(error) => Err(error),
    };
    clients.stop().await;
    let harvested = match whole {
        Ok(()) => harvest::all(&place).await,
        Err(error) => Err(error),
    };
    let mut history = recorder.take();
    let mut complaints = nemesis.complaints;
    match harvested {
        Ok(replicas) => history.replicas = replicas,
        Err(error) => complaints.push(error.to_string()),
    }
    Ok((history, nemesis.faults, complaints))
}

/// Everybody who calls.
struct Clients {
    /// These end when they are told to, the others when they are dropped.
    watchers: JoinSet<()>,
    callers: JoinSet<()>,
    all: Vec<podkv_client::Client>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Clients {
    fn start(
        place: &Place,
        recorder: &Recorder,
        rng: &mut StdRng,
        leader: &LastLeader,
    ) -> Result<Self> {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut clients = Self {
            watchers: JoinSet::new(),
            callers: JoinSet::new(),
            all: Vec::new(),
            stop,
        };
        let mut number = 0;
        let mut caller = |clients: &mut Self, node: Option<usize>| -> Result<(Caller, StdRng)> {
            let client = match node {
                Some(node) => clients::at(place.client_address(node)).build()?,
                None => clients::everywhere(place.client_addresses()).build()?,
            };
            clients.all.push(client.clone());
            number += 1;
            let caller = Caller {
                recorder: recorder.clone(),
                client,
                number,
                rest: Duration::ZERO,
                planted: None,
            };
            Ok((caller, StdRng::seed_from_u64(rng.random())))
        };
        for _ in 0..EVERYWHERE {
            let (caller, rng) = caller(&mut clients, None)?;
            clients.callers.spawn(mix::run(caller, rng));
        }
        for node in 0..NODES {
            for _ in 0..OF_EACH_NODE {
                let (caller, rng) = caller(&mut clients, Some(node))?;
                clients.callers.spawn(mix::run(caller, rng));
            }
            let (caller, _) = caller(&mut clients, Some(node))?;
            let lookout = lookouts::run(caller, node, leader.clone());
            clients.callers.spawn(lookout);
        }
        for _ in 0..LEASE_HOLDERS {
            let (caller, rng) = caller(&mut clients, None)?;
            clients.callers.spawn(lease_holders::run(caller, rng));
        }
        for _ in 0..LARGE {
            let (caller, rng) = caller(&mut clients, None)?;
            clients.callers.spawn(large::run(caller, rng));
        }
        for _ in 0..LOCKERS {
            let (caller, rng) = caller(&mut clients, None)?;
            clients.callers.spawn(lockers::run(caller, rng));
        }
        for _ in 0..WATCHERS {
            let (caller, rng) = caller(&mut clients, None)?;
            let watcher = watchers::run(caller, rng, stopped.clone());
            clients.watchers.spawn(watcher);
        }
        Ok(clients)
    }

    /// Ends them all. What is under way is noted as unknown.
    async fn stop(mut self) {
        self.stop.send_replace(true);
        self.callers.shutdown().await;
        while self.watchers.join_next().await.is_some() {}
        for client in &self.all {
            client.close().await;
        }
    }
}

/// Where the history of a round that failed is.
pub fn history_path(folder: &Path) -> PathBuf {
    folder.join("history.jsonl")
}
