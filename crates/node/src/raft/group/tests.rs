//! Three groups over gRPC in memory: what a cluster promises, through the code that ships.

mod lease;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use podkv_api::{ClusterId, Incarnation, Put};
use podkv_core::{Command, Entry, Proposal, state_digest};
use podkv_proto::peer as wire;
use tonic::{Status, Streaming};

use super::super::machine::tests::Recorder;
use super::*;
use crate::identity::{Identity, MarkerStore, promise};
use crate::peer::gate::Gate;
use crate::peer::header::PeerHeaders;
use crate::peer::server::PeerServer;
use crate::peer::service::{Admit, PeerService, Slots};
use crate::peer::settings::PeerSettings;
use crate::peer::{FoundingCalls, RaftCalls, Reply, ReplyStream};
use crate::storage::{Crash, MemoryDisk, Volume};
use crate::transport::memory::{Hub, MemoryTransport};
use crate::transport::{ByteStream, Listener, Transport};

/// Far more than anything takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Calm enough for a busy machine.
fn timing() -> RaftTiming {
    RaftTiming {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(1000),
    }
}

struct Running {
    group: Group,
    server: PeerServer,
    store: Arc<dyn StateStore>,
    events: Arc<Recorder>,
    /// Connections that it tried to open.
    dials: watch::Receiver<usize>,
    /// Pre-votes that it refused.
    refused: watch::Receiver<usize>,
}

struct Cluster {
    hub: Hub,
    disks: Vec<MemoryDisk>,
    ids: Vec<MemberId>,
    running: BTreeMap<usize, Running>,
    written: u64,
    /// Append streams that were ever opened.
    streams: Arc<AtomicUsize>,
    /// Nodes that are started have leases.
    lease_reads: bool,
}

/// These nodes are members from the start.
struct Founded;

impl Admit for Founded {
    fn admit(&self, _: ClusterId, _: Incarnation) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

fn unasked<T: Send + 'static>() -> Reply<'static, T> {
    Box::pin(std::future::ready(Err(Status::unimplemented(
        "not in these tests",
    ))))
}

impl FoundingCalls for Founded {
    fn hello(&self, _: wire::HelloRequest) -> Reply<'_, wire::HelloResponse> {
        unasked()
    }

    fn reserve(&self, _: wire::ReserveRequest) -> Reply<'_, wire::ReserveResponse> {
        unasked()
    }

    fn join(&self, _: wire::JoinRequest) -> Reply<'_, wire::JoinResponse> {
        unasked()
    }
}

/// A network in memory, its dials counted when they begin: on a cut link they never end.
struct CountedDials {
    inner: MemoryTransport,
    dials: watch::Sender<usize>,
}

impl Transport for CountedDials {
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<ByteStream>> {
        self.dials.send_modify(|dials| *dials += 1);
        self.inner.dial(address)
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Listener>> {
        self.inner.listen(address)
    }
}

/// A group's calls, its append streams and refused pre-votes counted.
struct Counted {
    group: Group,
    streams: Arc<AtomicUsize>,
    refused: watch::Sender<usize>,
}

impl RaftCalls for Counted {
    fn append(
        &self,
        first: wire::AppendRequest,
        rest: Streaming<wire::AppendRequest>,
    ) -> ReplyStream<wire::AppendResponse> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.group.append(first, rest)
    }
    fn vote(&self, request: wire::VoteRequest) -> Reply<'_, wire::VoteResponse> {
        self.group.vote(request)
    }
    fn pre_vote(&self, request: wire::VoteRequest) -> Reply<'_, wire::VoteResponse> {
        Box::pin(async move {
            let response = self.group.pre_vote(request).await?;
            if !response.granted {
                self.refused.send_modify(|refused| *refused += 1);
            }
            Ok(response)
        })
    }
    fn transfer_leader(
        &self,
        request: wire::TransferLeaderRequest,
    ) -> Reply<'_, wire::TransferLeaderResponse> {
        self.group.transfer_leader(request)
    }
    fn offer_snapshot(
        &self,
        request: wire::OfferSnapshotRequest,
    ) -> Reply<'_, wire::OfferSnapshotResponse> {
        self.group.offer_snapshot(request)
    }
    fn send_snapshot(
        &self,
        first: wire::SendSnapshotRequest,
        rest: Streaming<wire::SendSnapshotRequest>,
    ) -> Reply<'_, wire::SendSnapshotResponse> {
        self.group.send_snapshot(first, rest)
    }
    fn install_snapshot(
        &self,
        request: wire::InstallSnapshotRequest,
    ) -> Reply<'_, wire::InstallSnapshotResponse> {
        self.group.install_snapshot(request)
    }
}

