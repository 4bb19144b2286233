//! Two nodes over pipes: who is let in, how channels are kept, how the server ends.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream;
use podkv_api::{ClusterId, Error, Incarnation, MemberId, Reason, Result};
use podkv_proto::convert::{Call, from_status, to_status};
use podkv_proto::peer as wire;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::gate::{Gate, Scope};
use super::header::PeerHeaders;
use super::pool::{Lane, PeerError, PeerPool};
use super::server::PeerServer;
use super::service::{Admit, PeerService, Slots};
use super::settings::PeerSettings;
use super::{RaftCalls, Reply, ReplyStream};
use crate::identity::Identity;
use crate::membership::PeerAddress;
use crate::storage::{MemoryDisk, Volume};
use crate::transport::memory::{Hub, MemoryTransport};
use crate::transport::{ByteStream, Listener, Transport};

const CLUSTER: ClusterId = ClusterId(7);
const FIRST: Incarnation = Incarnation(1);
const HERE: &str = "podkv-0:2380";
const THERE: &str = "podkv-1:2380";

/// Grants every vote, acknowledges every append.
pub(crate) struct Obliging;

impl RaftCalls for Obliging {
    fn append(
        &self,
        _first: wire::AppendRequest,
        rest: Streaming<wire::AppendRequest>,
    ) -> ReplyStream<wire::AppendResponse> {
        let answer = || wire::AppendResponse {
            result: Some(wire::append_response::Result::Success(true)),
            promise_ms: None,
            last_log_id: None,
        };
        let first = stream::iter([Ok(answer())]);
        Box::pin(first.chain(rest.map(move |request| request.map(|_| answer()))))
    }

    fn vote(&self, request: wire::VoteRequest) -> Reply<'_, wire::VoteResponse> {
        let response = wire::VoteResponse {
            vote: request.vote,
            granted: true,
            last_log_id: None,
        };
        Box::pin(std::future::ready(Ok(response)))
    }

    fn pre_vote(&self, request: wire::VoteRequest) -> Reply<'_, wire::VoteResponse> {
        self.vote(request)
    }

    fn transfer_leader(
        &self,
        _request: wire::TransferLeaderRequest,
    ) -> Reply<'_, wire::TransferLeaderResponse> {
        unasked()
    }

    fn offer_snapshot(
        &self,
        _request: wire::OfferSnapshotRequest,
    ) -> Reply<'_, wire::OfferSnapshotResponse> {
        unasked()
    }

    fn send_snapshot(
        &self,
        _first: wire::SendSnapshotRequest,
        _rest: Streaming<wire::SendSnapshotRequest>,
    ) -> Reply<'_, wire::SendSnapshotResponse> {
        unasked()
    }

    fn install_snapshot(
        &self,
        _request: wire::InstallSnapshotRequest,
    ) -> Reply<'_, wire::InstallSnapshotResponse> {
        unasked()
    }
}

fn unasked<T: Send + 'static>() -> Reply<'static, T> {
    Box::pin(std::future::ready(Err(Status::unimplemented(
        "not in these tests",
    ))))
}

/// Admits members of [`CLUSTER`], and counts how often it was asked.
#[derive(Default)]
pub(crate) struct Doorkeeper {
    asked: AtomicUsize,
}

impl Admit for Doorkeeper {
    fn admit(&self, cluster: ClusterId, _: Incarnation) -> BoxFuture<'_, Result<()>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(if cluster == CLUSTER {
            Ok(())
        } else {
            Err(Error::new(Reason::NodeNotReady, "not that one"))
        }))
    }
}

pub(crate) fn identity(disk: &MemoryDisk, name: &str) -> Arc<Identity> {
    Arc::new(Identity::open(Volume::memory(disk).markers(), name).unwrap())
}

pub(crate) fn member(name: &str) -> Arc<Identity> {
    let identity = identity(&MemoryDisk::new(), name);
    identity.become_member(CLUSTER, FIRST).unwrap();
    identity
}

/// Counts the dials of the transport below.
struct Counting {
    below: MemoryTransport,
    dials: Arc<AtomicUsize>,
}

impl Transport for Counting {
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<ByteStream>> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        self.below.dial(address)
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Listener>> {
        self.below.listen(address)
    }
}

/// A node at [`HERE`] that calls, and one at [`THERE`] that serves.
struct Pair {
    hub: Hub,
    pool: PeerPool,
    dials: Arc<AtomicUsize>,
    there: Arc<Identity>,
    slots: Arc<Slots>,
    settings: PeerSettings,
    server: Option<PeerServer>,
}

