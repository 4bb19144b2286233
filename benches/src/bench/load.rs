//! The generator: many clients, each with one call at a time, on few threads.
//!
//! A thread has a runtime, connections and a histogram of its own, so threads share nothing while they measure. What
//! the generator itself used of the processors stands beside what it measured.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use podkv_api::{Consistency, KeyRange, Put, Range, Store as _};
use podkv_benches::Result;
use podkv_benches::servers::{Cluster, cpu_of};
use podkv_benches::times::Times;
use podkv_client::Client;
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::LocalSet;
use tonic::transport::{Channel, Endpoint};

/// Enough for what two cores can serve; more would only wait for each other.
const THREADS: usize = 2;

/// What each client does, over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Put,
    Get {
        serializable: bool,
    },
    /// From a random key to the last.
    Range {
        limit: i64,
    },
}

/// How it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    Etcd,
    /// podkv's own client, whose calls share streams.
    Native,
}

#[derive(Clone, Debug)]
pub struct Load {
    pub call: Call,
    pub api: Api,
    pub clients: usize,
    pub connections: usize,
    /// Calls go to random ones of so many keys.
    pub keys: u64,
    pub value_bytes: usize,
    pub warm_up: Duration,
    pub measured: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub times: Times,
    pub measured: Duration,
    /// Processor time of all servers, and of the generator.
    pub servers_cpu: Duration,
    pub own_cpu: Duration,
}

impl Loaded {
    pub fn per_second(&self) -> f64 {
        self.times.count() as f64 / self.measured.as_secs_f64()
    }

    /// Microseconds of processor time that the servers took for a call.
    pub fn cpu_us(&self) -> f64 {
        self.servers_cpu.as_secs_f64() * 1e6 / self.times.count().max(1) as f64
    }

    /// The generator's part of all processor time that was used.
    pub fn own_share(&self) -> f64 {
        let own = self.own_cpu.as_secs_f64();
        own / (own + self.servers_cpu.as_secs_f64()).max(f64::MIN_POSITIVE)
    }
}

pub fn key(number: u64) -> Bytes {
    format!("key/{number:012}").into()
}

/// Runs a load on a cluster. Any failed call fails the whole.
pub async fn run(load: &Load, cluster: &Cluster, addresses: &[String]) -> Result<Loaded> {
    let phase = Arc::new(Phase::default());
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (load, phase, addresses) = (load.clone(), phase.clone(), addresses.to_vec());
            std::thread::spawn(move || on_thread(thread, &load, &phase, &addresses))
        })
        .collect();
    tokio::time::sleep(load.warm_up).await;
    let before = (cluster.cpu()?, cpu_of("self")?);
    let begun = Instant::now();
    phase.measures.store(true, Relaxed);
    tokio::time::sleep(load.measured).await;
    phase.measures.store(false, Relaxed);
    let measured = begun.elapsed();
    let after = (cluster.cpu()?, cpu_of("self")?);
    phase.ends.store(true, Relaxed);
    let times = tokio::task::spawn_blocking(move || {
        let mut all = Times::new();
        for thread in threads {
            let times = thread
                .join()
                .map_err(|_| "a thread of the generator panicked")??;
            all.add(&times);
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(all)
    });
    Ok(Loaded {
        times: times.await??,
        measured,
        servers_cpu: after.0.saturating_sub(before.0),
        own_cpu: after.1.saturating_sub(before.1),
    })
}

#[derive(Default)]
struct Phase {
    measures: AtomicBool,
    ends: AtomicBool,
}

fn on_thread(thread: usize, load: &Load, phase: &Phase, addresses: &[String]) -> Result<Times> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let times = Rc::new(RefCell::new(Times::new()));
    LocalSet::new().block_on(&runtime, async {
        let own = |all: usize| (thread..all).step_by(THREADS);
        let mut connections = Vec::new();
        for connection in own(load.connections.max(THREADS)) {
            let address = &addresses[connection % addresses.len()];
            connections.push(Connection::open(load.api, address).await?);
        }
        let clients = own(load.clients).enumerate().map(|(index, client)| {
            let asker = Asker {
                connection: connections[index % connections.len()].clone(),
                load,
                rng: SmallRng::seed_from_u64(client as u64),
                value: vec![b'v'; load.value_bytes].into(),
            };
            asker.run(phase, times.clone())
        });
        futures_util::future::try_join_all(clients).await?;
        for connection in connections {
            connection.close().await;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    })?;
    Ok(times.take())
}

#[derive(Clone)]
enum Connection {
    Etcd(KvClient<Channel>),
    Native(Client),
}

impl Connection {
    async fn open(api: Api, address: &str) -> Result<Self> {
        Ok(match api {
            Api::Etcd => {
                let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
                let channel = endpoint.tcp_nodelay(true).connect().await?;
                Self::Etcd(KvClient::new(channel).max_decoding_message_size(64 << 20))
            }
            Api::Native => {
                let builder = Client::builder().endpoints([address]).fixed(true);
                Self::Native(builder.connect().await?)
            }
        })
    }

    async fn close(self) {
        if let Self::Native(client) = self {
            client.close().await;
        }
    }
}

/// One client.
struct Asker<'a> {
    connection: Connection,
    load: &'a Load,
    rng: SmallRng,
    value: Bytes,
}

impl Asker<'_> {
    async fn run(mut self, phase: &Phase, times: Rc<RefCell<Times>>) -> Result<()> {
        while !phase.ends.load(Relaxed) {
            let measured = phase.measures.load(Relaxed);
            let key = key(self.rng.random_range(0..self.load.keys));
            let begun = Instant::now();
            self.ask(key).await?;
            // Begun and ended while measuring.
            if measured && phase.measures.load(Relaxed) {
                times.borrow_mut().record(begun.elapsed());
            }
        }
        Ok(())
    }

    async fn ask(&mut self, key: Bytes) -> Result<()> {
        match (&mut self.connection, self.load.call) {
            (Connection::Etcd(kv), Call::Put) => {
                let put = pb::PutRequest {
                    key,
                    value: self.value.clone(),
                    ..Default::default()
                };
                kv.put(put).await?;
            }
            (Connection::Etcd(kv), Call::Get { serializable }) => {
                let get = pb::RangeRequest {
                    key,
                    serializable,
                    ..Default::default()
                };
                kv.range(get).await?;
            }
            (Connection::Etcd(kv), Call::Range { limit }) => {
                let range = pb::RangeRequest {
                    key,
                    range_end: "key0".into(),
                    limit,
                    ..Default::default()
                };
                kv.range(range).await?;
            }
            (Connection::Native(client), Call::Put) => {
                client.put(Put::new(key, self.value.clone())).await?;
            }
            (Connection::Native(client), Call::Get { serializable }) => {
                let consistency = match serializable {
                    true => Consistency::Local,
                    false => Consistency::Linearizable,
                };
                let get = Range::new(KeyRange::key(key));
                client.range(get.consistency(consistency)).await?;
            }
            (Connection::Native(client), Call::Range { limit }) => {
                let range = Range::new(KeyRange::from(key));
                client.range(range.limit(limit.unsigned_abs())).await?;
            }
        }
        Ok(())
    }
}