fn address(node: usize) -> String {
    format!("podkv-{node}:2380")
}

impl Cluster {
    /// Nodes that know nothing yet.
    async fn of(nodes: usize) -> Self {
        let disks = (0..nodes).map(|_| MemoryDisk::new()).collect();
        let (ids, running) = (Vec::new(), BTreeMap::new());
        let streams = Arc::default();
        let mut cluster = Self {
            streams,
            hub: Hub::new(),
            disks,
            ids,
            running,
            written: 0,
            lease_reads: false,
        };
        for node in 0..nodes {
            cluster.start(node).await;
        }
        cluster
    }

    /// The first `voters` of `nodes` have founded a cluster.
    async fn founded(voters: usize, nodes: usize) -> Self {
        let cluster = Self::of(nodes).await;
        let founders = (0..voters).map(|node| (cluster.ids[node], cluster.address(node)));
        cluster
            .group(0)
            .initialize(founders.collect())
            .await
            .unwrap();
        cluster.leader().await;
        cluster
    }

    fn address(&self, node: usize) -> PeerAddress {
        PeerAddress {
            name: format!("podkv-{node}"),
            peer_address: address(node),
            client_address: format!("podkv-{node}:2379"),
        }
    }

    fn lease_terms(&self, markers: &dyn MarkerStore) -> LeaseTerms {
        let promise = match self.lease_reads {
            true => timing().election_max,
            false => Duration::ZERO,
        };
        LeaseTerms {
            reads: self.lease_reads,
            promise,
            promised_before: promise::begin(markers, promise).unwrap(),
        }
    }

    async fn start(&mut self, node: usize) {
        let volume = Volume::memory(&self.disks[node]);
        let identity = Identity::open(volume.markers(), &format!("podkv-{node}")).unwrap();
        let identity = Arc::new(identity);
        if identity.membership().is_none() {
            identity
                .become_member(ClusterId(7), Incarnation(1))
                .unwrap();
            self.ids.push(identity.node_id());
        }
        let storage = volume.open_stores(&identity, 0).unwrap();
        let settings = PeerSettings {
            dial_timeout: Duration::from_millis(500),
            shutdown_grace: Duration::from_millis(10),
            ..PeerSettings::default()
        };
        let (dialing, dials) = watch::channel(0);
        let transport: Arc<dyn Transport> = Arc::new(CountedDials {
            inner: self.hub.attach(address(node)),
            dials: dialing,
        });
        let listener = transport.listen(&address(node)).await.unwrap();
        let headers = PeerHeaders::new(identity.clone());
        let peers = PeerPool::new(transport, headers, settings.clone());
        let events = Arc::new(Recorder::default());
        let group = Group::start(GroupParts {
            node: identity.node_id(),
            timing: timing(),
            lease: self.lease_terms(&*volume.markers()),
            log: storage.log,
            state: storage.state.clone(),
            peers,
            events: events.clone(),
            log_cache_bytes: 64 << 10,
        });
        let group = group.await.unwrap();
        let slots = Arc::new(Slots::default());
        slots.bind_founding(Arc::new(Founded), Arc::new(Founded));
        let (refusing, refused) = watch::channel(0);
        let calls = Counted {
            group: group.clone(),
            streams: self.streams.clone(),
            refused: refusing,
        };
        slots.bind_raft(Arc::new(calls));
        let service = PeerService::new(Gate::new(identity), slots);
        let server = PeerServer::start(listener, service, &settings);
        self.running.insert(
            node,
            Running {
                group,
                server,
                store: storage.state,
                events,
                dials,
                refused,
            },
        );
    }

    /// `kill -9`: the volume keeps what the process had handed to it.
    async fn kill(&mut self, node: usize) {
        let Running { group, server, .. } = self.running.remove(&node).unwrap();
        self.hub.kill(&address(node));
        self.disks[node].crash(Crash::Process);
        // What is left of it in this process is cleared away.
        group.shutdown().await;
        server.shutdown().await;
    }

    async fn stop(self) {
        for (_, Running { group, server, .. }) in self.running {
            group.shutdown().await;
            server.shutdown().await;
        }
    }

