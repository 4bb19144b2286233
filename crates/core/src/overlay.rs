//! A view with the writes of a batch on top, so that each command sees the ones before it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;

use bytes::Bytes;

use crate::view::{Scan, View, ViewError};

pub(crate) struct Overlay<'v> {
    view: &'v dyn View,
    writes: BTreeMap<Bytes, Option<Bytes>>,
}

impl<'v> Overlay<'v> {
    pub(crate) fn new(view: &'v dyn View) -> Self {
        Self {
            view,
            writes: BTreeMap::new(),
        }
    }

    pub(crate) fn put(&mut self, key: Bytes, value: Bytes) {
        self.writes.insert(key, Some(value));
    }

    pub(crate) fn delete(&mut self, key: Bytes) {
        self.writes.insert(key, None);
    }

    /// The batch, sorted by key.
    pub(crate) fn into_writes(self) -> Vec<(Bytes, Option<Bytes>)> {
        self.writes.into_iter().collect()
    }
}

impl View for Overlay<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        match self.writes.get(key) {
            Some(written) => Ok(written.clone()),
            None => self.view.get(key),
        }
    }

    fn scan<'a>(&'a self, start: &[u8], end: &[u8], reverse: bool) -> Scan<'a> {
        if start >= end {
            return Box::new(std::iter::empty());
        }
        let written = self
            .writes
            .range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)));
        let written: Written<'a> = if reverse {
            Box::new(written.rev())
        } else {
            Box::new(written)
        };
        Box::new(Merge {
            written: written.peekable(),
            stored: self.view.scan(start, end, reverse).peekable(),
            reverse,
        })
    }
}

type Written<'a> = Box<dyn Iterator<Item = (&'a Bytes, &'a Option<Bytes>)> + 'a>;

/// Two sorted streams as one; on the same key the written one wins.
struct Merge<'a> {
    written: Peekable<Written<'a>>,
    stored: Peekable<Scan<'a>>,
    reverse: bool,
}

impl Iterator for Merge<'_> {
    type Item = Result<(Bytes, Bytes), ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.written.peek(), self.stored.peek()) {
                (None, _) | (_, Some(Err(_))) => return self.stored.next(),
                (Some(_), None) => Ordering::Less,
                (Some((written, _)), Some(Ok((stored, _)))) => match self.reverse {
                    false => (*written).cmp(stored),
                    true => stored.cmp(written),
                },
            };
            match order {
                Ordering::Greater => return self.stored.next(),
                Ordering::Equal => drop(self.stored.next()),
                Ordering::Less => {}
            }
            if let Some((key, Some(value))) = self.written.next() {
                return Some(Ok((key.clone(), value.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::MemoryView;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn writes_lie_on_top_in_both_directions() {
        let mut view = MemoryView::new();
        view.commit(
            ["a", "b", "d", "f"]
                .map(|key| (bytes(key), Some(bytes("old"))))
                .to_vec(),
        );
        let mut overlay = Overlay::new(&view);
        overlay.put(bytes("b"), bytes("new"));
        overlay.put(bytes("c"), bytes("new"));
        overlay.delete(bytes("d"));
        overlay.delete(bytes("e"));
        overlay.put(bytes("g"), bytes("new"));

        let expect = [
            ("a", "old"),
            ("b", "new"),
            ("c", "new"),
            ("f", "old"),
            ("g", "new"),
        ];
        let mut expect = expect
            .map(|(key, value)| (bytes(key), bytes(value)))
            .to_vec();
        let read = |reverse| -> Vec<(Bytes, Bytes)> {
            overlay
                .scan(b"a", b"z", reverse)
                .collect::<Result<_, _>>()
                .unwrap()
        };
        assert_eq!(read(false), expect);
        expect.reverse();
        assert_eq!(read(true), expect);
        assert_eq!(overlay.get(b"d").unwrap(), None);
        assert!(overlay.scan(b"z", b"a", false).next().is_none());
    }
}
