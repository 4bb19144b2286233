//! What apply wrote and read last, in memory.
//!
//! A busy key is written again soon, and each batch looks at the same few records first: the state as a whole, whether
//! auth is on, what is frozen. To find one in RocksDB costs as much as to write it. So the newest records of the state
//! stay here, up to a bound; what is not here is read from the view.
//!
//! ```text
//!   get ─► young ─► old ─► view          full: young becomes old, and what was old goes
//!            ▲───────┘       │           so a record stays while it is used
//!            └───────────────┘
//! ```
//!
//! Right as long as every write to the state passes through [`Recent::committed`], or ends in [`Recent::clear`], and as long as
//! one rule says what is kept, of what was read as of what was written: a record kept when it was read, and not when it
//! is written, stays as it was for ever, on this replica alone. In a build with debug assertions each answer is compared with the view's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;

use bytes::Bytes;
use podkv_core::{Scan, View, ViewError};

/// Of each generation: some ten thousand records of usual size. Small beside a memtable.
const GENERATION_BYTES: usize = 4 << 20;

/// What is larger costs more to keep than to read.
const RECORD_BYTES: usize = 16 << 10;

/// What a record costs beside its bytes: two pointers with their counts, and its place in the map.
const OVERHEAD_BYTES: usize = 160;

/// Ranges that are known to have nothing in them. There is one that each batch looks at.
const EMPTY_RANGES: usize = 4;

pub(super) struct Recent {
    is_kept: fn(&[u8]) -> bool,
    young: Records,
    old: Records,
    empty: Vec<(Bytes, Bytes)>,
}

/// The newest value of each key; `None`: there is none.
#[derive(Default)]
struct Records {
    by_key: HashMap<Bytes, Option<Bytes>>,
    bytes: usize,
}

impl Records {
    fn insert(&mut self, key: Bytes, value: Option<Bytes>) {
        self.bytes += cost(&key, value.as_ref());
        let size = key.len();
        if let Some(before) = self.by_key.insert(key, value) {
            self.bytes -= size + before.map_or(0, |value| value.len()) + OVERHEAD_BYTES;
        }
    }

    fn remove(&mut self, key: &[u8]) -> Option<(Bytes, Option<Bytes>)> {
        let (key, value) = self.by_key.remove_entry(key)?;
        self.bytes -= cost(&key, value.as_ref());
        Some((key, value))
    }
}

fn cost(key: &Bytes, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + OVERHEAD_BYTES
}

impl Recent {
    /// Keeps records of which `is_kept` says that they are worth their place.
    pub fn new(is_kept: fn(&[u8]) -> bool) -> Self {
        Self {
            is_kept,
            young: Records::default(),
            old: Records::default(),
            empty: Vec::new(),
        }
    }

    /// What is known of a key.
    fn get(&mut self, key: &[u8]) -> Option<Option<Bytes>> {
        if let Some(known) = self.young.by_key.get(key) {
            return Some(known.clone());
        }
        let (key, value) = self.old.remove(key)?;
        self.insert(key, value.clone());
        Some(value)
    }

    fn insert(&mut self, key: Bytes, value: Option<Bytes>) {
        if !(self.is_kept)(&key) {
            return;
        }
        self.old.remove(&key);
        if cost(&key, value.as_ref()) > RECORD_BYTES {
            self.young.remove(&key);
            return;
        }
        self.young.insert(key, value);
        if self.young.bytes > GENERATION_BYTES {
            self.old = mem::take(&mut self.young);
        }
    }

    /// A batch has become part of the state.
    pub fn committed(&mut self, writes: &[(Bytes, Option<Bytes>)]) {
        for (key, value) in writes {
            if value.is_some() {
                self.empty
                    .retain(|(start, end)| !(start <= key && key < end));
            }
            self.insert(key.clone(), value.clone());
        }
    }

    /// The state became another one.
    pub fn clear(&mut self) {
        *self = Self::new(self.is_kept);
    }
}

/// A view of the newest state, with what is known of it on top.
pub(super) struct RecentView<'a> {
    view: &'a dyn View,
    recent: RefCell<&'a mut Recent>,
}

impl<'a> RecentView<'a> {
    pub fn new(view: &'a dyn View, recent: &'a mut Recent) -> Self {
        Self {
            view,
            recent: RefCell::new(recent),
        }
    }
}

impl View for RecentView<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        let mut recent = self.recent.borrow_mut();
        if let Some(known) = recent.get(key) {
            debug_assert!(self.view.get(key).map_or(true, |value| value == known));
            return Ok(known);
        }
        let value = self.view.get(key)?;
        recent.insert(Bytes::copy_from_slice(key), value.clone());
        Ok(value)
    }

    fn scan<'a>(&'a self, start: &[u8], end: &[u8], reverse: bool) -> Scan<'a> {
        let mut recent = self.recent.borrow_mut();
        if recent
            .empty
            .iter()
            .any(|(from, to)| from <= start && end <= to)
        {
            debug_assert!({
                let mut found = self.view.scan(start, end, reverse);
                found.next().is_none_or(|found| found.is_err())
            });
            return Box::new(std::iter::empty());
        }
        let mut found = self.view.scan(start, end, reverse).peekable();
        if found.peek().is_none() {
            if recent.empty.len() == EMPTY_RANGES {
                recent.empty.remove(0);
            }
            let range = (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
            recent.empty.push(range);
        }
        Box::new(found)
    }
}

