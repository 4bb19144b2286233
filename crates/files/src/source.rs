//! What a directory holds, as keys.
//!
//! Files are followed through links as long as they stay inside the directory, so that a mounted ConfigMap, whose names are
//! links to `..data`, can be read as it is. Names that begin with `..` are podkv's and kubelet's own, and are left out.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use podkv_api::large::MAX_LARGE_BYTES;

use crate::error::{Error, Result};
use crate::input::{Input, Inputs};
use crate::plan::{LOST_AND_FOUND, MAX_DEPTH, check_path};
use crate::target::hash_file;

/// Reads all files of a directory, each as a path below it. Of those longer than `plain_bytes` only length and hash are
/// read: they become large values.
///
/// # Errors
///
/// [`Error::Input`] names everything that cannot become a key: links that lead out of the directory, pipes, sockets, devices,
/// names too long, more than 1 GiB.
pub fn read_directory(path: &Path, plain_bytes: usize) -> Result<Inputs> {
    let root = path
        .canonicalize()
        .map_err(|error| Error::io(path, "opening it", error))?;
    let mut reader = Reader {
        root: root.clone(),
        plain_bytes: plain_bytes as u64,
        tree: Inputs::new(),
        refused: Vec::new(),
    };
    reader.folder(&root, b"", &mut Vec::new())?;
    if !reader.refused.is_empty() {
        let refused = reader.refused.join("\n  ");
        let text = format!(
            "{}: nothing was written, because of\n  {refused}",
            path.display()
        );
        return Err(Error::Input(text));
    }
    Ok(reader.tree)
}

struct Reader {
    root: PathBuf,
    plain_bytes: u64,
    tree: Inputs,
    refused: Vec<String>,
}

impl Reader {
    /// `within` are the folders that it lies in, links resolved: one that comes again is a circle.
    fn folder(&mut self, folder: &Path, above: &[u8], within: &mut Vec<PathBuf>) -> Result<()> {
        let failed = |error| Error::io(folder, "listing it", error);
        if within.iter().any(|outer| outer == folder) || within.len() >= MAX_DEPTH {
            self.refuse(
                above,
                "the folder lies in itself, through a link, or too deep",
            );
            return Ok(());
        }
        within.push(folder.to_owned());
        for entry in fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let name = name.as_bytes();
            let is_ours = name.starts_with(b"..");
            if is_ours || (above.is_empty() && name == LOST_AND_FOUND.as_bytes()) {
                continue;
            }
            let path = match above {
                b"" => name.to_vec(),
                above => [above, b"/", name].concat(),
            };
            self.entry(
                &folder.join(std::ffi::OsStr::from_bytes(name)),
                path,
                within,
            )?;
        }
        within.pop();
        Ok(())
    }

    fn entry(&mut self, entry: &Path, path: Vec<u8>, within: &mut Vec<PathBuf>) -> Result<()> {
        let real = match entry.canonicalize() {
            Ok(real) => real,
            Err(error) => {
                self.refuse(&path, &error.to_string());
                return Ok(());
            }
        };
        if !real.starts_with(&self.root) {
            self.refuse(&path, "the link leads out of the directory");
            return Ok(());
        }
        let metadata =
            fs::metadata(&real).map_err(|error| Error::io(entry, "looking at it", error))?;
        if metadata.is_dir() {
            return self.folder(&real, &path, within);
        }
        if let Some(why) = cannot_be_a_value(&metadata) {
            self.refuse(&path, &why);
            return Ok(());
        }
        if let Err(why) = check_path(&path) {
            self.refuse(&path, &why.to_string());
            return Ok(());
        }
        let failed = |error| Error::io(entry, "reading it", error);
        let input = if metadata.len() > self.plain_bytes {
            let mut file = fs::File::open(&real).map_err(failed)?;
            let (bytes, sha256) = hash_file(&mut file).map_err(failed)?;
            Input::File {
                path: real,
                bytes,
                sha256,
            }
        } else {
            Input::Bytes(fs::read(&real).map_err(failed)?.into())
        };
        self.tree.insert(path.into(), input);
        Ok(())
    }

    fn refuse(&mut self, path: &[u8], why: &str) {
        self.refused.push(format!(
            "{}: {why}",
            Bytes::copy_from_slice(path).escape_ascii()
        ));
    }
}

fn cannot_be_a_value(metadata: &Metadata) -> Option<String> {
    if !metadata.is_file() {
        return Some("not a regular file".into());
    }
    (metadata.len() > MAX_LARGE_BYTES).then(|| {
        format!(
            "{} bytes, and a value has {MAX_LARGE_BYTES} at most",
            metadata.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(dir: &Path, path: &str) {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    fn paths(dir: &Path) -> Vec<String> {
        let tree = read_directory(dir, 10).unwrap();
        tree.keys()
            .map(|path| path.escape_ascii().to_string())
            .collect()
    }

    fn check_refused(dir: &Path, what: &str) {
        let error = read_directory(dir, 10).unwrap_err();
        assert!(matches!(error, Error::Input(_)), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }

    #[test]
    fn a_mounted_config_map_is_its_files() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "..2026_11_22_19_04_05.1/a");
        write(dir.path(), "..2026_11_22_19_04_05.1/b/c");
        symlink("..2026_11_22_19_04_05.1", dir.path().join("..data")).unwrap();
        symlink("..data/a", dir.path().join("a")).unwrap();
        symlink("..data/b", dir.path().join("b")).unwrap();
        assert_eq!(paths(dir.path()), ["a", "b/c"]);
    }

    #[test]
    fn a_long_file_is_not_read_into_memory() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("short"), "1234567890").unwrap();
        fs::write(dir.path().join("long"), "12345678901").unwrap();
        let found = read_directory(dir.path(), 10).unwrap();
        assert_eq!(found["short".as_bytes()], Input::Bytes("1234567890".into()));
        let Input::File { bytes, sha256, .. } = &found["long".as_bytes()] else {
            panic!("{found:?}");
        };
        let expected: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest("12345678901").into();
        assert_eq!((*bytes, *sha256), (11, expected));
    }

    #[test]
    fn what_cannot_be_a_key_is_named_and_nothing_is_read() {
        let outside = tempfile::tempdir().unwrap();
        write(outside.path(), "secret");
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "good");
        symlink(outside.path().join("secret"), dir.path().join("leak")).unwrap();
        check_refused(dir.path(), "leak: the link leads out");
        fs::remove_file(dir.path().join("leak")).unwrap();

        symlink(".", dir.path().join("circle")).unwrap();
        check_refused(dir.path(), "circle: the folder lies in itself");
        fs::remove_file(dir.path().join("circle")).unwrap();

        symlink("nowhere", dir.path().join("dangling")).unwrap();
        check_refused(dir.path(), "dangling: ");
        fs::remove_file(dir.path().join("dangling")).unwrap();

        let large = fs::File::create(dir.path().join("large")).unwrap();
        large.set_len(MAX_LARGE_BYTES + 1).unwrap();
        check_refused(dir.path(), "large: 1073741825 bytes");
        fs::remove_file(dir.path().join("large")).unwrap();

        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        check_refused(dir.path(), "socket: not a regular file");
        fs::remove_file(dir.path().join("socket")).unwrap();
        assert_eq!(paths(dir.path()), ["good"]);
    }
}
