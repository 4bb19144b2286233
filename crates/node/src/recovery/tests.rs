//! Which volume may be recovered, and what a recovery leaves, also when it is interrupted at any step.

use std::collections::BTreeMap;

use super::*;
use crate::identity::Identity;
use crate::membership::PeerAddress;
use crate::storage::{Crash, MemoryDisk};

const CLUSTER: ClusterId = ClusterId(9);

fn survivor(name: &str, id: u64, last: (u64, u64)) -> Survivor {
    Survivor {
        name: name.into(),
        id: MemberId(id),
        cluster: CLUSTER,
        incarnation: Incarnation(1),
        last: LogPosition {
            term: last.0,
            index: last.1,
        },
    }
}

fn members(voters: &[u64], learners: &[u64]) -> Members {
    let nodes: BTreeMap<_, _> = voters
        .iter()
        .chain(learners)
        .map(|id| {
            let address = PeerAddress {
                name: format!("podkv-{id}"),
                ..PeerAddress::default()
            };
            (MemberId(*id), address)
        })
        .collect();
    Members {
        position: Some(LogPosition { term: 1, index: 1 }),
        voters: vec![voters.iter().map(|id| MemberId(*id)).collect()],
        nodes,
    }
}

fn why_not(result: Result<()>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.reason(), Reason::MembershipConflict);
    error.text().to_owned()
}

#[test]
fn a_survivor_is_one_word() {
    let one = survivor("podkv-1", 0xab, (3, 40));
    let text = one.to_string();
    assert_eq!(text, "podkv-1/00000000000000ab/0000000000000009/1/3.40");
    assert_eq!(text.parse(), Ok(one));
    for bad in [
        "",
        "podkv-1",
        "podkv-1/x/9/1/3.40",
        "podkv-1/ab/9/1/3",
        "podkv-1/ab/9/1/3.4/5",
        "/ab/9/1/3.4",
    ] {
        bad.parse::<Survivor>().unwrap_err();
    }
}

#[test]
fn only_the_best_survivor_is_recovered() {
    let me = survivor("podkv-1", 1, (3, 40));
    let with = |other: Survivor| compare(&me, &BTreeSet::from([other]));
    with(survivor("podkv-2", 2, (3, 39))).unwrap();
    with(survivor("podkv-2", 2, (2, 99))).unwrap();
    // A higher term counts before a longer log.
    assert!(why_not(with(survivor("podkv-2", 2, (4, 1)))).contains("Recover podkv-2"));
    assert!(why_not(with(survivor("podkv-2", 2, (3, 41)))).contains("Recover podkv-2"));
    // Of two that are equal only one may ever be recovered.
    with(survivor("podkv-2", 2, (3, 40))).unwrap();
    assert!(why_not(with(survivor("podkv-0", 5, (3, 40)))).contains("Recover podkv-0"));
    let recovered = Survivor {
        incarnation: Incarnation(2),
        ..survivor("podkv-2", 2, (3, 1))
    };
    assert!(why_not(with(recovered)).contains("recovered there"));
    let foreign = Survivor {
        cluster: ClusterId(8),
        ..survivor("podkv-2", 2, (3, 1))
    };
    assert!(why_not(with(foreign)).contains("do not belong together"));
}

#[test]
fn every_voter_is_accounted_for() {
    let me = survivor("podkv-1", 1, (3, 40));
    let with = |members: &Members, others: &[Survivor], lost: &[&str]| {
        let lost = lost.iter().map(|name| (*name).to_owned()).collect();
        account(&me, members, &others.iter().cloned().collect(), &lost)
    };
    let (three, five) = (members(&[1, 2, 3], &[4]), members(&[1, 2, 3, 4, 5], &[]));
    let two = survivor("podkv-2", 2, (3, 1));
    with(&three, &[], &["podkv-2", "podkv-3"]).unwrap();
    // A learner's volume says nothing about a majority, and need not be spoken of.
    let learner = survivor("podkv-4", 4, (3, 1));
    with(&three, &[learner], &["podkv-2", "podkv-3"]).unwrap();
    with(
        &five,
        std::slice::from_ref(&two),
        &["podkv-3", "podkv-4", "podkv-5"],
    )
    .unwrap();

    let text = why_not(with(&three, &[], &["podkv-2"]));
    assert!(
        text.contains("podkv-3") && !text.contains("podkv-2"),
        "{text}"
    );
    let text = why_not(with(&three, std::slice::from_ref(&two), &["podkv-3"]));
    assert!(text.contains("a majority"), "{text}");
    let text = why_not(with(&three, &[], &["podkv-2", "podkv-3", "podkv-9"]));
    assert!(text.contains("podkv-9"), "{text}");
    let text = why_not(with(
        &five,
        &[two],
        &["podkv-2", "podkv-3", "podkv-4", "podkv-5"],
    ));
    assert!(text.contains("its report is here"), "{text}");
}