    fn group(&self, node: usize) -> &Group {
        &self.running[&node].group
    }

    fn node_of(&self, id: MemberId) -> usize {
        self.ids.iter().position(|known| *known == id).unwrap()
    }

    /// Waits until one of the running nodes leads and has committed in its term, and names it.
    async fn leader(&self) -> usize {
        let looks = self.running.iter().map(|(node, running)| {
            let mut state = running.group.state();
            let id = self.ids[*node];
            Box::pin(async move {
                let leads = |state: &GroupState| {
                    let settled = state.applied.is_some_and(|at| at.term == state.term);
                    state.leader == Some(id) && state.role == Role::Leader && settled
                };
                state.wait_for(leads).await.unwrap();
                *node
            })
        });
        let any = futures_util::future::select_all(looks);
        tokio::time::timeout(PATIENCE, any)
            .await
            .expect("a leader")
            .0
    }

    async fn applied(&self, node: usize, index: u64) {
        let mut applied = self.group(node).applied();
        let reached = applied.wait_for(|applied| applied.position.index >= index);
        tokio::time::timeout(PATIENCE, reached)
            .await
            .expect("applies in time")
            .unwrap();
    }

    /// Writes `count` keys through the leader, one entry each, and returns the last position.
    async fn write(&mut self, count: usize) -> LogPosition {
        let leader = self.leader().await;
        let mut last = LogPosition::default();
        for _ in 0..count {
            self.written += 1;
            let payload = entry(&format!("key {}", self.written), 100);
            let committed = self.group(leader).submit(payload).await.unwrap();
            assert_eq!(committed.outcomes.len(), 1);
            last = committed.position;
        }
        last
    }

    async fn all_equal(&self, index: u64) {
        let mut digests = Vec::new();
        for node in self.running.keys() {
            self.applied(*node, index).await;
            digests.push(state_digest(&*self.running[node].store.view()).unwrap());
        }
        assert!(
            digests.windows(2).all(|pair| pair[0] == pair[1]),
            "replicas differ"
        );
    }

    async fn wait_state(&self, node: usize, what: &str, is: impl Fn(&GroupState) -> bool) {
        let mut state = self.group(node).state();
        let reached = tokio::time::timeout(PATIENCE, state.wait_for(is));
        reached.await.unwrap_or_else(|_| panic!("{what}")).unwrap();
    }
}

/// Waits until `count` has grown by `more`.
async fn grows(count: &watch::Receiver<usize>, more: usize, what: &str) {
    let mut count = count.clone();
    let enough = *count.borrow() + more;
    let reached = tokio::time::timeout(PATIENCE, count.wait_for(|count| *count >= enough));
    reached.await.unwrap_or_else(|_| panic!("{what}")).unwrap();
}

