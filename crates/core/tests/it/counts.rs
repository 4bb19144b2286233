//! The promise: the count of a range is exact, at any size of the store, although it walks two
//! blocks at most.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;

use podkv_api::*;
use podkv_core::*;

use crate::store::Store;

fn name(number: u64) -> Bytes {
    format!("key/{number:06}").into()
}

/// Numbers in an order that is neither sorted nor random, the same in each run.
fn scattered(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |at| at * 7_919 % count)
}

fn put(number: u64) -> Proposal {
    Command::Put(Put::new(name(number), "v")).into()
}

fn delete(range: KeyRange) -> Proposal {
    Command::Delete(Delete::new(range)).into()
}

#[test]
fn counts_stay_exact_through_growing_and_shrinking() {
    const KEYS: u64 = 6_000;
    let mut store = Store::new();
    let mut twin = BTreeSet::new();
    let numbers: Vec<u64> = scattered(KEYS).collect();
    for some in numbers.chunks(500) {
        store.apply(some.iter().map(|number| put(*number)).collect());
        twin.extend(some.iter().copied());
        check(&store, &twin);
    }
    store.apply(vec![delete(KeyRange::between(name(1_000), name(1_100)))]);
    twin.retain(|number| !(1_000..1_100).contains(number));
    check(&store, &twin);
    for some in numbers.chunks(700) {
        let gone = some.iter().map(|number| KeyRange::key(name(*number)));
        store.apply(gone.map(delete).collect());
        twin.retain(|number| !some.contains(number));
        check(&store, &twin);
    }
    // What is left of the blocks is the first one.
    let blocks = store
        .view
        .iter()
        .filter(|(key, _)| key[..5] == [0, 0, 0, 1, 4]);
    assert_eq!(blocks.count(), 1);
}

fn check(store: &Store, twin: &BTreeSet<u64>) {
    let expect = |from: u64, to: u64| twin.range(from..to).count() as u64;
    let count = |range: KeyRange| {
        let mut request = Range::new(range);
        let (counted, limited) = (store.range(&request.clone().count_only()), {
            request.limit = 1;
            store.range(&request)
        });
        assert_eq!(counted.count, limited.count);
        counted.count
    };
    assert_eq!(count(KeyRange::all()), twin.len() as u64);
    assert_eq!(store.meta().keys, twin.len() as u64);
    for at in 0..12 {
        let (from, to) = (at * 499, at * 499 + at * 411 + 1);
        assert_eq!(
            count(KeyRange::between(name(from), name(to))),
            expect(from, to)
        );
        assert_eq!(count(KeyRange::from(name(from))), expect(from, u64::MAX));
        assert_eq!(count(KeyRange::key(name(from))), expect(from, from + 1));
    }
}

/// A view that notes how much is read through it.
struct Counting<'a>(&'a MemoryView, Cell<usize>);

impl View for Counting<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        self.1.set(self.1.get() + 1);
        self.0.get(key)
    }

    fn scan<'a>(&'a self, start: &[u8], end: &[u8], reverse: bool) -> Scan<'a> {
        let scan = self.0.scan(start, end, reverse);
        Box::new(scan.inspect(|_| self.1.set(self.1.get() + 1)))
    }
}

#[test]
fn a_limited_range_does_not_walk_its_keys() {
    let mut store = Store::new();
    store.apply((0..20_000).map(put).collect());
    let view = Counting(&store.view, Cell::new(0));
    let request = Range::new(KeyRange::from(name(5))).limit(10);
    let page = range(&view, &request, PageLimits::default())
        .unwrap()
        .unwrap();
    assert_eq!((page.kvs.len(), page.count, page.more), (10, 19_995, true));
    // 11 keys, the blocks (20 000 / 512), and the keys of the first block.
    assert!(view.1.get() < 11 + 40 + 1_024 + 10, "{}", view.1.get());
}

/// Keeps the counts of one revision.
#[derive(Default)]
struct One(RefCell<Option<Arc<PastCounts>>>);

