//! The whole way over pipes: real identities, the real gate and service, the real questions and answers.
//! Only Raft is replaced, by a host that asks for votes once.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use podkv_api::{Error, MemberId};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::discovery::{FixedDiscovery, Suggestion};
use crate::peer::header::PeerHeaders;
use crate::peer::pool::Lane;
use crate::peer::server::PeerServer;
use crate::peer::service::{Admit, PeerService, Slots};
use crate::peer::settings::PeerSettings;
use crate::peer::tests::{Obliging, identity};
use crate::storage::MemoryDisk;
use crate::transport::Transport;
use crate::transport::memory::Hub;
use podkv_proto::peer as wire;

/// Nothing here takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// In place of Raft: asks for votes when it is initialised, and adds whoever asks.
struct Host {
    peers: PeerPool,
    founded: Mutex<Vec<Founding>>,
    added: Mutex<Vec<MemberId>>,
}

impl FoundingHost for Host {
    fn initialize(&self, founding: Founding) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            for (id, address) in &founding.voters {
                let lane = self.peers.client(*id, address, Lane::Control);
                let request = wire::VoteRequest {
                    header: Some(lane.header()),
                    ..Default::default()
                };
                // Votes for oneself do not go over the network; the others' may be lost.
                if let Ok(mut client) = lane.get().await {
                    let _ = client.vote(request).await;
                }
            }
            self.founded.lock().unwrap().push(founding);
            Ok(())
        })
    }

    fn add_learner(&self, id: MemberId, _: PeerAddress) -> BoxFuture<'_, Result<()>> {
        self.added.lock().unwrap().push(id);
        Box::pin(std::future::ready(Ok(())))
    }

    fn leader(&self) -> Option<MemberId> {
        None
    }

    fn heard_from(&self, _: MemberId) {}
}

/// The process of one pod.
struct Pod {
    identity: Arc<Identity>,
    bootstrap: Arc<Bootstrap>,
    host: Arc<Host>,
    stop: CancellationToken,
    running: Option<JoinHandle<Result<Settled>>>,
    _server: PeerServer,
}

/// A network with volumes in it.
struct Site {
    hub: Hub,
    replicas: u32,
    disks: Vec<MemoryDisk>,
}

impl Site {
    /// `pods` volumes, all empty, for pods that were told of `replicas`.
    fn new(pods: usize, replicas: u32) -> Self {
        Self {
            hub: Hub::new(),
            replicas,
            disks: (0..pods).map(|_| MemoryDisk::new()).collect(),
        }
    }

    fn identity(&self, ordinal: usize) -> Arc<Identity> {
        identity(&self.disks[ordinal], &format!("podkv-{ordinal}"))
    }

    /// Starts the process of a pod, on what is on its volume.
    async fn start(&self, ordinal: usize) -> Pod {
        let mut pod = self.start_without_asking(ordinal).await;
        let (bootstrap, stop) = (pod.bootstrap.clone(), pod.stop.clone());
        pod.running = Some(tokio::spawn(async move { bootstrap.run(&stop).await }));
        pod
    }

    /// It answers, but does not act.
    async fn start_without_asking(&self, ordinal: usize) -> Pod {
        let name = format!("podkv-{ordinal}");
        let address = address(ordinal);
        let identity = self.identity(ordinal);
        let transport = Arc::new(self.hub.attach(address.as_str()));
        let listener = transport.listen(&address).await.unwrap();
        let settings = PeerSettings {
            dial_timeout: Duration::from_millis(100),
            ..Default::default()
        };
        let peers = PeerPool::new(
            transport,
            PeerHeaders::new(identity.clone()),
            settings.clone(),
        );
        let gate = Gate::new(identity.clone());
        let suggestions = (0..self.disks.len()).map(|other| Suggestion {
            name: None,
            peer_address: self::address(other),
        });
        let expected = Ok(Ordinals {
            start: 0,
            replicas: self.replicas,
        });
        let bootstrap = Bootstrap::new(BootstrapParts {
            expected: watch::channel(expected.clone()).1,
            me: Me {
                name: founders::PodName::parse(&name).unwrap(),
                id: identity.node_id(),
                peer_address: address,
                client_address: format!("{name}:2379"),
                expected: expected.clone(),
                max_voters: 3,
                read_only: false,
            },
            identity: identity.clone(),
            gate: gate.clone(),
            peers: peers.clone(),
            discovery: Arc::new(FixedDiscovery::new(suggestions.collect())),
            settings: BootstrapSettings {
                hello_timeout: Duration::from_millis(200),
                retry_min: Duration::from_millis(2),
                retry_max: Duration::from_millis(20),
                ..Default::default()
            },
        });
        let host = Arc::new(Host {
            peers,
            founded: Mutex::default(),
            added: Mutex::default(),
        });
        bootstrap.bind(host.clone());
        let slots = Arc::new(Slots::default());
        slots.bind_founding(bootstrap.clone(), bootstrap.clone());
        slots.bind_raft(Arc::new(Obliging));
        let server = PeerServer::start(listener, PeerService::new(gate, slots), &settings);
        let stop = CancellationToken::new();
        Pod {
            identity,
            bootstrap,
            host,
            stop,
            running: None,
            _server: server,
        }
    }

