//! How the core sees stored state: an ordered map of bytes, read-only, at one moment.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fmt;
use std::ops::Bound;

use bytes::Bytes;

use crate::codec::CodecError;

/// Keys and values in the order that [`View::scan`] was asked for.
pub type Scan<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), ViewError>> + 'a>;

/// State at one moment. All reads through one view see the same state.
pub trait View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError>;

    /// The keys `k` with `start <= k < end`; from the last to the first if `reverse`. Empty if
    /// `start >= end`.
    fn scan<'a>(&'a self, start: &[u8], end: &[u8], reverse: bool) -> Scan<'a>;
}

/// The state could not be read, or is not what was written. This says nothing about a request: the
/// node must stop, since applying on would let replicas differ.
#[derive(Debug)]
pub struct ViewError {
    what: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    in_memory: bool,
}

impl ViewError {
    /// Reading failed; `what` says at what.
    pub fn storage(
        what: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            what: what.into(),
            source: Some(Box::new(source)),
            in_memory: true,
        }
    }

    /// The cluster has gone on to a feature level that this release does not understand. What the log says
    /// from there on may mean something else than it would here.
    pub(crate) fn newer(level: u32, known: u32) -> Self {
        Self::corrupt(format!(
            "the cluster's feature level is {level}, and this release understands {known} at most: \
             run the release that the other nodes run"
        ))
    }

    /// The view was asked to read nothing but memory, and what it needs is not there.
    pub fn not_in_memory() -> Self {
        Self {
            what: "it is not in memory".into(),
            source: None,
            in_memory: false,
        }
    }

    /// True for [`ViewError::not_in_memory`]: nothing is wrong, a view of the disk will tell.
    pub fn is_not_in_memory(&self) -> bool {
        !self.in_memory
    }

    /// What was read contradicts itself.
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            source: None,
            in_memory: true,
        }
    }
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ViewError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

impl From<CodecError> for ViewError {
    fn from(error: CodecError) -> Self {
        Self::storage("a record of the state cannot be read", error)
    }
}

/// State in memory, for tests and tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryView(BTreeMap<Bytes, Bytes>);

impl MemoryView {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over the writes of [`crate::Effects`].
    pub fn commit(&mut self, writes: Vec<(Bytes, Option<Bytes>)>) {
        for (key, value) in writes {
            match value {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }

    /// Everything, in key order.
    pub fn iter(&self) -> btree_map::Iter<'_, Bytes, Bytes> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl View for MemoryView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan<'a>(&'a self, start: &[u8], end: &[u8], reverse: bool) -> Scan<'a> {
        if start >= end {
            return Box::new(std::iter::empty());
        }
        let range = self
            .0
            .range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
            .map(|(key, value)| Ok((key.clone(), value.clone())));
        if reverse {
            Box::new(range.rev())
        } else {
            Box::new(range)
        }
    }
}
