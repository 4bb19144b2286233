//! The settings of the hub, and how they are divided among its parts.

use std::time::Duration;

use podkv_api::Limits;

use super::hub::TICK;

/// Bookmarks once an hour are as good as none.
const MAX_TICKS: usize = 14_400;

/// The settings of the hub.
#[derive(Clone, Debug)]
pub(crate) struct WatchSettings {
    /// Bounds the events in memory, of all watchers together.
    pub buffer_bytes: usize,
    /// Messages that may wait for one watcher; with more it is behind and catches up. Enough for a
    /// hiccup of its network; small enough that 100 000 stalled watchers hold about 600 MB of pointers.
    pub queue_items: usize,
    /// Open watches on this node. More are refused, with [`podkv_api::Reason::Overloaded`].
    pub max_watches: usize,
    /// What open watches watch, in bytes of keys. With more they are refused in the same way: keys may be long.
    pub max_watched_bytes: usize,
    /// Reads of the state that may run at once. Two: one long list does not hold up everybody else,
    /// and watchers that catch up leave the disk to the requests.
    pub max_reads: usize,
    /// How often a watch with bookmarks is told how far it is. Five seconds: compaction leaves minutes of
    /// history at the least, a resume re-reads five seconds of it at most, and 100 000 quiet watchers
    /// cost 20 000 small messages a second.
    pub bookmark_interval: Duration,
    /// A list that is read slower than this goes on from a younger view of the state, at the same
    /// revision: an old view keeps the storage from freeing what was deleted since.
    pub list_view_age: Duration,
    /// When the node starts, this many revisions are read back into memory: its watchers come back
    /// from a moment ago, all at once.
    pub warm_revisions: u64,
    /// The longest key that can be watched, in bytes.
    pub max_key_bytes: usize,
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self {
            buffer_bytes: 32 << 20,
            queue_items: 256,
            max_watches: 250_000,
            max_watched_bytes: 128 << 20,
            max_reads: 2,
            bookmark_interval: Duration::from_secs(5),
            list_view_age: Duration::from_secs(10),
            warm_revisions: 10_000,
            max_key_bytes: Limits::DEFAULT_MAX_KEY_BYTES,
        }
    }
}

/// [`WatchSettings`], divided among the parts of the hub.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub recent_bytes: usize,
    pub feed_bytes: usize,
    /// Read from the state and not yet taken, of all watchers.
    pub held_bytes: usize,
    /// Read from the state at once, for one watcher.
    pub step_bytes: usize,
    pub max_reads: usize,
    /// The bookmark interval in ticks of the hub.
    pub bookmark_ticks: usize,
    pub list_view_age: Duration,
}

impl WatchSettings {
    pub(super) fn bounds(&self) -> Bounds {
        let held_bytes = self.buffer_bytes / 4;
        let max_reads = self.max_reads.max(1);
        let ticks = self.bookmark_interval.as_millis() / TICK.as_millis();
        Bounds {
            recent_bytes: self.buffer_bytes / 2,
            feed_bytes: self.buffer_bytes / 4,
            held_bytes,
            // Large enough that a thread's wake-up costs little beside it.
            step_bytes: (256 << 10).min(held_bytes / (2 * max_reads)).max(1),
            max_reads,
            bookmark_ticks: usize::try_from(ticks)
                .unwrap_or(usize::MAX)
                .clamp(1, MAX_TICKS),
            list_view_age: self.list_view_age,
        }
    }
}
