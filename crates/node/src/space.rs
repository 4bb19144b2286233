//! Room on the volume: noticed while there is still some, told to the whole cluster, and taken back.
//!
//! ```text
//!   every node   free space, size of the state ──► full? ──► RaiseAlarm / ClearAlarm of itself, into the log
//!   every node   alarms in its state ──► its own door: writes that add data are refused, NOSPACE
//!   the leader   alarms of members that are gone, or silent for long ──► ClearAlarm
//! ```
//!
//! What a majority commits, every member has to store, so one full volume closes the doors of all. Each node decides at
//! its own door, before a write is seen by anybody else: what it refuses has certainly not been applied. Until the alarm
//! has reached a node some writes still come in, and those go into the headroom, as do deletes, compaction, leases that
//! are kept alive, membership, and Raft itself.
//!
//! What is in memory still, and goes to the volume with the next flush, counts as if it were there: up to a hundred megabytes of
//! memtables, which a small volume has no room for beside its headroom.
//!
//! A full volume is not left alone: the log is purged as far as the state covers it. It is full until there is clearly
//! more room than when it became so; otherwise each deletion would open the doors for one write.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podkv_api::{Alarm, AlarmKind, Error, MemberId, Reason};
use podkv_core::{Command, Proposal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::membership::Observed;
use crate::raft::Group;
use crate::storage::{LogStore, StateStore, StorageError};
use crate::write::{Origin, Writer};

/// How often a node looks. Costs a few microseconds. At 100 MB/s the smallest default headroom lasts for two looks.
const LOOK: Duration = Duration::from_millis(500);
/// The same where there is less room than twice the headroom. Of a small volume the headroom is small, too, and would be used
/// up between two looks.
const CLOSE_LOOK: Duration = Duration::from_millis(100);
/// While the volume is full, the log is purged this often, and what was deleted reaches the disk.
const PURGE_INTERVAL: Duration = Duration::from_secs(10);
/// The leader forgets that a member has no space when it was silent for so long: it stores nothing now, and raises the
/// alarm again when it is back. Far longer than a restart.
const SILENT: Duration = Duration::from_secs(60);

const SMALLEST_HEADROOM: u64 = 128 << 20;
const LARGEST_HEADROOM: u64 = 1 << 30;

/// The volume that a node's folder is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeSpace {
    pub size_bytes: u64,
    /// What this user may still take.
    pub free_bytes: u64,
}

impl VolumeSpace {
    /// Asks the file system. Blocking.
    pub(crate) fn of(data_dir: &std::path::Path) -> std::io::Result<Self> {
        let space = rustix::fs::statvfs(data_dir)?;
        Ok(Self {
            size_bytes: space.f_blocks.saturating_mul(space.f_frsize),
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
        })
    }

    /// What is kept free if no setting says it: a twentieth of the volume, from 128 MiB to 1 GiB. The log between two purges,
    /// a flush and a compaction take that much; more would be space that was paid for and is never used. Of a small
    /// volume at most a quarter.
    pub fn default_headroom(&self) -> u64 {
        (self.size_bytes / 20)
            .clamp(SMALLEST_HEADROOM, LARGEST_HEADROOM)
            .min(self.size_bytes / 4)
    }
}

/// When a node has no room left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpaceLimits {
    /// 0 is none.
    pub quota_bytes: u64,
    /// `None` goes by the volume's size.
    pub headroom_bytes: Option<u64>,
}

/// What is left on a volume.
#[derive(Clone, Copy, Debug)]
struct Room {
    volume: VolumeSpace,
    /// Bytes that are in memory still, and for which there has to be room.
    unwritten_bytes: u64,
}

impl Room {
    fn free_bytes(&self) -> u64 {
        self.volume.free_bytes.saturating_sub(self.unwritten_bytes)
    }
}

impl SpaceLimits {
    fn headroom(&self, volume: &VolumeSpace) -> u64 {
        self.headroom_bytes
            .unwrap_or_else(|| volume.default_headroom())
    }

    /// When to look again.
    fn pause(&self, room: Option<&Room>) -> Duration {
        let close = |room: &Room| room.free_bytes() < self.headroom(&room.volume).saturating_mul(2);
        match room.is_some_and(close) {
            true => CLOSE_LOOK,
            false => LOOK,
        }
    }