impl Pair {
    async fn new() -> Self {
        let hub = Hub::new();
        let dials = Arc::new(AtomicUsize::new(0));
        let settings = PeerSettings {
            dial_timeout: Duration::from_millis(300),
            shutdown_grace: Duration::from_millis(50),
            ..PeerSettings::default()
        };
        let transport = Counting {
            below: hub.attach(HERE),
            dials: dials.clone(),
        };
        let headers = PeerHeaders::new(member("podkv-0"));
        let pool = PeerPool::new(Arc::new(transport), headers, settings.clone());
        let (there, slots) = (member("podkv-1"), Arc::default());
        let mut pair = Self {
            hub,
            pool,
            dials,
            there,
            slots,
            settings,
            server: None,
        };
        pair.serve(THERE).await;
        pair
    }

    /// Starts the serving node's process at that address; one that ran there before is dead.
    async fn serve(&mut self, address: &str) {
        let listener = self.hub.attach(address).listen(address).await.unwrap();
        let service = PeerService::new(Gate::new(self.there.clone()), self.slots.clone());
        self.server = Some(PeerServer::start(listener, service, &self.settings));
    }

    fn bind_raft(&self) {
        self.slots.bind_raft(Arc::new(Obliging));
    }

    fn bind_admit(&self) -> Arc<Doorkeeper> {
        let doorkeeper = Arc::new(Doorkeeper::default());
        let founding: Arc<dyn super::FoundingCalls> = Arc::new(NoFounding);
        self.slots.bind_founding(founding, doorkeeper.clone());
        doorkeeper
    }

