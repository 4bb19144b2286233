//! What the tests share.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bytes::Bytes;
use podkv_files::{Error, Fetch, FetchError, Large, Target, TargetOptions, Tree, Written};

pub const PREFIX: &str = "app/";

pub fn tree(files: &[(&str, &str)]) -> Tree {
    let owned = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    files
        .iter()
        .map(|(path, contents)| (owned(path), owned(contents).into()))
        .collect()
}

/// For trees without large values.
pub struct NoneLarge;

impl Fetch for NoneLarge {
    fn fetch(&mut self, large: &Large, _: &mut std::fs::File) -> Result<(), FetchError> {
        panic!("there is none: {large:?}");
    }
}

/// Without lingering, so that what is over can be removed at once.
pub fn options() -> TargetOptions {
    TargetOptions {
        linger: std::time::Duration::ZERO,
        ..TargetOptions::default()
    }
}

pub fn open(dir: &Path) -> Result<Target, Error> {
    Target::open(dir, PREFIX, &options())
}

pub fn write(target: &mut Target, files: &[(&str, &str)]) -> Written {
    target.write(&tree(files), "c1", 7, &mut NoneLarge).unwrap()
}

/// What a program sees that walks the directory and takes no notice of names that begin with two dots.
pub fn seen(dir: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    walk(dir, "", &mut files);
    files
}

fn walk(dir: &Path, above: &str, files: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("..") {
            continue;
        }
        let name = format!("{above}{name}");
        // Through the links, as programs do.
        if path.is_dir() {
            walk(&path, &format!("{name}/"), files);
        } else {
            files.insert(name, std::fs::read_to_string(&path).unwrap());
        }
    }
}

pub fn check_seen(dir: &Path, files: &[(&str, &str)]) {
    let expected: BTreeMap<String, String> = files
        .iter()
        .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
        .collect();
    assert_eq!(seen(dir), expected);
}

/// The names in the directory itself that are podkv's.
pub fn own_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(".."))
        .collect();
    names.sort();
    names
}

/// The folder that is shown.
pub fn shown(dir: &Path) -> String {
    std::fs::read_link(dir.join("..data"))
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

pub fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}
