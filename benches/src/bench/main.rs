//! `podkv-bench`: podkv, real etcds and a gRPC server that does nothing, measured in turn in one run by the same
//! generator on the same machine. Ratios are of one repetition; their medians and spreads are told.
//!
//! ```text
//!   for each repetition ─► for each row ─► for each contestant: start three nodes, load, measure, end
//! ```
//!
//! Everything is on loopback and fsyncs. Connections are spread over the nodes, as those of pods are.

mod failover;
mod keys;
mod load;
mod nothing;
mod report;
mod rows;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use podkv_benches::Result;
use podkv_benches::servers::{Cluster, Program, this_trees};

use self::load::Api;
use self::report::Sample;
use self::rows::{ROWS, Row};

/// Measures podkv beside etcd.
#[derive(Clone, Debug, Parser)]
struct Settings {
    #[command(subcommand)]
    command: Option<Command>,
    /// Which rows, by name; all if none is named. `--list` tells which there are.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    #[arg(long)]
    list: bool,
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Seconds that are measured of each load, after a quarter of that as warm-up.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Keys of the rows about many keys.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// The podkv that is measured. Default: this tree's
    #[arg(long)]
    podkv: Option<PathBuf>,
    /// An etcd, as `name=path`. Default: what `.ci/bench` installed
    #[arg(long, value_parser = named_path)]
    etcd: Vec<(String, PathBuf)>,
    /// Other builds of podkv, as `name=path`, measured in the same run: what a change is worth
    #[arg(long, value_parser = named_path)]
    beside: Vec<(String, PathBuf)>,
    /// Only these, by the names that the tables show
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where the temporary folder is made, by default the system's. It should be the disk in question.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Where the report goes
    #[arg(long, default_value = "benches/results")]
    results: PathBuf,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Serves etcd's calls and does nothing
    #[command(hide = true)]
    Nothing { address: std::net::SocketAddr },
}

fn named_path(text: &str) -> std::result::Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected name=path")?;
    Ok((name.to_owned(), path.into()))
}

/// Who is measured.
#[derive(Clone, Debug)]
pub struct Contestant {
    pub name: String,
    pub program: Program,
    pub api: Api,
}

#[tokio::main]
async fn main() -> Result<()> {
    let settings = Settings::parse();
    if let Some(Command::Nothing { address }) = settings.command {
        return nothing::serve(address).await;
    }
    if settings.list {
        for row in ROWS {
            println!("{:<16}{}", row.name, row.what);
        }
        return Ok(());
    }
    let rows = chosen(&settings.rows)?;
    let samples = tokio::select! {
        samples = measure(&settings, &rows) => samples?,
        // Interrupted, it leaves nothing running and no folder.
        _ = tokio::signal::ctrl_c() => return Err("interrupted".into()),
    };
    let report = report::markdown(&settings, &rows, &samples)?;
    print!("{report}");
    report::write(&settings, &rows, &samples, &report)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Row>> {
    if names.is_empty() {
        return Ok(ROWS.iter().collect());
    }
    let row = |name: &String| {
        let found = ROWS.iter().find(|row| row.name == name);
        found
            .ok_or_else(|| format!("there is no row {name:?}: --list tells which there are").into())
    };
    names.iter().map(row).collect()
}

fn contestants(settings: &Settings) -> Vec<Contestant> {
    let contestant = |name: &str, program, api| Contestant {
        name: name.to_owned(),
        program,
        api,
    };
    let podkv = settings.podkv.clone().unwrap_or_else(this_trees);
    let fast = vec![rows::FAST.to_owned()];
    let leases = Program::Podkv(podkv.clone(), vec![rows::LEASES.to_owned()]);
    let mut all = vec![
        contestant("podkv", Program::Podkv(podkv.clone(), vec![]), Api::Etcd),
        contestant(
            "podkv native",
            Program::Podkv(podkv.clone(), vec![]),
            Api::Native,
        ),
        contestant("podkv lease", leases.clone(), Api::Etcd),
        contestant("podkv lease native", leases, Api::Native),
        contestant("podkv fast", Program::Podkv(podkv, fast), Api::Etcd),
        contestant("nothing", Program::Nothing, Api::Etcd),
    ];
    for (name, binary) in &settings.etcd {
        all.push(contestant(name, Program::Etcd(binary.clone()), Api::Etcd));
    }
    for (name, binary) in &settings.beside {
        let program = Program::Podkv(binary.clone(), vec![]);
        all.push(contestant(name, program.clone(), Api::Etcd));
        all.push(contestant(&format!("{name} native"), program, Api::Native));
    }
    if !settings.only.is_empty() {
        all.retain(|one| settings.only.contains(&one.name));
    }
    all
}

async fn measure(settings: &Settings, rows: &[&Row]) -> Result<Vec<Sample>> {
    let contestants = contestants(settings);
    let bar = ProgressBar::new((settings.repetitions * rows.len()) as u64);
    bar.set_style(ProgressStyle::with_template(
        "{pos}/{len} {msg}, {eta} left",
    )?);
    let mut samples = Vec::new();
    for repetition in 0..settings.repetitions {
        for row in rows {
            for contestant in contestants.iter().filter(|one| row.is_for(one)) {
                bar.set_message(format!("{}: {}", row.name, contestant.name));
                let values = once(settings, row, contestant)
                    .await
                    .map_err(|error| format!("{} of {}: {error}", row.name, contestant.name))?;
                samples.push(Sample {
                    row: row.name,
                    contestant: contestant.name.clone(),
                    repetition,
                    values,
                });
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(samples)
}

async fn once(
    settings: &Settings,
    row: &Row,
    contestant: &Contestant,
) -> Result<Vec<(&'static str, f64)>> {
    let folder = match &settings.folder {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    let mut cluster = Cluster::start(&contestant.program, 3, folder.path()).await?;
    let measured = Duration::from_secs(settings.seconds);
    let values = row
        .run(&mut cluster, contestant, measured, settings.keys)
        .await?;
    cluster.kill_all().await?;
    folder.close()?;
    Ok(values)
}