    async fn start_all(&self) -> Vec<Pod> {
        join_all((0..self.disks.len()).map(|ordinal| self.start(ordinal))).await
    }
}

impl Pod {
    async fn settled(&mut self) -> Settled {
        let running = self.running.take().unwrap();
        timeout(PATIENCE, running)
            .await
            .expect("it hangs")
            .unwrap()
            .unwrap()
    }

    async fn cluster(&mut self) -> ClusterId {
        match self.settled().await {
            Settled::Member { cluster, .. } => cluster,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until it says that it waits for something like this.
    async fn waits_for(&self, text: &str) {
        let mut waiting = self.bootstrap.waiting();
        let said = waiting.wait_for(|why| why.as_ref().is_some_and(|why| why.contains(text)));
        timeout(PATIENCE, said)
            .await
            .expect("it never says so")
            .unwrap();
    }

    fn founded(&self) -> Vec<Founding> {
        self.host.founded.lock().unwrap().clone()
    }
}

fn address(ordinal: usize) -> String {
    format!("podkv-{ordinal}.podkv:2380")
}

/// All settle in one cluster: its id.
async fn one_cluster(pods: &mut [Pod]) -> ClusterId {
    let mut clusters = BTreeSet::new();
    for pod in pods.iter_mut() {
        clusters.insert(pod.cluster().await);
    }
    assert_eq!(clusters.len(), 1, "{clusters:?}");
    clusters.into_iter().next().unwrap()
}

#[tokio::test]
async fn four_empty_volumes_become_one_cluster() {
    let site = Site::new(4, 4);
    let mut pods = site.start_all().await;
    let cluster = one_cluster(&mut pods).await;

    let founded: Vec<_> = pods.iter().flat_map(Pod::founded).collect();
    assert_eq!(founded.len(), 1, "one node alone initialises");
    assert_eq!(founded[0].cluster, cluster);
    assert_eq!((founded[0].voters.len(), founded[0].learners.len()), (3, 1));
    assert!(
        founded[0]
            .learners
            .contains_key(&pods[3].identity.node_id())
    );
    // Everybody knows the founders, whoever leads first.
    assert!(pods.iter().all(|pod| pod.identity.founding().is_some()));
    assert!(
        pods.iter()
            .all(|pod| pod.bootstrap.waiting().borrow().is_none())
    );
}

#[tokio::test]
async fn a_lone_pod_founds_alone() {
    let mut pods = Site::new(1, 1).start_all().await;
    let cluster = one_cluster(&mut pods).await;
    assert_eq!(pods[0].founded()[0].cluster, cluster);
}

#[tokio::test]
async fn silence_is_waited_for() {
    let site = Site::new(3, 3);
    let mut pods = vec![site.start(0).await, site.start(1).await];
    pods[0].waits_for("podkv-2.podkv:2380").await;
    pods[1].waits_for("podkv-0").await;
    assert!(pods.iter().all(|pod| pod.identity.phase() == Phase::Virgin));

    pods.push(site.start(2).await);
    one_cluster(&mut pods).await;
}

#[tokio::test]
async fn a_new_pod_joins() {
    let site = Site::new(4, 3);
    let mut pods = Vec::new();
    for ordinal in 0..4 {
        pods.push(site.start(ordinal).await);
    }
    // Pod 3 is suggested to all, so it has to answer; but it is no founder.
    let cluster = one_cluster(&mut pods).await;
    let joiner = pods[3].identity.node_id();
    assert!(
        pods.iter()
            .any(|pod| pod.host.added.lock().unwrap().contains(&joiner))
    );
    assert_eq!(pods[3].identity.founding(), None);
    assert_eq!(
        pods[3].identity.membership(),
        Some((cluster, FIRST_INCARNATION))
    );
}

#[tokio::test]
async fn a_pod_that_lost_its_volume_joins_under_a_new_id() {
    let mut site = Site::new(3, 3);
    let mut pods = site.start_all().await;
    let cluster = one_cluster(&mut pods).await;
    let before = pods[0].identity.node_id();

    site.disks[0] = MemoryDisk::new();
    pods[0] = site.start(0).await;
    assert_eq!(pods[0].cluster().await, cluster);
    assert_ne!(pods[0].identity.node_id(), before);
    assert_eq!(pods[0].founded(), []);
}

/// The proposal that pod 0 would make.
fn proposal(site: &Site, cluster: u64) -> Proposal {
    let mut founders: Vec<_> = (0..site.disks.len())
        .map(|ordinal| Founder {
            name: format!("podkv-{ordinal}"),
            id: site.identity(ordinal).node_id(),
            peer_address: address(ordinal),
            client_address: format!("podkv-{ordinal}:2379"),
            voter: false,
        })
        .collect();
    founders::choose_voters(&mut founders, 3);
    Proposal {
        cluster: ClusterId(cluster),
        replicas: site.replicas,
        founders,
    }
}

#[tokio::test]
async fn a_crashed_proposer_goes_on_with_the_same_proposal() {
    // It crashed after its own acceptance; or when one, or all, of the others had accepted, too.
    for accepted in 1..=3 {
        let site = Site::new(3, 3);
        let proposal = proposal(&site, 7);
        for ordinal in 0..accepted {
            site.identity(ordinal).reserve(proposal.clone()).unwrap();
        }
        let mut pods = site.start_all().await;
        assert_eq!(one_cluster(&mut pods).await, ClusterId(7));
        assert_eq!(pods[0].founded(), [Founding::from(&proposal)]);
    }
}

#[tokio::test]
async fn a_founder_that_crashed_before_raft_was_initialised_goes_on() {
    let site = Site::new(3, 3);
    let proposal = proposal(&site, 7);
    for ordinal in 0..3 {
        site.identity(ordinal).reserve(proposal.clone()).unwrap();
    }
    site.identity(0)
        .become_member(proposal.cluster, FIRST_INCARNATION)
        .unwrap();
    let mut pods = site.start_all().await;
    assert_eq!(one_cluster(&mut pods).await, ClusterId(7));
    assert_eq!(pods[0].founded(), [Founding::from(&proposal)]);
    assert_eq!(pods[1].founded(), []);
}

#[tokio::test]
async fn a_lost_proposer_is_let_go_of_and_another_cluster_founded() {
    let mut site = Site::new(3, 3);
    let lost = proposal(&site, 7);
    site.identity(1).reserve(lost.clone()).unwrap();
    site.identity(2).reserve(lost.clone()).unwrap();
    site.disks[0] = MemoryDisk::new();

    // Pod 2 may have voted: while it is silent, pod 1 keeps its word.
    let mut pods = vec![site.start(0).await, site.start(1).await];
    pods[1].waits_for("before letting go, for podkv-2").await;
    assert_eq!(pods[1].identity.phase(), Phase::Reserved(lost.clone()));

    pods.push(site.start(2).await);
    let cluster = one_cluster(&mut pods).await;
    assert_ne!(cluster, lost.cluster);
    assert!(pods[1].identity.refuses(lost.cluster) && pods[2].identity.refuses(lost.cluster));
}

#[tokio::test]
async fn a_proposal_with_a_lost_founder_is_withdrawn() {
    let mut site = Site::new(3, 3);
    let incomplete = proposal(&site, 7);
    site.identity(0).reserve(incomplete.clone()).unwrap();
    site.identity(1).reserve(incomplete.clone()).unwrap();
    site.disks[2] = MemoryDisk::new();
    let mut pods = site.start_all().await;
    assert_ne!(one_cluster(&mut pods).await, incomplete.cluster);
}

#[tokio::test]
async fn nobody_follows_a_cluster_that_it_did_not_choose() {
    let site = Site::new(3, 3);
    let ours = proposal(&site, 7);
    let admit = async |pod: &Pod, cluster| {
        pod.bootstrap
            .admit(ClusterId(cluster), FIRST_INCARNATION)
            .await
            .map_err(|error: Error| error.reason())
    };
    let virgin = site.start_without_asking(0).await;
    assert_eq!(admit(&virgin, 7).await, Err(Reason::NodeNotReady));
    assert_eq!(virgin.identity.phase(), Phase::Virgin);

    site.identity(1).reserve(ours.clone()).unwrap();
    let reserved = site.start_without_asking(1).await;
    assert_eq!(admit(&reserved, 8).await, Err(Reason::NodeNotReady));
    assert_eq!(admit(&reserved, 7).await, Ok(()));
    assert_eq!(admit(&reserved, 8).await, Err(Reason::NodeNotReady));
    // It is on the disk before Raft sees anything.
    let (cluster, incarnation) = (ClusterId(7), FIRST_INCARNATION);
    assert_eq!(
        site.identity(1).phase(),
        Phase::Member {
            cluster,
            incarnation
        }
    );

    site.identity(2).reserve(ours.clone()).unwrap();
    site.identity(2).release().unwrap();
    let released = site.start_without_asking(2).await;
    assert_eq!(admit(&released, 7).await, Err(Reason::NodeNotReady));
}

#[tokio::test]
async fn a_joining_node_follows_the_leader_that_is_faster_than_the_answer() {
    let site = Site::new(1, 3);
    let pod = site.start_without_asking(0).await;
    *pod.bootstrap.joining() = Some((ClusterId(7), FIRST_INCARNATION));
    pod.bootstrap
        .admit(ClusterId(7), FIRST_INCARNATION)
        .await
        .unwrap();
    assert_eq!(
        pod.identity.membership(),
        Some((ClusterId(7), FIRST_INCARNATION))
    );
}

#[tokio::test]
async fn it_stops_when_it_is_told_to() {
    let site = Site::new(3, 3);
    let mut pod = site.start(0).await;
    pod.waits_for("podkv-1.podkv").await;
    pod.stop.cancel();
    assert_eq!(pod.settled().await, Settled::Stopped);
}
