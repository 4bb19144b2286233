//! What is done to the nodes.
//!
//! One fault after another, drawn from the seed; most are `kill -9`. A node that is back is not waited for: the next
//! fault may hit it while it replays, or while it is behind. Now and then two are down at once, and then nothing is
//! acknowledged until one is back.
//!
//! A node that ends by itself is started again, as a kubelet would. That it ended is a failure of the round, unless
//! its disk was full or failed, or a byte of its files was turned.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podkv_api::{MemberRole, Store as _};
use podkv_node::FAIL_POINTS;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::Result;
use crate::nodes::Nodes;
use crate::place::{Cut, NODES};
use crate::sick::Sickness;
use podkv_sim::clients;
use podkv_sim::clients::lookouts::LastLeader;
use podkv_sim::recorder::Recorder;

/// How long a node whose data was taken may need to be whole again: an id is replaced after ten seconds.
const REJOIN: Duration = Duration::from_secs(60);

/// How long disks are slow, once all nodes serve on them.
const SLOW: Duration = Duration::from_secs(6);

/// How often each was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    pub kills: u64,
    pub pauses: u64,
    pub cuts: u64,
    pub full_disks: u64,
    /// Of these the node ended, and said why.
    pub full_disk_ends: u64,
    pub corruptions: u64,
    /// Of these the node refused to start.
    pub corruptions_refused: u64,
    /// All nodes at once; their kills are counted above, too.
    pub whole_restarts: u64,
    pub failed_disks: u64,
    /// Of these the node ended, and said why.
    pub failed_disk_ends: u64,
    pub slow_disks: u64,
    /// While disks were slow.
    pub slow_disk_elections: u64,
    /// How often a node ended at each.
    pub fail_points: BTreeMap<String, u64>,
    pub replacements: u64,
}

impl Faults {
    pub fn add(&mut self, other: &Self) {
        self.kills += other.kills;
        self.pauses += other.pauses;
        self.cuts += other.cuts;
        self.full_disks += other.full_disks;
        self.full_disk_ends += other.full_disk_ends;
        self.corruptions += other.corruptions;
        self.corruptions_refused += other.corruptions_refused;
        self.whole_restarts += other.whole_restarts;
        self.failed_disks += other.failed_disks;
        self.failed_disk_ends += other.failed_disk_ends;
        self.slow_disks += other.slow_disks;
        self.slow_disk_elections += other.slow_disk_elections;
        self.replacements += other.replacements;
        for (name, times) in &other.fail_points {
            *self.fail_points.entry(name.clone()).or_default() += times;
        }
    }

    pub fn all(&self) -> u64 {
        self.kills
            + self.pauses
            + self.cuts
            + self.full_disks
            + self.corruptions
            + self.failed_disks
            + self.slow_disks
            + self.replacements
            + self.fail_points.values().sum::<u64>()
    }
}

/// Which faults are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Bytes of files are turned while their node is down.
    pub corruption: bool,
    /// Disks fail, and disks are slow.
    pub sick_disks: bool,
    /// Nodes end or stop at places that are named; the binary can do that.
    pub fail_points: bool,
}

/// A place at which a node is to end, or to stop.
#[derive(Clone, Debug)]
pub struct Armed {
    name: String,
    nth: u32,
    what: &'static str,
}

impl Armed {
    fn at(name: &str, rng: &mut StdRng) -> Self {
        // The first time, or somewhere in the middle of the load.
        let nth = match rng.random_bool(0.5) {
            true => rng.random_range(1..4),
            false => rng.random_range(1..300),
        };
        let what = match rng.random_bool(0.8) {
            true => "kill",
            false => "stop",
        };
        let name = name.to_owned();
        Self { name, nth, what }
    }

    fn any(rng: &mut StdRng) -> Option<Self> {
        let nth = rng.random_range(0..FAIL_POINTS.len());
        FAIL_POINTS.get(nth).map(|name| Self::at(name, rng))
    }

    fn stops(&self) -> bool {
        self.what == "stop"
    }

    /// What the node's command begins with.
    fn prefix(&self) -> Vec<String> {
        let Self { name, nth, what } = self;
        let told = format!("CHAOS_FAIL_POINT={name}:{nth}:{what}");
        vec!["env".into(), told]
    }
}

pub struct Nemesis<'n> {
    pub nodes: &'n Nodes,
    pub recorder: Recorder,
    pub rng: StdRng,
    pub leader: LastLeader,
    pub wanted: Wanted,
    pub faults: Faults,
    /// What nobody should have seen.
    pub complaints: Vec<String>,
    /// The file of each node in which a byte was turned. It may be read much later, and the node end then.
    pub bad_files: [Option<PathBuf>; NODES],
    /// Nodes whose disk fails: they may end.
    pub failing: [bool; NODES],
    pub armed: [Option<Armed>; NODES],
}

