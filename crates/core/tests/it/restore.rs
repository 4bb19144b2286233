//! The promise: what a backup held is what a restore brings back, and a file that is not a whole
//! backup is found out before anything of it counts.

use podkv_api::*;
use podkv_core::*;
use proptest::prelude::*;

use crate::store::Store;
use crate::twin::programs::{Step, programs};

/// A backup, written and read back.
#[derive(Clone, Debug)]
pub struct Backup {
    pub bytes: Vec<u8>,
    pub header: BackupHeader,
    pub records: Vec<BackupRecord>,
    pub end: BackupEnd,
}

impl Backup {
    pub fn of(view: &MemoryView) -> Self {
        let meta = read_meta(view).unwrap();
        let mut writer = BackupWriter::new(BackupHeader {
            cluster: ClusterId(1 << 40),
            incarnation: Incarnation(3),
            revision: meta.revision,
            clock_ms: meta.clock_ms,
            retention: meta.retention,
            release: "1.2.3".into(),
        });
        let mut bytes = Vec::new();
        while let Some(frame) = writer.next_frame(view).unwrap() {
            bytes.extend_from_slice(&frame);
        }
        Self::read(&bytes).unwrap()
    }

    pub fn read(bytes: &[u8]) -> Result<Self, BackupError> {
        Self::read_in_pieces(bytes, 1000)
    }

    fn read_in_pieces(bytes: &[u8], piece: usize) -> Result<Self, BackupError> {
        let mut reader = BackupReader::new();
        let (mut header, mut records) = (None, Vec::new());
        for piece in bytes.chunks(piece) {
            reader.push(piece);
            while let Some(part) = reader.next_part()? {
                match part {
                    BackupPart::Header(read) => header = Some(read),
                    BackupPart::Records(read) => records.extend(read),
                    BackupPart::End(_) => {}
                }
            }
        }
        assert!(reader.position() <= bytes.len() as u64);
        let end = reader.finish()?;
        let header = header.unwrap();
        let bytes = bytes.to_vec();
        Ok(Self {
            bytes,
            header,
            records,
            end,
        })
    }

    pub fn begin(&self) -> Command {
        Command::RestoreBegin {
            backup: self.end.id,
            revision: self.header.revision,
            clock_ms: self.header.clock_ms,
            retention: self.header.retention,
        }
    }

    pub fn part(&self, from: usize, to: usize) -> Command {
        Command::RestoreRecords {
            backup: self.end.id,
            first: from as u64,
            records: self.records[from..to].to_vec(),
        }
    }

    pub fn end(&self) -> Command {
        Command::RestoreEnd {
            backup: self.end.id,
            records: self.end.records,
        }
    }

    /// Restores it in steps of these sizes, over and over.
    fn restore(&self, store: &mut Store, steps: &[usize]) {
        store.ok(self.begin());
        let mut at = 0;
        for step in steps.iter().cycle() {
            let to = (at + step).min(self.records.len());
            store.ok(self.part(at, to));
            at = to;
            if at == self.records.len() {
                break;
            }
        }
        let done = store.ok(self.end());
        let records = self.end.records;
        assert_eq!(
            done,
            Answer::Restore {
                records,
                done: true
            }
        );
    }
}

fn run(program: Vec<Step>) -> Store {
    let mut store = Store::new();
    for step in program {
        store.clock_ms += step.clock_ms;
        store.apply(step.proposals);
    }
    store
}

fn rows(store: &Store, keyspace: u8, table: u8) -> usize {
    let keys = store.view.iter().map(|(key, _)| key);
    keys.filter(|key| key[3] == keyspace && key[4] == table)
        .count()
}

