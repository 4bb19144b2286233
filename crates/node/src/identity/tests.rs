use super::*;
use crate::storage::{Crash, MemoryDisk, StorageError, Volume};

const CLUSTER: ClusterId = ClusterId(11);
const OTHER: ClusterId = ClusterId(12);
const FIRST: Incarnation = Incarnation(1);

/// A disk whose node is started again and again.
struct Pod(MemoryDisk);

impl Pod {
    fn new() -> Self {
        Self(MemoryDisk::new())
    }

    /// Starts after a power failure: what is left is what was durable.
    fn start(&self) -> Identity {
        self.0.crash(Crash::Power);
        Identity::open(Volume::memory(&self.0).markers(), "podkv-1").unwrap()
    }
}

fn proposal(identity: &Identity, cluster: ClusterId) -> Proposal {
    let founder = |name: &str, id| Founder {
        name: name.into(),
        id,
        peer_address: format!("{name}:2380"),
        client_address: format!("{name}:2379"),
        voter: true,
    };
    Proposal {
        cluster,
        replicas: 2,
        founders: vec![
            founder("podkv-0", MemberId(1000)),
            founder("podkv-1", identity.node_id()),
        ],
    }
}

#[track_caller]
fn refused(result: Result<(), Error>, reason: Reason) {
    assert_eq!(result.unwrap_err().reason(), reason);
}

#[test]
fn a_node_keeps_its_id_and_counts_its_starts() {
    let pod = Pod::new();
    let first = pod.start();
    assert_ne!(first.node_id(), MemberId(0));
    assert_eq!(first.boot_counter(), 1);
    assert_eq!(first.phase(), Phase::Virgin);
    let second = pod.start();
    assert_eq!(second.node_id(), first.node_id());
    assert_eq!(second.boot_counter(), 2);
    assert_ne!(second.boot_nonce(), first.boot_nonce());
    assert_ne!(Pod::new().start().node_id(), first.node_id());
}

#[test]
fn one_acceptance_at_a_time_and_it_survives() {
    let pod = Pod::new();
    let identity = pod.start();
    let accepted = proposal(&identity, CLUSTER);
    identity.reserve(accepted.clone()).unwrap();
    identity.reserve(accepted.clone()).unwrap();
    let other = proposal(&identity, OTHER);
    refused(identity.reserve(other.clone()), Reason::MembershipConflict);
    let mut changed = accepted.clone();
    changed.founders[0].id = MemberId(1001);
    refused(identity.reserve(changed), Reason::MembershipConflict);
    let identity = pod.start();
    assert_eq!(identity.phase(), Phase::Reserved(accepted));
    refused(identity.reserve(other), Reason::MembershipConflict);
}

#[test]
fn a_released_cluster_is_refused_for_ever() {
    let pod = Pod::new();
    let identity = pod.start();
    identity.release().unwrap();
    identity.reserve(proposal(&identity, CLUSTER)).unwrap();
    identity.release().unwrap();
    let identity = pod.start();
    assert_eq!(identity.phase(), Phase::Virgin);
    assert!(identity.refuses(CLUSTER) && !identity.refuses(OTHER));
    let again = proposal(&identity, CLUSTER);
    refused(identity.reserve(again), Reason::MembershipConflict);
    refused(
        identity.become_member(CLUSTER, FIRST),
        Reason::MembershipConflict,
    );
    identity.reserve(proposal(&identity, OTHER)).unwrap();
    identity.become_member(OTHER, FIRST).unwrap();
}

#[test]
fn a_member_never_goes_back() {
    let pod = Pod::new();
    let identity = pod.start();
    identity.reserve(proposal(&identity, CLUSTER)).unwrap();
    refused(identity.become_member(OTHER, FIRST), Reason::WrongCluster);
    refused(identity.retire(), Reason::MembershipConflict);
    identity.become_member(CLUSTER, FIRST).unwrap();
    identity.become_member(CLUSTER, FIRST).unwrap();
    let identity = pod.start();
    assert_eq!(identity.membership(), Some((CLUSTER, FIRST)));
    refused(identity.release(), Reason::MembershipConflict);
    let other = proposal(&identity, OTHER);
    refused(identity.reserve(other), Reason::MembershipConflict);
    refused(identity.become_member(OTHER, FIRST), Reason::WrongCluster);
    refused(
        identity.become_member(CLUSTER, Incarnation(2)),
        Reason::WrongIncarnation,
    );
}

