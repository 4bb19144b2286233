//! Which runs there are, in what order, some at a time; and the line of each scenario.
//!
//! A run is a process of its own, in namespaces of its own, so runs do not meet. What a run leaves is a folder; it
//! goes when the run was good, and stays, with the pods' logs and volumes, when it was not.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use podkv_tests::process::podkv_binary;

use crate::check::Report;
use crate::removals::{REMOVALS, Removal};
use crate::scenarios::{Length, Run, SCENARIOS, Scenario};
use crate::stage::Manifests;
use crate::{Result, namespaces};

/// What is to be played.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All if empty.
    pub scenarios: Vec<String>,
    pub seed: Option<u64>,
    pub seeds: Option<u64>,
    pub jobs: usize,
    pub short: bool,
    pub without: Vec<String>,
    /// The podkv to play with; that of this tree, built if it is not up to date, if it is not said.
    pub binary: Option<PathBuf>,
    /// This program, where it is not the one that runs: a test is not.
    pub program: Option<PathBuf>,
}

/// What the process of a run is told.
#[derive(Debug, clap::Args)]
pub struct StageArgs {
    #[arg(long)]
    scenario: String,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    short: bool,
    #[arg(long)]
    without: Vec<String>,
    #[arg(long)]
    manifests: PathBuf,
    #[arg(long)]
    binary: PathBuf,
    #[arg(long)]
    folder: PathBuf,
}

/// As many as leave a core to each: a pod that starves tells of the machine, and not of podkv.
pub fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

pub fn list() {
    for scenario in SCENARIOS {
        println!(
            "{:<22} {:>4} seeds  {}",
            scenario.name, scenario.seeds, scenario.what
        );
    }
}

fn find(name: &str) -> Result<&'static Scenario> {
    let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
    found.ok_or_else(|| {
        format!("there is no scenario {name:?}; --list tells which there are").into()
    })
}

/// Plays one run. The process is in its namespaces.
pub fn play_here(arguments: &StageArgs) -> Result<()> {
    let scenario = find(&arguments.scenario)?;
    let mut manifests = Manifests::parse(&fs::read_to_string(&arguments.manifests)?)?;
    for path in &arguments.without {
        manifests = manifests.without(path)?;
    }
    let run = Run {
        seed: arguments.seed,
        length: if arguments.short {
            Length::Short
        } else {
            Length::Full
        },
        manifests,
        binary: arguments.binary.clone(),
        folder: arguments.folder.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let report = runtime.block_on((scenario.play)(run));
    // Pods end with this process, the first of its namespace.
    runtime.shutdown_background();
    println!("{}", serde_json::to_string(&report?)?);
    Ok(())
}

/// This program, and podkv's.
struct StageProgram {
    program: PathBuf,
    binary: PathBuf,
}

struct Job {
    scenario: &'static Scenario,
    seed: u64,
    manifests: PathBuf,
}

/// How one run ended.
struct Outcome {
    seed: u64,
    /// The planted bug.
    found: bool,
    result: Result<Report, String>,
    took: Duration,
}

/// Why no rehearsal is possible on this machine; `None` if one is.
pub fn impossible() -> Option<String> {
    // What renders the manifests comes from a package registry, which this machine may not reach. Whether they are
    // right is for `make manifests`.
    namespaces::missing().or_else(|| Some(namespaces::render(&[]).err()?.to_string()))
}

/// Plays the plan, and prints a line for each scenario.
///
/// # Errors
/// If a run failed, a planted bug was not found, or this machine allows no rehearsal.
pub fn play_all(plan: &Plan) -> Result<()> {
    if let Some(why) = impossible() {
        return Err(why.into());
    }
    let scenarios: Vec<&Scenario> = match plan.scenarios.as_slice() {
        [] => SCENARIOS.iter().collect(),
        names => names.iter().map(|name| find(name)).collect::<Result<_>>()?,
    };
    if let Some(why) = scenarios.iter().find_map(|scenario| (scenario.missing)()) {
        return Err(why.into());
    }
    let (folder, stage) = programs(plan)?;
    let mut bad = Vec::new();
    for scenario in scenarios {
        let manifests = folder.join(format!("{}.json", scenario.name));
        fs::write(&manifests, namespaces::render(scenario.components)?)?;
        let seeds = match plan.seed {
            Some(seed) => vec![seed],
            None => (1..=plan.seeds.unwrap_or(scenario.seeds)).collect(),
        };
        let jobs = seeds.into_iter().map(|seed| Job {
            scenario,
            seed,
            manifests: manifests.clone(),
        });
        let outcomes = play_jobs(plan, jobs.collect(), &stage, &folder);
        if !tell(scenario, &outcomes) {
            bad.push(scenario.name);
        }
    }
    if bad.is_empty() {
        fs::remove_dir_all(&folder)?;
        return Ok(());
    }
    Err(format!("not as promised: {}", bad.join(", ")).into())
}

/// Takes each part out that the manifests cannot do without, and plays the scenario that must miss it.
///
/// # Errors
/// If something was not missed, or this machine allows no rehearsal.
pub fn play_removals(plan: &Plan) -> Result<()> {
    if let Some(why) = impossible() {
        return Err(why.into());
    }
    let (folder, stage) = programs(plan)?;
    let waiting = Mutex::new(REMOVALS.iter().enumerate());
    let not_missed = Mutex::new(0);
    let play = |number: usize, removal: &Removal| -> Result<bool> {
        let scenario = find(removal.scenario)?;
        let manifests = folder.join(format!("{number}.json"));
        fs::write(&manifests, namespaces::render(scenario.components)?)?;
        let plan = Plan {
            short: !removal.full,
            without: vec![removal.path.into()],
            ..plan.clone()
        };
        let job = Job {
            scenario,
            seed: 1,
            manifests,
        };
        let of_run = folder.join(number.to_string());
        let missed = run_process(&plan, &job, &stage, &of_run).is_err();
        remove(&of_run);
        Ok(missed)
    };
    std::thread::scope(|threads| {
        for _ in 0..plan.jobs.max(1) {
            threads.spawn(|| {
                loop {
                    let next = waiting
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .next();
                    let Some((number, removal)) = next else {
                        return;
                    };
                    let verdict = match play(number, removal) {
                        Ok(true) => "missed".to_string(),
                        Ok(false) => "NOT MISSED".to_string(),
                        Err(error) => format!("NOT PLAYED: {error}"),
                    };
                    println!("{:<16} {}: {verdict}", removal.scenario, removal.path);
                    if verdict != "missed" {
                        *not_missed.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                    }
                }
            });
        }
    });
    remove(&folder);
    match not_missed
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        0 => Ok(()),
        several => {
            Err(format!("{several} parts of the manifests are missed by no scenario").into())
        }
    }
}

