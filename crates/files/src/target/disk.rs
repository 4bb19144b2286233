//! Files and folders by handle: one name at a time, below an open folder, never through a link.
//!
//! A path that is resolved by the kernel follows whatever lies on the way at that moment. Whoever can write to a target
//! could put a link there, and have a projector that runs with more rights write elsewhere. An open handle stays what it
//! was, and `O_NOFOLLOW` refuses a link as the next step.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::plan::MAX_DEPTH;

/// With which mode and owner files are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Make {
    pub file_mode: u32,
    pub folder_mode: u32,
    pub user: Option<u32>,
    pub group: Option<u32>,
}

impl Make {
    fn own(&self, file: impl AsFd) -> io::Result<()> {
        if self.user.is_some() || self.group.is_some() {
            let (user, group) = (self.user.map(Uid::from_raw), self.group.map(Gid::from_raw));
            rustix::fs::fchown(file, user, group)?;
        }
        Ok(())
    }

    /// Whether a file or folder is as it would be made.
    pub fn fits(&self, stat: &Stat) -> bool {
        let mode = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file_mode,
            FileType::Directory => self.folder_mode,
            _ => return false,
        };
        (stat.st_mode & 0o7777) == mode
            && self.user.is_none_or(|user| user == stat.st_uid)
            && self.group.is_none_or(|group| group == stat.st_gid)
    }

    /// Makes a folder that must not be there, and opens it.
    pub fn folder(&self, within: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
        // Nobody else looks in before its mode and owner are right.
        rustix::fs::mkdirat(within, name, Mode::RWXU)?;
        let folder = open_folder(within, name)?;
        self.own(&folder)?;
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(self.folder_mode))?;
        Ok(folder)
    }

    /// Writes a file that must not be there.
    pub fn file(
        &self,
        within: BorrowedFd<'_>,
        name: &[u8],
        contents: &[u8],
        sync: bool,
    ) -> io::Result<()> {
        self.file_by(within, name, sync, |file| file.write_all(contents))
    }

    /// The same, with contents that come piece by piece.
    pub fn file_by<E: From<io::Error>>(
        &self,
        within: BorrowedFd<'_>,
        name: &[u8],
        sync: bool,
        write: impl FnOnce(&mut File) -> Result<(), E>,
    ) -> Result<(), E> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(
            rustix::fs::openat(within, name, flags, Mode::RUSR | Mode::WUSR)
                .map_err(io::Error::from)?,
        );
        write(&mut file)?;
        self.own(&file)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(self.file_mode)).map_err(io::Error::from)?;
        if sync {
            file.sync_all()?;
        }
        Ok(())
    }
}

pub(super) fn open_folder(within: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(within, name, flags, Mode::empty())?)
}

/// What lies in a folder, without `.` and `..`.
pub(super) fn entries(folder: BorrowedFd<'_>) -> io::Result<Vec<Bytes>> {
    let entries = entries_with_types(folder)?.into_iter();
    Ok(entries.map(|(name, _)| name).collect())
}

/// The same, with what each is; not every file system says so.
fn entries_with_types(folder: BorrowedFd<'_>) -> io::Result<Vec<(Bytes, FileType)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if name != c"." && name != c".." {
            let name = Bytes::copy_from_slice(name.to_bytes());
            names.push((name, entry.file_type()));
        }
    }
    Ok(names)
}

/// How a name is, without following it; `None` if there is nothing.
pub(super) fn look(within: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(within, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Where a link leads; `None` if there is nothing, or something that is no link.
pub(super) fn read_link(within: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Bytes>> {
    match rustix::fs::readlinkat(within, name, Vec::new()) {
        Ok(leads) => Ok(Some(leads.into_bytes().into())),
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A regular file, open for reading, with how it is.
pub(super) fn open_file(within: BorrowedFd<'_>, name: &[u8]) -> io::Result<(File, Stat)> {
    // A pipe would block for ever without NONBLOCK; a regular file takes no notice of it.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(within, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a regular file",
        ));
    }
    Ok((File::from(file), stat))
}

/// The contents of a regular file.
pub(super) fn read_file(within: BorrowedFd<'_>, name: &[u8]) -> io::Result<Bytes> {
    let (mut file, _) = open_file(within, name)?;
    let mut contents = Vec::new();
    file.read_to_end(&mut contents)?;
    Ok(contents.into())
}

/// Removes a folder with all that is in it. Links in it are removed, not followed. What is not there is no error.
pub(super) fn remove_tree(within: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    remove_below(within, name, MAX_DEPTH + 1)
}

fn remove_below(within: BorrowedFd<'_>, name: &[u8], depth: usize) -> io::Result<()> {
    let folder = match open_folder(within, name) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(depth) = depth.checked_sub(1) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "folders nest too deep",
        ));
    };
    for (entry, kind) in entries_with_types(folder.as_fd())? {
        // Ten thousand files are removed after each change: one call for each is enough.
        let is_folder = match kind {
            FileType::Unknown => look(folder.as_fd(), &entry)?
                .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            kind => kind == FileType::Directory,
        };
        if is_folder {
            remove_below(folder.as_fd(), &entry, depth)?;
        } else {
            remove_file(folder.as_fd(), &entry)?;
        }
    }
    match rustix::fs::unlinkat(within, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a file or a link. What is not there is no error.
pub(super) fn remove_file(within: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(within, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes everything of the file system that the folder lies on.
pub(super) fn sync_file_system(folder: BorrowedFd<'_>) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(folder)?;
    #[cfg(not(target_os = "linux"))]
    rustix::fs::fsync(folder)?;
    Ok(())
}
