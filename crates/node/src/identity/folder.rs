//! The node's folder on its volume: the layout, and the lock.
//!
//! ```text
//! <data_dir>/            the mount point; it has a lost+found, so nothing of ours lies here
//!   podkv/
//!     LOCK               flock'ed while a process uses the folder
//!     MARKER             who the volume belongs to: see `marker`
//!     peers              the starts of other nodes that were seen: see `peers`
//!     RECOVERY           a recovery from a lost majority that has begun: see `recovery`
//!     PROMISE            for how long its votes may be promised: see `promise`
//!     log/               the Raft log
//!     CURRENT-STATE      which of the following is the state
//!     state-<n>/         the state
//!     checkpoint-<n>/    a copy of it, while it is being sent
//!     staged-<id>/       a copy of another node's, while it is being received
//!     retired-<id>/      all of this from a node that was removed, until its successor holds everything; from a node
//!                        of an earlier incarnation, until a person removes it
//! ```
//!
//! MARKER is the first file that a node makes. So data without a marker is never "new": it is damaged,
//! or somebody else's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use podkv_api::{Error, Incarnation, MemberId, Reason};
use rustix::fs::{FlockOperation, flock};

use super::marker::{Marker, Phase};
use super::{Aside, IdentityFile, MarkerStore};
use crate::storage::{StorageError, sync_folder, write_durably};

const NODE_FOLDER: &str = "podkv";
const LOCK: &str = "LOCK";
pub(crate) const LOG_FOLDER: &str = "log";
pub(crate) const STATE_POINTER: &str = "CURRENT-STATE";
pub(crate) const STATE_PREFIX: &str = "state-";
#[cfg(feature = "rocksdb")]
pub(crate) const CHECKPOINT_PREFIX: &str = "checkpoint-";
const RETIRED_PREFIX: &str = "retired-";

/// A node's folder, locked. The lock goes with the last owner, or with the process.
pub struct DataFolder {
    path: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Takes `<data_dir>/podkv`, making it if it is not there. Blocking.
    ///
    /// Fails with [`Reason::DataFolder`] if it cannot be written, is in use by another process, or
    /// holds other files; with [`Reason::Corrupt`] if data lies there without a marker. Nothing is
    /// deleted.
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        make_folder(data_dir)?;
        let path = data_dir.join(NODE_FOLDER);
        make_folder(&path)?;
        let lock = take_lock(&path)?;
        sync_folder(&path)?;
        sync_folder(data_dir)?;
        let folder = Self { path, _lock: lock };
        folder.refuse_foreign_files()?;
        Ok(folder)
    }

    /// Takes `<data_dir>/podkv` as [`DataFolder::open`] does, but only if a node's data is there: makes nothing.
    pub fn open_existing(data_dir: &Path) -> Result<Self, Error> {
        let path = data_dir.join(NODE_FOLDER);
        if !path.join(IdentityFile::Marker.name()).exists() {
            return Err(Error::new(
                Reason::DataFolder,
                format!(
                    "{} holds no data of a node: {} is missing. Nothing was changed",
                    data_dir.display(),
                    path.join(IdentityFile::Marker.name()).display()
                ),
            ));
        }
        Self::open(data_dir)
    }

    /// The node's own folder, `<data_dir>/podkv`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The identity files in this folder.
    pub fn markers(self: &Arc<Self>) -> Arc<dyn MarkerStore> {
        Arc::new(FileMarkers(self.clone()))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// Before there is a marker there is nothing but the lock, and perhaps a marker half-made.
    fn refuse_foreign_files(&self) -> Result<(), Error> {
        let marker = IdentityFile::Marker.name();
        let names = self.names().map_err(|error| unusable(&self.path, &error))?;
        if names.iter().any(|name| name == marker) {
            return Ok(());
        }
        let half_made = format!("{marker}.tmp");
        let mut foreign = names;
        foreign
            .retain(|name| name != LOCK && *name != half_made && !name.starts_with(RETIRED_PREFIX));
        foreign.sort();
        if foreign.iter().any(|name| is_data(name)) {
            return Err(missing_marker(
                &self.path.join(marker).display().to_string(),
            ));
        }
        if foreign.is_empty() {
            return Ok(());
        }
        foreign.truncate(5);
        Err(Error::new(
            Reason::DataFolder,
            format!(
                "{} holds files that are not podkv's ({}); use another data folder, or move them away",
                self.path.display(),
                foreign.join(", ")
            ),
        ))
    }
}

