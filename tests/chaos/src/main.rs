//! `podkv-chaos`: plays rounds; checks histories of rounds again. Its hidden command is what it runs itself as, inside
//! namespaces.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use podkv_chaos::Result;
use podkv_chaos::round::{self, RoundArgs};
use podkv_chaos::rounds::{self, Plan, Total};
use podkv_sim::history::History;

/// Real nodes, killed, paused, cut off and starved, and what their clients saw, checked.
#[derive(Debug, Parser)]
#[command(name = "podkv-chaos", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(subcommand)]
    command: Option<Other>,
}

#[derive(Debug, Args)]
struct PlanArgs {
    /// Of the first round
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to play
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Leave bytes of files as they are
    #[arg(long)]
    no_corruption: bool,
    /// Leave disks sound and fast, where there is no strace
    #[arg(long)]
    no_sick_disks: bool,
    /// Let nodes end and stop at named places, too
    #[arg(long)]
    fail_points: bool,
    /// Play with this podkv instead of the one of this tree
    #[arg(long)]
    binary: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Check a history again
    Check { history: PathBuf },
    /// One round, inside its namespaces
    #[command(hide = true)]
    Round(RoundArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Some(Other::Check { history }) => check(history),
        Some(Other::Round(arguments)) => play(arguments),
        None => rounds::play(&Plan {
            seed: cli.plan.seed,
            time: Duration::from_secs_f64(cli.plan.minutes.max(0.0) * 60.0),
            corruption: !cli.plan.no_corruption,
            sick_disks: !cli.plan.no_sick_disks,
            fail_points: cli.plan.fail_points,
            binary: cli.plan.binary,
            program: None,
        })
        .map(|_| ()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podkv-chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play(arguments: &RoundArgs) -> Result<()> {
    let summary = round::play(arguments)?;
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}

fn check(path: &Path) -> Result<()> {
    let history = History::load(path)?;
    let summary = round::judge(&history);
    let is_good = summary.violations.is_empty();
    for violation in &summary.violations {
        eprintln!("{violation}");
    }
    rounds::tell(&Total {
        rounds: 1,
        summary,
        failed: Vec::new(),
    });
    if is_good {
        Ok(())
    } else {
        Err("not as promised".into())
    }
}
