//! `podkv-rehearse`: plays scenarios. Its hidden commands are what it runs itself as, inside namespaces.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use podkv_pods::runner::{self, Plan, StageArgs};
use podkv_pods::scenarios::slow_start;
use podkv_pods::{planted, stage::sandbox};

/// Rehearses Kubernetes: real nodes as pods, started from the rendered manifests.
#[derive(Debug, Parser)]
#[command(name = "podkv-rehearse", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(subcommand)]
    command: Option<Hidden>,
}

#[derive(Debug, Args)]
struct PlanArgs {
    /// Only this scenario; can be given more than once
    #[arg(long)]
    scenario: Vec<String>,
    /// Only this seed
    #[arg(long)]
    seed: Option<u64>,
    /// So many seeds of each scenario, instead of its own number
    #[arg(long)]
    seeds: Option<u64>,
    /// Runs at the same time
    #[arg(long, default_value_t = runner::default_jobs())]
    jobs: usize,
    /// As in `make test`
    #[arg(long)]
    short: bool,
    /// Take this out of the manifests first, like StatefulSet/spec/template/spec/containers/0/lifecycle
    #[arg(long, value_name = "PATH")]
    without: Vec<String>,
    /// Take out, one after the other, what the manifests cannot do without, and see that a scenario fails
    #[arg(long)]
    removals: bool,
    /// Play with this podkv instead of the one of this tree
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Print the scenarios
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Subcommand)]
enum Hidden {
    /// One run, inside its namespaces
    #[command(hide = true)]
    Stage(StageArgs),
    /// One container, inside its namespaces
    #[command(hide = true)]
    Sandbox { spec: PathBuf },
    /// The planted bug, as an entry point
    #[command(hide = true)]
    Planted {
        replicas: usize,
        patience_s: u64,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// A program that is slow to start, as an entry point
    #[command(hide = true)]
    Slow {
        silent_s: u64,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Hidden::Sandbox { spec }) => sandbox::enter(&spec),
        Some(Hidden::Planted {
            replicas,
            patience_s,
            arguments,
        }) => planted::enter(replicas, Duration::from_secs(patience_s), &arguments),
        Some(Hidden::Slow {
            silent_s,
            arguments,
        }) => slow_start::enter(Duration::from_secs(silent_s), &arguments),
        Some(Hidden::Stage(arguments)) => runner::play_here(&arguments),
        None if cli.plan.list => {
            runner::list();
            Ok(())
        }
        None => {
            let removals = cli.plan.removals;
            let plan = Plan {
                scenarios: cli.plan.scenario,
                seed: cli.plan.seed,
                seeds: cli.plan.seeds,
                jobs: cli.plan.jobs,
                short: cli.plan.short,
                without: cli.plan.without,
                binary: cli.plan.binary,
                program: None,
            };
            match removals {
                true => runner::play_removals(&plan),
                false => runner::play_all(&plan),
            }
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podkv-rehearse: {error}");
            ExitCode::FAILURE
        }
    }
}
