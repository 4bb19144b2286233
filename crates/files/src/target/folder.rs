//! One folder of a target: a whole tree, written before anybody sees it, never changed after.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bytes::Bytes;
use rustix::fs::{AtFlags, FileType};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::disk::{self, Make};
use crate::plan::{Contents, Large, MAX_DEPTH, MAX_PATH_BYTES, Tree};

/// In each folder: of what it is. Readers who find a folder can tell how old it is.
pub const ABOUT_FILE: &str = "..podkv.json";

/// Fewer files are synced one by one. More: all of the file system at once, which is one flush of the disk instead of
/// thousands; a pod that starts with 10 000 files would wait a minute for those.
const MANY_FILES: usize = 64;

/// What [`ABOUT_FILE`] says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// 1. A later one may mean other fields.
    pub format: u32,
    pub cluster: String,
    pub prefix: String,
    /// The revision that these files are from. Later ones changed none of them.
    pub revision: u64,
    pub files: usize,
    /// Over all paths and contents: equal in two pods that show the same.
    pub digest: String,
}

/// Brings the large values of a tree while it is written.
pub trait Fetch {
    /// Writes the whole value, of which it has made sure that it is right.
    fn fetch(&mut self, large: &Large, file: &mut File) -> Result<(), FetchError>;
}

/// Why a large value is not there.
#[derive(Debug)]
pub enum FetchError {
    /// The file cannot be written.
    Io(io::Error),
    /// The store's.
    Store(podkv_api::Error),
}

impl From<io::Error> for FetchError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<podkv_api::Error> for FetchError {
    fn from(error: podkv_api::Error) -> Self {
        Self::Store(error)
    }
}

/// Longer files are not kept in memory when a folder is read: their hash tells whether they are right.
const KEPT_BYTES: u64 = 2 << 20;

/// What is known of a file's contents, beside the hash.
#[derive(Clone, Debug)]
enum Known {
    /// All of it: comparing is faster than hashing what it is compared with.
    Bytes(Bytes),
    Length(u64),
}

/// A file as it stands in a folder.
#[derive(Clone, Debug)]
pub(super) struct Held {
    known: Known,
    sha256: [u8; 32],
    /// Made with the mode and owner that are asked for. What was found otherwise is written anew.
    fits: bool,
}

impl Held {
    /// As it was just written.
    fn written(contents: &Contents) -> Self {
        let (known, sha256) = match contents {
            Contents::Plain(bytes) => (Known::Bytes(bytes.clone()), Sha256::digest(bytes).into()),
            Contents::Large(large) => (Known::Length(large.manifest.bytes), large.manifest.sha256),
        };
        Self {
            known,
            sha256,
            fits: true,
        }
    }

    /// Lets go of what was read from the disk: the same bytes are in the tree.
    pub fn share(&mut self, contents: &Contents) {
        self.known = match contents {
            Contents::Plain(bytes) => Known::Bytes(bytes.clone()),
            Contents::Large(large) => Known::Length(large.manifest.bytes),
        };
    }

    fn length(&self) -> u64 {
        match &self.known {
            Known::Bytes(bytes) => bytes.len() as u64,
            Known::Length(length) => *length,
        }
    }

    fn is_right(&self, contents: &Contents) -> bool {
        let is_same =
            |length: u64, sha256: [u8; 32]| self.length() == length && self.sha256 == sha256;
        self.fits
            && match (&self.known, contents) {
                (Known::Bytes(held), Contents::Plain(bytes)) => held == bytes,
                (_, Contents::Large(large)) => is_same(large.manifest.bytes, large.manifest.sha256),
                (Known::Length(_), Contents::Plain(bytes)) => {
                    is_same(bytes.len() as u64, Sha256::digest(bytes).into())
                }
            }
    }
}

/// The files of a folder.
pub(super) type Files = BTreeMap<Bytes, Held>;

/// True if the folder shows just this tree.
pub(super) fn shows(files: &Files, tree: &Tree) -> bool {
    files.len() == tree.len()
        && files
            .iter()
            .zip(tree)
            .all(|((path, held), (wanted, contents))| path == wanted && held.is_right(contents))
}

/// How a folder was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub written: usize,
    pub linked: usize,
}

/// One level of the tree that is being written.
struct Level {
    name: Bytes,
    folder: OwnedFd,
    /// The same level of the folder before.
    before: Option<OwnedFd>,
}

/// Writes a tree into an empty folder, with links to what the folder before holds already.
pub(super) struct Writer<'a> {
    pub make: Make,
    pub root: BorrowedFd<'a>,
    pub before: Option<(BorrowedFd<'a>, &'a Files)>,
}

