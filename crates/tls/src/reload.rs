//! Files that are read again when they change, and what was made of them.
//!
//! A change is told by modification time, inode, device and length of what the path leads to now: Kubernetes
//! renames a symbolic link over another, and no file that was read ever changes itself. Files that cannot be used
//! are tried again each time, because time alone may mend them, but named only once.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use podkv_api::{Error, Result};

/// What tells a file from its successor; `None` if there is none.
type Stamp = Option<(i64, i64, u64, u64, u64)>;

type Load<T> = Box<dyn Fn() -> Result<T> + Send + Sync>;

/// What came of a look at the files.
#[derive(Debug)]
pub(crate) enum Refreshed {
    Unchanged,
    Replaced,
    /// What was loaded before stays in use.
    Kept {
        why: Error,
        /// These files were not complained about before.
        news: bool,
    },
}

pub(crate) struct Reloading<T> {
    paths: Vec<PathBuf>,
    load: Load<T>,
    current: RwLock<Arc<T>>,
    stamps: Mutex<Stamps>,
}

struct Stamps {
    in_use: Vec<Stamp>,
    refused: Option<Vec<Stamp>>,
}

impl<T> Reloading<T> {
    /// Loads for the first time. Reads files.
    pub fn open(paths: Vec<PathBuf>, load: Load<T>) -> Result<Self> {
        // Before they are read: a change in between is then seen by the next look.
        let in_use = stamps(&paths);
        let current = RwLock::new(Arc::new(load()?));
        let stamps = Mutex::new(Stamps {
            in_use,
            refused: None,
        });
        Ok(Self {
            paths,
            load,
            current,
            stamps,
        })
    }

    /// What is in use now.
    pub fn get(&self) -> Arc<T> {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the files, and loads them if they changed. Reads files.
    pub fn refresh(&self) -> Refreshed {
        let mut known = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.paths);
        if now == known.in_use {
            known.refused = None;
            return Refreshed::Unchanged;
        }
        match (self.load)() {
            Ok(loaded) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                known.in_use = now;
                known.refused = None;
                Refreshed::Replaced
            }
            Err(why) => {
                let news = known.refused.as_ref() != Some(&now);
                known.refused = Some(now);
                Refreshed::Kept { why, news }
            }
        }
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    paths.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ino(),
        metadata.dev(),
        metadata.len(),
    ))
}

#[cfg(test)]
mod tests {
    use podkv_api::Reason;

    use super::*;

    fn number(path: &Path) -> Result<u32> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let parsed = text.parse::<u32>();
        parsed.map_err(|_| Error::new(Reason::Configuration, format!("{text:?} is no number")))
    }

    /// As Kubernetes does it.
    fn swap(path: &Path, text: &str) {
        let next = path.with_extension("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(&next, path).unwrap();
    }

    #[test]
    fn a_good_file_replaces_and_a_bad_one_is_named_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        std::fs::write(&path, "1").unwrap();
        let file = path.clone();
        let loaded = Reloading::open(vec![path.clone()], Box::new(move || number(&file))).unwrap();
        assert_eq!(*loaded.get(), 1);
        assert!(matches!(loaded.refresh(), Refreshed::Unchanged));

        swap(&path, "two");
        assert!(matches!(
            loaded.refresh(),
            Refreshed::Kept { news: true, .. }
        ));
        assert!(matches!(
            loaded.refresh(),
            Refreshed::Kept { news: false, .. }
        ));
        assert_eq!(*loaded.get(), 1);
        swap(&path, "zwei");
        assert!(matches!(
            loaded.refresh(),
            Refreshed::Kept { news: true, .. }
        ));

        swap(&path, "2");
        assert!(matches!(loaded.refresh(), Refreshed::Replaced));
        assert_eq!(*loaded.get(), 2);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            loaded.refresh(),
            Refreshed::Kept { news: true, .. }
        ));
        assert_eq!(*loaded.get(), 2);
    }
}
