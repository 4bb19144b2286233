//! Programs of commands against two replicas, and against a restore of their backup.
//!
//! One replica applies each entry as its leader has it, in a batch of its own. The other reads entries from their bytes
//! and takes several in a batch. Both hold the same bytes, give the same outcomes and tell the same events. What the
//! tables say of the data is what the data is.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use podkv_api::{ClusterId, Incarnation, KeyRange, Limits, Range};
use podkv_core::{
    Answer, Applier, BackupHeader, BackupId, BackupPart, BackupReader, BackupRecord, BackupWriter,
    Command, Entry, MemoryView, Meta, Outcome, PageLimits, RevisionEvents, check, data_digest,
    range, read_meta, restoring, state_digest,
};

use crate::commands::{pause, proposal, read};

/// More in one program reaches nothing more.
const MAX_ENTRIES: usize = 64;
/// The longest program's clock stays below, so that deadlines do not overflow by our own fault.
const START_MS: u64 = 1_000_000;

pub fn run(data: &[u8]) {
    // Fewer bytes than it wants are zeros.
    let _ = program(&mut Unstructured::new(data));
}

fn program(input: &mut Unstructured) -> Result<()> {
    let cuts: u64 = input.arbitrary()?;
    let probe = read(input)?;
    let mut entries = Vec::new();
    let mut clock_ms = START_MS;
    while !input.is_empty() && entries.len() < MAX_ENTRIES {
        clock_ms = clock_ms.saturating_add_signed(pause(input)?);
        let count = input.int_in_range(1..=3)?;
        let proposals = (0..count).map(|_| proposal(input));
        entries.push(Entry {
            clock_ms,
            proposals: proposals.collect::<Result<_>>()?,
        });
    }
    if entries.is_empty() {
        return Ok(());
    }
    let mut one = Replica::default();
    for entry in &entries {
        one.batch(std::slice::from_ref(entry));
    }
    let mut other = Replica::default();
    let mut rest: &[Entry] = &entries;
    for step in 0..u64::MAX {
        let size = 1 + (cuts >> (2 * (step % 32)) & 3) as usize;
        let (batch, after) = rest.split_at(size.min(rest.len()));
        let decoded: Vec<Entry> = batch.iter().map(through_bytes).collect();
        other.batch(&decoded);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!(one.view, other.view, "two replicas");
    assert_eq!(one.outcomes, other.outcomes);
    assert_eq!(one.events, other.events);
    one.check(&probe);
    let restores = restoring(&one.view).expect("a view in memory");
    if !restores {
        backup_brings_it_back(&one.view, &one.meta());
    }
    Ok(())
}

/// An entry as a follower has it.
fn through_bytes(entry: &Entry) -> Entry {
    let decoded = Entry::decode(&entry.encode()).expect("our own entry");
    assert_eq!(&decoded, entry);
    decoded
}

#[derive(Default)]
struct Replica {
    view: MemoryView,
    outcomes: Vec<Outcome>,
    events: Vec<Arc<RevisionEvents>>,
}

impl Replica {
    fn batch(&mut self, entries: &[Entry]) {
        let before = self.meta();
        let mut applier = Applier::new(&self.view).expect("a view in memory");
        for entry in entries {
            let outcomes = applier.apply(entry).expect("no failure of the view");
            for (outcome, proposal) in outcomes.iter().zip(&entry.proposals) {
                let decoded = Outcome::decode(&outcome.encode());
                assert_eq!(decoded.as_ref(), Ok(outcome), "{proposal:?}");
                // What no node would have proposed may come all the same, and does no harm.
                let _ = check(&proposal.command, &Limits::default());
            }
            self.outcomes.extend(outcomes);
        }
        let effects = applier.finish();
        assert!(effects.writes.is_sorted_by(|a, b| a.0 < b.0));
        self.view.commit(effects.writes);
        let meta = self.meta();
        assert_eq!(meta, effects.meta);
        assert!(meta.revision >= before.revision && meta.clock_ms >= before.clock_ms);
        for events in &effects.events {
            let last = self.events.last().map_or(1, |last| last.revision);
            assert!(events.revision > last && !events.events.is_empty());
            self.events.push(events.clone());
        }
    }

    fn meta(&self) -> Meta {
        read_meta(&self.view).expect("a view in memory")
    }

    /// What is kept twice is the same twice, and everything that should be readable is.
    fn check(&self, probe: &Range) {
        let meta = self.meta();
        assert!(meta.compacted_revision <= meta.revision, "{meta:?}");
        state_digest(&self.view).expect("a view in memory");
        if restoring(&self.view).expect("a view in memory") {
            return;
        }
        let limits = PageLimits {
            max_bytes: usize::MAX,
            count: true,
        };
        let read = |request: &Range| range(&self.view, request, limits).expect("a whole view");
        let all = read(&Range::new(KeyRange::all())).expect("the present is readable");
        assert_eq!(all.kvs.len() as u64, meta.keys, "the keys that are counted");
        assert_eq!(all.count, meta.keys, "the counts of blocks");
        let oldest = meta
            .compacted_revision
            .max(meta.revision.saturating_sub(40))
            .max(1);
        for revision in oldest..=meta.revision {
            let digest = data_digest(&self.view, revision).expect("a whole view");
            digest.expect("a revision that is not compacted");
        }
        if let Ok(page) = read(probe) {
            let within = |kv: &podkv_api::KeyValue| probe.range.contains(&kv.key);
            assert!(page.kvs.iter().all(within));
            assert!(probe.limit == 0 || page.kvs.len() as u64 <= probe.limit);
        }
    }
}

/// A restore of the backup into an empty store has the same backup again.
fn backup_brings_it_back(view: &MemoryView, meta: &Meta) {
    let (header, mut records) = backup(view, meta);
    // What was due already is due at once.
    for record in &mut records {
        if let BackupRecord::Key(kv) = record {
            kv.expires_at_ms = kv.expires_at_ms.map(|at| at.max(header.clock_ms));
        }
    }
    let id = BackupId(1);
    let mut restored = Replica::default();
    let mut ask = |command: Command| {
        restored.batch(&[Entry {
            clock_ms: header.clock_ms,
            proposals: vec![command.into()],
        }]);
        let outcome = restored.outcomes.last().expect("one for each proposal");
        assert!(outcome.result.is_ok(), "{outcome:?}");
        outcome.result.clone()
    };
    ask(Command::RestoreBegin {
        backup: id,
        revision: header.revision,
        clock_ms: header.clock_ms,
        retention: header.retention,
    })
    .ok();
    for (first, records) in (0..).step_by(3).zip(records.chunks(3)) {
        ask(Command::RestoreRecords {
            backup: id,
            first,
            records: records.to_vec(),
        })
        .ok();
    }
    let count = records.len() as u64;
    let ended = ask(Command::RestoreEnd {
        backup: id,
        records: count,
    });
    let done = Answer::Restore {
        records: count,
        done: true,
    };
    assert_eq!(ended.ok(), Some(done));
    let (_, again) = backup(&restored.view, &restored.meta());
    assert_eq!(again, records);
    restored.check(&Range::new(KeyRange::all()));
}

fn backup(view: &MemoryView, meta: &Meta) -> (BackupHeader, Vec<BackupRecord>) {
    let header = BackupHeader {
        cluster: ClusterId(1),
        incarnation: Incarnation(1),
        revision: meta.revision,
        clock_ms: meta.clock_ms,
        retention: meta.retention,
        release: "1.0.0".into(),
    };
    let mut writer = BackupWriter::new(header.clone());
    let mut reader = BackupReader::new();
    let mut records = Vec::new();
    while let Some(frame) = writer.next_frame(view).expect("a whole view") {
        reader.push(&frame);
        while let Some(part) = reader.next_part().expect("our own backup") {
            if let BackupPart::Records(read) = part {
                records.extend(read);
            }
        }
    }
    reader.finish().expect("a whole backup");
    (header, records)
}
