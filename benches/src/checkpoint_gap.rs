//! How long does apply stand still while a snapshot is built?
//!
//! One node on disk gets its state filled with values of random bytes, which no compression shrinks. Then
//! writers keep it busy, and in turn a snapshot is built and, for as long again, none is:
//!
//! ```text
//!   fill │ warm up │ checkpoint, then its clean-up │ no checkpoint │ checkpoint, …
//!                  └──────────── window ───────────┴─── as long ───┘
//! ```
//!
//! What a checkpoint sets off goes on behind it: the one before is removed, and the log that it covers.
//! So a window holds some seconds more.
//!
//! A write is acknowledged when the batch that holds it is applied, and all writers ride on the same
//! batches. So the longest time between two successive acknowledgements, of any writers, is the longest
//! gap in apply, as users see it. The two columns differ by what a checkpoint costs; the disk's own pauses
//! are in both.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use podkv_api::{Put, Store as _};
use podkv_node::config::StorageConfig;
use podkv_node::{Node, NodeConfig};
use rand::RngExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Values of the fill: large, so that it is the disk that takes the time.
const FILL_VALUE_BYTES: usize = 64 << 10;
const FILL_WRITERS: usize = 32;
/// While it fills, the log is purged this often, as a node does by itself.
const PURGE_EVERY_BYTES: u64 = 256 << 20;
/// The writers overwrite this many keys.
const LOAD_KEYS: u64 = 100_000;
/// More log than ever is written here: the node builds no snapshot by itself.
const NO_SNAPSHOTS: u64 = 1 << 50;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Measures the longest gap in apply while a snapshot is built, and while none is.
#[derive(Clone, Debug, Parser)]
struct Settings {
    /// How much state to fill in first, in GB (10^9 bytes). Needs about three times as much free space.
    #[arg(long, default_value_t = 2.0)]
    gigabytes: f64,
    /// Writers that are busy meanwhile, each with one write at a time.
    #[arg(long, default_value_t = 64)]
    writers: usize,
    /// Bytes of each value that they write.
    #[arg(long, default_value_t = 1024)]
    value_bytes: usize,
    /// How often to measure.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of load before the first window, and in each window behind the checkpoint.
    #[arg(long, default_value_t = 5)]
    settle_seconds: u64,
    /// Where the temporary folder is made, by default the system's. It should be the disk in question.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let settings = Settings::parse();
    let folder = match &settings.folder {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    // Interrupted, it leaves no gigabytes behind either.
    let result = tokio::select! {
        result = run(&settings, folder.path()) => result,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    folder.close()?;
    result
}

async fn run(settings: &Settings, folder: &Path) -> Result<()> {
    let node = start(folder).await?;
    fill(&node, settings.gigabytes).await?;
    let status = node.status().await?;
    println!(
        "state      {:.2} GB of values in {} keys; {:.2} GB on disk, with the log",
        settings.gigabytes,
        status.keys,
        gigabytes(status.disk_bytes)
    );

    let gaps = Arc::<Gaps>::default();
    let stop = CancellationToken::new();
    let mut writers = JoinSet::new();
    for _ in 0..settings.writers {
        let (node, gaps, stop) = (node.clone(), gaps.clone(), stop.clone());
        writers.spawn(write(node, gaps, stop, settings.value_bytes));
    }
    let measured = measure(settings, &node, &gaps).await;
    stop.cancel();
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    node.shutdown().await;
    measured
}

async fn start(folder: &Path) -> Result<Node> {
    let data_dir = folder.to_path_buf();
    let config = NodeConfig {
        peer_listen: "127.0.0.1:0".into(),
        snapshot_log_bytes: NO_SNAPSHOTS,
        // The disk may be slow; a write that is late is what this is about, no error.
        request_timeout: Duration::from_secs(60),
        ..NodeConfig::new("bench-0", StorageConfig::Disk { data_dir })
    };
    let node = Node::builder(config).start().await?;
    node.health().wait_for(|health| health.ready).await?;
    Ok(node)
}

/// Writes `gigabytes` of random bytes.
async fn fill(node: &Node, gigabytes: f64) -> Result<()> {
    let values = (gigabytes * 1e9 / FILL_VALUE_BYTES as f64).ceil() as u64;
    let style = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}";
    let bar = ProgressBar::new(values * FILL_VALUE_BYTES as u64)
        .with_style(ProgressStyle::with_template(style)?)
        .with_message("filling");
    let next = Arc::<AtomicU64>::default();
    let mut writers = JoinSet::new();
    for _ in 0..FILL_WRITERS {
        let (node, next, bar) = (node.clone(), next.clone(), bar.clone());
        writers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Relaxed);
                if number >= values {
                    return Ok(());
                }
                let value = random_bytes(FILL_VALUE_BYTES);
                node.put(Put::new(format!("fill/{number:010}"), value))
                    .await?;
                bar.inc(FILL_VALUE_BYTES as u64);
                if number % (PURGE_EVERY_BYTES / FILL_VALUE_BYTES as u64) == 0 {
                    node.purge_log().await?;
                }
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        let written: podkv_api::Result<()> = writer?;
        written?;
    }
    bar.finish_and_clear();
    node.purge_log().await?;
    Ok(())
}