impl Writer<'_> {
    pub fn write(&self, tree: &Tree, fetch: &mut dyn Fetch) -> Result<(Files, Count), FetchError> {
        let known = |path: &Bytes, contents: &Contents| {
            let (_, files) = self.before?;
            files.get(path).filter(|held| held.is_right(contents))
        };
        let new = tree
            .iter()
            .filter(|(path, contents)| known(path, contents).is_none())
            .count();
        let each = new <= MANY_FILES;
        let mut files = Files::new();
        let mut count = Count::default();
        let mut levels: Vec<Level> = Vec::new();
        for (path, contents) in tree {
            let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
            let Some((name, parents)) = parts.split_last() else {
                continue;
            };
            self.descend(&mut levels, parents, each)?;
            let (folder, before) = match levels.last() {
                Some(level) => (
                    level.folder.as_fd(),
                    level.before.as_ref().map(|fd| fd.as_fd()),
                ),
                None => (self.root, self.before.map(|(folder, _)| folder)),
            };
            let held = known(path, contents);
            if let (Some(held), Some(before)) = (held, before)
                && self.link(before, folder, name, held)
            {
                count.linked += 1;
                let mut held = held.clone();
                held.share(contents);
                files.insert(path.clone(), held);
                continue;
            }
            match contents {
                Contents::Plain(bytes) => self.make.file(folder, name, bytes, each)?,
                Contents::Large(large) => {
                    let write = |file: &mut File| fetch.fetch(large, file);
                    self.make.file_by(folder, name, each, write)?;
                }
            }
            count.written += 1;
            files.insert(path.clone(), Held::written(contents));
        }
        self.descend(&mut levels, &[], each)?;
        if each {
            rustix::fs::fsync(self.root).map_err(io::Error::from)?;
        } else {
            disk::sync_file_system(self.root)?;
        }
        Ok((files, count))
    }

    /// Leaves the folders that do not lie on the way to `parents`, and makes those that are missing. In byte order, all
    /// paths below a folder come one after the other, so each is made once.
    fn descend(&self, levels: &mut Vec<Level>, parents: &[&[u8]], sync: bool) -> io::Result<()> {
        let shared = levels
            .iter()
            .zip(parents)
            .take_while(|(level, part)| level.name == **part)
            .count();
        while levels.len() > shared {
            if let Some(level) = levels.pop()
                && sync
            {
                rustix::fs::fsync(&level.folder)?;
            }
        }
        for part in parents.iter().skip(shared) {
            let (within, before) = match levels.last() {
                Some(level) => (
                    level.folder.as_fd(),
                    level.before.as_ref().map(|fd| fd.as_fd()),
                ),
                None => (self.root, self.before.map(|(folder, _)| folder)),
            };
            let folder = self.make.folder(within, part)?;
            // If it is not there, there is nothing to link to.
            let before = before.and_then(|before| disk::open_folder(before, part).ok());
            levels.push(Level {
                name: Bytes::copy_from_slice(part),
                folder,
                before,
            });
        }
        Ok(())
    }

    /// False if it has to be written: no link is possible here, or what lies there is not what we put there.
    fn link(
        &self,
        before: BorrowedFd<'_>,
        folder: BorrowedFd<'_>,
        name: &[u8],
        held: &Held,
    ) -> bool {
        if rustix::fs::linkat(before, name, folder, name, AtFlags::empty()).is_err() {
            return false;
        }
        let is_ours = disk::look(folder, name).ok().flatten().is_some_and(|stat| {
            self.make.fits(&stat)
                && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && u64::try_from(stat.st_size) == Ok(held.length())
        });
        // If it cannot be removed, writing it fails, and says why.
        is_ours || disk::remove_file(folder, name).is_err()
    }
}

/// Reads what a folder holds. Links, pipes and names that no projection makes are an error: then it is written anew.
pub(super) fn read(root: BorrowedFd<'_>, make: &Make) -> io::Result<(About, Files)> {
    let about = disk::read_file(root, ABOUT_FILE.as_bytes())?;
    let about = serde_json::from_slice(&about)?;
    let mut files = Files::new();
    read_below(root, b"", make, MAX_DEPTH, &mut files)?;
    Ok((about, files))
}

fn read_below(
    folder: BorrowedFd<'_>,
    above: &[u8],
    make: &Make,
    depth: usize,
    files: &mut Files,
) -> io::Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "folders nest too deep",
        ));
    };
    for name in disk::entries(folder)? {
        if above.is_empty() && name == ABOUT_FILE.as_bytes() {
            continue;
        }
        let path = [above, &name].concat();
        if path.len() > MAX_PATH_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a path is too long",
            ));
        }
        let Some(stat) = disk::look(folder, &name)? else {
            continue;
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            if !make.fits(&stat) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a folder of another mode",
                ));
            }
            let below = disk::open_folder(folder, &name)?;
            read_below(
                below.as_fd(),
                &[&path, &b"/"[..]].concat(),
                make,
                depth,
                files,
            )?;
        } else {
            files.insert(path.into(), read_file(folder, &name, make)?);
        }
    }
    Ok(())
}

fn read_file(folder: BorrowedFd<'_>, name: &[u8], make: &Make) -> io::Result<Held> {
    let (mut file, stat) = disk::open_file(folder, name)?;
    let length = u64::try_from(stat.st_size).unwrap_or_default();
    let (known, sha256) = if length <= KEPT_BYTES {
        let mut bytes = Vec::new();
        // One that grows meanwhile is nothing that a projection wrote.
        file.take(KEPT_BYTES + 1).read_to_end(&mut bytes)?;
        let sha256 = Sha256::digest(&bytes).into();
        (Known::Bytes(bytes.into()), sha256)
    } else {
        let (length, sha256) = hash_file(&mut file)?;
        (Known::Length(length), sha256)
    };
    Ok(Held {
        known,
        sha256,
        fits: make.fits(&stat),
    })
}

/// How long a file is, and its SHA-256, without holding it in memory.
pub(crate) fn hash_file(file: &mut File) -> io::Result<(u64, [u8; 32])> {
    let mut hash = Sha256::new();
    let length = io::copy(file, &mut hash)?;
    Ok((length, hash.finalize().into()))
}

/// Over paths and contents, in order. Contents count by their digest, so that a change in one file of 10 000 costs one.
pub(super) fn digest(files: &Files) -> String {
    let mut all = Sha256::new();
    for (path, held) in files {
        all.update((path.len() as u64).to_be_bytes());
        all.update(path);
        all.update(held.sha256);
    }
    let hex: String = all
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}