/// The log or the state.
fn is_data(name: &str) -> bool {
    name == LOG_FOLDER || name == STATE_POINTER || name.starts_with(STATE_PREFIX)
}

/// Data without a marker.
pub(super) fn missing_marker(marker: &str) -> Error {
    Error::new(
        Reason::Corrupt,
        format!(
            "{marker} is missing, but there is data of a node beside it. Whoever wrote it may have \
             promised its vote, so it is not taken for new. Nothing was changed or deleted. If the \
             volume is another pod's, mount the right one; else give this pod an empty volume: it \
             rejoins under a new id"
        ),
    )
}

fn make_folder(path: &Path) -> Result<(), Error> {
    match fs::create_dir_all(path) {
        Ok(()) => Ok(()),
        // What `create_dir_all` says of a file that is in the way.
        Err(error) if path.exists() && !path.is_dir() => Err(Error::new(
            Reason::DataFolder,
            format!(
                "{} is not a folder; name a folder as data folder",
                path.display()
            ),
        )
        .with_source(error)),
        Err(error) => Err(unusable(path, &error)),
    }
}

fn take_lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join(LOCK);
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| unusable(folder, &error))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::new(
            Reason::DataFolder,
            format!(
                "{} is in use by another process; stop it first, or use another data folder",
                folder.display()
            ),
        )),
        Err(error) => Err(unusable(&path, &error.into())),
    }
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "give this user write permission (in a pod: securityContext.fsGroup)"
        }
        io::ErrorKind::ReadOnlyFilesystem => "mount the volume writable",
        io::ErrorKind::NotADirectory => "a part of the path is not a folder; name a folder",
        io::ErrorKind::StorageFull => "free some space on the volume, or enlarge it",
        _ => "look at the volume",
    };
    let kind = io::Error::new(error.kind(), error.to_string());
    Error::new(
        Reason::DataFolder,
        format!("cannot use {}: {error}; {advice}", path.display()),
    )
    .with_source(kind)
}

/// Of a folder that was put aside. A marker that cannot be read is no reason to fail, and none to delete.
fn incarnation_of(aside: &Path) -> Result<Option<Incarnation>, StorageError> {
    let file = IdentityFile::Marker;
    let place = aside.join(file.name());
    let Some(bytes) = crate::storage::read_small(&place, file.max_bytes())? else {
        return Ok(None);
    };
    Ok(Marker::decode(&bytes, &place.display().to_string())
        .ok()
        .and_then(|marker| match marker.phase {
            Phase::Member { incarnation, .. } | Phase::Retired { incarnation, .. } => {
                Some(incarnation)
            }
            Phase::Virgin | Phase::Reserved(_) => None,
        }))
}

struct FileMarkers(Arc<DataFolder>);

impl MarkerStore for FileMarkers {
    fn load(&self, file: IdentityFile) -> Result<Option<Bytes>, StorageError> {
        crate::storage::read_small(&self.0.path.join(file.name()), file.max_bytes())
    }

    fn save(&self, file: IdentityFile, bytes: &[u8]) -> Result<(), StorageError> {
        write_durably(&self.0.path, file.name(), bytes)
    }

