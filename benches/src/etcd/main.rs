//! podkv beside a real etcd, where etcd's users hurt: the same calls of the same client, on the same disk, one after the
//! other; one node each.
//!
//! - **Pages**: a limited range from a random key, with the exact count of all that follow it. etcd walks its index for
//!   the count; podkv keeps counts of blocks. The same at a revision of the past, which is how a long list is paged.
//! - **Count** of all keys.
//! - **Defragment** while writers write: the longest time in which no write was answered. etcd stops the world.
//!
//! ```text
//!   fill (keys, then a tenth of them again) │ pages, newest │ pages, pinned │ count │ write │ write, and defragment
//! ```

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::{ProgressBar, ProgressStyle};
use podkv_benches::Result;
use podkv_benches::servers::{Cluster, Program, this_trees};
use podkv_benches::times::{Percentiles, Times};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use podkv_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use podkv_proto::etcd::etcdserverpb::request_op::Request;
use rand::RngExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// etcd's own limit of operations in a transaction.
const BATCH: u64 = 128;
const FILLERS: usize = 16;

/// Measures podkv beside a real etcd.
#[derive(Clone, Debug, Parser)]
struct Settings {
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Keys in a page.
    #[arg(long, default_value_t = 500)]
    limit: i64,
    /// Pages of each kind, one after another.
    #[arg(long, default_value_t = 300)]
    pages: usize,
    /// Writers beside the defragmentation, each with one write at a time.
    #[arg(long, default_value_t = 16)]
    writers: usize,
    /// Seconds of writing before the defragmentation, and at least beside it.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// The podkv that is measured. Default: this tree's.
    #[arg(long)]
    podkv: Option<PathBuf>,
    #[arg(long, default_value = "etcd")]
    etcd: PathBuf,
    /// Where the temporary folder is made, by default the system's. It should be the disk in question.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// What was measured of one store. In milliseconds, except `revision`.
struct Measured {
    newest: Percentiles,
    pinned: Percentiles,
    count: Percentiles,
    pause_before: Duration,
    pause_beside: Duration,
    defragmented_in: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let settings = Settings::parse();
    let folder = match &settings.folder {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    let both = async {
        let etcd = Program::Etcd(settings.etcd.clone());
        let etcd = Cluster::start(&etcd, 1, folder.path()).await?;
        let etcd = measure(&settings, "etcd", etcd).await?;
        let podkv = settings.podkv.clone().unwrap_or_else(this_trees);
        let podkv = Cluster::start(&Program::Podkv(podkv, vec![]), 1, folder.path()).await?;
        let podkv = measure(&settings, "podkv", podkv).await?;
        report(&settings, &etcd, &podkv);
        Ok(())
    };
    // Interrupted, it leaves nothing behind either.
    let result = tokio::select! {
        result = both => result,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    folder.close()?;
    result
}

async fn measure(
    settings: &Settings,
    name: &'static str,
    mut cluster: Cluster,
) -> Result<Measured> {
    let channel = cluster.connect(0).await?;
    let kv = KvClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    let revision = fill(settings, name, &kv, 0..settings.keys).await?;
    fill(settings, name, &kv, 0..settings.keys / 10).await?;
    let newest = pages(settings, &kv, 0).await?;
    let pinned = pages(settings, &kv, revision).await?;
    let count = count(settings, &kv).await?;

    let gaps = Arc::<Gaps>::default();
    let stop = CancellationToken::new();
    let mut writers = JoinSet::new();
    for writer in 0..settings.writers {
        let (kv, gaps, stop) = (kv.clone(), gaps.clone(), stop.clone());
        writers.spawn(write(kv, writer, settings.value_bytes, gaps, stop));
    }
    let window = Duration::from_secs(settings.seconds);
    tokio::time::sleep(window).await;
    gaps.restart();
    tokio::time::sleep(window).await;
    let pause_before = gaps.restart();
    let begun = Instant::now();
    MaintenanceClient::new(channel)
        .defragment(pb::DefragmentRequest {})
        .await?;
    let defragmented_in = begun.elapsed();
    tokio::time::sleep(window.saturating_sub(defragmented_in)).await;
    let pause_beside = gaps.restart();
    stop.cancel();
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    // The next one has the disk for itself.
    cluster.kill_all().await?;
    Ok(Measured {
        newest,
        pinned,
        count,
        pause_before,
        pause_beside,
        defragmented_in,
    })
}

fn key(number: u64) -> String {
    format!("k/{number:09}")
}

/// Writes keys, and returns the last revision.
async fn fill(
    settings: &Settings,
    name: &'static str,
    kv: &KvClient<Channel>,
    numbers: std::ops::Range<u64>,
) -> Result<i64> {
    let bar = ProgressBar::new(numbers.end).with_prefix(name);
    bar.set_style(ProgressStyle::with_template(
        "{prefix}: {pos} of {len} keys written, {eta} left",
    )?);
    let value = vec![b'v'; settings.value_bytes];
    let batches = numbers.clone().step_by(BATCH as usize);
    let last = stream::iter(batches)
        .map(|first| {
            let put = |number| pb::RequestOp {
                request: Some(Request::RequestPut(pb::PutRequest {
                    key: key(number).into(),
                    value: value.clone().into(),
                    ..Default::default()
                })),
            };
            let batch = pb::TxnRequest {
                success: (first..(first + BATCH).min(numbers.end)).map(put).collect(),
                ..Default::default()
            };
            let (mut kv, bar) = (kv.clone(), bar.clone());
            async move {
                let written = kv.txn(batch).await?.into_inner();
                bar.inc(BATCH);
                Ok::<_, tonic::Status>(written.header.unwrap_or_default().revision)
            }
        })
        .buffer_unordered(FILLERS)
        .try_fold(0, async |last, revision| Ok(last.max(revision)))
        .await?;
    bar.finish_and_clear();
    Ok(last)
}

/// Ranges from random keys to the last, limited, at a revision; 0 is the newest.
async fn pages(settings: &Settings, kv: &KvClient<Channel>, revision: i64) -> Result<Percentiles> {
    let mut kv = kv.clone();
    let mut times = Times::new();
    for _ in 0..settings.pages {
        let first = rand::rng().random_range(0..settings.keys);
        let page = pb::RangeRequest {
            key: key(first).into(),
            range_end: "k0".into(),
            limit: settings.limit,
            revision,
            ..Default::default()
        };
        let begun = Instant::now();
        let found = kv.range(page).await?.into_inner();
        times.record(begun.elapsed());
        let expected = i64::try_from(settings.keys - first)?;
        if (found.count, found.kvs.len() as i64) != (expected, expected.min(settings.limit)) {
            return Err(format!(
                "{} keys from {first}; the count is {}",
                expected, found.count
            )
            .into());
        }
    }
    Ok(times.percentiles())
}

async fn count(settings: &Settings, kv: &KvClient<Channel>) -> Result<Percentiles> {
    let mut kv = kv.clone();
    let mut times = Times::new();
    for _ in 0..settings.pages.min(50) {
        let all = pb::RangeRequest {
            key: "k/".into(),
            range_end: "k0".into(),
            count_only: true,
            ..Default::default()
        };
        let begun = Instant::now();
        let found = kv.range(all).await?.into_inner();
        times.record(begun.elapsed());
        if found.count != i64::try_from(settings.keys)? {
            return Err(format!("the count is {}", found.count).into());
        }
    }
    Ok(times.percentiles())
}

async fn write(
    mut kv: KvClient<Channel>,
    writer: usize,
    value_bytes: usize,
    gaps: Arc<Gaps>,
    stop: CancellationToken,
) -> Result<()> {
    let mut number = 0_u64;
    while !stop.is_cancelled() {
        number += 1;
        let put = pb::PutRequest {
            key: format!("w/{writer}/{}", number % 1000).into(),
            value: vec![b'w'; value_bytes].into(),
            ..Default::default()
        };
        kv.put(put).await?;
        gaps.answered();
    }
    Ok(())
}

/// The longest time between two answers, of any writers.
struct Gaps {
    last: Mutex<Instant>,
    longest_us: AtomicU64,
}

impl Default for Gaps {
    fn default() -> Self {
        Self {
            last: Mutex::new(Instant::now()),
            longest_us: AtomicU64::new(0),
        }
    }
}

impl Gaps {
    fn answered(&self) {
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let gap = now.saturating_duration_since(*last).as_micros();
        *last = now.max(*last);
        let gap = u64::try_from(gap).unwrap_or(u64::MAX);
        self.longest_us.fetch_max(gap, Ordering::Relaxed);
    }

    /// The longest since the last time that it was asked, with the one that lasts.
    fn restart(&self) -> Duration {
        self.answered();
        Duration::from_micros(self.longest_us.swap(0, Ordering::Relaxed))
    }
}

fn report(settings: &Settings, etcd: &Measured, podkv: &Measured) {
    println!(
        "{} keys of {} bytes, a tenth of them written twice; pages of {}; times in ms",
        settings.keys, settings.value_bytes, settings.limit
    );
    println!(
        "{:<42}{:>10}{:>10}{:>16}",
        "", "etcd", "podkv", "etcd / podkv"
    );
    let line = |what: &str, etcd: Duration, podkv: Duration| {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let ratio = ms(etcd) / ms(podkv).max(0.001);
        println!(
            "{what:<42}{:>10.2}{:>10.2}{ratio:>16.1}",
            ms(etcd),
            ms(podkv)
        );
    };
    let pair = |what: &str, etcd: &Percentiles, podkv: &Percentiles| {
        line(&format!("{what}, p50"), etcd.p50, podkv.p50);
        line(&format!("{what}, p99"), etcd.p99, podkv.p99);
    };
    pair("page with count, newest", &etcd.newest, &podkv.newest);
    pair(
        "page with count, pinned revision",
        &etcd.pinned,
        &podkv.pinned,
    );
    pair("count of all", &etcd.count, &podkv.count);
    line(
        "longest pause of writes",
        etcd.pause_before,
        podkv.pause_before,
    );
    line(
        "longest pause beside a defragmentation",
        etcd.pause_beside,
        podkv.pause_beside,
    );
    line(
        "the defragmentation itself",
        etcd.defragmented_in,
        podkv.defragmented_in,
    );
}
