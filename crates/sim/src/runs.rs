//! One run, and many.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use podkv_sim::check;
use podkv_sim::world::plan::{Plan, Planted};
use podkv_sim::world::{self, Outside};
use serde::{Deserialize, Serialize};

use crate::outside;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A run takes seconds of a processor, and minutes if the cluster does not become whole: that is to be told as what it is.
/// On a busy machine those may take any time.
const RUN_PATIENCE: Duration = Duration::from_secs(300);
/// In so many runs every fault is made.
const ALL_FAULTS: u64 = 300;
/// How often a run is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What is wanted of a run, besides its verdict.
#[derive(Default)]
pub struct Wishes {
    pub history: Option<PathBuf>,
    pub trace: Option<PathBuf>,
    pub log: Option<String>,
    pub planted: Option<Planted>,
    pub json: bool,
}

/// What a run came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Summary {
    seed: u64,
    /// Of everything that happened, in hexadecimal.
    trace: String,
    events: u64,
    disk_steps: BTreeMap<String, u64>,
    simulated_ms: u64,
    real_ms: u64,
    calls: u64,
    acknowledged: u64,
    unknown: u64,
    refused: u64,
    looked_at: BTreeMap<String, u64>,
    faults: BTreeMap<String, u64>,
    violations: Vec<String>,
}

/// Plays one seed. True if every promise held.
pub fn one(seed: u64, wishes: Wishes) -> Result<bool, Failure> {
    // Before the world begins: what logging draws by lot must not be drawn from it.
    start_logging(wishes.log.as_deref())?;
    let json = wishes.json;
    let panics = Arc::<Mutex<Vec<String>>>::default();
    std::panic::set_hook({
        let panics = panics.clone();
        Box::new(move |panic| {
            let text = format!("a panic: {panic}");
            eprintln!("{text}");
            lock(&panics).push(text);
        })
    });
    let begun = outside::real_time();
    outside::leave(seed);
    // A thread of its own: what libraries keep for each thread, they draw anew, and from this seed.
    let played = std::thread::Builder::new()
        .name("world".into())
        .stack_size(64 << 20)
        .spawn(move || play(seed, &wishes))?;
    let mut summary = played
        .join()
        .map_err(|_| "the world itself panicked: see above")??;
    summary.real_ms = millis(outside::real_time() - begun);
    summary.violations.append(&mut lock(&panics));
    if json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        tell(&summary);
    }
    Ok(summary.violations.is_empty())
}

fn play(seed: u64, wishes: &Wishes) -> Result<Summary, Failure> {
    let plan = Plan::of(seed).with(wishes.planted);
    #[cfg(feature = "planted")]
    if let Some(bug) = wishes.planted.and_then(Planted::in_the_node) {
        podkv_node::planted::plant(bug);
    }
    if !wishes.json {
        println!("{plan:?}");
    }
    let trace_file = wishes
        .trace
        .as_ref()
        .map(std::fs::File::create)
        .transpose()?;
    let outside = Outside {
        time: outside::set_time,
        wall: outside::set_wall,
        trace_file,
        command: again(seed),
    };
    let played = world::play(&plan, outside)?;
    let report = check::all(&played.history);
    let mut violations = played.complaints;
    violations.extend(
        report
            .violations
            .iter()
            .map(|found| format!("{}: {}", found.promise, found.what)),
    );
    if let Some(path) = &wishes.history
        && !violations.is_empty()
    {
        played.history.save(path)?;
    }
    let looked_at = report.looked_at.iter();
    Ok(Summary {
        seed,
        trace: format!("{:016x}", played.hash),
        events: played.events,
        disk_steps: named(&played.disk_steps),
        simulated_ms: millis(played.simulated),
        real_ms: 0,
        calls: played.history.calls.len() as u64,
        acknowledged: report.acknowledged,
        unknown: report.unknown,
        refused: report.refused,
        looked_at: looked_at
            .map(|(name, count, what)| (format!("{name}: {what}"), *count))
            .collect(),
        faults: named(&played.faults),
        violations,
    })
}

fn named(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    let named = counts
        .iter()
        .map(|(what, count)| (what.to_string(), *count));
    named.collect()
}

fn add(sum: &mut BTreeMap<String, u64>, counts: BTreeMap<String, u64>) {
    for (what, count) in counts {
        *sum.entry(what).or_default() += count;
    }
}

/// Plays many seeds, `jobs` at once. True if every promise held in all of them. With a planted bug: until it is found.
pub fn many(from: u64, seeds: u64, jobs: usize, planted: Option<Planted>) -> Result<bool, Failure> {
    let binary = std::env::current_exe()?;
    let next = AtomicU64::new(from);
    let total = Mutex::new(Total::default());
    let begun = outside::real_time();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    let found = planted.is_some() && !lock(&total).failed.is_empty();
                    if found || seed >= from + seeds {
                        return;
                    }
                    let summary = child(&binary, seed, planted);
                    lock(&total).add(summary, seeds, outside::real_time() - begun);
                }
            });
        }
    });
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    total.tell(outside::real_time() - begun);
    let Some(bug) = planted else {
        let never = total.never();
        if !never.is_empty() {
            println!("in so many runs these were never made, and should be: {never:?}");
        }
        return Ok(total.failed.is_empty() && never.is_empty());
    };
    match total.failed.is_empty() {
        true => println!("{bug:?} was NOT FOUND in {} seeds", total.seeds),
        false => println!("{bug:?} was found in {} seeds", total.seeds),
    }
    Ok(!total.failed.is_empty())
}

