//! Rounds, one after another, each with its seed and a process of its own; and what they came to in all.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use podkv_node::FAIL_POINTS;
use podkv_pods::namespaces;
use podkv_tests::process::{binary_with_fail_points, podkv_binary};

use crate::Result;
use crate::nemesis::Faults;
use crate::round::{Summary, history_path};
use crate::sick;

/// A history is held in memory until it is checked, and history is not compacted meanwhile.
const LONGEST_ROUND: Duration = Duration::from_secs(240);

/// From here on every fail point must have been met.
const LONG: Duration = Duration::from_secs(30 * 60);

/// What is to be played.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of the first round; the next has the next.
    pub seed: u64,
    pub time: Duration,
    pub corruption: bool,
    /// Disks fail and are slow, which takes strace.
    pub sick_disks: bool,
    /// Nodes end and stop at named places, too. Takes a podkv of its own.
    pub fail_points: bool,
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
    if plan.sick_disks
        && let Some(why) = sick::missing()
    {
        return Err(format!("{why}. Without sick disks: CHAOS=--no-sick-disks").into());
    }
    let folder = std::env::temp_dir().join(format!("podkv-chaos-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let program = match &plan.program {
        Some(program) => program.clone(),
        None => std::env::current_exe()?,
    };
    let built = match &plan.binary {
        Some(binary) => binary.clone(),
        None if plan.fail_points => binary_with_fail_points(),
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
    let never = never_sprang(plan, &total);
    if !never.is_empty() {
        return Err(format!("no node ended at {}", never.join(", ")).into());
    }
    if total.failed.is_empty() {
        fs::remove_dir_all(&folder)?;
        return Ok(total);
    }
    Err(format!("not as promised with the seeds {:?}", total.failed).into())
}

/// A fail point that is never met tests nothing. Short runs do not meet them all.
fn never_sprang(plan: &Plan, total: &Total) -> Vec<&'static str> {
    if !plan.fail_points || plan.time < LONG {
        return Vec::new();
    }
    let sprang = &total.summary.faults.fail_points;
    let names = FAIL_POINTS.iter().copied();
    names.filter(|name| !sprang.contains_key(*name)).collect()
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
        let mut without = Vec::new();
        if !self.plan.corruption {
            without.push("--no-corruption");
        }
        if !self.plan.sick_disks {
            without.push("--no-sick-disks");
        }
        let without = match without.is_empty() {
            true => String::new(),
            false => format!(" CHAOS=\"{}\"", without.join(" ")),
        };
        let goal = match self.plan.fail_points {
            true => "chaos-points",
            false => "chaos",
        };
        let seed = self.seed;
        format!("make {goal} SEED={seed} MINUTES={minutes:.2}{without}")
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
        if self.plan.sick_disks {
            command.arg("--sick-disks");
        }
        if self.plan.fail_points {
            command.arg("--fail-points");
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
        failed_disks,
        failed_disk_ends,
        slow_disks,
        slow_disk_elections,
        fail_points,
        replacements,
    } = faults;
    println!("\n{} rounds", total.rounds);
    println!("  kill -9              {kills} ({whole_restarts} times all three at once)");
    println!("  pauses               {pauses}");
    println!("  partitions           {cuts}");
    println!("  full disks           {full_disks} (the node ended {full_disk_ends} times)");
    println!("  turned bytes         {corruptions} (refused at start {corruptions_refused} times)");
    println!("  failing disks        {failed_disks} (the node ended {failed_disk_ends} times)");
    if !fail_points.is_empty() {
        println!(
            "  fail points          {}",
            fail_points.values().sum::<u64>()
        );
        for name in FAIL_POINTS {
            println!("    {name:<25} {}", fail_points.get(*name).unwrap_or(&0));
        }
        println!("  lost volumes         {replacements}, with fail points in what replaces them");
    }
    println!("  slow disks           {slow_disks} ({slow_disk_elections} elections meanwhile)");
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