    /// Why there is no room; `was_full` makes it harder to find some.
    fn full(&self, state_bytes: u64, room: Option<&Room>, was_full: bool) -> Option<String> {
        let quota = match was_full {
            true => self.quota_bytes - self.quota_bytes / 10,
            false => self.quota_bytes,
        };
        if quota > 0 && state_bytes >= quota {
            return Some(format!(
                "the data is {} MiB, and the quota is {} MiB",
                state_bytes >> 20,
                self.quota_bytes >> 20
            ));
        }
        let room = room?;
        let headroom = self.headroom(&room.volume);
        let needed = match was_full {
            true => headroom.saturating_add(headroom / 4),
            false => headroom,
        };
        (room.free_bytes() < needed).then(|| {
            format!(
                "{} MiB of {} MiB are free on the volume, {} MiB are yet to be written, and {} MiB are kept as headroom",
                room.volume.free_bytes >> 20,
                room.volume.size_bytes >> 20,
                room.unwritten_bytes >> 20,
                headroom >> 20
            )
        })
    }
}

/// The alarms that this node has applied. Shared with whoever asks; the keeper tells.
#[derive(Clone, Debug)]
pub(crate) struct Alarms(watch::Sender<Vec<Alarm>>);

impl Default for Alarms {
    fn default() -> Self {
        Self(watch::channel(Vec::new()).0)
    }
}

impl Alarms {
    /// Refuses what would add data while a member has no room for it.
    pub fn check_space(&self) -> Result<(), Error> {
        let full = |alarm: &&Alarm| alarm.kind == AlarmKind::NoSpace;
        match self.0.borrow().iter().find(full) {
            None => Ok(()),
            Some(alarm) => Err(Error::new(
                Reason::NoSpace,
                format!(
                    "member {} has no space left: writes that add data are refused until it has. Deletes and \
                     compaction pass; `podkv doctor` says more",
                    alarm.member
                ),
            )),
        }
    }
}

/// The task that looks.
pub(crate) struct SpaceKeeper {
    pub me: MemberId,
    pub limits: SpaceLimits,
    /// `None` on memory storage.
    pub data_dir: Option<PathBuf>,
    pub log: Arc<dyn LogStore>,
    pub state: Arc<dyn StateStore>,
    pub group: Group,
    pub writer: Writer,
    pub alarms: Alarms,
    /// For a write into the log.
    pub timeout: Duration,
}

/// What one look found.
struct Look {
    alarms: Vec<Alarm>,
    full: Option<String>,
    /// Until the next look.
    pause: Duration,
}

impl SpaceKeeper {
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep_for_ever()).await;
    }

    async fn keep_for_ever(self) {
        // A purge waits for a snapshot, which may take minutes: whoever has room again is told before that.
        let (full, is_full) = watch::channel(false);
        tokio::join!(self.look_for_ever(full), self.purge_for_ever(is_full));
    }

    async fn look_for_ever(&self, full: watch::Sender<bool>) {
        let mut pause = Duration::ZERO;
        loop {
            tokio::time::sleep(pause).await;
            pause = LOOK;
            let was_full = *full.borrow();
            let look = match self.look(was_full).await {
                Ok(look) => look,
                Err(error) => {
                    tracing::warn!(%error, "the space on the volume cannot be told");
                    continue;
                }
            };
            match (&look.full, was_full) {
                (Some(why), false) => tracing::error!(
                    %why,
                    "no space: the cluster refuses writes that add data. Enlarge the volume, delete keys, or compact"
                ),
                (None, true) => tracing::info!("there is space again"),
                _ => {}
            }
            full.send_replace(look.full.is_some());
            pause = look.pause;
            self.tell(&look).await;
        }
    }

    /// While the volume is full. The sender lives as long as the look.
    async fn purge_for_ever(&self, mut is_full: watch::Receiver<bool>) {
        while is_full.wait_for(|full| *full).await.is_ok() {
            if let Err(error) = self.group.snapshot_and_purge(0).await {
                tracing::warn!(%error, "the log could not be purged");
            }
            tokio::time::sleep(PURGE_INTERVAL).await;
        }
    }

    /// Off the async threads: it reads the state and waits for the file system.
    async fn look(&self, was_full: bool) -> Result<Look, StorageError> {
        let (log, state) = (self.log.clone(), self.state.clone());
        let (data_dir, limits) = (self.data_dir.clone(), self.limits);
        let look = move || {
            let alarms = podkv_core::alarms(&*state.view())
                .map_err(|error| StorageError::misuse(error.to_string()))?;
            let volume = match &data_dir {
                Some(data_dir) => Some(VolumeSpace::of(data_dir).map_err(|error| {
                    StorageError::io(
                        format!("asking for the space of {}", data_dir.display()),
                        error,
                    )
                })?),
                None => None,
            };
            let room = volume.map(|volume| Room {
                volume,
                unwritten_bytes: log.unwritten_bytes() + state.unwritten_bytes(),
            });
            // Counts files: only for who wants to know.
            let state_bytes = match limits.quota_bytes {
                0 => 0,
                _ => state.disk_bytes(),
            };
            Ok(Look {
                full: limits.full(state_bytes, room.as_ref(), was_full),
                pause: limits.pause(room.as_ref()),
                alarms,
            })
        };
        let looked = self.state.workers().spawn(look).await;
        looked.unwrap_or_else(|_| Err(StorageError::misuse("the look did not come to an end")))
    }

    /// Publishes what holds, and writes into the log what does not hold any more, or not yet.
    async fn tell(&self, look: &Look) {
        self.alarms.0.send_if_modified(|alarms| {
            let changed = *alarms != look.alarms;
            alarms.clone_from(&look.alarms);
            changed
        });
        let mine = Alarm {
            member: self.me,
            kind: AlarmKind::NoSpace,
        };
        let is_member = self.group.state().borrow().members.contains(self.me);
        match (look.full.is_some(), look.alarms.contains(&mine)) {
            (true, false) if is_member => {
                self.propose(Command::RaiseAlarm(mine), Origin::Local).await;
            }
            (false, true) => self.propose(Command::ClearAlarm(mine), Origin::Local).await,
            _ => {}
        }
        let Some(observed) = self.group.observe() else {
            return;
        };
        for alarm in &look.alarms {
            if alarm.member != self.me && is_over(*alarm, &observed) {
                self.propose(Command::ClearAlarm(*alarm), Origin::Forwarded)
                    .await;
            }
        }
    }

    async fn propose(&self, command: Command, origin: Origin) {
        let written = self
            .writer
            .write(Proposal::from(command), origin, self.timeout)
            .await;
        if let Err(error) = written {
            tracing::debug!(%error, "an alarm was not written; it comes round again");
        }
    }
}

