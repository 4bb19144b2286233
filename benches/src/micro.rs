//! Micro-benchmarks of what a write passes through: codec, apply, the log, the state, the fan-out to watches.
//!
//! One thread and no network, so that a change of some percent is seen here that a loaded cluster hides. What it is worth
//! in a cluster only `make bench` tells.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::StreamExt as _;
use podkv_api::{KeyRange, Put, Store as _, Watch};
use podkv_core::{Applier, Command, Entry, MemoryView, Proposal};
use podkv_node::identity::Identity;
use podkv_node::storage::{LogWrite, Storage, Volume};
use podkv_node::testing;

/// As in `make bench`.
const VALUE_BYTES: usize = 256;
const KEYS: u64 = 10_000;
/// What queues on a busy leader while the entry before is on its way.
const PUTS: u64 = 100;
const WATCHERS: usize = 1000;

fn put(number: u64) -> Put {
    // Spread over the keys, and always the same.
    let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
    Put::new(format!("key-{key:016}"), vec![b'v'; VALUE_BYTES])
}

fn entry(number: u64) -> Entry {
    let puts = (number * PUTS..(number + 1) * PUTS).map(put);
    Entry {
        clock_ms: number,
        proposals: puts.map(|put| Proposal::from(Command::Put(put))).collect(),
    }
}

fn codec(criterion: &mut Criterion) {
    let entry = entry(0);
    let encoded = entry.encode();
    let mut group = criterion.benchmark_group("codec, entry of 100 puts");
    group.throughput(Throughput::Elements(PUTS));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| black_box(&entry).encode());
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| Entry::decode(black_box(&encoded)));
    });
    group.finish();
}

/// A state in which every key was written.
fn filled() -> MemoryView {
    let mut view = MemoryView::new();
    let mut applier = Applier::new(&view).expect("an empty view is a state");
    for number in 0..KEYS / PUTS {
        let applied = applier.apply(&entry(number));
        applied.expect("a put applies");
    }
    let writes = applier.finish().writes;
    view.commit(writes);
    view
}

fn apply(criterion: &mut Criterion) {
    let view = filled();
    let mut number = 0;
    let mut group = criterion.benchmark_group("apply, batch of 100 puts");
    group.throughput(Throughput::Elements(PUTS));
    group.bench_function("core alone", |bencher| {
        bencher.iter_batched(
            || {
                number += 1;
                entry(number)
            },
            |entry| {
                let mut applier = Applier::new(&view).expect("the view is a state");
                let outcomes = applier.apply(&entry).expect("puts apply");
                (outcomes, applier.finish())
            },
            BatchSize::SmallInput,
        );
    });
    let disk = Disk::new();
    disk.commit(view.iter());
    group.bench_function("with the state on disk", |bencher| {
        bencher.iter_batched(
            || {
                number += 1;
                entry(number)
            },
            |entry| {
                let effects = {
                    let view = disk.storage.state.view();
                    let mut applier = Applier::new(&*view).expect("the view is a state");
                    applier.apply(&entry).expect("puts apply");
                    applier.finish()
                };
                let committed = disk.storage.state.commit(effects.writes);
                committed.expect("the disk takes it");
                effects.events
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn log_append(criterion: &mut Criterion) {
    let disk = Disk::new();
    let record = entry(0).encode();
    let mut index = 0;
    let mut group = criterion.benchmark_group("log");
    group.throughput(Throughput::Bytes(record.len() as u64));
    group.bench_function("append an entry of 100 puts, synced", |bencher| {
        bencher.iter(|| {
            index += 1;
            let record = record.clone();
            let written = disk
                .storage
                .log
                .write(&[LogWrite::Append { index, record }]);
            written.expect("the disk takes it");
        });
    });
    group.finish();
}

fn watch_fan_out(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (node, mut watches, _cluster) = runtime.block_on(async {
        let cluster = testing::cluster(1).await;
        let node = cluster.node(0);
        let mut watches = Vec::new();
        for _ in 0..WATCHERS {
            let watch = node.watch(Watch::new(KeyRange::prefix("key-"))).await;
            watches.push(watch.expect("the node serves"));
        }
        (node, watches, cluster)
    });
    let mut number = 0;
    let mut group = criterion.benchmark_group("watch");
    group.throughput(Throughput::Elements(WATCHERS as u64));
    group.bench_function("a put, until 1000 watchers have it", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                number += 1;
                node.put(put(number)).await.expect("the node serves");
                for watch in &mut watches {
                    let batch = watch.next().await;
                    black_box(
                        batch
                            .expect("a watch goes on")
                            .expect("nothing is compacted"),
                    );
                }
            });
        });
    });
    group.finish();
}

/// The stores of a node on disk.
struct Disk {
    storage: Storage,
    _folder: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let volume = Volume::disk(folder.path()).expect("the folder is free");
        let identity = Identity::open(volume.markers(), "bench-0").expect("the folder is new");
        let storage = volume.open_stores(&identity, 128 << 20);
        Self {
            storage: storage.expect("the stores are new"),
            _folder: folder,
        }
    }

    fn commit<'a>(&self, records: impl Iterator<Item = (&'a Bytes, &'a Bytes)>) {
        let writes = records
            .map(|(key, value)| (key.clone(), Some(value.clone())))
            .collect();
        let committed = self.storage.state.commit(writes);
        committed.expect("the disk takes it");
    }
}

criterion_group!(benches, codec, apply, log_append, watch_fan_out);
criterion_main!(benches);
