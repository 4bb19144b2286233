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
//! Files that are too long for a request are uploaded before the transaction that commits them, so that it is one all the
//! same. What an import has uploaded when it breaks off is collected.
//!
//! An import that breaks off leaves the marker. The next one finds what is there already, writes the rest, and removes it.
//! Keys that have the right value are not written: their revisions, and their watchers, stay as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::StreamExt as _;
use podkv_api::large::{Manifest, NAME_BYTES, keys_below};
use podkv_api::recipes::large::{LargeOptions, Staged, open, stage};
use podkv_api::{Delete, KeyRange, KeyValue, Limits, Op, Put, Range, Reason, Revision, Store, Txn};

use crate::error::{Error, Result};
use crate::input::{Input, Inputs, pieces};
use crate::plan::{IMPORT_MARKER, folder_prefix};
use crate::project::blocking;

/// What an operation takes beside its key and value: as the store counts it, and a little more.
const OP_BYTES: usize = 64;

/// What an import would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    prefix: String,
    /// Full keys, with what they are to hold; `None` deletes.
    changes: BTreeMap<Bytes, Option<Input>>,
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
    pub fn steps(&self, limits: &Limits) -> Vec<Step> {
        let marker = Bytes::from(format!("{}{IMPORT_MARKER}", self.prefix));
        let writes = self.changes.iter().map(|(key, input)| match input {
            Some(Input::Bytes(value)) => Write::from(Put::new(key.clone(), value.clone())),
            Some(Input::File { path, .. }) => Write::Large(key.clone(), path.clone()),
            None => Write::from(Delete::new(KeyRange::key(key.clone()))),
        });
        let remove = || Write::from(Delete::new(KeyRange::key(marker.clone())));
        let mut steps = vec![Step::default()];
        // One place is kept for the marker.
        let most_ops = limits.max_txn_ops.saturating_sub(1).max(1);
        let most_bytes = limits
            .max_request_bytes
            .saturating_sub(marker.len() + 2 * OP_BYTES);
        for write in writes {
            let (ops, bytes) = write.size();
            match steps.last_mut() {
                Some(step) if step.ops + ops <= most_ops && step.bytes + bytes <= most_bytes => {
                    step.push(write);
                }
                _ => {
                    let mut step = Step::default();
                    step.push(write);
                    steps.push(step);
                }
            }
        }
        steps.retain(|step| !step.writes.is_empty());
        if steps.len() > 1 || self.resumes {
            match steps.last_mut() {
                Some(last) => last.push(remove()),
                None => steps.push(Step::of(remove())),
            }
        }
        if steps.len() > 1 && !self.resumes {
            let put = Put::new(marker.clone(), "");
            steps.insert(0, Step::of(put.into()));
        }
        steps
    }
}

/// What one transaction of an import writes.
#[derive(Debug, Default)]
pub struct Step {
    writes: Vec<Write>,
    ops: usize,
    bytes: usize,
}

impl Step {
    fn of(write: Write) -> Self {
        let mut step = Self::default();
        step.push(write);
        step
    }

    fn push(&mut self, write: Write) {
        let (ops, bytes) = write.size();
        self.ops += ops;
        self.bytes += bytes;
        self.writes.push(write);
    }
}

#[derive(Debug)]
enum Write {
    Op(Op),
    /// A key, and the file that becomes its value.
    Large(Bytes, PathBuf),
}

impl<O: Into<Op>> From<O> for Write {
    fn from(op: O) -> Self {
        Self::Op(op.into())
    }
}