/// Whether the leader may take back another member's alarm.
fn is_over(alarm: Alarm, observed: &Observed) -> bool {
    if !observed.members.contains(alarm.member) {
        return observed.settled;
    }
    // Who has never answered this leader may just not have had the time.
    let silent = observed
        .peers
        .get(&alarm.member)
        .and_then(|peer| peer.answered)
        .is_some_and(|ago| ago > SILENT);
    alarm.kind == AlarmKind::NoSpace && silent
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn room(free_bytes: u64, unwritten_bytes: u64) -> Room {
        Room {
            volume: VolumeSpace {
                size_bytes: GIB,
                free_bytes,
            },
            unwritten_bytes,
        }
    }

    #[test]
    fn the_headroom_goes_by_the_volume() {
        let headroom = |size_bytes| {
            VolumeSpace {
                size_bytes,
                free_bytes: 0,
            }
            .default_headroom()
        };
        assert_eq!(headroom(100 * GIB), GIB);
        assert_eq!(headroom(10 * GIB), GIB / 2);
        assert_eq!(headroom(GIB), 128 << 20);
        assert_eq!(headroom(64 << 20), 16 << 20);
    }

    #[test]
    fn a_volume_is_full_below_its_headroom_and_until_there_is_clearly_more() {
        let limits = SpaceLimits {
            quota_bytes: 0,
            headroom_bytes: Some(1000),
        };
        let full = |free, was_full| {
            let room = room(free, 0);
            limits.full(u64::MAX, Some(&room), was_full).is_some()
        };
        assert!(!full(1000, false));
        assert!(full(999, false));
        assert!(full(1000, true));
        assert!(full(1249, true));
        assert!(!full(1250, true));
    }

    #[test]
    fn what_is_in_memory_still_counts_as_if_it_were_on_the_volume() {
        let limits = SpaceLimits {
            quota_bytes: 0,
            headroom_bytes: Some(1000),
        };
        let full = |free, unwritten| {
            let room = room(free, unwritten);
            limits.full(u64::MAX, Some(&room), false).is_some()
        };
        assert!(!full(1500, 500));
        assert!(full(1500, 501));
        assert!(full(1500, 5000));
    }

    #[test]
    fn a_volume_that_is_nearly_full_is_looked_at_more_often() {
        let limits = SpaceLimits {
            quota_bytes: 0,
            headroom_bytes: Some(1000),
        };
        let pause = |free, unwritten| limits.pause(Some(&room(free, unwritten)));
        assert_eq!(pause(2000, 0), LOOK);
        assert_eq!(pause(1999, 0), CLOSE_LOOK);
        assert_eq!(pause(3000, 1001), CLOSE_LOOK);
        assert_eq!(limits.pause(None), LOOK, "memory storage has no volume");
    }

    #[test]
    fn a_quota_counts_without_a_volume_too() {
        let limits = SpaceLimits {
            quota_bytes: 1000,
            headroom_bytes: None,
        };
        let full = |bytes, was_full| limits.full(bytes, None, was_full).is_some();
        assert!(!full(999, false));
        assert!(full(1000, false));
        assert!(full(900, true));
        assert!(!full(899, true));
    }
}