#[cfg(test)]
mod tests {
    use podkv_core::MemoryView;

    use super::*;

    fn recent() -> Recent {
        Recent::new(|key| !key.starts_with(b"passing"))
    }

    fn write(store: &mut MemoryView, recent: &mut Recent, key: &str, value: Option<Vec<u8>>) {
        let writes = vec![(Bytes::from(key.to_owned()), value.map(Bytes::from))];
        store.commit(writes.clone());
        recent.committed(&writes);
    }

    /// Reads the key, which was known or not.
    fn check_get(store: &MemoryView, recent: &mut Recent, key: &str, known: bool) {
        assert_eq!(recent.get(key.as_bytes()).is_some(), known, "{key}");
        let found = RecentView::new(store, recent).get(key.as_bytes()).unwrap();
        assert_eq!(found, store.get(key.as_bytes()).unwrap(), "{key}");
    }

    #[test]
    fn what_was_written_or_read_is_known() {
        let (mut store, mut recent) = (MemoryView::default(), recent());
        write(&mut store, &mut recent, "a", Some(b"1".to_vec()));
        check_get(&store, &mut recent, "a", true);
        write(&mut store, &mut recent, "a", Some(b"2".to_vec()));
        check_get(&store, &mut recent, "a", true);
        write(&mut store, &mut recent, "a", None);
        check_get(&store, &mut recent, "a", true);
        check_get(&store, &mut recent, "nothing", false);
        check_get(&store, &mut recent, "nothing", true);
        write(&mut store, &mut recent, "nothing", Some(b"1".to_vec()));
        check_get(&store, &mut recent, "nothing", true);
        recent.clear();
        check_get(&store, &mut recent, "a", false);
    }

    /// A session's result that was looked for in vain, and then written, would be executed once more.
    #[test]
    fn what_is_not_kept_when_it_is_written_is_not_kept_when_it_is_read() {
        let (mut store, mut recent) = (MemoryView::default(), recent());
        check_get(&store, &mut recent, "passing", false);
        write(&mut store, &mut recent, "passing", Some(b"1".to_vec()));
        check_get(&store, &mut recent, "passing", false);
        recent.clear();
        check_get(&store, &mut recent, "passing", false);
    }

    #[test]
    fn what_is_too_large_to_be_kept_is_not_remembered_as_it_was() {
        let (mut store, mut recent) = (MemoryView::default(), recent());
        write(&mut store, &mut recent, "a", Some(b"small".to_vec()));
        write(&mut store, &mut recent, "a", Some(vec![1; RECORD_BYTES]));
        check_get(&store, &mut recent, "a", false);
        check_get(&store, &mut recent, "a", false);
    }

    #[test]
    fn its_memory_is_bounded_and_what_is_used_stays() {
        let (mut store, mut recent) = (MemoryView::default(), recent());
        write(&mut store, &mut recent, "used", Some(b"1".to_vec()));
        let (size, mut most) = (8 << 10, 0);
        for number in 0..4 * GENERATION_BYTES / size {
            let value = Some(vec![0; size]);
            write(&mut store, &mut recent, &format!("{number}"), value);
            check_get(&store, &mut recent, "used", true);
            most = most.max(recent.young.bytes + recent.old.bytes);
        }
        assert!(most <= 2 * (GENERATION_BYTES + RECORD_BYTES), "{most}");
        check_get(&store, &mut recent, "0", false);
    }

    #[test]
    fn a_generation_knows_what_it_holds() {
        let (mut store, mut recent) = (MemoryView::default(), recent());
        for value in [Some(vec![1; 10]), None, Some(vec![1; 1000])] {
            write(&mut store, &mut recent, "a", value);
        }
        let expected = cost(&Bytes::from("a"), Some(&Bytes::from(vec![1; 1000])));
        assert_eq!(recent.young.bytes, expected);
        recent.young.remove(b"a");
        assert_eq!(recent.young.bytes, 0);
    }

    #[test]
    fn an_empty_range_is_known_until_something_is_in_it() {
        let (mut store, mut recent) = (MemoryView::default(), recent());
        let scan = |store: &MemoryView, recent: &mut Recent| {
            let known = !recent.empty.is_empty();
            let view = RecentView::new(store, recent);
            (view.scan(b"b", b"d", false).count(), known)
        };
        assert_eq!(scan(&store, &mut recent), (0, false));
        assert_eq!(scan(&store, &mut recent), (0, true));
        write(&mut store, &mut recent, "d", Some(b"1".to_vec()));
        write(&mut store, &mut recent, "c", None);
        assert_eq!(scan(&store, &mut recent), (0, true));
        write(&mut store, &mut recent, "b", Some(b"1".to_vec()));
        assert_eq!(scan(&store, &mut recent), (1, false));
        write(&mut store, &mut recent, "b", None);
        assert_eq!(scan(&store, &mut recent), (0, false));
    }
}
