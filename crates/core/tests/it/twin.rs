//! The core against a naive twin: full copies of all keys for every revision, and loops.
//!
//! Random programs run through both. What comes out must be equal: every outcome, every event,
//! every readable revision, every watch. The twin knows the rules of the data model and none of the
//! core's tricks, so what they agree on is not a shared mistake in a table.

mod model;
pub mod programs;

use podkv_api::*;
use podkv_core::*;
use proptest::prelude::*;

use crate::store::Store;
use model::Twin;
use programs::{Step, programs, ranges};

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Everything that can be observed is what the twin says.
    #[test]
    fn agrees_with_its_twin(program in programs(), reads in ranges()) {
        let mut store = Store::new();
        let mut twin = Twin::new();
        for step in &program {
            store.clock_ms += step.clock_ms;
            let (outcomes, events) = store.apply(step.proposals.clone());
            let events: Vec<RevisionEvents> =
                events.iter().map(|events| events.as_ref().clone()).collect();
            let (expected, expected_events) = twin.apply(store.clock_ms, &step.proposals);
            for ((got, expected), proposal) in
                outcomes.iter().zip(&expected).zip(&step.proposals)
            {
                if matches!(proposal.command, Command::Sweep { .. }) {
                    continue; // The twin has nothing to sweep.
                }
                prop_assert_eq!(got, expected, "{:?}", proposal);
            }
            prop_assert_eq!(events, expected_events);
        }
        same_state(&store, &twin)?;
        same_reads(&store, &twin, &reads)?;
        while store.ok(Command::Sweep { limit: 3 }) == (Answer::Sweep { more: true }) {}
        same_state(&store, &twin)?;
        same_reads(&store, &twin, &reads)?;
        nothing_is_left_behind(&store, &twin)?;
    }

    /// How entries are cut into batches changes no byte of the state, no outcome and no event.
    #[test]
    fn batches_change_nothing(program in programs(), cuts in prop::collection::vec(1usize..6, 40)) {
        let mut one_by_one = Store::new();
        let mut single = Vec::new();
        let mut entries = Vec::new();
        for Step { clock_ms, proposals } in program {
            one_by_one.clock_ms += clock_ms;
            entries.push(Entry { clock_ms: one_by_one.clock_ms, proposals: proposals.clone() });
            single.push(one_by_one.apply(proposals));
        }

        let mut view = MemoryView::new();
        let mut outcomes = Vec::new();
        let mut events = Vec::new();
        let mut rest = entries.as_slice();
        for cut in cuts {
            let (batch, after) = rest.split_at(cut.min(rest.len()));
            let mut applier = Applier::new(&view).unwrap();
            for entry in batch {
                outcomes.extend(applier.apply(entry).unwrap());
            }
            let effects = applier.finish();
            view.commit(effects.writes);
            events.extend(effects.events);
            rest = after;
        }
        prop_assert!(rest.is_empty());
        let (single_outcomes, single_events): (Vec<_>, Vec<_>) = single.into_iter().unzip();
        prop_assert_eq!(outcomes, single_outcomes.concat());
        prop_assert_eq!(events, single_events.concat());
        prop_assert_eq!(state_digest(&view).unwrap(), state_digest(&one_by_one.view).unwrap());
        prop_assert_eq!(view, one_by_one.view);
    }
}

/// More by `PROPTEST_CASES`.
#[allow(clippy::disallowed_methods)] // How long a test runs, not what the core computes.
fn cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES");
    asked
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(400)
}

/// Every readable revision, the leases and the next deadline.
fn same_state(store: &Store, twin: &Twin) -> Result<(), TestCaseError> {
    let meta = store.meta();
    prop_assert_eq!(meta.revision, twin.revision);
    prop_assert_eq!(meta.compacted_revision, twin.compacted);
    prop_assert_eq!(meta.keys, twin.keys().len() as u64);
    prop_assert_eq!(meta.leases, twin.leases.len() as u64);
    prop_assert_eq!(meta.sessions, twin.open_sessions());
    prop_assert_eq!(next_deadline(&store.view).unwrap(), twin.next_deadline());
    let ids: Vec<LeaseId> = twin.leases.keys().copied().collect();
    prop_assert_eq!(leases(&store.view).unwrap(), ids.clone());
    for id in ids {
        prop_assert_eq!(
            lease_status(&store.view, id, true).unwrap(),
            Some(twin.lease_status(id))
        );
    }
    for revision in twin.compacted.max(1)..=twin.revision {
        let page = store.range(&Range::new(KeyRange::all()).at(revision));
        prop_assert_eq!(&page.kvs, &twin.range(&KeyRange::all(), revision));
        prop_assert_eq!(page.count, page.kvs.len() as u64);
        let digest = data_digest(&store.view, revision).unwrap();
        prop_assert!(digest.is_ok());
    }
    Ok(())
}

/// Ranges of all forms, at every revision, and watches from every revision.
fn same_reads(store: &Store, twin: &Twin, reads: &[Range]) -> Result<(), TestCaseError> {
    for read in reads {
        for revision in 0..=twin.revision + 1 {
            let request = read.clone().at(revision);
            let got = range(&store.view, &request, PageLimits::default()).unwrap();
            prop_assert_eq!(
                got.map(|page| (page.kvs, page.count, page.more)),
                twin.read(&request),
                "{:?}",
                request
            );
            let limits = ChangesLimits {
                max_events: 3,
                ..ChangesLimits::default()
            };
            let mut from = revision;
            let mut got = Vec::new();
            let result = loop {
                match changes(&store.view, from, u64::MAX, Some(&read.range), limits).unwrap() {
                    Err(rejection) => break Err(rejection.reason),
                    Ok(page) => {
                        got.extend(page.revisions);
                        from = page.looked_to + 1;
                        if page.looked_to >= twin.revision {
                            break Ok(got);
                        }
                    }
                }
            };
            prop_assert_eq!(result, twin.changes(revision, &read.range));
        }
    }
    Ok(())
}

/// After a full sweep the tables hold what can still be asked for, and no more.
fn nothing_is_left_behind(store: &Store, twin: &Twin) -> Result<(), TestCaseError> {
    let rows = |keyspace: u8, table: u8| {
        let keys = store.view.iter().map(|(key, _)| key);
        keys.filter(|key| key[3] == keyspace && key[4] == table)
            .count()
    };
    let (changes, versions) = twin.history_left();
    prop_assert_eq!(rows(1, 1), twin.keys().len(), "latest");
    prop_assert_eq!(rows(1, 2), versions, "history");
    prop_assert_eq!(rows(1, 3), changes, "changes");
    prop_assert_eq!(rows(0, 3), twin.attached(), "lease keys");
    prop_assert_eq!(rows(0, 4), twin.deadlines(), "deadlines");
    prop_assert_eq!(rows(0, 5), twin.sessions.len(), "sessions");
    prop_assert_eq!(rows(0, 6), twin.results_left(), "session results");
    Ok(())
}