#[test]
fn a_retired_node_stays_retired() {
    let pod = Pod::new();
    let identity = pod.start();
    identity.become_member(CLUSTER, FIRST).unwrap();
    identity.retire().unwrap();
    identity.retire().unwrap();
    let identity = pod.start();
    let retired = Phase::Retired {
        cluster: CLUSTER,
        incarnation: FIRST,
    };
    assert_eq!(identity.phase(), retired);
    refused(identity.become_member(CLUSTER, FIRST), Reason::WrongCluster);
    refused(identity.release(), Reason::MembershipConflict);
}

#[test]
fn a_proposal_must_name_this_node_and_add_up() {
    let identity = Pod::new().start();
    let good = proposal(&identity, CLUSTER);
    let break_it: [fn(&mut Proposal); 8] = [
        |p| p.cluster = ClusterId(0),
        |p| p.replicas = 3,
        |p| p.founders.clear(),
        |p| p.founders[1].id = MemberId(77),
        |p| p.founders[0].name = "podkv-1".into(),
        |p| p.founders[0].id = MemberId(0),
        |p| p.founders[0].peer_address = "x".repeat(1000),
        |p| {
            p.founders
                .iter_mut()
                .for_each(|founder| founder.voter = false)
        },
    ];
    for change in break_it {
        let mut bad = good.clone();
        change(&mut bad);
        refused(identity.reserve(bad), Reason::InvalidArgument);
    }
    assert_eq!(identity.phase(), Phase::Virgin);
    identity.reserve(good).unwrap();
}

#[test]
fn the_largest_proposal_fits_the_marker() {
    let pod = Pod::new();
    let identity = pod.start();
    let mut large = proposal(&identity, CLUSTER);
    let text = "x".repeat(MAX_TEXT_BYTES - 3);
    for number in 2..MAX_FOUNDERS as u64 {
        large.founders.push(Founder {
            name: format!("{number:03}{text}"),
            id: MemberId(u64::MAX - number),
            peer_address: text.clone(),
            client_address: text.clone(),
            voter: false,
        });
    }
    large.replicas = MAX_FOUNDERS as u32;
    identity.reserve(large.clone()).unwrap();
    assert_eq!(pod.start().phase(), Phase::Reserved(large));
}

#[test]
fn rewound_and_copied_volumes_are_noticed_also_after_a_restart() {
    const PEER: MemberId = MemberId(5);
    let pod = Pod::new();
    let identity = pod.start();
    identity.observe_peer(PEER, 3, 30).unwrap();
    assert!(identity.knows_peer(PEER, 3, 30));
    identity.observe_peer(PEER, 3, 30).unwrap();
    identity.observe_peer(PEER, 4, 40).unwrap();
    assert!(!identity.knows_peer(PEER, 3, 30));
    let identity = pod.start();
    assert!(identity.knows_peer(PEER, 4, 40));
    refused(identity.observe_peer(PEER, 3, 30), Reason::RewoundVolume);
    refused(identity.observe_peer(PEER, 4, 41), Reason::RewoundVolume);
    identity.observe_peer(PEER, 4, 40).unwrap();
    refused(
        identity.observe_peer(MemberId(0), 1, 1),
        Reason::InvalidArgument,
    );
    // A copy of this very volume, started elsewhere.
    let (id, counter, nonce) = (
        identity.node_id(),
        identity.boot_counter(),
        identity.boot_nonce(),
    );
    identity.observe_peer(id, counter, nonce).unwrap();
    refused(
        identity.observe_peer(id, counter, nonce ^ 1),
        Reason::RewoundVolume,
    );
}

