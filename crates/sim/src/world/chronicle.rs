//! Compacts history while the world goes on, and writes down beforehand what is forgotten: the checkers need all of it,
//! and a replica tells no more than it has kept.
//!
//! What is written down comes from one watch over all nodes. It stands for the beginning of every replica's history; from
//! the compaction on each replica tells its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use podkv_api::{KeyRange, Range, Result, Store as _};
use podkv_client::Client;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::time::timeout;

use super::network::Link;
use super::people::{self, Door};
use crate::harvest;
use crate::history::{Change, Revision};

/// A node that is paused or cut off tells nothing.
const PATIENCE: Duration = Duration::from_secs(3);
/// Revisions that are left to be read, at most: some watchers find what they resume from, and some do not.
const MOST_LEFT: u64 = 200;

/// What was written down. Clones are the same chronicle.
#[derive(Clone, Default)]
pub struct Chronicle(Arc<Mutex<Told>>);

#[derive(Clone, Default)]
pub struct Told {
    /// Every change up to the last of them.
    pub changes: Vec<Change>,
    /// History may be gone up to here: a compaction without an answer counts.
    pub compacted: Revision,
    /// Compactions that were answered.
    pub compactions: u64,
}

impl Told {
    fn last(&self) -> Revision {
        self.changes.last().map_or(1, |change| change.revision)
    }
}

impl Chronicle {
    pub fn told(&self) -> Told {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until it is told to stop.
///
/// # Errors
/// If its client cannot be made.
pub async fn run(
    (link, door): (Link, Door),
    pods: u32,
    chronicle: Chronicle,
    seed: u64,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let client = people::client(&link, &door, pods, None)?;
    let mut rng = StdRng::seed_from_u64(seed);
    loop {
        let pause = Duration::from_millis(rng.random_range(500..5000));
        let left = rng.random_range(0..MOST_LEFT);
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            () = tokio::time::sleep(pause) => {}
        }
        // It is a client like others: what fails is tried again the next time.
        let _ = timeout(PATIENCE, compact(&client, &chronicle, left)).await;
    }
    client.close().await;
    Ok(())
}

async fn compact(client: &Client, chronicle: &Chronicle, left: u64) -> Result<()> {
    let now = client.range(Range::new(KeyRange::key("none"))).await?;
    let last = chronicle.lock().last();
    if now.header.revision > last {
        let more = harvest::changes(client, last + 1, now.header.revision).await?;
        chronicle.lock().changes.extend(more);
    }
    let upto = now.header.revision.saturating_sub(left);
    if upto <= chronicle.lock().compacted {
        return Ok(());
    }
    chronicle.lock().compacted = upto;
    client.compact(upto).await?;
    chronicle.lock().compactions += 1;
    Ok(())
}
