//! Rounds, one after another, each with its seed and a process of its own; and what they came to in all.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use podkv_pods::namespaces;
use podkv_tests::process::podkv_binary;

use crate::Result;
use crate::nemesis::Faults;
use crate::round::{Summary, history_path};

/// A history is held in memory until it is checked, and history is not compacted meanwhile.
const LONGEST_ROUND: Duration = Duration::from_secs(240);

/// What is to be played.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of the first round; the next has the next.
    pub seed: u64,
    pub time: Duration,
    pub corruption: bool,
    /// The podkv to play with; that of this tree, built if it is not up to date, if it is not said.
    pub binary: Option<PathBuf>,
    /// This program, where it is not the one that runs: a test is not.
    pub program: Option<PathBuf>,
}

/// What all rounds came to.
#[derive(Clone, Debug, Default)]
pub struct Total {
    pub rounds: u64,
    pub summary: Summary,
    pub failed: Vec<u64>,
}

/// Plays rounds until the time is over, and prints what they came to.
///
/// # Errors
/// If a promise was broken, or a round could not be played.
pub fn play(plan: &Plan) -> Result<Total> {
    let missing = namespaces::missing();
    if let Some(why) = &missing {
        // Past what captures the output of tests: nobody should take this for the whole.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "\nNO PARTITIONS, NO FULL DISKS: {why}\n")?;
    }
    let folder = std::env::temp_dir().join(format!("podkv-chaos-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let program = match &plan.program {
        Some(program) => program.clone(),
        None => std::env::current_exe()?,
    };
    let built = match &plan.binary {
        Some(binary) => binary.clone(),
        None => podkv_binary().to_path_buf(),
    };
    // Of its own: what is built meanwhile is for the next run.
    let (own, binary) = (folder.join("podkv-chaos"), folder.join("podkv"));
    fs::copy(program, &own)?;
    fs::copy(built, &binary)?;
    let begun = Instant::now();
    let mut total = Total::default();
    for seed in plan.seed.. {
        let left = plan.time.saturating_sub(begun.elapsed());
        if left.is_zero() {
            break;
        }
        let of_round = folder.join(format!("seed-{seed}"));
        let round = Round {
            plan,
            seed,
            time: left.min(LONGEST_ROUND).max(Duration::from_secs(10)),
            program: &own,
            binary: &binary,
            folder: &of_round,
            has_namespaces: missing.is_none(),
        };
        let result = round.play();
        total.rounds += 1;
        round.tell(&result);
        match result {
            Ok(summary) => {
                let is_good = summary.violations.is_empty();
                add(&mut total.summary, summary);
                if is_good {
                    fs::remove_dir_all(&of_round)?;
                    continue;
                }
            }
            // The next one could not be played either.
            Err(error) => {
                total.summary.violations.push(error.to_string());
                total.failed.push(seed);
                break;
            }
        }
        total.failed.push(seed);
    }
    tell(&total);
    if total.failed.is_empty() {
        fs::remove_dir_all(&folder)?;
        return Ok(total);
    }
    Err(format!("not as promised with the seeds {:?}", total.failed).into())
}

struct Round<'p> {
    plan: &'p Plan,
    seed: u64,
    time: Duration,
    program: &'p Path,
    binary: &'p Path,
    folder: &'p Path,
    has_namespaces: bool,
}

impl Round<'_> {
    fn again(&self) -> String {
        let minutes = self.time.as_secs_f64() / 60.0;
        let without = match self.plan.corruption {
            true => "",
            false => " CHAOS=--no-corruption",
        };
        format!(
            "make chaos SEED={} MINUTES={minutes:.2}{without}",
            self.seed
        )
    }

    fn play(&self) -> Result<Summary> {
        let mut command = if self.has_namespaces {
            namespaces::command(self.program, [])
        } else {
            Command::new(self.program)
        };
        command
            .arg("round")
            .args(["--seed", &self.seed.to_string()])
            .args(["--seconds", &self.time.as_secs().to_string()])
            .args(["--again", &self.again()])
            .arg("--folder")
            .arg(self.folder)
            .arg("--binary")
            .arg(self.binary);
        if self.has_namespaces {
            command.arg("--namespaces");
        }
        if self.plan.corruption {
            command.arg("--corruption");
        }
        let output = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        match said.lines().last() {
            Some(line) if output.status.success() => Ok(serde_json::from_str(line)?),
            _ => Err(String::from_utf8_lossy(&output.stderr).trim().into()),
        }
    }

    fn tell(&self, result: &Result<Summary>) {
        match result {
            Ok(summary) if summary.violations.is_empty() => println!(
                "seed {}: {} kills, {} other faults, {} operations, longest outage {:.1?}",
                self.seed,
                summary.faults.kills,
                summary.faults.all() - summary.faults.kills,
                summary.calls,
                summary.longest_outage
            ),
            Ok(summary) => {
                eprintln!("seed {} FAILED:", self.seed);
                for violation in &summary.violations {
                    eprintln!("  {violation}");
                }
                eprintln!(
                    "  logs, volumes: {}\n  check again: podkv-chaos check {}\n  play again: {}\n",
                    self.folder.display(),
                    history_path(self.folder).display(),
                    self.again()
                );
            }
            Err(error) => eprintln!(
                "seed {} could not be played: {error}\n  play again: {}\n",
                self.seed,
                self.again()
            ),
        }
    }
}

fn add(total: &mut Summary, one: Summary) {
    total.faults.add(&one.faults);
    total.calls += one.calls;
    total.acknowledged += one.acknowledged;
    total.unknown += one.unknown;
    total.refused += one.refused;
    if one.longest_outage > total.longest_outage {
        total.longest_outage = one.longest_outage;
        total.outage_faults = one.outage_faults;
    }
    total.violations.extend(one.violations);
    for (name, count, what) in one.looked_at {
        match total
            .looked_at
            .iter_mut()
            .find(|(known, ..)| *known == name)
        {
            Some((_, sum, _)) => *sum += count,
            None => total.looked_at.push((name, count, what)),
        }
    }
}

/// The figures of `RELIABILITY.md`.
pub fn tell(total: &Total) {
    let Summary {
        faults,
        calls,
        acknowledged,
        unknown,
        refused,
        looked_at,
        longest_outage,
        outage_faults,
        violations,
    } = &total.summary;
    let Faults {
        kills,
        pauses,
        cuts,
        full_disks,
        full_disk_ends,
        corruptions,
        corruptions_refused,
        whole_restarts,
    } = faults;
    println!("\n{} rounds", total.rounds);
    println!("  kill -9              {kills} ({whole_restarts} times all three at once)");
    println!("  pauses               {pauses}");
    println!("  partitions           {cuts}");
    println!("  full disks           {full_disks} (the node ended {full_disk_ends} times)");
    println!("  turned bytes         {corruptions} (refused at start {corruptions_refused} times)");
    println!(
        "  operations           {calls} ({acknowledged} answered, {unknown} unknown, {refused} refused)"
    );
    println!(
        "  longest outage       {longest_outage:.1?}: {}",
        outage_faults.join(", ")
    );
    for (name, count, what) in looked_at {
        println!("  {name:<27} {count} {what}");
    }
    if violations.is_empty() {
        println!("lost = 0, no violation");
    } else {
        println!("{} VIOLATIONS, seeds {:?}", violations.len(), total.failed);
    }
}
