//! `podkv import etcd`: a running etcd moves into an empty cluster, with its users.
//!
//! ```text
//!   etcd at revision R ──► a backup of podkv, in a file ──► restored       every key with its revisions and its lease
//!   etcd from R + 1 on ──► watch ──► one transaction a revision            until the operator ends it: the cut-over
//! ```
//!
//! The copy is a backup like any other, so it is restored as any other: all of it or nothing, gone on with where it broke
//! off, only into an empty cluster. Keys keep their create and mod revisions, their version and their lease. The store's
//! revision is raised far above etcd's, so that no watcher takes a revision of the one for one of the other.
//!
//! **Leases** keep their ids and start at their full TTL. While etcd is followed, its leases are kept alive here as long as
//! they are there; clients that come over go on keeping them alive themselves.
//!
//! **Cut-over**: stop the writers (or make them read-only), wait for "level", press Ctrl-C: it takes what is left, says up
//! to which revision of etcd everything is here, and ends.
//!
//! **Another podkv** is an etcd, too. Its large values come whole, also those that are uploaded meanwhile: `large.rs`.
//!
//! What is not copied: history, users and roles. A revision of etcd with more changes than a transaction may have
//! (128) comes in several.

mod follow;
mod large;
mod source;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use podkv_api::{ClusterId, Error, Incarnation, Reason, Result, Retention, Revision};
use podkv_client::TlsOptions;
use podkv_core::{BackupBuilder, BackupHeader, BackupRecord};

pub(crate) use self::follow::{Progress, follow};
use self::source::Next;
pub(crate) use self::source::Source;

/// Where etcd is.
#[derive(Clone, Debug)]
pub(crate) struct From {
    /// `host:port`, or a URL.
    pub address: String,
    /// For `https`.
    pub tls: Option<TlsOptions>,
    /// Name and password.
    pub user: Option<(String, String)>,
}

/// Writes everything that etcd holds at one revision into a file, as a backup of podkv. Returns the revision.
///
/// # Errors
/// Those of etcd, [`Reason::Compacted`] if it compacts the revision meanwhile, and those of the file.
pub(crate) async fn copy(
    source: &Source,
    file: &Path,
    mut progress: impl FnMut(u64),
) -> Result<Revision> {
    let (cluster, revision) = source.position().await?;
    // After the position: whoever is attached at that revision is among them, or has expired since.
    let leases = source.leases().await?;
    let header = BackupHeader {
        cluster: ClusterId(cluster),
        incarnation: Incarnation(1),
        revision,
        clock_ms: 0,
        retention: Retention::default(),
        release: concat!("etcd, by podkv ", env!("CARGO_PKG_VERSION")).into(),
    };
    let (mut builder, first) = BackupBuilder::new(&header);
    let mut spool = Spool::create(file, first).await?;
    for (id, ttl_ms) in &leases {
        let (id, ttl_ms) = (*id, *ttl_ms);
        spool
            .write(builder.push(&BackupRecord::Lease { id, ttl_ms }))
            .await?;
    }
    let mut next = Some(Next::first());
    let mut count = 0;
    while let Some(page) = next.take() {
        let page = source.page(page, revision).await?;
        for kv in page.kvs {
            count += 1;
            // Its lease has ended since: the key goes with it.
            if kv.lease.is_none_or(|lease| leases.contains_key(&lease)) {
                spool.write(builder.push(&BackupRecord::Key(kv))).await?;
            }
        }
        progress(count);
        next = page.next;
    }
    let (last, _) = builder.finish();
    spool.write(Some(last)).await?;
    Ok(revision)
}

/// A backup on its way into a file, written off the async threads.
struct Spool {
    file: Option<std::fs::File>,
    path: PathBuf,
}

impl Spool {
    async fn create(path: &Path, first: Bytes) -> Result<Self> {
        let (path, opened) = (path.to_owned(), path.to_owned());
        let file = blocking(move || std::fs::File::create(opened)).await;
        let mut spool = Self {
            file: Some(file.map_err(|error| unwritable(&path, error))?),
            path,
        };
        spool.write(Some(first)).await?;
        Ok(spool)
    }

    /// Nothing, if there is nothing yet.
    async fn write(&mut self, data: Option<Bytes>) -> Result<()> {
        let Some(data) = data else { return Ok(()) };
        let Some(mut file) = self.file.take() else {
            return Err(Error::internal("the file was lost in an earlier failure"));
        };
        let written = blocking(move || file.write_all(&data).map(|()| file)).await;
        self.file = Some(written.map_err(|error| unwritable(&self.path, error))?);
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(std::io::Error::other("writing did not come to an end")))
}

fn unwritable(path: &Path, error: std::io::Error) -> Error {
    let text = format!("{}: {error}", path.display());
    Error::new(Reason::Configuration, text).with_source(error)
}