impl Write {
    /// Operations, and about how many bytes.
    fn size(&self) -> (usize, usize) {
        let (ops, bytes) = match self {
            Self::Op(Op::Put(put)) => (1, put.key.len() + put.value.len()),
            Self::Op(Op::Delete(delete)) => (1, delete.range.start.len()),
            Self::Op(Op::Range(_) | Op::Txn(_)) => (1, 0),
            // The manifest, the record, and the compare of the record.
            Self::Large(key, _) => (2, 3 * (key.len() + NAME_BYTES + OP_BYTES)),
        };
        (ops, ops * OP_BYTES + bytes)
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
    tree: &Inputs,
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
        .range_stream(Range::new(keys_below(prefix.clone())))
        .await?;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        for kv in chunk.kvs {
            if kv.key == marker.as_bytes() {
                result.resumes = true;
                continue;
            }
            match result.changes.get(&kv.key) {
                Some(Some(input)) => {
                    if is_same(store, input, &kv, chunk.header.revision).await? {
                        result.changes.remove(&kv.key);
                        result.unchanged += 1;
                        kept.insert(kv.key);
                    }
                }
                Some(None) => {}
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

/// Whether a key holds already what it is to hold.
async fn is_same<S: Store>(store: &S, input: &Input, kv: &KeyValue, at: Revision) -> Result<bool> {
    let (bytes, sha256) = match input {
        Input::Bytes(value) => return Ok(*value == kv.value),
        Input::File { bytes, sha256, .. } => (*bytes, *sha256),
    };
    let is_like = |manifest: Manifest| manifest.bytes == bytes && manifest.sha256 == sha256;
    if !Manifest::decode(&kv.value)?.is_some_and(is_like) {
        return Ok(false);
    }
    match open(store, kv.clone(), at, &LargeOptions::default()).await {
        Ok(_) => Ok(true),
        // A copy of the manifest alone is mended by writing the value.
        Err(error) if error.reason() == Reason::Corrupt => Ok(false),
        Err(error) => Err(error.into()),
    }
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
        revision = Some(take(store, step, limits).await?);
        stepped(done + 1, all);
    }
    Ok(revision)
}

/// Makes one step: first all that is large, then everything at once.
async fn take<S: Store>(store: &S, step: Step, limits: &Limits) -> Result<Revision> {
    let mut txn = Txn::new();
    let mut staged = Vec::new();
    for write in step.writes {
        match write {
            Write::Op(op) => txn = txn.then([op]),
            Write::Large(key, path) => {
                let upload = upload(store, key, path, limits).await?;
                txn = txn.when([upload.condition()]).then(upload.ops());
                staged.push(upload);
            }
        }
    }
    let answer = store.txn(txn).await?;
    for staged in staged {
        staged.settle().await;
    }
    if !answer.succeeded {
        let text = "an upload was given up before the transaction that needs it; run it again";
        return Err(podkv_api::Error::new(Reason::LockLost, text).into());
    }
    Ok(answer.header.revision)
}

async fn upload<S: Store>(
    store: &S,
    key: Bytes,
    path: PathBuf,
    limits: &Limits,
) -> Result<Staged<S>> {
    let options = LargeOptions {
        limits: limits.clone(),
        ..LargeOptions::default()
    };
    let opening = path.clone();
    let file = blocking(move || {
        File::open(&opening).map_err(|error| Error::io(&opening, "opening it", error))
    });
    let source = pieces(file.await?, &path, |_| {});
    Ok(stage(store, key, source, &options).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(count: usize, bytes: usize, resumes: bool) -> Changes {
        let value = Bytes::from(vec![b'x'; bytes]);
        Changes {
            prefix: "app/".into(),
            changes: (0..count)
                .map(|n| (format!("app/{n:04}").into(), Some(value.clone().into())))
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
            let (ops, bytes): (Vec<_>, Vec<_>) = step.writes.iter().map(Write::size).unzip();
            assert!(ops.iter().sum::<usize>() <= limits.max_txn_ops);
            assert!(bytes.iter().sum::<usize>() < limits.max_request_bytes);
            let mut text = step.writes.len().to_string();
            for write in &step.writes {
                match write {
                    Write::Op(Op::Put(put)) if is_marker(&put.key) => text.push('+'),
                    Write::Op(Op::Delete(delete)) if is_marker(&delete.range.start) => {
                        text.push('-');
                    }
                    Write::Op(Op::Put(put)) => assert!(keys.insert(put.key.clone())),
                    Write::Large(key, _) => assert!(keys.insert(key.clone())),
                    Write::Op(_) => {}
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
    fn a_large_file_is_as_much_as_its_manifest_and_its_record() {
        let mut changes = changes(0, 1, false);
        for n in 0..64 {
            let input = Input::File {
                path: "/model".into(),
                bytes: 1 << 30,
                sha256: [0; 32],
            };
            let key = Bytes::from(format!("app/{n:04}"));
            changes.changes.insert(key, Some(input));
        }
        assert_eq!(shape(&changes), ["1+", "63", "2-"]);
        changes.changes.pop_first();
        assert_eq!(shape(&changes), ["63"]);
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
