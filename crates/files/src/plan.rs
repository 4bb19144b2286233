//! Which files a set of keys means. Pure: keys in, a tree and a list of refusals out.
//!
//! A prefix is a folder: of `app/`, the key `app/conf.d/a.conf` is the file `a.conf` in `conf.d`. A key whose name cannot
//! be a file is refused and said, and never written under another name: two keys would meet there one day.
//!
//! ```text
//!   app/a            ─► a
//!   app/b/c          ─► b/c
//!   app/b            ─✗ b is a folder already: the file would hide all that is below
//!   app//x  app/y/   ─✗ an empty part
//!   app/../etc/x     ─✗ "..": the parts that begin with ".." are podkv's own
//!   app/..import     an import is under way: see `import`
//! ```
//!
//! The value of a large one is not in memory: what its key holds says how long it is, and its hash.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use podkv_api::KeyValue;
use podkv_api::large::Manifest;
use podkv_api::recipes::Snapshot;

/// The longest name of one file or folder that Linux takes, in bytes.
pub const MAX_PART_BYTES: usize = 255;
/// The longest path below a target, in bytes. Linux takes 4096 for the whole of a path, so this leaves 1 KiB for where
/// the target lies.
pub const MAX_PATH_BYTES: usize = 3072;
/// How deep folders may nest. Each level is an open handle while a tree is written.
pub const MAX_DEPTH: usize = 64;
/// The last part of a key that says: an import below this folder is not finished.
pub const IMPORT_MARKER: &str = "..import";
/// What the root of an ext4 volume holds by itself.
pub(crate) const LOST_AND_FOUND: &str = "lost+found";

/// Paths with contents, in byte order. Paths are relative, without `.`, `..` or empty parts.
pub type Tree = BTreeMap<Bytes, Contents>;

/// What a file is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    Plain(Bytes),
    Large(Large),
}

/// A large value that is fetched when its file is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Large {
    pub kv: KeyValue,
    pub manifest: Manifest,
}

impl From<Bytes> for Contents {
    fn from(bytes: Bytes) -> Self {
        Self::Plain(bytes)
    }
}

impl Contents {
    fn of(kv: &KeyValue) -> Result<Self, Refusal> {
        match Manifest::decode(&kv.value) {
            Ok(None) => Ok(Self::Plain(kv.value.clone())),
            Ok(Some(manifest)) => Ok(Self::Large(Large {
                kv: kv.clone(),
                manifest,
            })),
            Err(_) => Err(Refusal::LaterFormat),
        }
    }
}

/// What a set of keys comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub tree: Tree,
    /// In key order.
    pub refused: Vec<Refused>,
    /// The marker of an unfinished import: none of the tree is to be shown.
    pub importing: Option<Bytes>,
}

/// A key that is no file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub key: Bytes,
    pub why: Refusal,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key.escape_ascii(), self.why)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing before, between or after slashes.
    EmptyPart,
    /// `.`, or a part that begins with `..`.
    Dots,
    Nul,
    PartTooLong,
    PathTooLong,
    TooDeep,
    /// Other keys lie below it, so it is a folder.
    IsFolder,
    /// `lost+found` belongs to the file system.
    LostAndFound,
    /// A large value that a later release wrote.
    LaterFormat,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::EmptyPart => f.write_str("a part of the name is empty"),
            Refusal::Dots => f.write_str("a part of the name is \".\", or begins with \"..\""),
            Refusal::Nul => f.write_str("the name holds a NUL byte"),
            Refusal::PartTooLong => {
                write!(
                    f,
                    "a part of the name is longer than {MAX_PART_BYTES} bytes"
                )
            }
            Refusal::PathTooLong => write!(f, "the name is longer than {MAX_PATH_BYTES} bytes"),
            Refusal::TooDeep => write!(f, "the name has more than {MAX_DEPTH} parts"),
            Refusal::IsFolder => f.write_str("other keys lie below it, so it is a folder"),
            Refusal::LostAndFound => f.write_str("lost+found belongs to the file system"),
            Refusal::LaterFormat => f.write_str("a large value that a later release wrote"),
        }
    }
}

