//! A membership change has two halves, and Raft asks for both in one call. What is left of it if nobody comes back to the
//! second half is finished by whoever leads.

use openraft::EntryPayload;
use tokio_util::sync::CancellationToken;

use super::super::super::types::Membership;
use super::*;
use crate::config::MembershipTiming;
use crate::reconcile::Reconciler;

impl Cluster {
    /// Every running node keeps the membership as it should be, as a whole node does.
    fn reconcile(&self, tasks: &TaskTracker, stop: &CancellationToken) {
        for (node, running) in &self.running {
            let reconciler = Reconciler {
                me: self.ids[*node],
                group: running.group.clone(),
                state: running.store.clone(),
                max_voters: 5,
                timing: MembershipTiming::default(),
                waiting: watch::Sender::new(None),
            };
            tasks.spawn(reconciler.run(stop.clone()));
        }
    }

    async fn learner(&mut self, node: usize) -> MemberId {
        let leader = self.leader().await;
        let id = self.ids[node];
        let added = self.group(leader).add_learner(id, self.address(node)).await;
        self.applied(node, added.unwrap().index).await;
        id
    }

    /// Makes the first half of a joint change, and no more: `voters` are to be the voters.
    async fn half_of(&self, leader: usize, voters: &[MemberId]) {
        let before = self.group(leader).state().borrow().members.clone();
        let sets = [before.voters[0].clone(), voters.iter().copied().collect()];
        let nodes = before.nodes.iter().map(|(id, node)| (id.0, node.clone()));
        let joint = Membership::new(
            sets.iter().map(super::super::voter_ids).collect(),
            nodes.collect::<BTreeMap<_, _>>(),
        );
        let raft = self.group(leader).raft();
        raft.append_membership(joint.unwrap(), EntryPayload::Blank, [])
            .await
            .unwrap();
        self.wait_state(leader, "half of it is committed", half_done)
            .await;
    }
}

fn half_done(state: &GroupState) -> bool {
    state.members_committed && state.members.voters.len() == 2
}

fn whole(state: &GroupState) -> bool {
    state.members_committed && state.members.voters.len() == 1
}

/// The first half is committed and waits to be applied; meanwhile no answer reaches the leader any more, so that it does not
/// even propose the second one. It gets its majority back before the others elect somebody, or just after that: nobody ever
/// asks for the second half again, and every other change is refused until it is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_leader_loses_its_majority_half_way_is_finished() {
    let mut cluster = Cluster::founded(3, 4).await;
    let fourth = cluster.learner(3).await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader).clone();
    let events = cluster.running[&leader].events.clone();
    // The apply thread answers, and then waits to publish.
    let held = events.published.borrow();
    group.submit(entry("held up", 1)).await.unwrap();
    let change = tokio::spawn({
        let group = group.clone();
        async move { group.promote(fourth).await }
    });
    cluster
        .wait_state(leader, "half of it is committed", half_done)
        .await;
    for other in (0..4).filter(|other| *other != leader) {
        cluster.hub.cut(&address(other), &address(leader));
    }
    // Time is what is looked at: a leader that no majority has answered for so long proposes nothing.
    while group
        .majority_age()
        .is_some_and(|age| age <= timing().election_max)
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(held);
    change.await.unwrap().unwrap_err();
    cluster.hub.heal_all();

    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    cluster.reconcile(&tasks, &stop);
    for node in 0..4 {
        cluster.wait_state(node, "it is finished", whole).await;
        assert!(
            cluster
                .group(node)
                .state()
                .borrow()
                .members
                .is_voter(fourth)
        );
    }
    // The next change is made as ever.
    let leader = cluster.leader().await;
    let group = cluster.group(leader).clone();
    let other = (0..3).find(|node| *node != leader).unwrap();
    retry(|| group.demote(cluster.ids[other])).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_to_vote_no_more_stays_as_a_learner() {
    let mut cluster = Cluster::founded(3, 4).await;
    let fourth = cluster.learner(3).await;
    let leader = cluster.leader().await;
    let old = cluster.ids[(leader + 1) % 3];
    let stays = cluster.ids[(leader + 2) % 3];
    cluster
        .half_of(leader, &[cluster.ids[leader], stays, fourth])
        .await;
    let group = cluster.group(leader).clone();
    let observed = group.observe().unwrap();
    assert!(observed.settled && !observed.changing);
    assert_eq!(observed.members.voters.len(), 2);

    // Whether it was to leave or to become a standby, nobody knows.
    group.finish_change().await.unwrap();
    cluster.wait_state(leader, "it is finished", whole).await;
    let members = group.state().borrow().members.clone();
    assert!(members.is_voter(fourth) && members.contains(old) && !members.is_voter(old));
    let again = group.finish_change().await.unwrap();
    assert_eq!(Some(again), members.position, "nothing is left to do");

    // It was a replacement, and is asked for again.
    retry(|| group.replace(old, fourth)).await;
    cluster
        .wait_state(leader, "it left", |state| !state.members.contains(old))
        .await;
    cluster.stop().await;
}

/// As a learner it would go on leading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_to_lose_its_vote_finishes_that_and_hands_over() {
    let mut cluster = Cluster::founded(3, 3).await;
    let last = cluster.write(1).await;
    let leader = cluster.leader().await;
    let others = [cluster.ids[(leader + 1) % 3], cluster.ids[(leader + 2) % 3]];
    cluster.half_of(leader, &others).await;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    cluster.reconcile(&tasks, &stop);
    for node in 0..3 {
        let done = |state: &GroupState| {
            whole(state) && state.leader.is_some_and(|leader| others.contains(&leader))
        };
        cluster.wait_state(node, "another one leads", done).await;
    }
    assert!(cluster.write(1).await > last);
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    cluster.stop().await;
}