#[test]
fn another_pods_volume_is_refused() {
    let pod = Pod::new();
    pod.start();
    let error = Identity::open(Volume::memory(&pod.0).markers(), "podkv-2")
        .err()
        .unwrap();
    assert_eq!(error.reason(), Reason::DataFolder);
    assert!(error.text().contains("podkv-1") && error.text().contains("podkv-2"));
}

#[test]
fn a_lost_marker_is_not_a_virgin_node() {
    let disk = MemoryDisk::new();
    let volume = Volume::memory(&disk);
    let identity = Identity::open(volume.markers(), "podkv-1").unwrap();
    let storage = volume.open_stores(&identity, 0).unwrap();
    let vote = crate::storage::LogWrite::Vote("promised".into());
    storage.log.write(&[vote]).unwrap();
    let markers = Arc::new(Lost(Volume::memory(&disk).markers()));
    let error = Identity::open(markers, "podkv-1").err().unwrap();
    assert_eq!(error.reason(), Reason::Corrupt);
}

/// A store whose marker is gone.
struct Lost(Arc<dyn MarkerStore>);

impl MarkerStore for Lost {
    fn load(&self, _: IdentityFile) -> Result<Option<bytes::Bytes>, StorageError> {
        Ok(None)
    }
    fn save(&self, _: IdentityFile, _: &[u8]) -> Result<(), StorageError> {
        panic!("nothing may be written")
    }
    fn holds_data(&self) -> Result<bool, StorageError> {
        self.0.holds_data()
    }
    fn set_aside(&self, _: MemberId) -> Result<(), StorageError> {
        panic!("nothing may be moved")
    }
    fn remove(&self, _: IdentityFile) -> Result<(), StorageError> {
        panic!("nothing may be removed")
    }
    fn aside(&self) -> Result<Vec<Aside>, StorageError> {
        self.0.aside()
    }
    fn remove_aside(&self, _: Incarnation) -> Result<(), StorageError> {
        panic!("nothing may be removed")
    }
    fn describe(&self, file: IdentityFile) -> String {
        self.0.describe(file)
    }
}

/// Fails from the given save on.
struct Failing {
    inner: Arc<dyn MarkerStore>,
    saves: std::sync::atomic::AtomicUsize,
}

impl MarkerStore for Failing {
    fn load(&self, file: IdentityFile) -> Result<Option<bytes::Bytes>, StorageError> {
        self.inner.load(file)
    }
    fn save(&self, file: IdentityFile, bytes: &[u8]) -> Result<(), StorageError> {
        let saves = self
            .saves
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // The second save fails, the third would work: it must not be tried.
        if saves == 1 {
            let error = std::io::Error::other("no space");
            return Err(StorageError::io("saving", error));
        }
        self.inner.save(file, bytes)
    }
    fn holds_data(&self) -> Result<bool, StorageError> {
        self.inner.holds_data()
    }
    fn set_aside(&self, retired: MemberId) -> Result<(), StorageError> {
        self.inner.set_aside(retired)
    }
    fn remove(&self, file: IdentityFile) -> Result<(), StorageError> {
        self.inner.remove(file)
    }
    fn aside(&self) -> Result<Vec<Aside>, StorageError> {
        self.inner.aside()
    }
    fn remove_aside(&self, since: Incarnation) -> Result<(), StorageError> {
        self.inner.remove_aside(since)
    }
    fn describe(&self, file: IdentityFile) -> String {
        self.inner.describe(file)
    }
}

#[test]
fn after_a_failed_save_nothing_is_promised() {
    let markers = Arc::new(Failing {
        inner: Volume::memory(&MemoryDisk::new()).markers(),
        saves: Default::default(),
    });
    let identity = Identity::open(markers, "podkv-1").unwrap();
    let proposal = proposal(&identity, CLUSTER);
    refused(identity.reserve(proposal.clone()), Reason::Internal);
    assert_eq!(identity.phase(), Phase::Virgin);
    refused(identity.reserve(proposal), Reason::Internal);
    refused(identity.observe_peer(MemberId(5), 1, 1), Reason::Internal);
}