async fn write(
    node: Node,
    gaps: Arc<Gaps>,
    stop: CancellationToken,
    value_bytes: usize,
) -> podkv_api::Result<()> {
    while !stop.is_cancelled() {
        let key = rand::rng().random_range(0..LOAD_KEYS);
        let value = random_bytes(value_bytes);
        node.put(Put::new(format!("load/{key:06}"), value)).await?;
        gaps.acknowledged();
    }
    Ok(())
}

async fn measure(settings: &Settings, node: &Node, gaps: &Gaps) -> Result<()> {
    let settle = Duration::from_secs(settings.settle_seconds);
    gaps.open();
    tokio::time::sleep(settle).await;
    let warm = gaps.close();
    println!(
        "load       {} writers of {} bytes: {:.0} writes/s\n",
        settings.writers,
        settings.value_bytes,
        warm.per_second()
    );
    println!("                              window with it         as long without");
    println!("round      checkpoint took    longest gap  writes/s    longest gap  writes/s");
    let mut longest = (Duration::ZERO, Duration::ZERO);
    for round in 1..=settings.rounds {
        gaps.open();
        let began = Instant::now();
        node.purge_log().await?;
        let took = began.elapsed();
        tokio::time::sleep(settle).await;
        let during = close(node, gaps).await?;

        gaps.open();
        tokio::time::sleep(took + settle).await;
        let without = close(node, gaps).await?;
        println!(
            "{round:<10} {:>12.1} ms {:>11.1} ms {:>9.0} {:>11.1} ms {:>9.0}",
            millis(took),
            millis(during.longest),
            during.per_second(),
            millis(without.longest),
            without.per_second()
        );
        longest.0 = longest.0.max(during.longest);
        longest.1 = longest.1.max(without.longest);
    }
    println!(
        "longest    {:>27.1} ms {:>21.1} ms",
        millis(longest.0),
        millis(longest.1)
    );
    Ok(())
}

/// Ends a window behind one more write: a gap that is still open at its end is counted in full.
async fn close(node: &Node, gaps: &Gaps) -> Result<Window> {
    node.put(Put::new("window", "closes")).await?;
    gaps.acknowledged();
    Ok(gaps.close())
}

/// When writes were acknowledged.
#[derive(Default)]
struct Gaps(Mutex<Current>);

struct Current {
    last: Instant,
    opened: Instant,
    longest: Duration,
    writes: u64,
}

impl Default for Current {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            last: now,
            opened: now,
            longest: Duration::ZERO,
            writes: 0,
        }
    }
}

/// What was seen between an open and a close.
struct Window {
    took: Duration,
    /// Between two successive acknowledgements.
    longest: Duration,
    writes: u64,
}

impl Window {
    fn per_second(&self) -> f64 {
        self.writes as f64 / self.took.as_secs_f64()
    }
}

impl Gaps {
    /// A few assignments: a panic leaves nothing half-done.
    fn current(&self) -> MutexGuard<'_, Current> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledged(&self) {
        let mut current = self.current();
        let now = Instant::now();
        current.longest = current.longest.max(now - current.last);
        current.last = now;
        current.writes += 1;
    }

    fn open(&self) {
        let mut current = self.current();
        current.opened = Instant::now();
        current.longest = Duration::ZERO;
        current.writes = 0;
    }

    fn close(&self) -> Window {
        let current = self.current();
        Window {
            took: current.opened.elapsed(),
            longest: current.longest,
            writes: current.writes,
        }
    }
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    rand::rng().fill(&mut bytes[..]);
    bytes
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