impl KeepPastCounts for One {
    fn kept(&self, at: Revision) -> Option<Arc<PastCounts>> {
        let kept = self.0.borrow();
        kept.clone().filter(|counts| counts.revision() == at)
    }

    fn keep(
        &self,
        at: Revision,
        make: &mut dyn FnMut() -> Result<PastCounts, ViewError>,
    ) -> Result<Arc<PastCounts>, ViewError> {
        assert!(self.kept(at).is_none());
        let made = Arc::new(make()?);
        *self.0.borrow_mut() = Some(made.clone());
        Ok(made)
    }
}

/// A list of a distant revision walks its keys once, whatever happens while its pages are read.
#[test]
fn pages_of_a_distant_revision_walk_its_keys_once() {
    let mut store = Store::new();
    store.apply((0..20_000).map(put).collect());
    let then = store.meta().revision;
    let later = |store: &mut Store| {
        store.apply(vec![delete(KeyRange::between(name(3_000), name(9_000)))]);
        store.apply((20_000..26_000).map(put).collect());
        store.apply((0..3_000).map(put).collect());
    };
    later(&mut store);
    let kept = One::default();
    let mut costs = Vec::new();
    for from in [0, 1, 2_999, 3_000, 8_765, 12_000, 19_000] {
        let view = Counting(&store.view, Cell::new(0));
        let request = Range::new(KeyRange::from(name(from))).at(then);
        for request in [request.clone().limit(10), request.count_only()] {
            let page = range_with(&view, &request, PageLimits::default(), Some(&kept));
            assert_eq!(page.unwrap().unwrap().count, 20_000 - from);
        }
        costs.push(view.1.get());
        later(&mut store);
    }
    assert!(costs[0] > 20_000, "{costs:?}");
    assert!(costs[1..].iter().all(|cost| *cost < 6_000), "{costs:?}");
}

/// Of the recent past by undoing changes, of the distant past by walking the keys.
#[test]
fn counts_of_the_past_are_exact_near_and_far() {
    let mut store = Store::new();
    store.apply((0..3_000).map(put).collect());
    store.apply(vec![delete(KeyRange::between(name(100), name(200)))]);
    let (then, before) = (store.meta().revision, store.meta().revision - 1);
    store.apply((150..160).map(put).collect());
    store.apply(vec![delete(KeyRange::between(name(300), name(310)))]);
    let check = |store: &Store| {
        let view = Counting(&store.view, Cell::new(0));
        let mut cost = 0;
        for (from, to, now, at_then, at_before) in [
            (0, 3_000, 2_900, 2_900, 3_000),
            (150, 170, 10, 0, 20),
            (290, 400, 100, 110, 110),
            (1_000, 1_000, 0, 0, 0),
        ] {
            let range = KeyRange::between(name(from), name(to));
            for (revision, expected) in [(0, now), (then, at_then), (before, at_before)] {
                let request = Range::new(range.clone()).at(revision);
                let request = request.limit(1);
                let page = podkv_core::range(&view, &request, PageLimits::default());
                assert_eq!(page.unwrap().unwrap().count, expected);
                let request = request.count_only();
                assert_eq!(store.range(&request).count, expected);
                cost = view.1.get();
            }
        }
        cost
    };
    let near = check(&store);
    for value in 0..4 {
        let put = |number| Command::Put(Put::new(name(number), vec![value])).into();
        store.apply((400..3_000).map(put).collect());
    }
    let far = check(&store);
    assert!(near < 10_000 && far > 2 * near, "{near} {far}");
}

#[test]
fn a_put_of_a_key_that_exists_reads_it_once() {
    let mut store = Store::new();
    store.apply((0..3_000).map(put).collect());
    let view = Counting(&store.view, Cell::new(0));
    let mut applier = Applier::new(&view).unwrap();
    let before = view.1.get();
    applier
        .apply(&Entry {
            clock_ms: 0,
            proposals: vec![put(1_234)],
        })
        .unwrap();
    assert_eq!(view.1.get() - before, 1);
    // The new version, the old one, the change, and the state as a whole.
    assert_eq!(applier.finish().writes.len(), 4);
}
