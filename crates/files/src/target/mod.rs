//! One directory that is swapped from one whole state to the next, as kubelet's AtomicWriter does it.
//!
//! ```text
//!   DIR/..podkv                       whose it is: format and prefix. Locked while a projection runs
//!   DIR/..2026_11_22_19_04_05.1/      a folder: the files, and ..podkv.json (see `folder.rs`)
//!   DIR/..data      ─► ..2026_11_22_19_04_05.1
//!   DIR/a.conf      ─► ..data/a.conf
//!   DIR/conf.d      ─► ..data/conf.d
//! ```
//!
//! 1. The new folder is written and synced beside the old one. Nobody looks there.
//! 2. `..data` is replaced by a rename. Before, everybody sees the old state; after, the new one.
//! 3. Links for new names are made, those of names that are gone removed.
//! 4. The old folder is removed after a while ([`TargetOptions::linger`]): who opened it, or `..data`, reads on in one state.
//!
//! Killed before 2, the old state stands; after 2, the next start finishes 3 and 4. What fails leaves the old state and no
//! half of a new one.
//!
//! A reader that opens two files by their paths may see the swap between them. One that needs both to be of one revision
//! opens `DIR/..data` (or a folder below it) once and reads from there.

mod disk;
mod folder;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use self::disk::Make;
use self::folder::{Files, Writer};
use crate::error::{Error, Result};
use crate::plan::{LOST_AND_FOUND, Tree};

pub(crate) use self::folder::hash_file;
pub use self::folder::{ABOUT_FILE, About, Count, Fetch, FetchError};

const MARKER: &str = "..podkv";
const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
const ADOPTED: &str = "..adopted_";
const FORMAT: u32 = 1;

/// What [`MARKER`] says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    format: u32,
    prefix: String,
}

/// How a target is kept.
#[derive(Clone, Debug)]
pub struct TargetOptions {
    /// The mode of files. Default 0644.
    pub file_mode: u32,
    /// The mode of folders. Default 0755.
    pub folder_mode: u32,
    /// The owner of files and folders; `None` is whoever writes.
    pub user: Option<u32>,
    pub group: Option<u32>,
    /// Take over a directory that holds something else, or another prefix. What is in the way is moved into a folder
    /// `..adopted_<time>`, never removed.
    pub adopt: bool,
    /// How long a folder stays after it was replaced, for readers who have it open. Long enough to read some files, short
    /// enough that a burst of changes does not fill the disk. Default 2 s.
    pub linger: Duration,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self {
            file_mode: 0o644,
            folder_mode: 0o755,
            user: None,
            group: None,
            adopt: false,
            linger: Duration::from_secs(2),
        }
    }
}

/// What [`Target::write`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// False if the directory showed this already.
    pub swapped: bool,
    pub count: Count,
    pub about: About,
}

/// A directory that this process keeps. Blocking: to be used off the async threads.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    dir: OwnedFd,
    /// Holds the lock.
    _marker: OwnedFd,
    prefix: String,
    make: Make,
    adopt: bool,
    linger: Duration,
    /// The folder that `..data` leads to. It stays until another one is shown, whatever is wrong with it.
    shown: Option<Bytes>,
    /// The same, as far as it is known to be right.
    current: Option<Current>,
    /// Folders that nobody is sent to any more, and until when they stay.
    retired: Vec<(Bytes, Instant)>,
    /// The links have not been looked at since the start, or since the last swap.
    links_due: bool,
}

/// A folder and what it holds.
#[derive(Debug)]
struct Current {
    folder: OwnedFd,
    about: About,
    files: Files,
}