/// A folder for the runs, and the programs to play with.
fn programs(plan: &Plan) -> Result<(PathBuf, StageProgram)> {
    // Before the build, which may put a new one in its place.
    let program = match &plan.program {
        Some(program) => program.clone(),
        None => std::env::current_exe()?,
    };
    let built = match &plan.binary {
        Some(binary) => binary.clone(),
        None => podkv_binary().to_path_buf(),
    };
    let folder = std::env::temp_dir().join(format!("podkv-rehearsal-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    // Of its own: what is built meanwhile is for the next rehearsal.
    let stage = StageProgram {
        program: folder.join("podkv-rehearse"),
        binary: folder.join("podkv"),
    };
    fs::copy(program, &stage.program)?;
    fs::copy(built, &stage.binary)?;
    Ok((folder, stage))
}

fn play_jobs(
    plan: &Plan,
    jobs: VecDeque<Job>,
    stage: &StageProgram,
    folder: &Path,
) -> Vec<Outcome> {
    let waiting = Mutex::new(jobs);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..plan.jobs.max(1) {
            threads.spawn(|| {
                loop {
                    let job = waiting
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop_front();
                    let Some(job) = job else { return };
                    let outcome = play_job(plan, &job, stage, folder);
                    let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                    // A bug that must be found is found by one seed.
                    if outcome.found {
                        waiting
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .clear();
                    }
                    outcomes.push(outcome);
                }
            });
        }
    });
    let mut outcomes = outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

fn play_job(plan: &Plan, job: &Job, stage: &StageProgram, folder: &Path) -> Outcome {
    let started = Instant::now();
    let of_run = folder.join(format!("{}-{}", job.scenario.name, job.seed));
    let result = run_process(plan, job, stage, &of_run);
    let took = started.elapsed();
    let wanted = job.scenario.must_find;
    let found = result
        .as_ref()
        .is_err_and(|why| wanted.is_some_and(|what| why.contains(what)));
    match &result {
        // What was to be found leaves nothing to look at.
        Ok(_) => remove(&of_run),
        Err(_) if found => remove(&of_run),
        Err(why) if wanted.is_some() => {
            println!(
                "{:<22} not found with seed {}: {why}",
                job.scenario.name, job.seed
            );
            remove(&of_run);
        }
        Err(why) => {
            eprintln!(
                "{} FAILED with seed {} after {took:.0?}:\n{why}\n  logs: {}\n  again: {}\n",
                job.scenario.name,
                job.seed,
                of_run.join("logs").display(),
                again(plan, job)
            );
        }
    }
    Outcome {
        seed: job.seed,
        found,
        result,
        took,
    }
}

fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        eprintln!("{} stays: {error}", folder.display());
    }
}

