//! The promise: a range read in pages is the range read at once, now and in the past, whatever is
//! written in between.

use podkv_api::*;
use podkv_core::*;

use crate::store::Store;

/// Keys with no, few and very many versions, some deleted, some deleted and back.
fn store() -> Store {
    let mut store = Store::new();
    for key in ["a", "b", "c", "d", "e"] {
        store.put(key, "first");
    }
    for version in 0..100 {
        store.put("b", &format!("{version}"));
        store.put("d", &"x".repeat(version));
    }
    store.delete(KeyRange::key("a"));
    store.delete(KeyRange::key("d"));
    store.put("a", "again");
    store.put("f", "last");
    store
}

fn in_pages(store: &mut Store, request: &Range, max_bytes: usize, write: bool) -> Vec<KeyValue> {
    let limits = PageLimits {
        max_bytes,
        count: false,
    };
    let mut kvs = Vec::new();
    let mut next = Some(request.clone());
    while let Some(request) = next {
        let page = range(&store.view, &request, limits).unwrap().unwrap();
        let bytes: usize = page
            .kvs
            .iter()
            .map(|kv| kv.key.len() + kv.value.len())
            .sum();
        assert!(page.kvs.len() == 1 || bytes <= max_bytes);
        kvs.extend(page.kvs);
        if write {
            store.put("b", "while it is read");
            store.put("dd", "while it is read");
            store.delete(KeyRange::key("c"));
        }
        next = page.next;
    }
    kvs
}

#[test]
fn pages_add_up() {
    let store = store();
    for revision in [
        0,
        3,
        6,
        50,
        107,
        store.meta().revision - 3,
        store.meta().revision,
    ] {
        for limit in [0, 1, 2, 3, 10] {
            for reverse in [false, true] {
                let request = Range {
                    limit,
                    reverse,
                    revision,
                    ..Range::new(KeyRange::all())
                };
                let whole = store.range(&request).kvs;
                for max_bytes in [1, 7, 60, 1_000] {
                    for write in [false, true] {
                        let mut store = store.clone();
                        let pages = in_pages(&mut store, &request, max_bytes, write);
                        assert_eq!(pages, whole, "{request:?} {max_bytes}");
                    }
                }
            }
        }
    }
}

/// Keys with more versions than the reader steps over are left by a seek, in both directions.
#[test]
fn the_past_of_busy_keys_is_found() {
    let store = store();
    let read = |reverse, revision| -> Vec<(String, Bytes)> {
        let mut request = Range::new(KeyRange::all()).at(revision);
        request.reverse = reverse;
        let mut kvs = store.range(&request).kvs;
        if reverse {
            kvs.reverse();
        }
        kvs.into_iter()
            .map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv.value))
            .collect()
    };
    for reverse in [false, true] {
        for version in [0, 1, 14, 15, 16, 17, 18, 50, 99] {
            let at = 7 + 2 * version as u64;
            let seen = read(reverse, at);
            let d = match version {
                0 => "first".to_owned(),
                version => "x".repeat(version - 1),
            };
            let expected = [
                "first".into(),
                version.to_string(),
                "first".into(),
                d,
                "first".into(),
            ];
            let expected = expected.map(Bytes::from);
            let keys = ["a", "b", "c", "d", "e"].map(str::to_owned);
            assert_eq!(seen, keys.into_iter().zip(expected).collect::<Vec<_>>());
        }
    }
}

/// A page of a request with a limit says "more" only where the limit cut.
#[test]
fn more_is_about_the_limit() {
    let store = store();
    let limits = PageLimits {
        max_bytes: 1,
        count: true,
    };
    let request = Range::new(KeyRange::all()).limit(2);
    let first = range(&store.view, &request, limits).unwrap().unwrap();
    assert_eq!((first.count, first.more), (5, false));
    let request = first.next.unwrap();
    let second = range(&store.view, &request, limits).unwrap().unwrap();
    assert!(second.more && second.next.is_none());
}
