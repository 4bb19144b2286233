//! Writes a tree under a prefix.
//!
//! What fits into one transaction is one: whoever watches sees the state before or the one after. What does not is
//! written in steps:
//!
//! ```text
//!   txn 1   put PREFIX/..import         projections hold what they show
//!   txn 2…  puts and deletes
//!   txn n   the last of them, and delete PREFIX/..import      projections show all of it, at once
//! ```
//!
//! An import that breaks off leaves the marker. The next one finds what is there already, writes the rest, and removes it.
//! Keys that have the right value are not written: their revisions, and their watchers, stay as they are.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::StreamExt as _;
use podkv_api::{Delete, KeyRange, Limits, Op, Put, Range, Revision, Store, Txn};

use crate::error::{Error, Result};
use crate::plan::{IMPORT_MARKER, Tree, folder_prefix};

/// What an operation takes beside its key and value: as the store counts it, and a little more.
const OP_BYTES: usize = 64;

/// What an import would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    prefix: String,
    /// Full keys, with what they are to hold; `None` deletes.
    changes: BTreeMap<Bytes, Option<Bytes>>,
    /// Keys that are right already.
    pub unchanged: usize,
    /// The marker of an import that broke off is there.
    pub resumes: bool,
}

impl Changes {
    /// Keys to write, in their order.
    pub fn puts(&self) -> impl Iterator<Item = &Bytes> {
        self.changes
            .iter()
            .filter(|(_, value)| value.is_some())
            .map(|(key, _)| key)
    }

    /// Keys to delete, in their order.
    pub fn deletes(&self) -> impl Iterator<Item = &Bytes> {
        self.changes
            .iter()
            .filter(|(_, value)| value.is_none())
            .map(|(key, _)| key)
    }

    /// The transactions that make them, in their order.
    pub fn steps(&self, limits: &Limits) -> Vec<Txn> {
        let marker = Bytes::from(format!("{}{IMPORT_MARKER}", self.prefix));
        let ops = self.changes.iter().map(|(key, value)| match value {
            Some(value) => Op::from(Put::new(key.clone(), value.clone())),
            None => Op::from(Delete::new(KeyRange::key(key.clone()))),
        });
        let remove = || Op::from(Delete::new(KeyRange::key(marker.clone())));
        let mut groups = vec![Group::default()];
        // One place is kept for the marker.
        let most_ops = limits.max_txn_ops.saturating_sub(1).max(1);
        let most_bytes = limits
            .max_request_bytes
            .saturating_sub(marker.len() + 2 * OP_BYTES);
        for op in ops {
            let bytes = size(&op);
            match groups.last_mut() {
                Some(group) if group.ops.len() < most_ops && group.bytes + bytes <= most_bytes => {
                    group.ops.push(op);
                    group.bytes += bytes;
                }
                _ => groups.push(Group {
                    ops: vec![op],
                    bytes,
                }),
            }
        }
        groups.retain(|group| !group.ops.is_empty());
        let mut steps: Vec<Vec<Op>> = groups.into_iter().map(|group| group.ops).collect();
        if steps.len() > 1 || self.resumes {
            match steps.last_mut() {
                Some(last) => last.push(remove()),
                None => steps.push(vec![remove()]),
            }
        }
        if steps.len() > 1 && !self.resumes {
            steps.insert(0, vec![Op::from(Put::new(marker.clone(), ""))]);
        }
        steps.into_iter().map(|ops| Txn::new().then(ops)).collect()
    }
}

#[derive(Default)]
struct Group {
    ops: Vec<Op>,
    bytes: usize,
}

fn size(op: &Op) -> usize {
    OP_BYTES
        + match op {
            Op::Put(put) => put.key.len() + put.value.len(),
            Op::Delete(delete) => delete.range.start.len(),
            Op::Range(_) | Op::Txn(_) => 0,
        }
}

/// Compares a tree with what is below the prefix. With `delete`, what is not in the tree goes.
///
/// # Errors
///
/// The store's, and [`Error::Refused`] if a file would lie where a folder is, or the other way round: a projection could
/// not show both. Nothing is written in either case.
pub async fn compare<S: Store>(
    store: &S,
    prefix: &str,
    tree: &Tree,
    delete: bool,
) -> Result<Changes> {
    let prefix = folder_prefix(prefix);
    let marker = format!("{prefix}{IMPORT_MARKER}");
    let mut result = Changes {
        changes: tree
            .iter()
            .map(|(path, value)| {
                (
                    Bytes::from([prefix.as_bytes(), path].concat()),
                    Some(value.clone()),
                )
            })
            .collect(),
        prefix: prefix.clone(),
        ..Changes::default()
    };
    let mut kept = BTreeSet::new();
    let mut chunks = store
        .range_stream(Range::new(KeyRange::prefix(prefix.clone())))
        .await?;
    while let Some(chunk) = chunks.next().await {
        for kv in chunk?.kvs {
            if kv.key == marker.as_bytes() {
                result.resumes = true;
                continue;
            }
            match result.changes.get(&kv.key) {
                Some(Some(value)) if *value == kv.value => {
                    result.changes.remove(&kv.key);
                    result.unchanged += 1;
                    kept.insert(kv.key);
                }
                Some(_) => {}
                None if delete => {
                    result.changes.insert(kv.key, None);
                }
                None => {
                    kept.insert(kv.key);
                }
            }
        }
    }
    kept.extend(result.puts().cloned());
    refuse_files_in_folders(&kept)?;
    Ok(result)
}