fn entry(key: &str, bytes: usize) -> Arc<Payload> {
    let put = Put::new(key.to_owned(), vec![b'v'; bytes]);
    let proposals = vec![Proposal::from(Command::Put(put))];
    Payload::new(Entry {
        clock_ms: 0,
        proposals,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_is_on_every_node() {
    let mut cluster = Cluster::founded(3, 3).await;
    let last = cluster.write(50).await;
    cluster.all_equal(last.index).await;
    let leader = cluster.leader().await;
    assert!(cluster.group(leader).read_index().await.unwrap() >= last);
    let mut published = cluster.running[&leader].events.published.subscribe();
    let all = published.wait_for(|batches| {
        batches
            .iter()
            .map(|(events, _)| events.len())
            .sum::<usize>()
            == 50
    });
    tokio::time::timeout(PATIENCE, all)
        .await
        .expect("each write is an event")
        .unwrap();

    let follower = (leader + 1) % 3;
    let refused = cluster
        .group(follower)
        .submit(entry("x", 1))
        .await
        .unwrap_err();
    assert_eq!(refused.reason(), Reason::NotLeader);
    assert!(!refused.outcome_unknown());
    assert_eq!(refused.leader().unwrap().member, cluster.ids[leader]);
    assert_eq!(
        refused.leader().unwrap().client_address,
        format!("podkv-{leader}:2379")
    );
    assert_eq!(
        cluster
            .group(follower)
            .read_index()
            .await
            .unwrap_err()
            .reason(),
        Reason::NotLeader
    );

    // Founding again changes nothing.
    let alone = BTreeMap::from([(cluster.ids[0], cluster.address(0))]);
    cluster.group(0).initialize(alone).await.unwrap();
    assert!(cluster.group(0).is_initialized().await.unwrap());
    cluster
        .wait_state(leader, "members", |state| state.members.nodes.len() == 3)
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_comes_back() {
    let mut cluster = Cluster::founded(3, 3).await;
    cluster.write(20).await;
    let old = cluster.leader().await;
    let term = cluster.group(old).state().borrow().term;
    cluster.kill(old).await;
    let last = cluster.write(20).await;
    assert!(last.term > term, "one leader a term");

    cluster.start(old).await;
    let recovered = cluster.group(old).wait_recovered();
    tokio::time::timeout(PATIENCE, recovered)
        .await
        .expect("recovers")
        .unwrap();
    assert!(
        cluster.group(old).applied().borrow().revision >= 21,
        "what it held is applied"
    );
    cluster.all_equal(last.index).await;
    assert_eq!(
        cluster.group(old).applied().borrow().revision,
        41,
        "each write once"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_stops_and_everything_is_there() {
    let mut cluster = Cluster::founded(3, 3).await;
    let last = cluster.write(30).await;
    for node in 0..3 {
        cluster.kill(node).await;
    }
    for node in 0..3 {
        cluster.start(node).await;
    }
    let leader = cluster.leader().await;
    cluster.all_equal(last.index).await;
    assert_eq!(cluster.group(leader).applied().borrow().revision, 31);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_needs_what_is_purged_gets_a_snapshot() {
    let mut cluster = Cluster::founded(3, 4).await;
    let leader = cluster.leader().await;
    for key in 0..40 {
        let payload = entry(&format!("large {key}"), 200 << 10);
        cluster.group(leader).submit(payload).await.unwrap();
    }
    cluster
        .group(leader)
        .snapshot_and_purge(1 << 20)
        .await
        .unwrap();
    let purged = |state: &GroupState| state.purged.is_some_and(|at| at.index > 20);
    cluster.wait_state(leader, "purges", purged).await;
    let stats = cluster.group(leader).log_stats();
    assert!(stats.first > 20 && stats.bytes >= 1 << 20, "{stats:?}");

    // The fourth node begins with nothing.
    cluster
        .group(leader)
        .add_learner(cluster.ids[3], cluster.address(3))
        .await
        .unwrap();
    let last = cluster.write(5).await;
    cluster.all_equal(last.index).await;
    let resets = cluster.running[&3].events.resets.lock().unwrap().len();
    assert_eq!(resets, 1, "by a snapshot, once");
    cluster.group(leader).promote(cluster.ids[3]).await.unwrap();

    // It lives on what was installed.
    cluster.kill(3).await;
    cluster.start(3).await;
    let last = cluster.write(5).await;
    cluster.all_equal(last.index).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn membership_changes_one_at_a_time_and_keeps_its_majority() {
    let mut cluster = Cluster::founded(3, 4).await;
    cluster.write(3).await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader).clone();
    let reason = |result: Result<LogPosition>| result.unwrap_err().reason();
    let (third, fourth) = (cluster.ids[(leader + 1) % 3], cluster.ids[3]);
    assert_eq!(reason(group.promote(fourth).await), Reason::MemberNotFound);
    group.add_learner(fourth, cluster.address(3)).await.unwrap();
    group.add_learner(fourth, cluster.address(3)).await.unwrap();
    let moved = group.add_learner(fourth, cluster.address(9)).await;
    assert_eq!(
        reason(moved),
        Reason::MembershipConflict,
        "an id stays with its pod"
    );
    let last = cluster.write(3).await;
    cluster.applied(3, last.index).await;

    // The third voter dies, and its place is taken in one change.
    let dead = cluster.node_of(third);
    cluster.kill(dead).await;
    let last = cluster.write(1).await;
    cluster.applied(3, last.index).await;
    let replaced = retry(|| group.replace(third, fourth)).await;
    cluster.applied(3, replaced.index).await;
    let state = group.state().borrow().clone();
    assert_eq!(state.members.voters.len(), 1, "not joint any more");
    assert!(state.members.is_voter(fourth) && !state.members.contains(third));

    // Of the three that are left, another one dies: to remove the other living one would be the end.
    let other = (0..3)
        .find(|node| *node != leader && *node != dead)
        .unwrap();
    cluster.kill(3).await;
    tokio::time::sleep(3 * timing().election_max).await;
    assert_eq!(
        reason(group.remove(cluster.ids[other]).await),
        Reason::MembershipConflict
    );
    let removed = retry(|| group.remove(fourth)).await;
    cluster.applied(other, removed.index).await;
    cluster.stop().await;
}

/// Tries a change again while it is refused because another one is being committed.
async fn retry<F: Future<Output = Result<LogPosition>>>(change: impl Fn() -> F) -> LogPosition {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match change().await {
            Ok(position) => return position,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over() {
    let mut cluster = Cluster::founded(3, 3).await;
    cluster.write(10).await;
    let old = cluster.leader().await;
    let target = cluster.ids[(old + 1) % 3];
    let to = cluster
        .group(old)
        .transfer_leadership(Some(target))
        .await
        .unwrap();
    assert_eq!(to, target);
    let new = cluster.leader().await;
    assert_eq!(cluster.ids[new], target);
    let refused = cluster
        .group(old)
        .transfer_leadership(None)
        .await
        .unwrap_err();
    assert_eq!(refused.reason(), Reason::NotLeader);
    let nobody = cluster
        .group(new)
        .transfer_leadership(Some(MemberId(1)))
        .await
        .unwrap_err();
    assert_eq!(nobody.reason(), Reason::MemberNotFound);
    let to = cluster.group(new).transfer_leadership(None).await.unwrap();
    assert_ne!(to, target);
    let last = cluster.write(10).await;
    cluster.all_equal(last.index).await;
    cluster.stop().await;
}

/// Found by the simulation, seed 1011: a node told of a term, could not write its vote, and was in an older one after
/// the restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_term_is_shown_once_it_is_on_the_disk() {
    let mut cluster = Cluster::founded(1, 1).await;
    let last = cluster.write(1).await;
    let before = cluster.group(0).state().borrow().term;
    cluster.disks[0].crash(Crash::Process);
    let vote = wire::VoteState {
        term: before + 5,
        node_id: cluster.ids[0].0 + 1,
        committed: false,
    };
    let request = wire::VoteRequest {
        header: None,
        vote: Some(vote),
        last_log_id: Some(wire::LogId {
            term: last.term,
            index: last.index,
        }),
        // Also a leader that is followed listens to it.
        leadership_transfer: true,
    };
    let answer = cluster.group(0).vote(request).await;
    assert!(!answer.is_ok_and(|answer| answer.granted));
    cluster
        .wait_state(0, "has ended", |state| state.fatal.is_some())
        .await;
    assert_eq!(cluster.group(0).state().borrow().term, before);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_votes_alone_is_fresh_also_when_nothing_happens() {
    let mut cluster = Cluster::founded(1, 1).await;
    cluster.write(1).await;
    let leader = cluster.leader().await;
    // Time is what is looked at: nothing happens meanwhile.
    tokio::time::sleep(3 * timing().election_max).await;
    let group = cluster.group(leader);
    group.confirm_within(timing().election_max).unwrap();
    assert!(group.majority_age().unwrap() < timing().election_max);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_confirmed() {
    let mut cluster = Cluster::founded(3, 3).await;
    cluster.write(3).await;
    let leader = cluster.leader().await;
    let fresh = cluster
        .group(leader)
        .confirm_within(Duration::from_secs(30));
    fresh.unwrap();
    let follower = (leader + 1) % 3;
    cluster
        .wait_state(follower, "knows the leader", |state| state.leader.is_some())
        .await;
    for node in 0..3 {
        if node != leader {
            cluster.kill(node).await;
        }
    }
    let group = cluster.group(leader);
    let read = tokio::time::timeout(PATIENCE, group.read_index())
        .await
        .expect("gives up");
    assert_eq!(read.unwrap_err().kind(), podkv_api::ErrorKind::Unavailable);
    tokio::time::sleep(timing().election_max).await;
    let stale = group
        .confirm_within(Duration::from_millis(500))
        .unwrap_err();
    assert_eq!(stale.reason(), Reason::TooStale);
    let write = group.submit(entry("never", 1));
    let write = tokio::time::timeout(PATIENCE, write).await;
    match write {
        // Refused before it was proposed.
        Ok(Err(error)) => assert_eq!(error.kind(), podkv_api::ErrorKind::Unavailable),
        other => panic!("acknowledged or hung: {other:?}"),
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_knows_how_fresh_it_is() {
    let mut cluster = Cluster::founded(3, 3).await;
    let last = cluster.write(3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    cluster.applied(follower, last.index).await;
    // The next heartbeat says so.
    let deadline = Instant::now() + PATIENCE;
    while cluster
        .group(follower)
        .confirm_within(Duration::from_millis(900))
        .is_err()
    {
        assert!(Instant::now() < deadline, "no heartbeat tells");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for other in 0..3 {
        cluster.hub.cut_both(&address(follower), &address(other));
    }
    tokio::time::sleep(Duration::from_millis(950)).await;
    let stale = cluster
        .group(follower)
        .confirm_within(Duration::from_millis(900))
        .unwrap_err();
    assert_eq!(stale.reason(), Reason::TooStale);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_kept() {
    let mut cluster = Cluster::founded(3, 3).await;
    let last = cluster.write(100).await;
    cluster.all_equal(last.index).await;
    let before = cluster.streams.load(Ordering::Relaxed);
    // Twenty heartbeats to each of two followers, and writes among them.
    for _ in 0..20 {
        tokio::time::sleep(timing().heartbeat).await;
        cluster.write(1).await;
    }
    let opened = cluster.streams.load(Ordering::Relaxed) - before;
    assert!(
        opened < 10,
        "{opened} streams were opened for some 40 heartbeats"
    );
    cluster.stop().await;
}

/// A node that hears from no leader asks whether it would be elected before it raises the term. So it stays
/// a follower of the old term, and who has a leader refuses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_from_a_partition_deposes_nobody() {
    let mut cluster = Cluster::founded(3, 3).await;
    let before = cluster.write(3).await;
    let leader = cluster.leader().await;
    let (alone, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.all_equal(before.index).await;
    for other in [leader, third] {
        cluster.hub.cut_both(&address(alone), &address(other));
    }
    // A follower dials to ask for votes and for nothing else: two peers a round.
    let asks = "asks for votes in vain";
    grows(&cluster.running[&alone].dials, 6, asks).await;
    let term = |node| cluster.group(node).state().borrow().term;
    assert_eq!(term(alone), before.term, "it asks before it campaigns");

    // With the third node's vote it would have a majority.
    cluster.hub.heal_both(&address(alone), &address(third));
    let refuses = "who hears the leader refuses";
    grows(&cluster.running[&third].refused, 3, refuses).await;
    assert_eq!([0, 1, 2].map(term), [before.term; 3]);

    cluster.hub.heal_all();
    let last = cluster.write(3).await;
    cluster.all_equal(last.index).await;
    assert_eq!(last.term, before.term);
    assert_eq!(cluster.leader().await, leader);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_leader_that_was_cut_off_gives_its_entries_up() {
    let mut cluster = Cluster::founded(3, 3).await;
    let old = cluster.leader().await;
    cluster.write(3).await;
    for other in 0..3 {
        cluster.hub.cut_both(&address(old), &address(other));
    }
    // Accepted by the leader alone: its outcome is unknown for ever, or it is refused.
    let group = cluster.group(old).clone();
    let lost = tokio::spawn(async move { group.submit(entry("lost", 1)).await });
    let cut_off = cluster.running.remove(&old).unwrap();
    let last = cluster.write(5).await;
    cluster.running.insert(old, cut_off);
    cluster.hub.heal_all();
    cluster.all_equal(last.index).await;
    let lost = tokio::time::timeout(PATIENCE, lost)
        .await
        .expect("is answered")
        .unwrap();
    let error = lost.unwrap_err();
    assert_eq!(error.reason(), Reason::LeaderChanged);
    assert!(error.outcome_unknown());
    cluster.stop().await;
}

#[test]
fn recovery_is_over_when_the_old_tail_is_applied_or_gone() {
    // (the end of the log at the start, its end now, committed, applied)
    assert!(
        !has_recovered(Some(9), Some(9), None, Some(9)),
        "no leader of this start has spoken"
    );
    assert!(!has_recovered(Some(9), Some(12), Some(8), Some(8)));
    assert!(!has_recovered(Some(9), Some(12), Some(10), Some(8)));
    assert!(
        has_recovered(Some(9), Some(12), Some(10), Some(9)),
        "the log may grow on"
    );
    assert!(
        has_recovered(Some(9), Some(5), Some(5), Some(5)),
        "what was cut off was not committed"
    );
    assert!(!has_recovered(None, None, None, None));
    assert!(has_recovered(None, Some(3), Some(3), Some(0)));
}
