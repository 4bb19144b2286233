//! What both RocksDB databases have in common: how they are made, and what their errors mean.

use std::fs;
use std::path::{Path, PathBuf};

use rocksdb::{DB, ErrorKind, LogLevel, Options};

use super::durable_file::{TEMPORARY, sync_folder};
use super::error::space_left;
use super::{StorageError, durable_file};

/// The options that do not depend on what is stored.
pub(super) fn base_options() -> Options {
    let mut options = Options::default();
    // A database is created in one place only: `create`. A folder whose CURRENT file is gone is
    // damaged, and must never be taken for a new one.
    options.create_if_missing(false);
    options.set_paranoid_checks(true);
    // One flush and one compaction at a time: a pod rarely has more than a core or two to spare.
    options.set_max_background_jobs(2);
    // fdatasync: the metadata that a reader needs (the length) is synced by it as well.
    options.set_use_fsync(false);
    // Let the kernel write out large files bit by bit, so that the sync at their end, which competes
    // with the log's own syncs for the disk, is short.
    options.set_bytes_per_sync(1 << 20);
    // Statistics go to nobody: keep RocksDB's timers quiet.
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_info_logger(rocksdb::InfoLogger::new_callback_logger(
        LogLevel::Warn,
        log_message,
    ));
    options
}

/// RocksDB's own messages go where ours go, not into LOG files that nobody rotates.
fn log_message(level: LogLevel, message: &str) {
    let message = message.trim_end();
    match level {
        LogLevel::Debug | LogLevel::Info | LogLevel::Header => {
            tracing::debug!(target: "rocksdb", "{message}");
        }
        LogLevel::Warn => tracing::warn!(target: "rocksdb", "{message}"),
        LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "rocksdb", "{message}"),
    }
}

/// Says what a failure of RocksDB on `folder` means.
pub(super) fn failure(folder: &Path, doing: &str, error: rocksdb::Error) -> StorageError {
    match error.kind() {
        ErrorKind::Corruption => {
            let mut failure = StorageError::damaged(folder, format!("{doing}: {error}"));
            failure.source = Some(Box::new(error));
            failure
        }
        _ => StorageError {
            what: format!(
                "{doing} in {}: {error}{}",
                folder.display(),
                space_left(folder)
            ),
            corrupt: false,
            source: Some(Box::new(error)),
        },
    }
}

/// What is in memory and goes into tables sooner or later. A figure that cannot be told is none.
pub(super) fn unwritten_bytes(database: &DB) -> u64 {
    let bytes = database.property_int_value(rocksdb::properties::CUR_SIZE_ALL_MEM_TABLES);
    bytes.ok().flatten().unwrap_or(0)
}

/// Makes a new database `root/name`, with what `fill` writes into it, all or nothing: it is built
/// under a temporary name and renamed.
pub(super) fn create(
    root: &Path,
    name: &str,
    options: &Options,
    fill: impl FnOnce(&DB) -> Result<(), rocksdb::Error>,
) -> Result<PathBuf, StorageError> {
    let temporary = root.join(format!("{name}{TEMPORARY}"));
    let folder = root.join(name);
    remove_folder(&temporary)?;
    let mut options = options.clone();
    options.create_if_missing(true);
    options.set_error_if_exists(true);
    let failed = |error| failure(&temporary, "creating a database", error);
    let database = DB::open(&options, &temporary).map_err(failed)?;
    fill(&database).map_err(failed)?;
    database.flush().map_err(failed)?;
    drop(database);
    durable_file::sync_folder(&temporary)?;
    rename(&temporary, &folder)?;
    sync_folder(root)?;
    Ok(folder)
}

/// Opens a database that exists.
pub(super) fn open(folder: &Path, options: &Options) -> Result<DB, StorageError> {
    DB::open(options, folder).map_err(|error| failure(folder, "opening a database", error))
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StorageError> {
    fs::rename(from, to).map_err(|error| {
        let what = format!("renaming {} to {}", from.display(), to.display());
        StorageError::io(what, error)
    })
}

/// Removes a folder of ours with everything in it; one that is not there is fine.
pub(super) fn remove_folder(folder: &Path) -> Result<(), StorageError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let what = format!("removing the left-over folder {}", folder.display());
            Err(StorageError::io(what, error))
        }
        _ => Ok(()),
    }
}
