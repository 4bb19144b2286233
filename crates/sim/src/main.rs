//! `podkv-sim`: plays seeds. Each is a process of its own, so that nothing is left over from the one before.
//!
//! ```text
//!   podkv-sim --seed 7                  one run, told in words
//!   podkv-sim --seeds 10000 --jobs 2    many, and the command that replays each that failed
//! ```

mod outside;
mod runs;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use podkv_sim::world::plan::Planted;

#[derive(Debug, Parser)]
#[command(
    name = "podkv-sim",
    about = "Real nodes in a simulated world: one seed, one run"
)]
struct Arguments {
    /// Play this seed
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Play so many seeds
    #[arg(long)]
    seeds: Option<u64>,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// At once
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Keep the history of a seed that fails here
    #[arg(long)]
    history: Option<PathBuf>,
    /// Write every event of the run here: to find out where two runs part
    #[arg(long)]
    trace: Option<PathBuf>,
    /// What the nodes and clients log, with the time of the world: podkv_node=debug
    #[arg(long)]
    log: Option<String>,
    /// Put a bug into the world; it must be found
    #[arg(long, value_enum)]
    planted: Option<Planted>,
    /// Print one line of JSON
    #[arg(long, hide = true)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let clean = match (arguments.seed, arguments.seeds) {
        (Some(seed), _) => runs::one(seed, arguments.into()),
        (None, Some(seeds)) => runs::many(arguments.from, seeds, arguments.jobs, arguments.planted),
        (None, None) => Err("--seed or --seeds is needed".into()),
    };
    match clean {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("podkv-sim: {error}");
            ExitCode::from(2)
        }
    }
}

impl From<Arguments> for runs::Wishes {
    fn from(arguments: Arguments) -> Self {
        Self {
            history: arguments.history,
            trace: arguments.trace,
            log: arguments.log,
            planted: arguments.planted,
            json: arguments.json,
        }
    }
}
