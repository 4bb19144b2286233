use std::collections::BTreeMap;

use super::*;
use crate::identity::Identity;
use crate::membership::{LogPosition, PeerAddress};
use crate::raft::testing::fill_log;
use crate::storage::{MemoryDisk, Volume};

const CLUSTER: ClusterId = ClusterId(9);

/// A member's volume whose log names these voters; `0` stands for the member itself.
fn member(voters: &[u64]) -> (Volume, MemberId) {
    let volume = Volume::memory(&MemoryDisk::new());
    let identity = Identity::open(volume.markers(), "podkv-0").unwrap();
    identity.become_member(CLUSTER, Incarnation(1)).unwrap();
    let me = identity.node_id();
    let ids = voters.iter().map(|id| match id {
        0 => me,
        id => MemberId(*id),
    });
    fill_log(
        &volume.open_existing_stores(0).unwrap(),
        &of(ids.collect()),
        3,
    );
    (volume, me)
}

fn of(ids: BTreeSet<MemberId>) -> Members {
    let address = |id: &MemberId| {
        let name = format!("podkv-{}", id.0);
        (
            *id,
            PeerAddress {
                name,
                ..PeerAddress::default()
            },
        )
    };
    Members {
        position: Some(LogPosition::default()),
        nodes: ids.iter().map(address).collect::<BTreeMap<_, _>>(),
        voters: vec![ids],
    }
}

#[test]
fn the_others_must_be_a_majority_without_it() {
    for (voters, is_danger) in [
        (&[0][..], true),
        (&[0, 2][..], true),
        (&[0, 2, 3][..], false),
        (&[0, 2, 3, 4][..], false),
        // It does not vote.
        (&[2][..], false),
        (&[2, 3, 4][..], false),
    ] {
        let (volume, _) = member(voters);
        let node = DamagedNode::open(volume).unwrap();
        assert_eq!(node.danger().is_some(), is_danger, "{voters:?}");
        let done = node.put_aside(false);
        assert_eq!(done.is_err(), is_danger, "{voters:?}: {done:?}");
    }
    // In a joint membership, in both.
    let me = MemberId(1);
    let mut joint = of([1, 2, 3].map(MemberId).into());
    joint.voters.push([1, 4].map(MemberId).into());
    assert!(danger(&joint, me).unwrap().contains("no majority of 2"));
}

#[test]
fn a_log_without_a_membership_is_no_reason_to_go_on() {
    let volume = Volume::memory(&MemoryDisk::new());
    let identity = Identity::open(volume.markers(), "podkv-0").unwrap();
    identity.become_member(CLUSTER, Incarnation(1)).unwrap();
    let node = DamagedNode::open(volume.clone()).unwrap();
    let refused = node.put_aside(false).unwrap_err();
    assert_eq!(refused.reason(), Reason::MembershipConflict);
    // A person has decided.
    let node = DamagedNode::open(volume).unwrap();
    assert_eq!(node.put_aside(true).unwrap().cluster, CLUSTER);
}

#[test]
fn it_is_done_once_however_often_it_is_asked_for() {
    let (volume, me) = member(&[0, 2, 3]);
    let done = DamagedNode::open(volume.clone()).unwrap().put_aside(false);
    let done = done.unwrap();
    assert_eq!((done.id, done.cluster, done.already), (me, CLUSTER, false));
    assert!(
        DamagedNode::open(volume.clone()).is_err(),
        "there is no marker"
    );
    let before = done_before(&volume).unwrap().unwrap();
    assert_eq!((before.id, before.already), (me, true));
    // The pod has started since, and found no member yet.
    let new = Identity::open(volume.markers(), "podkv-0").unwrap();
    assert_ne!(new.node_id(), me);
    assert_eq!(done_before(&volume).unwrap(), None);
    let again = DamagedNode::open(volume.clone()).unwrap();
    let again = again.put_aside(false).unwrap();
    assert_eq!((again.id, again.already), (me, true));
    let same = Identity::open(volume.markers(), "podkv-0").unwrap();
    assert_eq!(same.node_id(), new.node_id(), "nothing was changed");
}

#[test]
fn only_what_a_member_holds_is_put_aside() {
    let volume = Volume::memory(&MemoryDisk::new());
    let open = || DamagedNode::open(volume.clone()).err().unwrap().reason();
    assert_eq!(open(), Reason::DataFolder, "no node's");
    let identity = Identity::open(volume.markers(), "podkv-0").unwrap();
    assert_eq!(open(), Reason::DataFolder, "it has promised nothing");
    identity.become_member(CLUSTER, Incarnation(1)).unwrap();
    identity.retire().unwrap();
    assert_eq!(open(), Reason::DataFolder, "its cluster removed it");
}
