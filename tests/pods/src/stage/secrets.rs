//! Secrets as a kubelet mounts them: files are links through `..data`, which is replaced at once.
//!
//! ```text
//!   tls.crt -> ..data/tls.crt      ..data -> ..7      ..7/tls.crt
//! ```
//!
//! So a reader never sees one new file beside one old file, and a file that was opened by its path changes under it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::Result;

/// What is bind-mounted.
pub fn mount_folder(stage: &Path, secret: &str) -> PathBuf {
    stage.join("secrets").join(secret)
}

/// Puts these files into the secret, in place of those that are there. `group` may read them.
pub fn publish(stage: &Path, secret: &str, from: &Path, group: u32) -> Result<()> {
    let folder = mount_folder(stage, secret);
    fs::create_dir_all(&folder)?;
    let number = fs::read_dir(&folder)?.count();
    let version = format!("..{number}");
    let target = folder.join(&version);
    fs::create_dir(&target)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let file = target.join(entry.file_name());
        fs::copy(entry.path(), &file)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o440))?;
        std::os::unix::fs::chown(&file, None, Some(group))?;
        let link = folder.join(entry.file_name());
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(Path::new("..data").join(entry.file_name()), &link)?;
        }
    }
    let new = folder.join("..data_tmp");
    std::os::unix::fs::symlink(&version, &new)?;
    fs::rename(new, folder.join("..data"))?;
    Ok(())
}