impl Target {
    /// Takes the directory, which is made if it is not there, and reads what it shows.
    ///
    /// # Errors
    ///
    /// [`Error::NotOurs`], [`Error::Unusable`], [`Error::Busy`], and whatever the file system says.
    pub fn open(path: &Path, prefix: &str, options: &TargetOptions) -> Result<Self> {
        let failed = |doing| move |error| Error::io(path, doing, error);
        if let Err(error) = std::fs::create_dir(path)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(failed("making the directory")(error));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let why = "a directory is expected, and this is a link or a file".to_owned();
                return Err(Error::Unusable {
                    path: path.into(),
                    why,
                });
            }
            Err(error) => return Err(failed("opening the directory")(error.into())),
        };
        let marker = take(path, &dir, prefix, options.adopt)?;
        let mut target = Self {
            path: path.into(),
            dir,
            _marker: marker,
            prefix: prefix.into(),
            make: Make {
                file_mode: options.file_mode,
                folder_mode: options.folder_mode,
                user: options.user,
                group: options.group,
            },
            adopt: options.adopt,
            linger: options.linger,
            shown: None,
            current: None,
            retired: Vec::new(),
            links_due: true,
        };
        target.find().map_err(failed("reading what is there"))?;
        Ok(target)
    }

    /// What the directory shows, if it is known to be right.
    pub fn about(&self) -> Option<&About> {
        self.current.as_ref().map(|current| &current.about)
    }

    /// Shows this tree. If it fails, what was shown before still is. `fetch` is asked for the large values that are not
    /// there already.
    pub fn write(
        &mut self,
        tree: &Tree,
        cluster: &str,
        revision: u64,
        fetch: &mut dyn Fetch,
    ) -> Result<Written> {
        self.clear_the_way(tree)?;
        if let Some(current) = &mut self.current
            && folder::shows(&current.files, tree)
        {
            for (held, contents) in current.files.values_mut().zip(tree.values()) {
                held.share(contents);
            }
            let about = current.about.clone();
            self.link_names(tree)?;
            let count = Count::default();
            return Ok(Written {
                swapped: false,
                count,
                about,
            });
        }
        let name = self.new_name()?;
        let (current, count) = match self.fill(&name, tree, cluster, revision, fetch) {
            Ok(filled) => filled,
            Err(error) => {
                // The disk may be full because of it. If it cannot be removed now, the next start does.
                let _ = disk::remove_tree(self.dir.as_fd(), &name);
                return Err(error);
            }
        };
        if let Err(error) = self.swap(&name) {
            // Whether it was renamed is not known: look.
            if let Err(lost) = self.find() {
                tracing::warn!(error = %lost, "what the target shows cannot be read");
            }
            return Err(error);
        }
        let about = current.about.clone();
        self.links_due = true;
        self.current = Some(current);
        if let Some(before) = self.shown.replace(name) {
            self.retired.push((before, Instant::now() + self.linger));
        }
        self.link_names(tree)?;
        Ok(Written {
            swapped: true,
            count,
            about,
        })
    }

    /// When [`Target::sweep`] has something to do.
    pub fn sweep_due(&self) -> Option<Instant> {
        self.retired.iter().map(|(_, until)| *until).min()
    }

    /// Removes the folders whose time is over.
    pub fn sweep(&mut self, now: Instant) -> Result<()> {
        let mut kept = Vec::new();
        let mut failed = None;
        for (name, until) in std::mem::take(&mut self.retired) {
            if until > now {
                kept.push((name, until));
            } else if let Err(error) = disk::remove_tree(self.dir.as_fd(), &name) {
                // Again later: a folder that stays for ever fills the disk.
                failed = Some(self.failed("removing an old folder", error));
                kept.push((name, now + self.linger.max(Duration::from_secs(1))));
            }
        }
        self.retired = kept;
        failed.map_or(Ok(()), Err)
    }

    fn failed(&self, doing: &'static str, error: impl Into<io::Error>) -> Error {
        Error::io(&self.path, doing, error)
    }

    /// What an earlier process left: the folder that is shown, and those that are not.
    fn find(&mut self) -> io::Result<()> {
        self.links_due = true;
        self.current = None;
        self.retired.clear();
        let dir = self.dir.as_fd();
        disk::remove_file(dir, NEW_DATA.as_bytes())?;
        self.shown = disk::read_link(dir, DATA.as_bytes())?.filter(|name| is_folder_name(name));
        let until = Instant::now() + self.linger;
        for name in disk::entries(dir)? {
            if is_folder_name(&name) && Some(&name) != self.shown.as_ref() {
                self.retired.push((name, until));
            }
        }
        let Some(name) = &self.shown else {
            return Ok(());
        };
        let read = disk::open_folder(dir, name).and_then(|folder| {
            let (about, files) = folder::read(folder.as_fd(), &self.make)?;
            Ok((folder, about, files))
        });
        match read {
            Ok((folder, about, files)) if about.format == FORMAT && about.prefix == self.prefix => {
                self.current = Some(Current {
                    folder,
                    about,
                    files,
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "what the target shows is not as it was written; it is written anew");
            }
        }
        Ok(())
    }

    /// Makes an empty folder with the time in its name, as kubelet names them.
    fn new_name(&self) -> Result<Bytes> {
        let now = time::OffsetDateTime::from(SystemTime::now());
        let time = format!(
            "..{:04}_{:02}_{:02}_{:02}_{:02}_{:02}",
            now.year(),
            u8::from(now.month()),
            now.day(),
            now.hour(),
            now.minute(),
            now.second()
        );
        for number in 1_u32.. {
            let name = Bytes::from(format!("{time}.{number}"));
            match self.make.folder(self.dir.as_fd(), &name) {
                Ok(_) => return Ok(name),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    // Made, but not with the right owner.
                    let _ = disk::remove_tree(self.dir.as_fd(), &name);
                    return Err(self.failed("making a folder", error));
                }
            }
        }
        Err(self.failed("making a folder", Errno::EXIST))
    }

    fn fill(
        &self,
        name: &Bytes,
        tree: &Tree,
        cluster: &str,
        revision: u64,
        fetch: &mut dyn Fetch,
    ) -> Result<(Current, Count)> {
        let failed = |error| self.failed("writing files", error);
        let folder = disk::open_folder(self.dir.as_fd(), name).map_err(failed)?;
        let before = self.current.as_ref();
        let writer = Writer {
            make: self.make,
            root: folder.as_fd(),
            before: before.map(|current| (current.folder.as_fd(), &current.files)),
        };
        let (files, count) = writer.write(tree, fetch).map_err(|error| match error {
            FetchError::Io(error) => failed(error),
            FetchError::Store(error) => error.into(),
        })?;
        let about = About {
            format: FORMAT,
            cluster: cluster.into(),
            prefix: self.prefix.clone(),
            revision,
            files: files.len(),
            digest: folder::digest(&files),
        };
        let json = serde_json::to_vec_pretty(&about).map_err(|error| failed(error.into()))?;
        let wrote = self
            .make
            .file(folder.as_fd(), ABOUT_FILE.as_bytes(), &json, true);
        wrote.map_err(failed)?;
        rustix::fs::fsync(&folder).map_err(|error| failed(error.into()))?;
        Ok((
            Current {
                folder,
                about,
                files,
            },
            count,
        ))
    }

    fn swap(&self, name: &Bytes) -> Result<()> {
        let failed = |error| self.failed("swapping ..data", error);
        let dir = self.dir.as_fd();
        disk::remove_file(dir, NEW_DATA.as_bytes()).map_err(failed)?;
        let swapped = rustix::fs::symlinkat(&name[..], dir, NEW_DATA)
            .and_then(|()| rustix::fs::renameat(dir, NEW_DATA, dir, DATA))
            .and_then(|()| rustix::fs::fsync(dir));
        swapped.map_err(|error| failed(error.into()))
    }

    /// Whatever lies where a link has to be is moved aside, or is an error.
    fn clear_the_way(&self, tree: &Tree) -> Result<()> {
        let failed = |error| self.failed("looking at what is there", error);
        let dir = self.dir.as_fd();
        let mut foreign = Vec::new();
        for name in top_names(tree) {
            if disk::look(dir, name).map_err(failed)?.is_some()
                && !self.is_our_link(name).map_err(failed)?
            {
                foreign.push(name);
            }
        }
        let data = disk::look(dir, DATA.as_bytes()).map_err(failed)?;
        if data.is_some()
            && disk::read_link(dir, DATA.as_bytes())
                .map_err(failed)?
                .is_none()
        {
            foreign.push(DATA.as_bytes());
        }
        match foreign.first() {
            None => Ok(()),
            Some(name) if !self.adopt => {
                let why = format!("{} is in the way", name.escape_ascii());
                Err(Error::NotOurs {
                    path: self.path.clone(),
                    why,
                })
            }
            Some(_) => self.move_aside(&foreign),
        }
    }

    fn move_aside(&self, names: &[&[u8]]) -> Result<()> {
        let failed = |error| self.failed("moving aside what is in the way", error);
        let seconds = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let aside = format!("{ADOPTED}{seconds}");
        let folder = self
            .make
            .folder(self.dir.as_fd(), aside.as_bytes())
            .map_err(failed)?;
        for name in names {
            rustix::fs::renameat(&self.dir, *name, &folder, *name)
                .map_err(|error| failed(error.into()))?;
            tracing::warn!(name = %name.escape_ascii(), folder = aside, "moved aside");
        }
        Ok(())
    }

    fn is_our_link(&self, name: &[u8]) -> io::Result<bool> {
        let leads = disk::read_link(self.dir.as_fd(), name)?;
        Ok(leads.is_some_and(|leads| leads == [DATA.as_bytes(), b"/", name].concat()))
    }

    /// One link for each name at the top, and none for those that are gone.
    fn link_names(&mut self, tree: &Tree) -> Result<()> {
        if !self.links_due {
            return Ok(());
        }
        let failed = |error| self.failed("making links", error);
        let dir = self.dir.as_fd();
        let wanted: std::collections::BTreeSet<&[u8]> = top_names(tree).collect();
        for name in &wanted {
            if !self.is_our_link(name).map_err(failed)? {
                let leads = [DATA.as_bytes(), b"/", name].concat();
                rustix::fs::symlinkat(&leads[..], dir, *name)
                    .map_err(|error| failed(error.into()))?;
            }
        }
        for name in disk::entries(dir).map_err(failed)? {
            if !wanted.contains(&name[..]) && self.is_our_link(&name).map_err(failed)? {
                disk::remove_file(dir, &name).map_err(failed)?;
            }
        }
        rustix::fs::fsync(dir).map_err(|error| failed(error.into()))?;
        self.links_due = false;
        Ok(())
    }
}