/// A prefix as a folder: with a slash at its end, unless it is empty.
pub fn folder_prefix(prefix: &str) -> String {
    match prefix {
        "" => String::new(),
        prefix if prefix.ends_with('/') => prefix.to_owned(),
        prefix => format!("{prefix}/"),
    }
}

/// Plans all keys of a snapshot. `prefix` is what all of them begin with.
pub fn plan_snapshot(prefix: &str, snapshot: &Snapshot) -> Plan {
    plan(prefix, snapshot.iter())
}

/// Plans `keys`, all of which begin with `prefix`.
pub fn plan<'k>(prefix: &str, keys: impl IntoIterator<Item = &'k KeyValue>) -> Plan {
    let mut plan = Plan::default();
    for kv in keys {
        let path = kv.key.slice(prefix.len().min(kv.key.len())..);
        if is_import_marker(&path) {
            plan.importing.get_or_insert_with(|| kv.key.clone());
            continue;
        }
        match check_path(&path).and_then(|()| Contents::of(kv)) {
            Ok(contents) => {
                plan.tree.insert(path, contents);
            }
            Err(why) => plan.refused.push(Refused {
                key: kv.key.clone(),
                why,
            }),
        }
    }
    let folders: BTreeSet<Bytes> = plan.tree.keys().flat_map(ancestors).collect();
    for folder in folders {
        if plan.tree.remove(&folder).is_some() {
            plan.refused.push(Refused {
                key: [prefix.as_bytes(), &folder].concat().into(),
                why: Refusal::IsFolder,
            });
        }
    }
    plan.refused.sort_by(|a, b| a.key.cmp(&b.key));
    plan
}

pub(crate) fn is_import_marker(path: &[u8]) -> bool {
    path.rsplit(|byte| *byte == b'/').next() == Some(IMPORT_MARKER.as_bytes())
}

/// Whether a path below a target can be a file.
pub fn check_path(path: &[u8]) -> Result<(), Refusal> {
    if path.len() > MAX_PATH_BYTES {
        return Err(Refusal::PathTooLong);
    }
    if path.contains(&0) {
        return Err(Refusal::Nul);
    }
    let mut depth = 0;
    for part in path.split(|byte| *byte == b'/') {
        depth += 1;
        match part {
            b"" => return Err(Refusal::EmptyPart),
            b"." => return Err(Refusal::Dots),
            part if part.starts_with(b"..") => return Err(Refusal::Dots),
            part if part.len() > MAX_PART_BYTES => return Err(Refusal::PartTooLong),
            part if depth == 1 && part == LOST_AND_FOUND.as_bytes() => {
                return Err(Refusal::LostAndFound);
            }
            _ => {}
        }
    }
    if depth > MAX_DEPTH {
        return Err(Refusal::TooDeep);
    }
    Ok(())
}

