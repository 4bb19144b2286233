//! Keeps the membership as it should be: the leader looks, [`decide`](decide::decide) chooses one change,
//! the loop makes it and looks again.
//!
//! What the loop remembers between two looks is times only: how long a size has held, how long the membership
//! has been left alone, when a name was replaced. A new leader begins to count anew, and so waits rather
//! longer; nothing else depends on it.

pub(crate) mod decide;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use podkv_api::{DesiredSize, MemberId, Result};
use podkv_core::ViewError;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::decide::{Action, Peer, Situation, Size, Why, decide};
use crate::config::MembershipTiming;
use crate::membership::{LogPosition, Observed};
use crate::raft::Group;
use crate::storage::StateStore;

/// How often the leader looks. What it waits for takes seconds.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) struct Reconciler {
    pub me: MemberId,
    pub group: Group,
    pub state: Arc<dyn StateStore>,
    pub max_voters: u32,
    pub timing: MembershipTiming,
    /// What keeps the membership from what it should be, for people.
    pub waiting: watch::Sender<Option<String>>,
}

/// Since this node leads.
struct Memory {
    leads_since: Instant,
    membership: (Option<LogPosition>, Instant),
    size: (Option<DesiredSize>, Instant),
    replaced: BTreeMap<String, Instant>,
    waits: Option<Why>,
}

impl Memory {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            leads_since: now,
            membership: (None, now),
            size: (None, now),
            replaced: BTreeMap::new(),
            waits: None,
        }
    }

    fn look(&mut self, observed: &Observed, size: Option<DesiredSize>, replace_interval: Duration) {
        let now = Instant::now();
        if self.membership.0 != observed.members.position {
            self.membership = (observed.members.position, now);
        }
        if self.size.0 != size {
            self.size = (size, now);
        }
        self.replaced.retain(|_, at| now - *at < replace_interval);
    }
}

impl Reconciler {
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep()).await;
    }

    async fn keep(self) {
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut memory: Option<Memory> = None;
        loop {
            tick.tick().await;
            let Some(observed) = self.group.observe() else {
                memory = None;
                self.waiting.send_replace(None);
                continue;
            };
            let size = match self.size().await {
                Ok(size) => size,
                Err(error) => {
                    tracing::error!(%error, "the desired size cannot be read");
                    continue;
                }
            };
            let memory = memory.get_or_insert_with(Memory::new);
            memory.look(&observed, size, self.timing.replace_interval);
            let action = self.decide(&observed, memory);
            self.act(action, &observed, memory).await;
        }
    }

    async fn size(&self) -> Result<Option<DesiredSize>, ViewError> {
        let state = self.state.clone();
        let workers = state.workers();
        let read = move || podkv_core::desired_size(&*state.view());
        // It fails to join only when the runtime goes down.
        workers.spawn(read).await.unwrap_or(Ok(None))
    }

    fn decide(&self, observed: &Observed, memory: &Memory) -> Action {
        // Who never answered this leader has been silent since it leads, as far as it knows.
        let leads_for = memory.leads_since.elapsed();
        let peers = observed.peers.iter().map(|(id, peer)| {
            let silent = peer.answered.unwrap_or(leads_for).min(leads_for);
            let behind = peer.behind;
            (*id, Peer { silent, behind })
        });
        let (size, since) = &memory.size;
        let replaced = memory.replaced.iter();
        decide(&Situation {
            me: self.me,
            members: &observed.members,
            settled: observed.settled,
            changing: observed.changing,
            unchanged: memory.membership.1.elapsed(),
            peers: &peers.collect(),
            size: size.as_ref().map(|size| Size {
                ordinals: size.into(),
                since: since.elapsed(),
            }),
            max_voters: self.max_voters,
            timing: &self.timing,
            alive_within: observed.alive_within,
            replaced: &replaced
                .map(|(name, at)| (name.clone(), at.elapsed()))
                .collect(),
        })
    }

    async fn act(&self, action: Action, observed: &Observed, memory: &mut Memory) {
        let why = match &action {
            Action::Wait(why) => Some(why.clone()),
            _ => None,
        };
        if memory.waits != why {
            if let Some(why) = &why {
                tracing::warn!(waiting = %why, "the membership is not as it should be");
            }
            self.waiting
                .send_replace(why.as_ref().map(ToString::to_string));
            memory.waits = why;
        }
        let name = |id: &MemberId| observed.members.nodes[id].name.clone();
        let done = match &action {
            Action::Nothing | Action::Wait(_) => return,
            Action::Finish => self.group.finish_change().await.map(drop),
            Action::Promote(id) => self.group.promote(*id).await.map(drop),
            Action::Demote(id) => self.group.demote(*id).await.map(drop),
            Action::Remove(id) => self.group.remove(*id).await.map(drop),
            Action::Replace { old, new } => {
                memory.replaced.insert(name(new), Instant::now());
                self.group.replace(*old, *new).await.map(drop)
            }
            Action::HandOver(id) => self.group.transfer_leadership(Some(*id)).await.map(drop),
        };
        match done {
            Ok(()) => tracing::info!(?action, "changed the membership"),
            // The next look decides anew.
            Err(error) => tracing::warn!(?action, %error, "the membership was not changed"),
        }
    }
}

#[cfg(test)]
mod scripts;
