//! What is measured.

use std::time::Duration;

use podkv_benches::Result;
use podkv_benches::servers::{Cluster, Program};

use crate::load::{Api, Call, Load, Loaded};
use crate::watch::FanOut;
use crate::{Contestant, failover, keys, load, watch};

/// Bytes of a value, as in the figures that this is compared with.
const VALUE_BYTES: usize = 256;
/// Keys that calls go to, where nothing else is said.
const KEYS: u64 = 10_000;

pub struct Row {
    pub name: &'static str,
    pub what: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Load {
        call: Call,
        clients: usize,
        connections: usize,
    },
    Watch,
    Keys,
    Kill,
    HandOver,
}

/// Metrics by which rows are plotted and ratios are told; of the others less is better.
pub const MORE_IS_BETTER: &[&str] = &["calls/s", "fill keys/s", "ranges/s"];

const fn load(
    name: &'static str,
    what: &'static str,
    call: Call,
    clients: usize,
    connections: usize,
) -> Row {
    let kind = Kind::Load {
        call,
        clients,
        connections,
    };
    Row { name, what, kind }
}

const GET: Call = Call::Get {
    serializable: false,
};
const LOCAL_GET: Call = Call::Get { serializable: true };

/// Settings that contestants differ by.
pub const FAST: &str = "--timing=fast";
pub const LEASES: &str = "--lease-reads=true";

pub const ROWS: &[Row] = &[
    load("put-1", "put, 1 client", Call::Put, 1, 1),
    load(
        "put-100",
        "put, 100 clients on 10 connections",
        Call::Put,
        100,
        10,
    ),
    load(
        "put-1000",
        "put, 1000 clients on 20 connections",
        Call::Put,
        1000,
        20,
    ),
    load(
        "get-100",
        "linearizable get, 100 clients on 10 connections",
        GET,
        100,
        10,
    ),
    load(
        "get-local-100",
        "serializable get, 100 clients on 10 connections",
        LOCAL_GET,
        100,
        10,
    ),
    Row {
        name: "watch-1000",
        what: "1000 watchers of a prefix on 20 connections, 100 writers: events",
        kind: Kind::Watch,
    },
    Row {
        name: "keys",
        what: "a million keys: fill, memory, disk, limited ranges, restart",
        kind: Kind::Keys,
    },
    Row {
        name: "kill",
        what: "leader killed by SIGKILL, to the next acknowledged write",
        kind: Kind::Kill,
    },
    Row {
        name: "handover",
        what: "leadership moved, longest time without an acknowledged write",
        kind: Kind::HandOver,
    },
];

impl Row {
    /// Whether it says something of a contestant.
    pub fn is_for(&self, contestant: &Contestant) -> bool {
        let nothing = matches!(contestant.program, Program::Nothing);
        let native = contestant.api == Api::Native;
        let has = |setting: &str| matches!(&contestant.program, Program::Podkv(_, extra) if extra.iter().any(|one| one == setting));
        let fast = has(FAST);
        if has(LEASES) {
            return matches!(self.kind, Kind::Load { call: GET, .. });
        }
        match self.kind {
            Kind::Load { .. } => !fast,
            Kind::Watch => !fast && !native,
            Kind::Keys => !fast && !native && !nothing,
            Kind::Kill | Kind::HandOver => !native && !nothing,
        }
    }

    pub async fn run(
        &self,
        cluster: &mut Cluster,
        contestant: &Contestant,
        measured: Duration,
        keys: u64,
    ) -> Result<Vec<(&'static str, f64)>> {
        let warm_up = measured / 4;
        match self.kind {
            Kind::Load {
                call,
                clients,
                connections,
            } => {
                let load = Load {
                    call,
                    api: contestant.api,
                    clients,
                    connections,
                    keys: KEYS,
                    value_bytes: VALUE_BYTES,
                    warm_up,
                    measured,
                };
                if !matches!(call, Call::Put) {
                    keys::fill(cluster, KEYS, VALUE_BYTES).await?;
                }
                let addresses = cluster.addresses();
                Ok(values(&load::run(&load, cluster, &addresses).await?))
            }
            Kind::Watch => {
                let fan_out = FanOut {
                    watchers: 1000,
                    writers: 100,
                    connections: 20,
                    value_bytes: VALUE_BYTES,
                    warm_up,
                    measured,
                };
                Ok(values(&watch::run(fan_out, cluster).await?))
            }
            Kind::Keys => keys::run(cluster, keys, VALUE_BYTES, measured).await,
            Kind::Kill => Ok(vec![("pause ms", ms(failover::kill(cluster).await?))]),
            Kind::HandOver => Ok(vec![("pause ms", ms(failover::hand_over(cluster).await?))]),
        }
    }
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn values(loaded: &Loaded) -> Vec<(&'static str, f64)> {
    let times = loaded.times.percentiles();
    vec![
        ("calls/s", loaded.per_second()),
        ("p50 ms", ms(times.p50)),
        ("p99 ms", ms(times.p99)),
        ("p99.9 ms", ms(times.p999)),
        ("server CPU µs/call", loaded.cpu_us()),
        ("generator's part of CPU %", 100.0 * loaded.own_share()),
    ]
}