/// No key may be a folder of another one that was imported.
fn refuse_files_in_folders(keys: &BTreeSet<Bytes>) -> Result<()> {
    for key in keys {
        let folder = [key, &b"/"[..]].concat();
        let below = keys.range(Bytes::from(folder.clone())..).next();
        if let Some(below) = below.filter(|below| below.starts_with(&folder)) {
            let (key, below) = (key.escape_ascii(), below.escape_ascii());
            let text = format!(
                "{key} would be a file, and the folder of {below}; with --delete the old one goes first"
            );
            return Err(Error::Refused(text));
        }
    }
    Ok(())
}

/// Makes the changes. `stepped` is told after each step how many of how many are done.
///
/// # Errors
///
/// The store's. What was written stays; the same import again goes on from there.
pub async fn apply<S: Store>(
    store: &S,
    changes: &Changes,
    limits: &Limits,
    mut stepped: impl FnMut(usize, usize),
) -> Result<Option<Revision>> {
    let steps = changes.steps(limits);
    let all = steps.len();
    let mut revision = None;
    for (done, step) in steps.into_iter().enumerate() {
        revision = Some(store.txn(step).await?.header.revision);
        stepped(done + 1, all);
    }
    Ok(revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(count: usize, bytes: usize, resumes: bool) -> Changes {
        let value = Bytes::from(vec![b'x'; bytes]);
        Changes {
            prefix: "app/".into(),
            changes: (0..count)
                .map(|n| (format!("app/{n:04}").into(), Some(value.clone())))
                .collect(),
            unchanged: 0,
            resumes,
        }
    }

    /// Of each step: how many operations, and whether it puts (+) or removes (-) the marker.
    fn shape(changes: &Changes) -> Vec<String> {
        let limits = Limits::default();
        let is_marker = |key: &Bytes| key.ends_with(IMPORT_MARKER.as_bytes());
        let steps = changes.steps(&limits);
        let mut keys = BTreeSet::new();
        let shapes = steps.iter().map(|step| {
            assert!(step.then.len() <= limits.max_txn_ops);
            assert!(step.then.iter().map(size).sum::<usize>() < limits.max_request_bytes);
            let mut text = step.then.len().to_string();
            for op in &step.then {
                match op {
                    Op::Put(put) if is_marker(&put.key) => text.push('+'),
                    Op::Delete(delete) if is_marker(&delete.range.start) => text.push('-'),
                    Op::Put(put) => assert!(keys.insert(put.key.clone())),
                    _ => {}
                }
            }
            text
        });
        let shapes = shapes.collect();
        assert_eq!(keys.len(), changes.puts().count(), "each key once");
        shapes
    }

    #[test]
    fn what_fits_is_one_transaction() {
        assert_eq!(shape(&changes(0, 1, false)), Vec::<String>::new());
        assert_eq!(shape(&changes(1, 1, false)), ["1"]);
        assert_eq!(shape(&changes(127, 1, false)), ["127"]);
    }

    #[test]
    fn what_does_not_is_steps_under_a_marker() {
        assert_eq!(shape(&changes(128, 1, false)), ["1+", "127", "2-"]);
        assert_eq!(shape(&changes(3, 1 << 20, false)), ["1+", "1", "1", "2-"]);
    }

    #[test]
    fn an_import_that_broke_off_ends_with_the_marker() {
        assert_eq!(shape(&changes(0, 1, true)), ["1-"]);
        assert_eq!(shape(&changes(5, 1, true)), ["6-"]);
        assert_eq!(shape(&changes(200, 1, true)), ["127", "74-"]);
    }

    #[test]
    fn a_file_in_the_place_of_a_folder_is_refused() {
        let keys = |keys: &[&'static str]| keys.iter().map(|key| Bytes::from(*key)).collect();
        refuse_files_in_folders(&keys(&["a", "a-b", "ab/c"])).unwrap();
        assert!(refuse_files_in_folders(&keys(&["a", "a-b", "a/c"])).is_err());
    }
}
