//! Looks for what has changed unseen: replicas that differ, and a log that cannot be read any more.
//!
//! The leader takes a revision, and asks one member after the other for a digest of its data as of then. Who differs from
//! what a majority of all members says has other data: that is told by an alarm, which stays until the member is gone or
//! somebody takes it back. Nothing is repaired by itself: rot on one volume, and a defect that made the others wrong, look the same
//! from here.
//!
//! Each node also reads its own log through, slowly. RocksDB checks what it reads; a turned bit would otherwise be found on the
//! day when a peer needs that entry.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use podkv_api::{Alarm, AlarmKind, Error, MemberId, Reason, Result, Revision};
use podkv_core::Command;
use podkv_proto::convert::{Call, from_status};
use podkv_proto::peer as wire;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::start::storage_failed;
use super::{Inner, Node};
use crate::peer::pool::Lane;
use crate::raft::GroupState;

/// How often a node looks whether it is time.
const LOOK: Duration = Duration::from_secs(10);
/// A node that was started waits at most so long before its first scrub: leaders come and go, and each counts for itself.
const FIRST: Duration = Duration::from_secs(3600);
/// A member that has not applied the revision by then cannot be compared now.
const CATCH_UP: Duration = Duration::from_secs(30);
/// For one member's digest: 60 GB at 100 MB/s.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(600);
/// What is read of the log in one go, and the pause after it: 20 MB/s at most.
const LOG_STEP_BYTES: usize = 1 << 20;
const LOG_PAUSE: Duration = Duration::from_millis(50);

type Digest = [u8; 32];

/// What a scrub has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scrubbed {
    /// What was compared.
    pub revision: Revision,
    /// Members that hold what most hold.
    pub equal: Vec<MemberId>,
    /// Members that hold something else, or cannot read what they hold.
    pub different: Vec<MemberId>,
    /// Members that gave no answer.
    pub unknown: Vec<MemberId>,
}

pub(super) async fn run(node: Weak<Inner>, stop: CancellationToken) {
    stop.run_until_cancelled(scrub_for_ever(node)).await;
}

async fn scrub_for_ever(node: Weak<Inner>) {
    let started = Instant::now();
    let mut data_at: Option<Instant> = None;
    let mut log_at: Option<Instant> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(node) = node.upgrade().map(Node) else {
            return;
        };
        let interval = node.0.config.scrub_interval;
        let due = |last: Option<Instant>| match last {
            Some(last) => last.elapsed() >= interval,
            None => started.elapsed() >= interval.min(FIRST),
        };
        if due(log_at) {
            log_at = Some(Instant::now());
            if let Err(error) = node.read_log_through().await {
                node.0.failure.send_replace(Some(error));
                return;
            }
        }
        if due(data_at) && node.is_leader() {
            data_at = Some(Instant::now());
            match node.scrub().await {
                Ok(found) => tracing::info!(?found, "the members' data was compared"),
                Err(error) => tracing::warn!(%error, "the members' data could not be compared"),
            }
        }
    }
}

impl Node {
    /// Compares the data of all members as of now, and raises [`AlarmKind::Corrupt`] for those that differ from most.
    /// Reads every key on every member, one after the other. For the leader.
    ///
    /// # Errors
    /// [`Reason::NotLeader`]; [`Reason::Compacted`] and [`Reason::Restoring`] if the data is compacted or
    /// restored meanwhile; those of a write, for the alarms.
    pub async fn scrub(&self) -> Result<Scrubbed> {
        if !self.is_leader() {
            let text = "members are compared by the leader, and this node does not lead";
            return Err(Error::new(Reason::NotLeader, text));
        }
        let state = self.0.group.state().borrow().clone();
        let revision = self.0.group.applied().borrow().revision;
        let mut answers = BTreeMap::new();
        for id in state.members.nodes.keys() {
            let answer = match *id == self.id() {
                true => self.digest_at(revision).await,
                false => self.ask_digest(*id, revision, &state).await,
            };
            if let Err(error) = &answer {
                tracing::info!(member = %id, %error, "a member's data could not be compared");
            }
            answers.insert(*id, answer);
        }
        let found = judge(revision, &answers);
        for member in &found.different {
            tracing::error!(
                %member, revision,
                "this member holds other data than most: keep a copy of its volume if you want to know why, then give its \
                 pod an empty one. It rejoins under a new id and copies everything from its peers"
            );
            let alarm = Alarm {
                member: *member,
                kind: AlarmKind::Corrupt,
            };
            self.write_once(Command::RaiseAlarm(alarm)).await?;
        }
        Ok(found)
    }