#[test]
fn the_word_stands_for_one_plan() {
    let plan = Plan {
        chosen: survivor("podkv-1", 1, (3, 40)),
        committed: LogPosition { term: 3, index: 38 },
        incarnation: Incarnation(2),
        survivors: BTreeSet::new(),
        lost: BTreeSet::from(["podkv-2".into(), "podkv-3".into()]),
        term: 4,
    };
    let mut other = plan.clone();
    other.chosen.last.index += 1;
    assert_ne!(plan.word(), other.word());
    let text = plan.to_string();
    assert!(
        text.contains("podkv-2, podkv-3") && text.contains("3.38"),
        "{text}"
    );
}

/// A member of three on a disk in memory, with a log of 1 + `puts` entries.
fn volume(disk: &MemoryDisk) -> Volume {
    let volume = Volume::memory(disk);
    let identity = Identity::open(volume.markers(), "podkv-1").unwrap();
    identity.become_member(CLUSTER, Incarnation(1)).unwrap();
    let storage = volume.open_stores(&identity, 0).unwrap();
    crate::raft::testing::fill_log(&storage, &members(&[identity.node_id().0, 2, 3], &[]), 20);
    volume
}

fn lost() -> [String; 2] {
    ["podkv-2".into(), "podkv-3".into()]
}

fn plan_of(stopped: &StoppedNode) -> Plan {
    match stopped.plan(&[], &lost()).unwrap() {
        Verdict::Possible(plan) => plan,
        verdict => panic!("{verdict:?}"),
    }
}

#[test]
fn a_recovered_node_is_the_only_voter_of_the_next_incarnation() {
    let disk = MemoryDisk::new();
    let stopped = StoppedNode::open(&volume(&disk)).unwrap();
    let before = stopped.report().unwrap();
    assert_eq!(before.survivor.last.index, 20);
    let error = stopped.plan(&[], &[]).unwrap_err();
    assert!(error.text().contains("podkv-2, podkv-3"), "{error}");
    let plan = plan_of(&stopped);
    let recovered = stopped.recover(Some(&plan)).unwrap();
    assert_eq!(recovered.incarnation, Incarnation(2));
    assert_eq!(recovered.revision, 21 + podkv_core::REVISION_RAISE);

    let volume = Volume::memory(&disk);
    let stopped = StoppedNode::open(&volume).unwrap();
    let after = stopped.report().unwrap();
    assert_eq!(after.survivor.incarnation, Incarnation(2));
    assert_eq!(after.survivor.id, before.survivor.id);
    assert!(after.survivor.last.term > before.vote_term.max(before.survivor.last.term));
    assert_eq!(after.members.nodes.len(), 1);
    // Run again by mistake, it does nothing.
    assert_eq!(stopped.plan(&[], &lost()).unwrap(), Verdict::NotNeeded);
    stopped.recover(None).unwrap_err();
    let identity = Identity::open(volume.markers(), "podkv-1").unwrap();
    assert_eq!(identity.membership(), Some((CLUSTER, Incarnation(2))));
}

