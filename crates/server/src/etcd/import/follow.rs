//! Follows etcd from the copied revision on: its changes, and what becomes of its leases.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use podkv_api::{Delete, Error, KeyRange, LeaseId, Op, Put, Reason, Result, Revision, Store};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::mvccpb::event::EventType;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::large;
use super::source::{Source, failed, key_value};

/// How often etcd's revision and leases are looked at. The shortest lease of etcd lives for two seconds.
const LOOK: Duration = Duration::from_millis(500);
/// Changes in one transaction here: what every cluster accepts, whatever its settings.
const MAX_OPS: usize = 128;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Everything up to this revision of etcd is here.
    pub here: Revision,
    /// etcd's revision when it was last asked.
    pub there: Revision,
}

/// Applies everything after `revision`, until `stop` completes; then what is left at that moment. Returns the revision of
/// etcd up to which everything is here.
///
/// # Errors
/// Those of either side. It can be begun again only from an empty cluster.
pub(crate) async fn follow(
    source: &Source,
    store: &impl Store,
    revision: Revision,
    stop: impl Future<Output = ()>,
    mut progress: impl FnMut(Progress),
) -> Result<Revision> {
    // The restore may have taken longer than a token lives.
    source.position().await?;
    let (_open, mut changes) = source.watch(revision + 1).await?;
    let mut leases = Leases::begin(source, store).await?;
    let mut here = revision;
    let mut there = revision;
    // Set when it is to end: the last revision that counts.
    let mut last = None;
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(stop);
    while last.is_none_or(|last| here < last) {
        tokio::select! {
            () = &mut stop, if last.is_none() => last = Some(source.position().await?.1),
            response = changes.message() => {
                let response = response.map_err(failed)?.ok_or_else(|| {
                    Error::new(Reason::WatchLost, "etcd ended the watch: begin again, into an empty cluster")
                })?;
                check(&response)?;
                let (revisions, upto) = by_revision(response);
                for changes in revisions {
                    apply(source, store, &mut leases, changes).await?;
                    // What comes late comes in thousands.
                    leases.keep_at_times(source, store).await?;
                }
                here = here.max(upto);
            }
            _ = look.tick() => {
                there = source.position().await?.1;
                leases.keep(source, store).await?;
                // Nothing comes for revisions that are not there: a watch of everything sees all of them.
                progress(Progress { here, there: there.max(here) });
            }
        }
    }
    progress(Progress {
        here,
        there: there.max(here),
    });
    Ok(here)
}

fn check(response: &pb::WatchResponse) -> Result<()> {
    if response.compact_revision != 0 {
        let text = "etcd has compacted what was to come next: begin again, into an empty cluster";
        return Err(Error::new(Reason::Compacted, text));
    }
    if response.canceled {
        let text = format!("etcd ended the watch: {}", response.cancel_reason);
        return Err(Error::new(Reason::WatchLost, text));
    }
    Ok(())
}

/// The changes of one revision, in their order.
type Changes = Vec<(EventType, podkv_api::KeyValue)>;

/// A response may hold several revisions, each whole.
fn by_revision(response: pb::WatchResponse) -> (Vec<Changes>, Revision) {
    let mut revisions: Vec<Changes> = Vec::new();
    let mut current = 0;
    for event in response.events {
        let kind = event.r#type();
        let Some(kv) = event.kv.map(key_value) else {
            continue;
        };
        if kv.mod_revision != current {
            current = kv.mod_revision;
            revisions.push(Vec::new());
        }
        if let Some(last) = revisions.last_mut() {
            last.push((kind, kv));
        }
    }
    (revisions, current)
}

async fn apply(
    source: &Source,
    store: &impl Store,
    leases: &mut Leases,
    changes: Changes,
) -> Result<()> {
    let mut ops = VecDeque::new();
    let at = changes.last().map_or(0, |(_, kv)| kv.mod_revision);
    for (kind, kv) in changes {
        let key = KeyRange::key(kv.key.clone());
        match (kind, kv.lease) {
            (EventType::Delete, _) => ops.push_back(Op::from(Delete::new(key))),
            (EventType::Put, None) => ops.push_back(Op::from(Put::new(kv.key, kv.value))),
            // A lease that has ended took its keys along; etcd will say so next.
            (EventType::Put, Some(lease)) => match leases.has(source, store, lease).await? {
                true => ops.push_back(Op::from(Put::new(kv.key, kv.value).lease(lease))),
                false => ops.push_back(Op::from(Delete::new(key))),
            },
        }
    }
    while !ops.is_empty() {
        let most = ops.len().min(MAX_OPS);
        large::apply(source, store, leases, ops.drain(..most).collect(), at).await?;
    }
    Ok(())
}

/// etcd's leases that are here as well.
pub(super) struct Leases {
    here: BTreeMap<LeaseId, Lease>,
    looked: Instant,
}

struct Lease {
    ttl: Duration,
    kept: Instant,
}

impl Leases {
    async fn begin(source: &Source, store: &impl Store) -> Result<Self> {
        let mut leases = Self {
            here: BTreeMap::new(),
            looked: Instant::now(),
        };
        let here = store.leases().await?;
        for (id, ttl_ms) in source.leases().await? {
            if here.contains(&id) {
                leases.note(id, ttl_ms);
            }
        }
        Ok(leases)
    }

    fn note(&mut self, id: LeaseId, ttl_ms: u64) {
        let lease = Lease {
            ttl: Duration::from_millis(ttl_ms),
            // Of unknown age here: kept alive at the next look.
            kept: Instant::now() - Duration::from_millis(ttl_ms).min(Duration::from_secs(3600)),
        };
        self.here.insert(id, lease);
    }

    /// Whether the lease is here; it is granted if it is not, and etcd has it.
    async fn has(&mut self, source: &Source, store: &impl Store, id: LeaseId) -> Result<bool> {
        if self.here.contains_key(&id) {
            return Ok(true);
        }
        let Some(ttl_ms) = source.granted(id).await? else {
            return Ok(false);
        };
        match store
            .lease_grant(Duration::from_millis(ttl_ms), Some(id))
            .await
        {
            Ok(_) => {}
            // Restored with the copy, or an earlier answer was lost.
            Err(error) if error.reason() == Reason::LeaseExists => {}
            Err(error) => return Err(error),
        }
        self.note(id, ttl_ms);
        Ok(true)
    }

    /// The same, if it was not done just now.
    pub(super) async fn keep_at_times(
        &mut self,
        source: &Source,
        store: &impl Store,
    ) -> Result<()> {
        if self.looked.elapsed() < LOOK {
            return Ok(());
        }
        self.keep(source, store).await
    }

    /// Keeps alive here what lives there, and forgets what has ended there: etcd's watch tells of its keys, and what is
    /// left of the lease ends by itself.
    async fn keep(&mut self, source: &Source, store: &impl Store) -> Result<()> {
        self.looked = Instant::now();
        let is_due = |lease: &Lease| lease.kept.elapsed() >= lease.ttl / 3;
        let due: Vec<_> = self
            .here
            .iter()
            .filter(|(_, lease)| is_due(lease))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if source.granted(id).await?.is_none() {
                self.here.remove(&id);
                continue;
            }
            match store.lease_keep_alive(id).await {
                Ok(_) => {
                    if let Some(lease) = self.here.get_mut(&id) {
                        lease.kept = Instant::now();
                    }
                }
                Err(error) if error.reason() == Reason::LeaseNotFound => {
                    self.here.remove(&id);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