fn again(plan: &Plan, job: &Job) -> String {
    let mut line = format!(
        "make rehearse REHEARSE=\"--scenario {} --seed {}",
        job.scenario.name, job.seed
    );
    if plan.short {
        line += " --short";
    }
    for path in &plan.without {
        line += &format!(" --without {path}");
    }
    line + "\""
}

fn run_process(
    plan: &Plan,
    job: &Job,
    stage: &StageProgram,
    folder: &Path,
) -> Result<Report, String> {
    let mut command = namespaces::command(&stage.program, ["stage"]);
    command
        .args(["--scenario", job.scenario.name])
        .args(["--seed", &job.seed.to_string()])
        .arg("--manifests")
        .arg(&job.manifests)
        .arg("--binary")
        .arg(&stage.binary)
        .arg("--folder")
        .arg(folder);
    if plan.short {
        command.arg("--short");
    }
    for path in &plan.without {
        command.args(["--without", path]);
    }
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let complaint = child.stderr.take().map(|mut stderr| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            // What it said until then is what there is to tell.
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).trim().to_string()
        })
    });
    let mut report: Option<String> = None;
    let said = child.stdout.take().into_iter().flat_map(|stdout| {
        let lines = BufReader::new(stdout).lines();
        lines.map_while(Result::ok)
    });
    for line in said {
        if line.starts_with('{') {
            report = Some(line);
            continue;
        }
        let (name, seed, at) = (job.scenario.name, job.seed, started.elapsed());
        eprintln!("{name:<22} seed {seed:<3} {:>5} s  {line}", at.as_secs());
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    let complaint = complaint.and_then(|thread| thread.join().ok());
    match report {
        Some(line) if status.success() => {
            serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))
        }
        _ => Err(complaint.unwrap_or_default()),
    }
}

/// The scenario's line. False if it is not as it must be.
fn tell(scenario: &Scenario, outcomes: &[Outcome]) -> bool {
    let good: Vec<&Report> = outcomes
        .iter()
        .filter_map(|outcome| outcome.result.as_ref().ok())
        .collect();
    let failed: Vec<u64> = outcomes
        .iter()
        .filter(|outcome| outcome.result.is_err())
        .map(|outcome| outcome.seed)
        .collect();
    let longest = outcomes
        .iter()
        .map(|outcome| outcome.took)
        .max()
        .unwrap_or_default();
    if scenario.must_find.is_some() {
        let found = outcomes.iter().find(|outcome| outcome.found);
        match found.map(|outcome| outcome.seed) {
            Some(seed) => println!(
                "{:<22} found, as it must be, with seed {seed} of {}",
                scenario.name,
                outcomes.len()
            ),
            None => println!(
                "{:<22} NOT FOUND with {} seeds",
                scenario.name,
                outcomes.len()
            ),
        }
        return found.is_some();
    }
    let acknowledged: usize = good.iter().map(|report| report.acknowledged).sum();
    let unanswered: usize = good.iter().map(|report| report.failed).sum();
    let pause = good
        .iter()
        .map(|report| report.longest_pause)
        .max()
        .unwrap_or_default();
    let notes = good.last().map_or("", |report| report.notes.as_str());
    let lost = match failed.as_slice() {
        [] => "lost = 0".to_string(),
        seeds => format!("FAILED with the seeds {seeds:?}"),
    };
    println!(
        "{:<22} {:>3} seeds  {acknowledged:>6} acknowledged, {unanswered:>4} failed  longest write pause {pause:>6.2?}  {lost}  (a run took up to {longest:.0?}; {notes})",
        scenario.name,
        outcomes.len(),
    );
    failed.is_empty()
}
