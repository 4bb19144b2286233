//! The scenarios, each a promise of `k8s/README.md` or of the design, in the order in which they are shown.

mod bad_input;
mod first_start;
mod kills;
mod lost_volumes;
mod majority;
mod moves;
mod projection;
mod recovery;
mod rolling_restart;
mod scaling;
pub mod slow_start;
mod tls;
mod two_claimants;
mod wrong_certificates;
mod wrong_volumes;

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::Result;
use crate::check::Report;
use crate::stage::{Family, HostNames, Manifests, Setting, Stage};

/// How much of a scenario is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// For `make test`.
    Short,
    /// For `make rehearse`.
    Full,
}

/// What a run is given.
#[derive(Clone, Debug)]
pub struct Run {
    pub seed: u64,
    pub length: Length,
    pub manifests: Manifests,
    pub binary: PathBuf,
    pub folder: PathBuf,
}

impl Run {
    /// All that is left to chance in this run.
    pub fn random(&self) -> StdRng {
        StdRng::seed_from_u64(self.seed)
    }

    /// One of two, by length.
    pub fn by_length<T>(&self, short: T, full: T) -> T {
        match self.length {
            Length::Short => short,
            Length::Full => full,
        }
    }

    /// A stage on which nothing runs yet.
    pub async fn stage(&self, replicas: u32) -> Result<Stage> {
        self.stage_with(replicas, |_| {}).await
    }

    pub async fn stage_with(
        &self,
        replicas: u32,
        change: impl FnOnce(&mut Setting),
    ) -> Result<Stage> {
        let mut setting = Setting {
            manifests: self.manifests.clone(),
            binary: self.binary.clone(),
            folder: self.folder.clone(),
            seed: self.seed,
            replicas,
            family: Family::V4,
            endpoint_lag: Duration::from_secs(2),
            host_names: HostNames::OfPods,
        };
        change(&mut setting);
        Stage::set(setting).await
    }

    /// A cluster that is whole and whose pods are ready.
    pub async fn cluster(&self, replicas: u32) -> Result<Stage> {
        let stage = self.stage(replicas).await?;
        stage.start_all().await?;
        stage.wait_whole().await?;
        stage.wait_all_ready().await?;
        stage.wait_virtual_addresses().await?;
        Ok(stage)
    }
}

/// A scenario, and how often it is played.
pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
    /// Of the manifests; or an example that stands beside the cluster.
    pub components: &'static [&'static str],
    pub seeds: u64,
    /// Of a planted bug: what the run must say that it found.
    pub must_find: Option<&'static str>,
    /// Why it cannot be played here, beyond what all need.
    pub missing: fn() -> Option<String>,
    pub play: fn(Run) -> LocalBoxFuture<'static, Result<Report>>,
}

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "first-start",
        what: "parallel first start of 3, 4 and 5 pods, with delays, crashes, lost volumes and changing sizes",
        components: &[],
        seeds: 100,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(first_start::play(run, first_start::Trouble::Pods)),
    },
    Scenario {
        name: "first-start-planted",
        what: "the same with \"wait for N, then go alone\" planted, which must be found",
        components: &[],
        seeds: 5,
        must_find: Some("CLUSTERS"),
        missing: || None,
        play: |run| Box::pin(first_start::play(run, first_start::Trouble::Planted)),
    },
    Scenario {
        name: "first-start-dns",
        what: "the same with DNS failing, lying and answering in part",
        components: &[],
        seeds: 20,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(first_start::play(run, first_start::Trouble::Dns)),
    },
    Scenario {
        name: "rolling-restart",
        what: "a rolling restart: no client of any kind sees a failure",
        components: &[],
        seeds: 2,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(rolling_restart::play(run)),
    },
    Scenario {
        name: "new-addresses",
        what: "every pod gets a new address, one by one and all at once; odd seeds have IPv6 alone",
        components: &[],
        seeds: 2,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(moves::play(run)),
    },
    Scenario {
        name: "lost-volumes",
        what: "a pod loses its volume, every ordinal and the leader, 30 times in a row",
        components: &[],
        seeds: 1,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(lost_volumes::play(run)),
    },
    Scenario {
        name: "two-claimants",
        what: "two pods that live claim one name: no ping-pong",
        components: &[],
        seeds: 1,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(two_claimants::play(run)),
    },
    Scenario {
        name: "scaling",
        what: "3-5-3-1-3, 5-1, 3-0-3, with all excess pods ended at once and old volumes coming back; 20 pods",
        components: &[],
        seeds: 1,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(scaling::play(run)),
    },
    Scenario {
        name: "wrong-volumes",
        what: "a foreign volume, another pod's, and a pod's own as it was before: refused, or joined anew",
        components: &[],
        seeds: 1,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(wrong_volumes::play(run)),
    },
    Scenario {
        name: "kills",
        what: "SIGKILL of a pod every few seconds, and one that hangs",
        components: &[],
        seeds: 2,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(kills::play(run)),
    },
    Scenario {
        name: "slow-start",
        what: "a node that takes longer to start than its liveness probe waits is left in peace",
        components: &[],
        seeds: 1,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(slow_start::play(run)),
    },
    Scenario {
        name: "lost-majority",
        what: "writes are refused with the reason, local reads go on; pods come back, and so do writes",
        components: &[],
        seeds: 1,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(majority::play(run)),
    },
    Scenario {
        name: "recovery",
        what: "the volumes of a majority are gone: podkv recover; then the old majority comes back",
        components: &[],
        seeds: 1,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(recovery::play(run)),
    },
    Scenario {
        name: "bad-input",
        what: "names, services, domains, Roles and sizes that are wrong: a clear error, never a guess",
        components: &[],
        seeds: 1,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(bad_input::play(run)),
    },
    Scenario {
        name: "projection",
        what: "directories follow 10 000 keys, served by nginx as it comes, through a kill and a rolling restart",
        components: &["examples/projection"],
        seeds: 1,
        must_find: None,
        missing: projection::missing,
        play: |run| Box::pin(projection::play(run)),
    },
    Scenario {
        name: "tls",
        what: "TLS off, allow, require, and new certificates, all under load",
        components: &["tls"],
        seeds: 1,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(tls::play(run)),
    },
    Scenario {
        name: "wrong-certificates",
        what: "certificates that are expired, of another CA and of another set's pods: named, and mended without a restart",
        components: &["tls"],
        seeds: 1,
        must_find: None,
        missing: || None,
        play: |run| Box::pin(wrong_certificates::play(run)),
    },
];