/// The folders that a path lies in, outermost first.
fn ancestors(path: &Bytes) -> impl Iterator<Item = Bytes> + use<> {
    let path = path.clone();
    let slashes: Vec<usize> = (0..path.len())
        .filter(|at| path.get(*at) == Some(&b'/'))
        .collect();
    slashes.into_iter().map(move |at| path.slice(..at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: "v".into(),
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: None,
            expires_at_ms: None,
        }
    }

    fn planned(keys: &[&str]) -> Plan {
        let mut kvs: Vec<_> = keys.iter().map(|name| key(name)).collect();
        kvs.sort_by(|a, b| a.key.cmp(&b.key));
        plan("app/", &kvs)
    }

    fn check(keys: &[&str], files: &[&str], refused: &[(&str, Refusal)]) {
        let plan = planned(keys);
        let paths: Vec<_> = plan
            .tree
            .keys()
            .map(|path| path.escape_ascii().to_string())
            .collect();
        assert_eq!(paths, files);
        let said: Vec<_> = plan
            .refused
            .iter()
            .map(|refused| (refused.key.escape_ascii().to_string(), refused.why))
            .collect();
        let expected: Vec<_> = refused
            .iter()
            .map(|(key, why)| ((*key).to_owned(), *why))
            .collect();
        assert_eq!(said, expected);
    }

    #[test]
    fn keys_are_paths() {
        check(
            &["app/a", "app/b/c", "app/b/d.e"],
            &["a", "b/c", "b/d.e"],
            &[],
        );
        check(
            &["app/...x", "app/.hidden"],
            &[".hidden"],
            &[("app/...x", Refusal::Dots)],
        );
    }

    #[test]
    fn what_cannot_be_a_file_is_refused() {
        let long = format!("app/{}", "x".repeat(256));
        let deep = format!("app/{}x", "d/".repeat(64));
        let longest = format!("app/{}x", format!("{}/", "y".repeat(200)).repeat(16));
        let nul = "app/a\0b";
        check(&["app/"], &[], &[("app/", Refusal::EmptyPart)]);
        check(&["app//a"], &[], &[("app//a", Refusal::EmptyPart)]);
        check(&["app/a/"], &[], &[("app/a/", Refusal::EmptyPart)]);
        check(&["app/./a"], &[], &[("app/./a", Refusal::Dots)]);
        check(&["app/../a"], &[], &[("app/../a", Refusal::Dots)]);
        check(&["app/a/.."], &[], &[("app/a/..", Refusal::Dots)]);
        check(&["app/..data"], &[], &[("app/..data", Refusal::Dots)]);
        check(
            &["app/lost+found/a"],
            &[],
            &[("app/lost+found/a", Refusal::LostAndFound)],
        );
        check(&[nul], &[], &[("app/a\\x00b", Refusal::Nul)]);
        check(&[&long], &[], &[(&long, Refusal::PartTooLong)]);
        check(&[&deep], &[], &[(&deep, Refusal::TooDeep)]);
        check(&[&longest], &[], &[(&longest, Refusal::PathTooLong)]);
    }

    /// Byte order puts `a-b` between `a` and `a/b`, so looking at the neighbour is not enough.
    #[test]
    fn a_key_with_keys_below_it_is_a_folder() {
        check(
            &["app/a", "app/a-b", "app/a/b", "app/a/b/c"],
            &["a-b", "a/b/c"],
            &[("app/a", Refusal::IsFolder), ("app/a/b", Refusal::IsFolder)],
        );
        // What is refused makes no folder.
        check(
            &["app/a", "app/a//b"],
            &["a"],
            &[("app/a//b", Refusal::EmptyPart)],
        );
    }

    #[test]
    fn a_large_value_is_a_file_and_one_of_a_later_release_is_not() {
        let manifest = Manifest {
            upload: podkv_api::large::UploadId(7),
            bytes: 5_000_000,
            chunk_bytes: 1 << 20,
            sha256: [1; 32],
        };
        let mut large = key("app/model");
        large.value = manifest.encode();
        let mut later = key("app/other");
        let mut bytes = manifest.encode().to_vec();
        bytes[8] += 1;
        later.value = bytes.into();
        let plan = plan("app/", [&large, &later]);
        let expected = Contents::Large(Large {
            kv: large.clone(),
            manifest,
        });
        assert_eq!(plan.tree, Tree::from([("model".into(), expected)]));
        let refused = Refused {
            key: later.key.clone(),
            why: Refusal::LaterFormat,
        };
        assert_eq!(plan.refused, [refused]);
    }

    #[test]
    fn an_unfinished_import_is_seen_at_any_depth() {
        assert_eq!(planned(&["app/a"]).importing, None);
        assert_eq!(
            planned(&["app/..import", "app/a"]).importing,
            Some("app/..import".into())
        );
        assert_eq!(
            planned(&["app/b/..import"]).importing,
            Some("app/b/..import".into())
        );
        assert_eq!(planned(&["app/..importer"]).importing, None);
    }

    #[test]
    fn a_prefix_is_a_folder() {
        assert_eq!(folder_prefix(""), "");
        assert_eq!(folder_prefix("a"), "a/");
        assert_eq!(folder_prefix("a/"), "a/");
    }
}