/// Makes sure that the directory is ours, and locks it.
fn take(path: &Path, dir: &OwnedFd, prefix: &str, adopt: bool) -> Result<OwnedFd> {
    let failed = |doing| move |error: io::Error| Error::io(path, doing, error);
    let unusable = |why| {
        Err(Error::Unusable {
            path: path.into(),
            why,
        })
    };
    let not_ours = |why| {
        Err(Error::NotOurs {
            path: path.into(),
            why,
        })
    };
    // Only to lock and read it: a volume with a file that is open for writing cannot be made read-only.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let open = || rustix::fs::openat(dir, MARKER, flags, Mode::empty());
    let opened = match open() {
        Err(Errno::NOENT) => {
            let found = disk::entries(dir.as_fd()).map_err(failed("listing the directory"))?;
            let foreign = found
                .iter()
                .find(|name| **name != LOST_AND_FOUND.as_bytes());
            if let Some(name) = foreign
                && !adopt
            {
                return not_ours(format!("it holds {}", name.escape_ascii()));
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let made = rustix::fs::openat(dir, MARKER, flags, Mode::from_raw_mode(0o644));
            made.map_err(|error| failed("making its marker")(error.into()))?;
            open()
        }
        opened => opened,
    };
    let marker = match opened {
        Ok(marker) => marker,
        Err(Errno::LOOP) => return unusable(format!("{MARKER} is a link")),
        Err(error) => return Err(failed("opening its marker")(error.into())),
    };
    match rustix::fs::flock(&marker, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(Error::Busy { path: path.into() }),
        Err(error) => return Err(failed("locking its marker")(error.into())),
    }
    let wanted = Marker {
        format: FORMAT,
        prefix: prefix.into(),
    };
    let text =
        disk::read_file(dir.as_fd(), MARKER.as_bytes()).map_err(failed("reading its marker"))?;
    // Empty: it was made and never written, because the disk was full or the process was killed.
    let found = (!text.is_empty()).then(|| serde_json::from_slice::<Marker>(&text));
    match found {
        Some(Ok(found)) if found == wanted => return Ok(marker),
        None => {}
        Some(Ok(found)) if found.format != FORMAT => {
            return unusable(format!(
                "its layout is format {}, and this release knows {FORMAT}",
                found.format
            ));
        }
        Some(_) if adopt => {}
        Some(Ok(found)) => return not_ours(format!("it shows the prefix {:?}", found.prefix)),
        Some(Err(_)) => return not_ours(format!("{MARKER} is not podkv's")),
    }
    write_marker(dir, &wanted).map_err(failed("writing its marker"))?;
    Ok(marker)
}

fn write_marker(dir: &OwnedFd, marker: &Marker) -> io::Result<()> {
    let json = serde_json::to_vec(marker)?;
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, MARKER, flags, Mode::empty())?;
    let mut file = std::fs::File::from(file);
    io::Write::write_all(&mut file, &json)?;
    file.sync_all()?;
    Ok(rustix::fs::fsync(dir)?)
}

/// The first parts of all paths, each once.
fn top_names(tree: &Tree) -> impl Iterator<Item = &[u8]> {
    let mut last: Option<&[u8]> = None;
    let mut seen = std::collections::BTreeSet::new();
    tree.keys()
        .filter_map(|path| path.split(|byte| *byte == b'/').next())
        .filter(move |name| {
            // Mostly the one before again: a look at the set is for `a`, `a-b`, `a/c`.
            let is_new = last != Some(name) && seen.insert(*name);
            last = Some(name);
            is_new
        })
}

/// `..2026_11_22_19_04_05.1`
fn is_folder_name(name: &[u8]) -> bool {
    name.strip_prefix(b"..").is_some_and(|rest| {
        rest.first().is_some_and(u8::is_ascii_digit)
            && rest
                .iter()
                .all(|byte| byte.is_ascii_digit() || matches!(byte, b'_' | b'.'))
    })
}