    /// The digest as of a revision that this node may yet have to apply.
    pub(super) async fn digest_at(&self, revision: Revision) -> Result<Digest> {
        let mut applied = self.0.group.applied();
        let reached = applied.wait_for(|applied| applied.revision >= revision);
        match tokio::time::timeout(CATCH_UP, reached).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(Error::new(Reason::NodeNotReady, "the node is stopping")),
            Err(_) => {
                let text = format!("revision {revision} is not applied here after {CATCH_UP:?}");
                return Err(Error::new(Reason::TooStale, text));
            }
        }
        Ok(self.0.query.data_digest(revision).await?.1)
    }

    async fn ask_digest(
        &self,
        id: MemberId,
        revision: Revision,
        state: &GroupState,
    ) -> Result<Digest> {
        let unreachable = |text: &str| Error::new(Reason::Unreachable, text);
        let address = state.members.nodes.get(&id);
        let address = address.ok_or_else(|| unreachable("it is gone"))?;
        // Not the one for heartbeats and appends: this may take minutes.
        let lane = self.0.peers.client(id, address, Lane::Control);
        let mut client = lane
            .get()
            .await
            .map_err(|error| unreachable("it does not answer").with_source(error))?;
        let request = wire::DigestRequest {
            header: Some(lane.header()),
            revision,
        };
        let answer = match tokio::time::timeout(DIGEST_TIMEOUT, client.digest(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(from_status(&status, Call::Read)),
            Err(_) => {
                let text = format!("no digest within {DIGEST_TIMEOUT:?}");
                return Err(Error::new(Reason::DeadlineExceeded, text));
            }
        };
        if let Some(refusal) = answer.refusal {
            let reason = u16::try_from(refusal.reason).map_or(Reason::Internal, Reason::from_code);
            return Err(Error::new(reason, refusal.text));
        }
        let malformed = |_| unreachable("its digest is none");
        answer.sha256.as_ref().try_into().map_err(malformed)
    }

    /// Reads every entry of the own log.
    ///
    /// # Errors
    /// The log is damaged, or the disk failed: the node cannot go on.
    async fn read_log_through(&self) -> Result<()> {
        let stats = self.0.group.log_stats();
        let (mut next, last) = (stats.first, stats.last);
        while next <= last {
            let log = self.0.storage.log.clone();
            let read = move || log.read(next, last + 1, LOG_STEP_BYTES);
            let read = self.0.storage.log.workers().spawn(read).await;
            let read = read
                .unwrap_or_else(|_| Ok(Vec::new()))
                .map_err(storage_failed)?;
            // Purged or cut off meanwhile.
            let Some((index, _)) = read.last() else {
                return Ok(());
            };
            next = index + 1;
            tokio::time::sleep(LOG_PAUSE).await;
        }
        Ok(())
    }
}

/// Who differs from what a majority of all members holds. Without such a majority nobody can be told from the others.
fn judge(revision: Revision, answers: &BTreeMap<MemberId, Result<Digest>>) -> Scrubbed {
    let mut votes: BTreeMap<Digest, usize> = BTreeMap::new();
    for digest in answers.values().flatten() {
        *votes.entry(*digest).or_default() += 1;
    }
    let right = votes
        .into_iter()
        .find(|(_, count)| *count > answers.len() / 2)
        .map(|(digest, _)| digest);
    let mut found = Scrubbed {
        revision,
        equal: Vec::new(),
        different: Vec::new(),
        unknown: Vec::new(),
    };
    for (id, answer) in answers {
        let list = match (answer, right) {
            (Err(error), _) if error.reason() == Reason::Corrupt => &mut found.different,
            (Err(_), _) | (_, None) => &mut found.unknown,
            (Ok(digest), Some(right)) if *digest == right => &mut found.equal,
            (Ok(_), Some(_)) => &mut found.different,
        };
        list.push(*id);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answers: &[Result<u8, Reason>], equal: &[u64], different: &[u64], unknown: &[u64]) {
        let ids = |ids: &[u64]| ids.iter().map(|id| MemberId(*id)).collect::<Vec<_>>();
        let answers = answers.iter().zip(1..).map(|(answer, id)| {
            let digest = answer.map(|byte| [byte; 32]);
            (
                MemberId(id),
                digest.map_err(|reason| Error::new(reason, "")),
            )
        });
        let found = judge(7, &answers.collect());
        assert_eq!(
            (found.equal, found.different, found.unknown),
            (ids(equal), ids(different), ids(unknown))
        );
    }

    #[test]
    fn the_majority_of_all_members_is_right() {
        check(&[Ok(1), Ok(1), Ok(1)], &[1, 2, 3], &[], &[]);
        check(&[Ok(1), Ok(2), Ok(1)], &[1, 3], &[2], &[]);
        check(&[Ok(2), Ok(1), Ok(1)], &[2, 3], &[1], &[]);
        check(&[Ok(1), Err(Reason::TooStale), Ok(1)], &[1, 3], &[], &[2]);
        check(&[Ok(1), Err(Reason::Corrupt), Ok(1)], &[1, 3], &[2], &[]);
    }

    #[test]
    fn without_a_majority_nobody_can_be_told_from_the_others() {
        check(&[Ok(1), Ok(2)], &[], &[], &[1, 2]);
        check(&[Ok(1), Ok(2), Ok(3)], &[], &[], &[1, 2, 3]);
        check(
            &[Ok(1), Ok(2), Err(Reason::Unreachable)],
            &[],
            &[],
            &[1, 2, 3],
        );
    }
}
