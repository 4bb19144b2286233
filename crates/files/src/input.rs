//! Files as streams: what large values are written from, and read into.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use podkv_api::Reason;

use crate::error::{Error, Result};
use crate::project::blocking;

/// How much of a file is read at once.
const PIECE_BYTES: usize = 1 << 20;

/// What an import writes: paths with contents, in byte order, as in a [`Tree`](crate::Tree).
pub type Inputs = BTreeMap<Bytes, Input>;

/// What a key is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Bytes(Bytes),
    /// Too long for a request: read when it is written. Length and hash are those of when it was looked at.
    File {
        path: PathBuf,
        bytes: u64,
        sha256: [u8; 32],
    },
}

impl From<Bytes> for Input {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

/// A file piece by piece, read off the async threads. `read` is told the length of each.
pub fn pieces(
    file: File,
    path: &Path,
    mut read: impl FnMut(u64) + Send,
) -> impl Stream<Item = podkv_api::Result<Bytes>> + Send {
    let path = path.to_owned();
    let file = stream::unfold(Some((file, path)), |state| async move {
        let (file, path) = state?;
        let next = blocking(move || {
            let piece = piece(&file).map_err(|error| Error::io(&path, "reading it", error))?;
            Ok((piece, file, path))
        });
        match next.await {
            Ok((piece, ..)) if piece.is_empty() => None,
            Ok((piece, file, path)) => Some((Ok(piece), Some((file, path)))),
            Err(error) => Some((Err(source_failed(error)), None)),
        }
    });
    file.inspect(move |piece| {
        if let Ok(piece) = piece {
            read(piece.len() as u64);
        }
    })
}

fn piece(file: &File) -> std::io::Result<Bytes> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    file.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
    Ok(piece.into())
}

/// A file that cannot be read is no error of the store, which has none of its own for it.
fn source_failed(error: Error) -> podkv_api::Error {
    match error {
        Error::Store(error) => error,
        other => podkv_api::Error::new(Reason::Internal, other.to_string()),
    }
}

/// Writes a stream to a file: whole or not at all. It is written beside it, synced, and renamed. Without a mode, the file has
/// the one that new files have. `wrote` is told the length of each piece.
///
/// # Errors
///
/// The stream's, and whatever the file system says. What was there before stays then.
pub async fn write_file(
    path: &Path,
    mode: Option<u32>,
    mut stream: impl Stream<Item = podkv_api::Result<Bytes>> + Unpin,
    mut wrote: impl FnMut(u64),
) -> Result<()> {
    let part = Part::make(path, mode).await?;
    while let Some(piece) = stream.next().await {
        let (piece, mut file) = (piece?, part.file()?);
        let length = piece.len() as u64;
        let part = part.path.clone();
        blocking(move || {
            file.write_all(&piece)
                .map_err(|error| Error::io(part, "writing it", error))
        })
        .await?;
        wrote(length);
    }
    let path = path.to_owned();
    blocking(move || part.rename(&path)).await
}

/// A file that is removed again unless it gets its name.
struct Part {
    file: Option<File>,
    path: PathBuf,
}

impl Part {
    async fn make(path: &Path, mode: Option<u32>) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;

        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let beside = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
        blocking(move || {
            let failed = |error| Error::io(&beside, "making it", error);
            // Left by one that was killed; in a container it had the same process id.
            match std::fs::remove_file(&beside) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(error));
                }
                _ => {}
            }
            let file = File::create_new(&beside).map_err(failed)?;
            if let Some(mode) = mode {
                let mode = std::fs::Permissions::from_mode(mode);
                file.set_permissions(mode).map_err(failed)?;
            }
            Ok(Self {
                file: Some(file),
                path: beside,
            })
        })
        .await
    }

    fn file(&self) -> Result<File> {
        let closed = || std::io::Error::other("it is closed");
        let cloned = self.file.as_ref().ok_or_else(closed);
        cloned
            .and_then(File::try_clone)
            .map_err(|error| Error::io(&self.path, "writing it", error))
    }

    fn rename(mut self, to: &Path) -> Result<()> {
        let failed = |error| Error::io(to, "replacing it", error);
        if let Some(file) = self.file.take() {
            file.sync_all().map_err(failed)?;
        }
        std::fs::rename(&self.path, to).map_err(failed)?;
        // It has another name now.
        self.path.clear();
        let folder = match to.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // One that stays is found by its name; there is nobody left to tell.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap()
        };
        entries.map(name).collect()
    }

    #[tokio::test]
    async fn a_file_is_written_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        let first: Vec<_> = vec![Ok(Bytes::from("one ")), Ok(Bytes::from("two"))];
        let mut written = 0;
        let wrote = |length| written += length;
        write_file(&path, Some(0o640), stream::iter(first), wrote)
            .await
            .unwrap();
        assert_eq!(
            (std::fs::read(&path).unwrap(), written),
            (b"one two".to_vec(), 7)
        );
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);

        let torn = vec![
            Ok(Bytes::from("three")),
            Err(podkv_api::Error::new(Reason::Corrupt, "torn")),
        ];
        let error = write_file(&path, None, stream::iter(torn), |_| {})
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Store(_)), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"one two");
        assert_eq!(names(dir.path()), ["model"]);
    }

    #[tokio::test]
    async fn a_file_is_its_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        let contents: Vec<u8> = (0..PIECE_BYTES * 2 + 5)
            .map(|at| (at % 251) as u8)
            .collect();
        std::fs::write(&path, &contents).unwrap();
        let mut read = 0;
        let stream = pieces(File::open(&path).unwrap(), &path, |length| read += length);
        let found: Vec<Bytes> = stream.map(|piece| piece.unwrap()).collect().await;
        assert_eq!(found.len(), 3);
        assert_eq!(found.concat(), contents);
        assert_eq!(read, contents.len() as u64);
        let mut failing = Box::pin(pieces(File::open(dir.path()).unwrap(), dir.path(), |_| {}));
        assert!(failing.next().await.unwrap().is_err());
        assert!(failing.next().await.is_none());
    }
}