    fn lane(&self, lane: Lane) -> super::pool::PeerLane {
        self.pool.client(self.there.node_id(), &at(THERE), lane)
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    /// Asks for a vote with this header.
    async fn vote(&self, header: wire::PeerHeader) -> Result<bool> {
        let request = wire::VoteRequest {
            header: Some(header),
            ..Default::default()
        };
        let mut client = self.lane(Lane::Control).get().await?;
        let response = client.vote(request).await;
        response
            .map(|response| response.into_inner().granted)
            .map_err(|status| from_status(&status, Call::Read))
    }
}

pub(crate) struct NoFounding;

impl super::FoundingCalls for NoFounding {
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

pub(crate) fn at(address: &str) -> PeerAddress {
    PeerAddress {
        peer_address: address.into(),
        ..PeerAddress::default()
    }
}

/// A header that the gate lets pass, changed: the reason of its refusal.
async fn refusal(scope: Scope, change: impl FnOnce(&mut wire::PeerHeader)) -> Option<Reason> {
    let (here, there) = (member("podkv-0"), member("podkv-1"));
    let mut header = PeerHeaders::new(here).to(there.node_id());
    change(&mut header);
    let checked = Gate::new(there).check(Some(&header), scope).await;
    checked.err().map(|error| error.reason())
}

#[tokio::test]
async fn the_gate_refuses_what_comes_from_elsewhere() {
    use Scope::{Cluster, Founding, Hello, Standing};
    for scope in [Hello, Founding, Standing, Cluster] {
        // A sender that is in no membership known here is let in.
        assert_eq!(refusal(scope, |_| ()).await, None);
        assert_eq!(
            refusal(scope, |h| h.protocol_version += 1).await,
            Some(Reason::Unsupported)
        );
        let newer = |h: &mut wire::PeerHeader| (h.feature_min, h.feature_max) = (1000, 1001);
        assert_eq!(refusal(scope, newer).await, Some(Reason::Unsupported));
        assert_eq!(refusal(scope, |h| h.feature_max = 1001).await, None);
        assert_eq!(
            refusal(scope, |h| h.group_id = 1).await,
            Some(Reason::Unsupported)
        );
        assert_eq!(
            refusal(scope, |h| h.cluster_id = 8).await,
            Some(Reason::WrongCluster)
        );
        assert_eq!(
            refusal(scope, |h| h.target_id ^= 1).await,
            Some(Reason::WrongTarget)
        );
        assert_eq!(
            refusal(scope, |h| h.sender_id = 0).await,
            Some(Reason::InvalidArgument)
        );
    }
    // Across a recovery from a lost majority: who are you, and, of the past, am I still a member.
    let fenced = Some(Reason::WrongIncarnation);
    for (scope, earlier, later) in [
        (Hello, None, None),
        (Founding, fenced, fenced),
        (Standing, None, fenced),
        (Cluster, fenced, fenced),
    ] {
        assert_eq!(refusal(scope, |h| h.incarnation = 0).await, earlier);
        assert_eq!(refusal(scope, |h| h.incarnation = 2).await, later);
    }
    let nowhere = |h: &mut wire::PeerHeader| (h.cluster_id, h.incarnation) = (0, 0);
    assert_eq!(refusal(Hello, nowhere).await, None);
    assert_eq!(refusal(Founding, nowhere).await, None);
    assert_eq!(refusal(Cluster, nowhere).await, Some(Reason::WrongCluster));
    assert_eq!(refusal(Hello, |h| h.target_id = 0).await, None);
    assert_eq!(
        refusal(Founding, |h| h.target_id = 0).await,
        Some(Reason::WrongTarget)
    );
    assert_eq!(
        refusal(Cluster, |h| h.target_id = 0).await,
        Some(Reason::WrongTarget)
    );

    let error = Gate::new(member("podkv-1"))
        .check(None, Hello)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::InvalidArgument);
}

#[tokio::test]
async fn the_gate_quarantines_rewound_and_copied_volumes() {
    let (here, there) = (member("podkv-0"), member("podkv-1"));
    let gate = Gate::new(there.clone());
    let header = |counter, nonce| {
        let mut header = PeerHeaders::new(here.clone()).to(there.node_id());
        (header.boot_counter, header.boot_nonce) = (counter, nonce);
        header
    };
    let check = async |header: wire::PeerHeader| {
        gate.check(Some(&header), Scope::Cluster)
            .await
            .err()
            .map(|error| error.reason())
    };
    assert_eq!(check(header(5, 50)).await, None);
    assert_eq!(check(header(5, 50)).await, None);
    assert_eq!(check(header(5, 51)).await, Some(Reason::RewoundVolume));
    assert_eq!(check(header(4, 50)).await, Some(Reason::RewoundVolume));
    assert_eq!(check(header(6, 60)).await, None);

    // A second node under this one's own id.
    let mut copy = header(6, 60);
    copy.sender_id = there.node_id().0;
    assert_eq!(check(copy).await, Some(Reason::RewoundVolume));
}

#[tokio::test]
async fn a_node_that_is_no_member_leaves_the_cluster_to_founding() {
    let (here, there) = (member("podkv-0"), identity(&MemoryDisk::new(), "podkv-1"));
    let header = PeerHeaders::new(here).to(there.node_id());
    let sender = Gate::new(there)
        .check(Some(&header), Scope::Cluster)
        .await
        .unwrap();
    assert_eq!(sender.cluster, Some((CLUSTER, FIRST)));
}

#[tokio::test]
async fn calls_wait_for_what_answers_them() {
    let pair = Pair::new().await;
    let header = pair.lane(Lane::Control).header();
    let reason = async || {
        pair.vote(header.clone())
            .await
            .map_err(|error| error.reason())
    };
    assert_eq!(reason().await, Err(Reason::NodeNotReady));
    pair.bind_raft();
    // Nobody may vote before somebody decides whom this node follows.
    assert_eq!(reason().await, Err(Reason::NodeNotReady));
    let doorkeeper = pair.bind_admit();
    assert_eq!(reason().await, Ok(true));
    assert_eq!(doorkeeper.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_refusal_keeps_its_reason_across_the_wire_and_never_reaches_raft() {
    let pair = Pair::new().await;
    pair.bind_raft();
    let doorkeeper = pair.bind_admit();
    let mut header = pair.lane(Lane::Control).header();
    header.target_id ^= 1;
    let error = pair.vote(header.clone()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::WrongTarget);
    assert!(
        error.text().contains(&pair.there.node_id().to_string()),
        "{error}"
    );

    // The same in the first message of a stream.
    let mut client = pair.lane(Lane::Append).get().await.unwrap();
    let first = wire::AppendRequest {
        header: Some(header),
        ..Default::default()
    };
    let status = client.append(stream::iter([first])).await.unwrap_err();
    assert_eq!(
        from_status(&status, Call::Read).reason(),
        Reason::WrongTarget
    );
    assert_eq!(doorkeeper.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_channel_is_kept_until_it_is_said_to_be_broken() {
    let pair = Pair::new().await;
    let (lane, clone) = (pair.lane(Lane::Append), pair.lane(Lane::Append));
    pair.hub.cut(HERE, THERE);
    let dialing = join_all([lane.get(), clone.get(), lane.get()]);
    let healing = async {
        tokio::task::yield_now().await;
        pair.hub.heal_all();
    };
    let (results, ()) = tokio::join!(dialing, healing);
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(pair.dials(), 1, "of several that wait, one dials");

    lane.broken();
    lane.get().await.unwrap();
    assert_eq!(pair.dials(), 2);
    // The other handle still speaks of the first channel, which is gone already.
    clone.broken();
    lane.get().await.unwrap();
    assert_eq!(pair.dials(), 2);

    pair.lane(Lane::Heartbeat).get().await.unwrap();
    assert_eq!(pair.dials(), 3, "lanes do not share a connection");
}

#[tokio::test]
async fn the_newest_address_wins() {
    let mut pair = Pair::new().await;
    let lane = pair.lane(Lane::Control);
    lane.get().await.unwrap();
    let moved = "podkv-1.new:2380";
    pair.serve(moved).await;
    pair.hub.kill(THERE);
    // Another part of the node hears of it; this handle follows.
    pair.pool
        .client(pair.there.node_id(), &at(moved), Lane::Append);
    let mut client = lane.get().await.unwrap();
    let status = client.vote(wire::VoteRequest::default()).await.unwrap_err();
    assert_eq!(
        from_status(&status, Call::Read).reason(),
        Reason::InvalidArgument,
        "it was reached"
    );
    assert_eq!(pair.dials(), 2);

    pair.pool.retain(&BTreeSet::new());
    pair.lane(Lane::Control).get().await.unwrap_err();
}

#[tokio::test]
async fn a_peer_that_restarts_is_found_again() {
    let mut pair = Pair::new().await;
    pair.bind_raft();
    pair.bind_admit();
    let header = pair.lane(Lane::Control).header();
    assert!(pair.vote(header.clone()).await.unwrap());

    pair.hub.kill(THERE);
    let error = pair.vote(header.clone()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Unreachable);
    // The kept channel went with its connection: nobody else may answer in it.
    assert!(matches!(
        pair.lane(Lane::Control).get().await.unwrap_err(),
        PeerError::Dial { .. }
    ));

    pair.serve(THERE).await;
    assert!(pair.vote(header).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_dial_into_the_void_ends() {
    let pair = Pair::new().await;
    pair.hub.cut(THERE, HERE);
    assert!(pair.lane(Lane::Control).get().await.is_err());
    pair.hub.heal_all();
    pair.lane(Lane::Control).get().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_vanishes_without_a_word_is_noticed() {
    let pair = Pair::new().await;
    pair.bind_raft();
    pair.bind_admit();
    let header = pair.lane(Lane::Control).header();
    assert!(pair.vote(header.clone()).await.unwrap());
    pair.hub.cut_both(HERE, THERE);
    // Without a deadline of its own, the call ends by the keepalive of its connection.
    let error = pair.vote(header).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Unreachable);
}

#[tokio::test]
async fn a_server_ends_although_streams_stay_open() {
    let mut pair = Pair::new().await;
    pair.bind_raft();
    pair.bind_admit();
    let lane = pair.lane(Lane::Append);
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let first = wire::AppendRequest {
        header: Some(lane.header()),
        ..Default::default()
    };
    requests.send(first).await.unwrap();
    let mut client = lane.get().await.unwrap();
    let mut answers = client
        .append(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    answers.message().await.unwrap().unwrap();

    let server = pair.server.take().unwrap();
    assert_eq!(server.local_address(), THERE);
    server.shutdown().await;
    answers.message().await.unwrap_err();
    drop(requests);
    lane.broken();
    assert!(
        matches!(lane.get().await.unwrap_err(), PeerError::Dial { .. }),
        "it stopped listening"
    );
}

#[tokio::test]
async fn a_bad_address_is_named() {
    let pair = Pair::new().await;
    let error = pair.pool.dial("not an address").await.unwrap_err();
    assert!(matches!(&error, PeerError::Address { address, .. } if address == "not an address"));
    assert_eq!(Error::from(error).reason(), Reason::Unreachable);
    assert_eq!(
        to_status(&Error::new(Reason::Unreachable, "")).code(),
        tonic::Code::Unavailable
    );
    assert_eq!(pair.pool.header(MemberId(0)).target_id, 0);
}