    fn remove(&self, file: IdentityFile) -> Result<(), StorageError> {
        let path = self.0.path.join(file.name());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::io(
                format!("removing {}", path.display()),
                error,
            )),
            _ => sync_folder(&self.0.path),
        }
    }

    fn holds_data(&self) -> Result<bool, StorageError> {
        let names = self.0.names().map_err(|error| {
            StorageError::io(format!("listing {}", self.0.path.display()), error)
        })?;
        Ok(names.iter().any(|name| is_data(name)))
    }

    fn set_aside(&self, retired: MemberId) -> Result<(), StorageError> {
        let root = &self.0.path;
        let aside = root.join(format!("{RETIRED_PREFIX}{retired}"));
        let failed = |doing: &Path, error| {
            StorageError::io(format!("putting {} aside", doing.display()), error)
        };
        fs::create_dir_all(&aside).map_err(|error| failed(&aside, error))?;
        let mut names = self.0.names().map_err(|error| failed(root, error))?;
        names.retain(|name| name != LOCK && !name.starts_with(RETIRED_PREFIX));
        // The marker says that this is to be done: it must be there until the rest is done.
        let marker = IdentityFile::Marker.name();
        names.sort_by_key(|name| name == marker);
        for name in names {
            if name == marker {
                sync_folder(&aside)?;
                sync_folder(root)?;
            }
            let from = root.join(&name);
            fs::rename(&from, aside.join(&name)).map_err(|error| failed(&from, error))?;
        }
        sync_folder(&aside)?;
        sync_folder(root)
    }

    fn aside(&self) -> Result<Vec<Aside>, StorageError> {
        let root = &self.0.path;
        let failed = |error| StorageError::io(format!("listing {}", root.display()), error);
        let mut names = self.0.names().map_err(failed)?;
        names.retain(|name| name.starts_with(RETIRED_PREFIX));
        names.sort();
        names
            .into_iter()
            .map(|name| {
                let path = root.join(name);
                let incarnation = incarnation_of(&path)?;
                Ok(Aside { path, incarnation })
            })
            .collect()
    }

    fn remove_aside(&self, since: Incarnation) -> Result<(), StorageError> {
        for Aside { path, incarnation } in self.aside()? {
            let keep = incarnation.unwrap_or_default() < since;
            if keep {
                tracing::warn!(
                    folder = %path.display(),
                    "the data from before the recovery stays: it may hold writes that were lost. \
                     `podkv recover --discard-old` removes it"
                );
                continue;
            }
            fs::remove_dir_all(&path)
                .map_err(|error| StorageError::io(format!("removing {}", path.display()), error))?;
        }
        Ok(())
    }

    fn describe(&self, file: IdentityFile) -> String {
        self.0.path.join(file.name()).display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(data_dir: &Path) -> Reason {
        match DataFolder::open(data_dir) {
            Ok(_) => panic!("{} was accepted", data_dir.display()),
            Err(error) => {
                assert!(
                    error.text().contains(&data_dir.display().to_string()),
                    "{error}"
                );
                error.reason()
            }
        }
    }

    #[test]
    fn a_new_folder_is_made_below_the_mount_point() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("lost+found")).unwrap();
        let folder = DataFolder::open(root.path()).unwrap();
        assert_eq!(folder.path(), root.path().join("podkv"));
    }

    #[test]
    fn one_process_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(root.path()).unwrap();
        assert_eq!(reason(root.path()), Reason::DataFolder);
        drop(folder);
        DataFolder::open(root.path()).unwrap();
    }

    #[test]
    fn a_file_is_no_folder() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(reason(&file), Reason::DataFolder);
        assert_eq!(reason(&file.join("below")), Reason::DataFolder);
    }

    #[test]
    fn a_folder_without_write_permission_says_so() {
        // Nobody may make folders in /sys, root included.
        let error = DataFolder::open(Path::new("/sys/podkv-test"))
            .err()
            .unwrap();
        assert_eq!(error.reason(), Reason::DataFolder);
        assert!(error.text().contains("/sys/podkv-test"), "{error}");
    }

    #[test]
    fn foreign_files_are_refused_and_stay() {
        let root = tempfile::tempdir().unwrap();
        let foreign = root.path().join("podkv/notes.txt");
        fs::create_dir(root.path().join("podkv")).unwrap();
        fs::write(&foreign, "mine").unwrap();
        assert_eq!(reason(root.path()), Reason::DataFolder);
        assert_eq!(fs::read_to_string(&foreign).unwrap(), "mine");
    }

    #[test]
    fn data_without_a_marker_is_never_new() {
        for data in ["log", "state-1", "CURRENT-STATE"] {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("podkv").join(data)).unwrap();
            assert_eq!(reason(root.path()), Reason::Corrupt, "{data}");
        }
    }

    #[test]
    fn a_marker_half_made_by_the_first_start_is_overwritten() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("podkv")).unwrap();
        fs::write(root.path().join("podkv/MARKER.tmp"), "half").unwrap();
        let folder = Arc::new(DataFolder::open(root.path()).unwrap());
        let markers = folder.markers();
        assert!(markers.load(IdentityFile::Marker).unwrap().is_none());
        markers.save(IdentityFile::Marker, b"whole").unwrap();
        assert_eq!(
            markers.load(IdentityFile::Marker).unwrap().unwrap(),
            "whole"
        );
    }

    #[test]
    fn what_a_retired_node_left_goes_aside_and_the_pod_begins_anew() {
        let data_dir = tempfile::tempdir().unwrap();
        let folder = Arc::new(DataFolder::open(data_dir.path()).unwrap());
        let markers = folder.markers();
        let old = super::super::Identity::open(markers.clone(), "podkv-3").unwrap();
        let cluster = podkv_api::ClusterId(7);
        old.become_member(cluster, podkv_api::Incarnation(1))
            .unwrap();
        old.retire().unwrap();
        let old_id = old.node_id();
        drop(old);
        fs::create_dir(folder.path().join(LOG_FOLDER)).unwrap();
        // Interrupted after the log had gone: the marker still says what is to be done.
        let aside = folder.path().join(format!("{RETIRED_PREFIX}{}", old_id));
        fs::create_dir(&aside).unwrap();
        fs::rename(folder.path().join(LOG_FOLDER), aside.join(LOG_FOLDER)).unwrap();
        markers.set_aside(old_id).unwrap();
        assert!(aside.join("MARKER").exists() && aside.join(LOG_FOLDER).exists());

        drop((markers, folder));
        let folder = Arc::new(DataFolder::open(data_dir.path()).unwrap());
        let markers = folder.markers();
        let new = super::super::Identity::open(markers.clone(), "podkv-3").unwrap();
        assert_ne!(new.node_id(), old_id);
        assert!(aside.exists(), "until the new node holds everything");
        // It is of the same incarnation: the new node holds all that it held.
        markers.remove_aside(podkv_api::Incarnation(1)).unwrap();
        assert!(!aside.exists());
    }

    #[test]
    fn what_an_earlier_incarnation_left_stays_until_a_person_removes_it() {
        let data_dir = tempfile::tempdir().unwrap();
        let folder = Arc::new(DataFolder::open(data_dir.path()).unwrap());
        let markers = folder.markers();
        let old = super::super::Identity::open(markers.clone(), "podkv-3").unwrap();
        old.become_member(podkv_api::ClusterId(7), podkv_api::Incarnation(1))
            .unwrap();
        old.retire().unwrap();
        markers.set_aside(old.node_id()).unwrap();
        markers.remove_aside(podkv_api::Incarnation(2)).unwrap();
        let aside = markers.aside().unwrap();
        assert_eq!(aside.len(), 1);
        assert_eq!(aside[0].incarnation, Some(podkv_api::Incarnation(1)));
        // Nobody can tell any more what it is of: that is no reason to delete it.
        fs::write(aside[0].path.join("MARKER"), "damaged").unwrap();
        markers.remove_aside(podkv_api::Incarnation(1)).unwrap();
        assert_eq!(markers.aside().unwrap()[0].incarnation, None);
        markers.remove_aside(podkv_api::Incarnation(0)).unwrap();
        assert!(markers.aside().unwrap().is_empty());
    }
}