fn child(binary: &std::path::Path, seed: u64, planted: Option<Planted>) -> Summary {
    let mut command = Command::new(binary);
    command.args(["--json", "--seed", &seed.to_string()]);
    if let Some(bug) = planted.as_ref().and_then(ValueEnum::to_possible_value) {
        command.args(["--planted", bug.get_name()]);
    }
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(ended);
    let failed = |why: String| Summary {
        seed,
        violations: vec![why],
        ..Summary::default()
    };
    match output {
        Err(error) => failed(error.to_string()),
        Ok(output) => serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            let last = String::from_utf8_lossy(&output.stderr);
            let last: Vec<_> = last.lines().rev().take(5).collect();
            failed(format!("the run ended with {}: {last:?}", output.status))
        }),
    }
}

/// Waits for a run. One that spins in a moment of its world, where time stands still, never ends by itself.
fn ended(mut run: std::process::Child) -> std::io::Result<std::process::Output> {
    while run.try_wait()?.is_none() {
        if outside::processor_time(run.id())? > RUN_PATIENCE {
            run.kill()?;
            run.wait()?;
            let text = "the run does not end: something in it spins, and no time passes";
            return Err(std::io::Error::other(text));
        }
        std::thread::sleep(LOOK);
    }
    run.wait_with_output()
}

#[derive(Default)]
struct Total {
    sum: Summary,
    seeds: u64,
    failed: Vec<u64>,
}

impl Total {
    fn add(&mut self, summary: Summary, of: u64, real: Duration) {
        self.seeds += 1;
        if !summary.violations.is_empty() {
            println!("\nseed {} failed:", summary.seed);
            for violation in &summary.violations {
                println!("  {violation}");
            }
            println!("  play it again: {}", again(summary.seed));
            self.failed.push(summary.seed);
        }
        let sum = &mut self.sum;
        sum.events += summary.events;
        sum.simulated_ms += summary.simulated_ms;
        sum.calls += summary.calls;
        sum.acknowledged += summary.acknowledged;
        sum.unknown += summary.unknown;
        sum.refused += summary.refused;
        add(&mut sum.looked_at, summary.looked_at);
        add(&mut sum.faults, summary.faults);
        add(&mut sum.disk_steps, summary.disk_steps);
        if std::io::stderr().is_terminal() || self.seeds.is_multiple_of(100) {
            let minutes = real.as_secs_f64() / 60.0;
            eprintln!(
                "{} of {of} seeds, {} failed, {:.1} a minute",
                self.seeds,
                self.failed.len(),
                self.seeds as f64 / minutes
            );
        }
    }

    /// Faults that should have been made by now: one that never is, tests nothing.
    fn never(&self) -> Vec<&str> {
        let faults = self.sum.faults.iter().filter(|(_, count)| **count == 0);
        match self.seeds >= ALL_FAULTS {
            true => faults.map(|(kind, _)| kind.as_str()).collect(),
            false => Vec::new(),
        }
    }

    fn tell(&self, real: Duration) {
        tell(&self.sum);
        println!(
            "{} seeds, {} failed {:?}; {:.1} simulated hours in {:.1} minutes",
            self.seeds,
            self.failed.len(),
            self.failed,
            self.sum.simulated_ms as f64 / 3_600_000.0,
            real.as_secs_f64() / 60.0,
        );
    }
}

fn tell(summary: &Summary) {
    println!(
        "calls {}, acknowledged {}, unknown {}, refused {}",
        summary.calls, summary.acknowledged, summary.unknown, summary.refused
    );
    println!("looked at {:?}", summary.looked_at);
    println!("faults {:?}", summary.faults);
    println!(
        "{:.1} simulated seconds, {} events, steps of disks {:?}",
        summary.simulated_ms as f64 / 1000.0,
        summary.events,
        summary.disk_steps
    );
    if summary.seed != 0 {
        println!(
            "seed {} trace {} in {:.1} s",
            summary.seed,
            summary.trace,
            summary.real_ms as f64 / 1000.0
        );
    }
    for violation in &summary.violations {
        println!("VIOLATION {violation}");
    }
    if !summary.violations.is_empty() {
        println!("play it again: {}", again(summary.seed));
    }
}

fn again(seed: u64) -> String {
    format!("make sim SEED={seed}")
}

/// Logs carry the world's time, because this process has no other.
fn start_logging(filter: Option<&str>) -> Result<(), Failure> {
    let Some(filter) = filter else {
        return Ok(());
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_new(filter)?)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .try_init()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