/// The recovery's own writes to the disk end one after the other; each time the machine dies there.
#[test]
fn interrupted_anywhere_it_is_as_before_or_ends_in_the_same() {
    let reference = {
        let disk = MemoryDisk::new();
        let stopped = StoppedNode::open(&volume(&disk)).unwrap();
        let plan = plan_of(&stopped);
        stopped.recover(Some(&plan)).unwrap()
    };
    for steps in 0..=5 {
        let disk = MemoryDisk::new();
        let mut stopped = StoppedNode::open(&volume(&disk)).unwrap();
        let before = stopped.report().unwrap();
        let plan = plan_of(&stopped);
        let recovery = Recovery {
            cluster: CLUSTER,
            incarnation: plan.incarnation,
            node: plan.chosen.id,
            base: plan.chosen.last,
            term: plan.term,
        };
        let me = (
            plan.chosen.id,
            before.members.nodes[&plan.chosen.id].clone(),
        );
        if steps >= 1 {
            stopped.resident.begin(recovery.clone()).unwrap();
        }
        if steps >= 2 {
            raft::apply_all(&stopped.storage, recovery.base).unwrap();
        }
        if steps >= 3 {
            raft::append_recovery(&stopped.storage, recovery.base, recovery.term, me).unwrap();
        }
        match steps {
            4 => stopped.resident.finish().unwrap(),
            // Between the new marker and the end of the file.
            5 => {
                stopped.resident.finish().unwrap();
                stopped.resident.begin(recovery).unwrap();
            }
            _ => {}
        }
        drop(stopped);
        disk.crash(Crash::Power);

        let stopped = StoppedNode::open(&Volume::memory(&disk)).unwrap();
        let report = stopped.report().unwrap();
        match stopped.plan(&[], &lost()).unwrap() {
            Verdict::Possible(again) => {
                assert_eq!(steps, 0);
                assert_eq!(again, plan);
                assert_eq!(report.members, before.members);
            }
            Verdict::Unfinished => {
                assert!([1, 2, 3, 5].contains(&steps), "step {steps}");
                assert_eq!(stopped.recover(None).unwrap(), reference, "step {steps}");
            }
            Verdict::NotNeeded => assert_eq!(steps, 4),
        }
    }
}

#[test]
fn what_is_no_members_volume_is_refused() {
    let reason = |volume: &Volume| StoppedNode::open(volume).err().unwrap().reason();
    let disk = MemoryDisk::new();
    let empty = Volume::memory(&disk);
    assert_eq!(reason(&empty), Reason::DataFolder);
    let virgin = Identity::open(empty.markers(), "podkv-1").unwrap();
    assert_eq!(reason(&empty), Reason::DataFolder);
    virgin.become_member(CLUSTER, Incarnation(1)).unwrap();
    virgin.retire().unwrap();
    assert_eq!(reason(&empty), Reason::DataFolder);
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_folder_without_a_node_is_refused_and_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let error = Volume::existing_disk(folder.path()).err().unwrap();
    assert_eq!(error.reason(), Reason::DataFolder);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[cfg(feature = "rocksdb")]
#[test]
fn on_a_real_disk_a_recovered_node_keeps_its_whole_log() {
    let folder = tempfile::tempdir().unwrap();
    {
        let volume = Volume::disk(folder.path()).unwrap();
        let identity = Identity::open(volume.markers(), "podkv-1").unwrap();
        let storage = volume.open_stores(&identity, 1 << 20).unwrap();
        identity.become_member(CLUSTER, Incarnation(1)).unwrap();
        crate::raft::testing::fill_log(&storage, &members(&[identity.node_id().0, 2, 3], &[]), 300);
    }
    let volume = Volume::existing_disk(folder.path()).unwrap();
    // Nobody else may use it meanwhile.
    let refused = Volume::existing_disk(folder.path()).err().unwrap();
    assert_eq!(refused.reason(), Reason::DataFolder);
    let stopped = StoppedNode::open(&volume).unwrap();
    let plan = plan_of(&stopped);
    let recovered = stopped.recover(Some(&plan)).unwrap();
    assert_eq!(recovered.revision, 301 + podkv_core::REVISION_RAISE);
    drop(volume);
    let volume = Volume::existing_disk(folder.path()).unwrap();
    let report = StoppedNode::open(&volume).unwrap().report().unwrap();
    assert_eq!((report.keys, report.applied.index), (300, 300));
    assert_eq!(report.survivor.last.index, 302);
    assert!(!folder.path().join("podkv/RECOVERY").exists());
}