fn all(store: &Store) -> Vec<KeyValue> {
    store.range(&Range::new(KeyRange::all())).kvs
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Keys, metadata, leases and attachments come back; derived tables are as if they had grown.
    #[test]
    fn what_is_restored_is_what_was_saved(
        program in programs(),
        after in programs(),
        steps in prop::collection::vec(1usize..7, 1..5),
        clock_ms in 0u64..100_000,
    ) {
        let old = run(program);
        let backup = Backup::of(&old.view);
        let mut new = Store::new();
        new.clock_ms = clock_ms;
        backup.restore(&mut new, &steps);

        let revision = backup.header.revision + REVISION_RAISE;
        let (was, is) = (old.meta(), new.meta());
        prop_assert_eq!((is.revision, is.compacted_revision), (revision, revision));
        prop_assert_eq!((is.keys, is.leases), (was.keys, was.leases));
        prop_assert_eq!(is.retention, was.retention);
        let mut expected = all(&old);
        for kv in &mut expected {
            let left = |at: u64| at.saturating_sub(was.clock_ms) + clock_ms;
            kv.expires_at_ms = kv.expires_at_ms.map(left);
        }
        prop_assert_eq!(all(&new), expected);
        let ids = leases(&old.view).unwrap();
        prop_assert_eq!(&leases(&new.view).unwrap(), &ids);
        for id in &ids {
            let was = lease_status(&old.view, *id, true).unwrap().unwrap();
            let is = lease_status(&new.view, *id, true).unwrap().unwrap();
            prop_assert_eq!((is.granted_ttl_ms, is.remaining_ms), (was.granted_ttl_ms, was.granted_ttl_ms));
            prop_assert_eq!(is.keys, was.keys);
        }
        let at_its_revision = Range::new(KeyRange::all()).at(revision);
        prop_assert_eq!(new.range(&at_its_revision).count, was.keys);
        prop_assert_eq!(rows(&new, 1, 2) + rows(&new, 1, 3), 0, "no history");

        // What is derived carries on: anything can happen to it, and it can all go.
        for step in after {
            new.clock_ms += step.clock_ms;
            new.apply(step.proposals);
        }
        for id in leases(&new.view).unwrap() {
            new.ok(Command::LeaseRevoke { id });
        }
        new.delete(KeyRange::all());
        let (last, sessions) = (new.meta().revision, rows(&new, 0, 5));
        let _ = new.run(Command::Compact { revision: last });
        while new.ok(Command::Sweep { limit: 100 }) == (Answer::Sweep { more: true }) {}
        prop_assert_eq!((new.meta().keys, new.meta().leases), (0, 0));
        prop_assert_eq!(rows(&new, 0, 3), 0, "lease keys");
        prop_assert_eq!(rows(&new, 0, 4), sessions, "deadlines");
        prop_assert_eq!(new.range(&Range::new(KeyRange::all()).count_only()).count, 0);
    }

    /// A restore that is thrown away leaves an empty store, however far it was.
    #[test]
    fn what_is_discarded_is_gone(program in programs(), cut in 0usize..100, limit in 0u32..5) {
        let backup = Backup::of(&run(program).view);
        let mut store = Store::new();
        store.ok(backup.begin());
        store.ok(backup.part(0, cut.min(backup.records.len())));
        while store.ok(Command::RestoreDiscard { limit }) == (Answer::RestoreDiscard { more: true }) {
            prop_assert_eq!(store.rejected(backup.end()), Reason::NotRestoring);
            prop_assert_eq!(store.rejected(backup.begin()), Reason::Restoring);
        }
        prop_assert_eq!(store.view.len(), 1, "the meta record");
        prop_assert_eq!(store.meta(), Meta::default());
        backup.restore(&mut store, &[3]);
    }

    /// Flip any bit, cut it anywhere, add to it: it is refused.
    #[test]
    fn damaged_backups_are_refused(
        program in programs(),
        place in any::<prop::sample::Index>(),
        bit in 0u8..8,
        piece in 1usize..200,
    ) {
        let backup = Backup::of(&run(program).view);
        let whole = Backup::read_in_pieces(&backup.bytes, piece).unwrap();
        prop_assert_eq!(whole.records, backup.records);
        let at = place.index(backup.bytes.len());
        let mut flipped = backup.bytes.clone();
        flipped[at] ^= 1 << bit;
        prop_assert!(Backup::read_in_pieces(&flipped, piece).is_err(), "bit {} of byte {}", bit, at);
        let cut = Backup::read_in_pieces(&backup.bytes[..at], piece).unwrap_err();
        prop_assert_eq!(cut, BackupError::CutOff { length: at as u64 });
        let mut longer = backup.bytes.clone();
        longer.push(bit);
        let at = backup.bytes.len() as u64;
        prop_assert_eq!(Backup::read(&longer).unwrap_err(), BackupError::Longer { at });
    }
}