impl Nemesis<'_> {
    /// Goes on until `until`, then puts everything back.
    pub async fn run(&mut self, until: Instant) -> Result<()> {
        while Instant::now() < until {
            self.pause(100..1800).await;
            self.revive()?;
            let dice = self.rng.random_range(0..1000);
            let has_place = self.nodes.place.has_namespaces();
            match dice {
                600..650 if self.wanted.fail_points => self.replace().await?,
                0..650 => self.kill().await?,
                650..690 => self.kill_two().await?,
                690..710 => self.kill_all().await?,
                710..800 => self.stop().await,
                800..960 if has_place => self.cut().await?,
                960..975 if has_place => self.fill().await?,
                975..983 if self.wanted.corruption => self.corrupt().await?,
                983..992 if self.wanted.sick_disks => self.fail_disk().await?,
                // Nodes that end at fail points are elections of their own.
                992.. if self.wanted.sick_disks && !self.wanted.fail_points => {
                    self.slow_disks().await?
                }
                _ => self.kill().await?,
            }
        }
        self.put_back()
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        sleep(Duration::from_millis(self.rng.random_range(ms))).await;
    }

    fn note(&self, what: String) {
        self.recorder.fault(what);
    }

    /// The leader as often as both others together.
    fn victim(&mut self) -> usize {
        match self.leader.get() {
            Some(leader) if self.rng.random_bool(0.5) => leader,
            _ => self.rng.random_range(0..NODES),
        }
    }

    /// Starts what ended by itself.
    fn revive(&mut self) -> Result<()> {
        for node in 0..NODES {
            // What a fail point stopped goes on.
            if self.armed[node].as_ref().is_some_and(Armed::stops) {
                self.nodes.signal(node, Signal::CONT);
            }
            let Some((status, why)) = self.nodes.ended(node) else {
                continue;
            };
            self.note(why.clone());
            let armed = self.armed[node].take();
            if let Some(armed) = armed.filter(|_| status.signal() == Some(Signal::KILL.as_raw())) {
                *self.faults.fail_points.entry(armed.name).or_default() += 1;
                self.start(node)?;
                continue;
            }
            // Whatever is bad in its files, it was the disk that it ended of.
            if std::mem::take(&mut self.failing[node]) {
                self.faults.failed_disk_ends += 1;
            } else if let Some(file) = self.bad_files[node].take() {
                self.empty_volume(node, &file, &why)?;
            } else {
                self.complaints.push(why);
            }
            self.start(node)?;
        }
        Ok(())
    }

    /// A node has found what was done to a file of its, and ended. What a person does then: an empty volume. It comes
    /// back under another id.
    fn empty_volume(&mut self, node: usize, file: &Path, said: &str) -> Result<()> {
        self.faults.corruptions_refused += 1;
        let text = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let (name, folder) = (
            text(file.file_name()),
            text(file.parent().and_then(Path::file_name)),
        );
        if !said.contains(&name) && !said.contains(&folder) {
            let file = file.display();
            let complaint = format!("podkv-{node} does not say that {file} is bad:\n{said}");
            self.complaints.push(complaint);
        }
        fs::remove_dir_all(self.nodes.place.data(node))?;
        self.note(format!("empty volume for podkv-{node}"));
        Ok(())
    }

    fn kill_now(&mut self, node: usize) {
        self.note(format!("kill -9 podkv-{node}"));
        self.nodes.kill(node);
        self.faults.kills += 1;
    }

    /// With fail points, mostly with one of them.
    pub fn start(&mut self, node: usize) -> Result<()> {
        let armed = match self.wanted.fail_points && self.rng.random_bool(0.8) {
            true => Armed::any(&mut self.rng),
            false => None,
        };
        self.start_armed(node, armed)
    }

    fn start_armed(&mut self, node: usize, armed: Option<Armed>) -> Result<()> {
        self.note(format!("start podkv-{node}, fail point {armed:?}"));
        let prefix = armed.as_ref().map(Armed::prefix).unwrap_or_default();
        self.armed[node] = armed;
        self.nodes.start_below(node, &prefix)
    }

    /// A node loses its volume while the others, of whom one leads, end or stop in the change of the members.
    async fn replace(&mut self) -> Result<()> {
        const CHANGES: [&str; 3] = ["members-to-change", "members-applied", "members-changed"];
        self.settle().await;
        self.wait_whole().await?;
        let node = self.rng.random_range(0..NODES);
        for other in (0..NODES).filter(|other| *other != node) {
            self.kill_now(other);
            let name = CHANGES[self.rng.random_range(0..CHANGES.len())];
            let armed = Armed {
                nth: self.rng.random_range(1..4),
                ..Armed::at(name, &mut self.rng)
            };
            self.start_armed(other, Some(armed))?;
        }
        // Somebody must hold everything before a copy goes.
        self.wait_whole().await?;
        self.kill_now(node);
        fs::remove_dir_all(self.nodes.place.data(node))?;
        self.note(format!("empty volume for podkv-{node}"));
        self.faults.replacements += 1;
        self.start(node)?;
        self.wait_whole().await
    }

    async fn kill(&mut self) -> Result<()> {
        let node = self.victim();
        self.kill_now(node);
        self.pause(0..500).await;
        self.start(node)?;
        // Again while it starts: it must stand that, too.
        if self.rng.random_bool(0.15) {
            self.pause(0..300).await;
            self.revive()?;
            self.kill_now(node);
            self.start(node)?;
        }
        Ok(())
    }

    async fn kill_two(&mut self) -> Result<()> {
        let spared = self.rng.random_range(0..NODES);
        for node in (0..NODES).filter(|node| *node != spared) {
            self.kill_now(node);
        }
        self.pause(0..800).await;
        for node in (0..NODES).filter(|node| *node != spared) {
            self.start(node)?;
            self.pause(0..300).await;
        }
        self.settle().await;
        Ok(())
    }

    async fn kill_all(&mut self) -> Result<()> {
        for node in 0..NODES {
            self.kill_now(node);
        }
        self.faults.whole_restarts += 1;
        self.pause(0..300).await;
        for node in 0..NODES {
            self.start(node)?;
        }
        self.settle().await;
        Ok(())
    }

    /// Lets an election happen before the next fault, or a run of bad luck leaves nothing to check.
    async fn settle(&mut self) {
        self.pause(1000..2500).await;
    }

    async fn stop(&mut self) {
        let node = self.victim();
        self.note(format!("SIGSTOP podkv-{node}"));
        self.nodes.signal(node, Signal::STOP);
        self.faults.pauses += 1;
        self.pause(200..4000).await;
        self.note(format!("SIGCONT podkv-{node}"));
        self.nodes.signal(node, Signal::CONT);
    }

    async fn cut(&mut self) -> Result<()> {
        let node = self.victim();
        let other = (node + self.rng.random_range(1..NODES)) % NODES;
        let cut = match self.rng.random_range(0..3) {
            0 => Cut::Peers,
            1 => Cut::From(other),
            _ => Cut::All,
        };
        self.note(format!("cut podkv-{node}: {cut:?}"));
        self.nodes.place.cut(node, cut)?;
        self.faults.cuts += 1;
        self.pause(300..3000).await;
        if self.rng.random_bool(0.2) {
            let node = self.rng.random_range(0..NODES);
            self.kill_now(node);
            self.start(node)?;
            self.pause(300..1500).await;
        }
        self.note(format!("heal podkv-{node}"));
        self.nodes.place.heal(node)
    }

    /// A disk without a byte left, and then with space again.
    async fn fill(&mut self) -> Result<()> {
        let node = self.victim();
        let place = self.nodes.place.clone();
        let taken =
            tokio::task::spawn_blocking(move || place.fill(node).map_err(|e| e.to_string()))
                .await??;
        self.note(format!(
            "fill the disk of podkv-{node}: {} MiB",
            taken >> 20
        ));
        self.faults.full_disks += 1;
        self.pause(1000..6000).await;
        if self.rng.random_bool(0.3) {
            self.kill_now(node);
            self.start(node)?;
            self.pause(500..2000).await;
        }
        self.note(format!("space for podkv-{node}"));
        self.nodes.place.free(node)?;
        // What it does without space is its own affair, as long as it loses nothing: it may end.
        if let Some((_, why)) = self.nodes.ended(node) {
            self.note(format!("on a full disk: {why}"));
            self.faults.full_disk_ends += 1;
            self.start(node)?;
        }
        self.settle().await;
        Ok(())
    }

    /// A disk whose syncs or reads fail, from some moment on and until the node is started anew. It may end or go on; that it
    /// acknowledges nothing that is lost is for the checkers.
    async fn fail_disk(&mut self) -> Result<()> {
        let node = self.victim();
        let sickness = Sickness::failing(&mut self.rng);
        self.kill_now(node);
        self.note(format!("start podkv-{node} on a sick disk: {sickness:?}"));
        self.faults.failed_disks += 1;
        self.failing[node] = true;
        self.armed[node] = None;
        self.nodes.start_below(node, &sickness.prefix())?;
        self.wait_end(node).await;
        if self.nodes.is_running(node) {
            self.kill_now(node);
            self.failing[node] = false;
            return self.start(node);
        }
        self.revive()
    }

    /// The syncs of one node, or of all, take long. That is no reason to elect: heartbeats need no disk.
    async fn slow_disks(&mut self) -> Result<()> {
        self.settle().await;
        self.wait_whole().await?;
        let sickness = Sickness::slow(&mut self.rng);
        let slow: Vec<_> = match self.rng.random_bool(0.5) {
            true => (0..NODES).collect(),
            false => vec![self.rng.random_range(0..NODES)],
        };
        for node in &slow {
            self.kill_now(*node);
            self.note(format!("start podkv-{node} on a slow disk: {sickness:?}"));
            self.armed[*node] = None;
            self.nodes.start_below(*node, &sickness.prefix())?;
        }
        self.faults.slow_disks += 1;
        self.wait_whole().await?;
        let before = self.term().await?;
        sleep(SLOW).await;
        let elections = self.term().await? - before;
        self.faults.slow_disk_elections += elections;
        if elections > 1 {
            let complaint = format!(
                "{elections} elections in {SLOW:?} because disks were slow: {sickness:?} of {slow:?}"
            );
            self.complaints.push(complaint);
        }
        for node in slow {
            self.kill_now(node);
            self.start(node)?;
        }
        Ok(())
    }

    /// The latest that a node knows of.
    async fn term(&self) -> Result<u64> {
        let mut latest = 0;
        for node in 0..NODES {
            let client = clients::at(self.nodes.place.client_address(node)).build()?;
            let status = client.status().await;
            client.close().await;
            latest = latest.max(status?.header.term);
        }
        Ok(latest)
    }

    /// Turns a byte in a file of a node that is down. It must refuse to start and name the file, or never serve what
    /// is wrong; the second is for the checkers.
    async fn corrupt(&mut self) -> Result<()> {
        // With another node down or behind, what is lost here could be the last copy: no promise covers that.
        self.settle().await;
        self.wait_whole().await?;
        let node = self.rng.random_range(0..NODES);
        self.kill_now(node);
        let Some(file) = self.some_file(node) else {
            return self.start(node);
        };
        let at = turn_a_byte(&file, &mut self.rng)?;
        self.note(format!("turn byte {at} of {}", file.display()));
        self.faults.corruptions += 1;
        self.bad_files[node] = Some(file);
        self.start(node)?;
        // If it ends, it is given an empty volume while the others are whole.
        self.wait_end(node).await;
        self.wait_whole().await
    }

    /// Gives a node the time in which it would end by itself.
    async fn wait_end(&self, node: usize) {
        for _ in 0..60 {
            if !self.nodes.is_running(node) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn some_file(&mut self, node: usize) -> Option<PathBuf> {
        let mut files = Vec::new();
        find_files(&self.nodes.place.data(node), &mut files);
        files.retain(|file| {
            let extension = file.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("log" | "sst"))
                && fs::metadata(file).is_ok_and(|file| file.len() > 0)
        });
        files.sort();
        let nth = self.rng.random_range(0..files.len().max(1));
        files.into_iter().nth(nth)
    }

    /// Waits until all nodes vote and have applied what the first had.
    pub async fn wait_whole(&mut self) -> Result<()> {
        let begun = Instant::now();
        let mut last = String::new();
        while begun.elapsed() < REJOIN {
            self.revive()?;
            match self.is_whole().await {
                Ok(()) => return Ok(()),
                Err(why) => last = why,
            }
            sleep(Duration::from_millis(200)).await;
        }
        Err(format!("not whole again after {REJOIN:?}: {last}").into())
    }

    async fn is_whole(&self) -> Result<(), String> {
        let mut least = 0;
        for node in 0..NODES {
            let client = clients::at(self.nodes.place.client_address(node))
                .build()
                .map_err(|error| error.to_string())?;
            let status = client.status().await;
            client.close().await;
            let status = status.map_err(|error| format!("podkv-{node}: {error}"))?;
            if status.role != Some(MemberRole::Voter) || status.leader.is_none() {
                let (role, leader) = (status.role, status.leader);
                return Err(format!("podkv-{node} is {role:?}, its leader {leader:?}"));
            }
            if status.header.revision < least {
                let at = status.header.revision;
                return Err(format!("podkv-{node} is at revision {at} of {least}"));
            }
            // The first's, and they were all asked after it.
            if node == 0 {
                least = status.header.revision;
            }
        }
        Ok(())
    }

    /// No fault is left.
    fn put_back(&mut self) -> Result<()> {
        for node in 0..NODES {
            if self.nodes.place.has_namespaces() {
                self.nodes.place.heal(node)?;
                self.nodes.place.free(node)?;
            }
            self.nodes.signal(node, Signal::CONT);
        }
        self.revive()
    }
}

fn find_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find_files(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// Turns one bit of a byte somewhere in the file.
fn turn_a_byte(path: &Path, rng: &mut StdRng) -> Result<u64> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    let at = rng.random_range(0..file.metadata()?.len());
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << rng.random_range(0..8);
    file.write_all_at(&byte, at)?;
    Ok(at)
}
