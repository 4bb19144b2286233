//! One folder of a target: a whole tree, written before anybody sees it, never changed after.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bytes::Bytes;
use rustix::fs::{AtFlags, FileType};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::disk::{self, Make};
use crate::plan::{MAX_DEPTH, MAX_PATH_BYTES, Tree};

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

/// A file as it stands in a folder.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub contents: Bytes,
    sha256: [u8; 32],
    /// Made with the mode and owner that are asked for. What was found otherwise is written anew.
    fits: bool,
}

/// The files of a folder.
pub(super) type Files = BTreeMap<Bytes, Held>;

/// True if the folder shows just this tree.
pub(super) fn shows(files: &Files, tree: &Tree) -> bool {
    files.len() == tree.len()
        && files
            .iter()
            .zip(tree)
            .all(|((path, held), (wanted, contents))| path == wanted && is_right(held, contents))
}

fn is_right(held: &Held, contents: &Bytes) -> bool {
    held.fits && held.contents == contents
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
    pub fn write(&self, tree: &Tree) -> io::Result<(Files, Count)> {
        let known = |path: &Bytes, contents: &Bytes| {
            let (_, files) = self.before?;
            files.get(path).filter(|held| is_right(held, contents))
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
                let held = Held {
                    contents: contents.clone(),
                    ..held.clone()
                };
                files.insert(path.clone(), held);
                continue;
            }
            self.make.file(folder, name, contents, each)?;
            count.written += 1;
            let held = Held {
                contents: contents.clone(),
                sha256: Sha256::digest(contents).into(),
                fits: true,
            };
            files.insert(path.clone(), held);
        }
        self.descend(&mut levels, &[], each)?;
        if each {
            rustix::fs::fsync(self.root)?;
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
                && u64::try_from(stat.st_size) == Ok(held.contents.len() as u64)
        });
        // If it cannot be removed, writing it fails, and says why.
        is_ours || disk::remove_file(folder, name).is_err()
    }
}

/// Reads what a folder holds. Links, pipes and names that no projection makes are an error: then it is written anew.
pub(super) fn read(root: BorrowedFd<'_>, make: &Make) -> io::Result<(About, Files)> {
    let (about, _) = disk::read_file(root, ABOUT_FILE.as_bytes())?;
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
            let (contents, stat) = disk::read_file(folder, &name)?;
            let sha256 = Sha256::digest(&contents).into();
            let fits = make.fits(&stat);
            files.insert(
                path.into(),
                Held {
                    contents,
                    sha256,
                    fits,
                },
            );
        }
    }
    Ok(())
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