/// A store of several blocks, so that blocks and blocks of counts are cut.
fn large() -> Store {
    let mut store = Store::new();
    let values = "x".repeat(400);
    for some in (0..3000).collect::<Vec<_>>().chunks(500) {
        let puts = some.iter().map(|number| {
            Proposal::from(Command::Put(Put::new(
                format!("key/{number:05}"),
                values.clone(),
            )))
        });
        store.apply(puts.collect());
    }
    store
}

#[test]
fn many_keys_are_many_blocks() {
    let old = large();
    let backup = Backup::of(&old.view);
    let mut new = Store::new();
    backup.restore(&mut new, &[700]);
    assert_eq!(all(&new), all(&old));
    for (from, to) in [(0, 3000), (10, 11), (511, 2050), (2999, 3000)] {
        let range = KeyRange::between(format!("key/{from:05}"), format!("key/{to:05}"));
        let count = new.range(&Range::new(range).count_only()).count;
        assert_eq!(count, to - from);
    }
}

/// Frames that are whole, each for itself, are not a backup in another order or number.
#[test]
fn a_missing_or_foreign_block_is_found() {
    let backup = Backup::of(&large().view);
    let mut frames: Vec<&[u8]> = Vec::new();
    let mut rest = backup.bytes.as_slice();
    while !rest.is_empty() {
        let length = codec::frame_length("frame", rest, usize::MAX).unwrap();
        let (frame, after) = rest.split_at(length);
        frames.push(frame);
        rest = after;
    }
    assert!(frames.len() > 5);
    let without_one: Vec<u8> = [&frames[..2], &frames[3..]].concat().concat();
    assert!(matches!(
        Backup::read(&without_one),
        Err(BackupError::Count { .. })
    ));
    frames.swap(1, 2);
    assert_eq!(
        Backup::read(&frames.concat()).unwrap_err(),
        BackupError::Digest
    );
    let entry = codec::frame(FrameKind::Entry, b"x");
    assert!(matches!(Backup::read(&entry), Err(BackupError::Foreign(_))));
    assert!(matches!(
        Backup::read(b"key\tvalue\nkey\tvalue\n"),
        Err(BackupError::Foreign(_))
    ));
}

/// Records are restored once, whole, and only where they fit.
#[test]
fn records_that_do_not_fit_change_nothing() {
    let mut old = Store::new();
    old.ok(Command::LeaseGrant {
        id: LeaseId(1),
        ttl_ms: 60_000,
    });
    old.run(Command::Put(Put::new("a", "1").lease(LeaseId(1))));
    old.put("b", "2");
    let backup = Backup::of(&old.view);
    let mut store = Store::new();
    store.ok(backup.begin());
    let records = |first: u64, records: Vec<BackupRecord>| Command::RestoreRecords {
        backup: backup.end.id,
        first,
        records,
    };
    let [lease, a, b] = backup.records.as_slice() else {
        panic!("not three records")
    };
    let (lease, a, b) = (lease.clone(), a.clone(), b.clone());
    let future = match b.clone() {
        BackupRecord::Key(kv) => BackupRecord::Key(KeyValue {
            mod_revision: backup.header.revision + 1,
            ..kv
        }),
        _ => panic!("not a key"),
    };
    let before = store.view.clone();
    for bad in [
        records(1, vec![a.clone()]),                           // a gap
        records(0, vec![a.clone()]),                           // its lease is not there
        records(0, vec![b.clone(), lease.clone()]),            // out of order
        records(0, vec![lease.clone(), b.clone(), a.clone()]), // out of order
        records(0, vec![lease.clone(), lease.clone()]),        // twice
        records(0, vec![b.clone(), b.clone()]),                // twice
        records(0, vec![future]),                              // written after the backup
    ] {
        assert_eq!(store.rejected(bad), Reason::InvalidArgument);
        assert_eq!(store.view, before);
    }
    store.ok(records(0, vec![lease.clone(), a.clone()]));
    let before = store.view.clone();
    for bad in [
        records(1, vec![a.clone(), b.clone()]), // begins in the middle of what is there
        records(2, vec![lease]),                // there already
        records(2, vec![a.clone()]),            // there already
    ] {
        assert_eq!(store.rejected(bad), Reason::InvalidArgument);
        assert_eq!(store.view, before);
    }
    store.ok(records(1, vec![a]));
    assert_eq!(
        store.view, before,
        "a step that comes again changes nothing"
    );
    store.ok(records(2, vec![b]));
    store.ok(backup.end());
}

/// A write that was refused meanwhile is not remembered as refused: sent again, it is executed.
#[test]
fn a_write_that_met_a_restore_can_be_sent_again() {
    let backup = Backup::of(&Store::new().view);
    let mut store = Store::new();
    store.ok(Command::SessionOpen {
        id: SessionId(5),
        ttl_ms: 60_000,
        identity: Bytes::new(),
    });
    store.ok(backup.begin());
    let put = Proposal {
        stamp: Some(Stamp {
            session: SessionStamp {
                session: SessionId(5),
                sequence: 1,
                acknowledged_below: 1,
            },
            identity: Bytes::new(),
        }),
        command: Command::Put(Put::new("a", "1")),
    };
    assert_eq!(
        store.run(put.clone()).result.unwrap_err().reason,
        Reason::Restoring
    );
    store.ok(backup.end());
    let outcome = store.run(put);
    assert!(outcome.result.is_ok() && !outcome.duplicate);
}

/// Restored keys were no events: whoever watches must hear of it another way.
#[test]
fn a_batch_that_ends_a_restore_says_so() {
    let backup = Backup::of(&large().view);
    let view = MemoryView::new();
    let mut applier = Applier::new(&view).unwrap();
    let whole = backup.part(0, backup.records.len());
    let entry = |command: Command| Entry {
        clock_ms: 1,
        proposals: vec![command.into()],
    };
    applier.apply(&entry(backup.begin())).unwrap();
    applier.apply(&entry(whole)).unwrap();
    applier.apply(&entry(backup.end())).unwrap();
    applier
        .apply(&entry(Command::Put(Put::new("after", "1"))))
        .unwrap();
    let effects = applier.finish();
    assert!(effects.restored);
    assert_eq!(effects.events.len(), 1);
    assert_eq!(
        effects.meta.revision,
        backup.header.revision + REVISION_RAISE + 1
    );
}

/// A backup that somebody made may say anything. Numbers that nobody could count on from would end every replica at the
/// write after.
#[test]
fn numbers_that_end_are_refused() {
    let begin = |revision| Command::RestoreBegin {
        backup: BackupId(1),
        revision,
        clock_ms: 0,
        retention: Retention::default(),
    };
    let records = |record: BackupRecord| Command::RestoreRecords {
        backup: BackupId(1),
        first: 0,
        records: vec![record],
    };
    let key = |version| {
        BackupRecord::Key(KeyValue {
            key: "k".into(),
            value: "v".into(),
            create_revision: 1,
            mod_revision: 1,
            version,
            lease: None,
            expires_at_ms: None,
        })
    };
    let auth = |revision| BackupRecord::Auth {
        enabled: false,
        revision,
    };
    let mut store = Store::new();
    for number in [u64::MAX, (1 << 62) + 1] {
        let raise = Command::RaiseRevision { revision: number };
        for command in [begin(number), raise] {
            assert_eq!(store.rejected(command), Reason::InvalidArgument);
        }
    }
    store.ok(begin(1 << 62));
    for record in [key(u64::MAX), auth(u64::MAX)] {
        assert_eq!(store.rejected(records(record)), Reason::InvalidArgument);
    }
    store.ok(records(key(1 << 62)));
    store.ok(Command::RestoreEnd {
        backup: BackupId(1),
        records: 1,
    });
    assert_eq!(store.put("k", "w"), (1 << 62) + REVISION_RAISE + 1);
}
