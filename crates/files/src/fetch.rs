//! What a projection asks its store beside the mirror: large values, and whether an import around its prefix is under way.

use std::fs::File;
use std::io::Write as _;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::StreamExt as _;
use podkv_api::recipes::ValueStream;
use podkv_api::recipes::large::{LargeOptions, open};
use podkv_api::{
    Error, KeyRange, KeyValue, OpResponse, Range, Reason, Result, Revision, Store, Txn,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::plan::{IMPORT_MARKER, Large};
use crate::target::{Fetch, FetchError};

type Asked<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// A store, whichever it is: a projection does not carry its type around.
pub(crate) trait Ask: Send + Sync {
    /// See [`open`].
    fn open(&self, kv: KeyValue, at: Revision) -> Asked<ValueStream>;

    /// The marker of an import below a folder that the prefix lies in, as of a revision.
    fn importing_around(&self, prefix: &str, at: Revision) -> Asked<Option<Bytes>>;
}

pub(crate) struct Asker<S>(pub S);

impl<S: Store> Ask for Asker<S> {
    fn open(&self, kv: KeyValue, at: Revision) -> Asked<ValueStream> {
        let store = self.0.clone();
        Box::pin(async move { open(&store, kv, at, &LargeOptions::default()).await })
    }

    fn importing_around(&self, prefix: &str, at: Revision) -> Asked<Option<Bytes>> {
        let store = self.0.clone();
        let look = |marker| Range::new(KeyRange::key(marker)).at(at).keys_only().into();
        let txn = Txn::new().then(markers_around(prefix).into_iter().map(look));
        Box::pin(async move {
            if txn.then.is_empty() {
                return Ok(None);
            }
            let found = match store.txn(txn).await {
                Ok(found) => found,
                // Who may see nothing around the prefix is not held back by it.
                Err(error) if error.reason() == Reason::PermissionDenied => return Ok(None),
                Err(error) => return Err(error),
            };
            let mut markers = found.responses.into_iter().filter_map(|found| match found {
                OpResponse::Range(mut range) => range.kvs.pop(),
                _ => None,
            });
            Ok(markers.next().map(|kv| kv.key))
        })
    }
}

/// Of `a/b/`: the markers of imports into everything, and into `a/`. Its own is among its keys.
fn markers_around(prefix: &str) -> Vec<String> {
    let inner = prefix.strip_suffix('/').unwrap_or(prefix);
    let folders = inner.match_indices('/').map(|(at, _)| &inner[..=at]);
    // Of the empty prefix, every marker is among the keys.
    let all = (!prefix.is_empty()).then_some("");
    all.into_iter()
        .chain(folders)
        .map(|folder| format!("{folder}{IMPORT_MARKER}"))
        .collect()
}

/// Fetches from a blocking thread, until it is cancelled.
pub(crate) struct Fetcher {
    pub ask: std::sync::Arc<dyn Ask>,
    pub at: Revision,
    pub runtime: Handle,
    pub cancelled: CancellationToken,
}

impl Fetch for Fetcher {
    fn fetch(&mut self, large: &Large, file: &mut File) -> std::result::Result<(), FetchError> {
        let (opening, cancelled) = (self.ask.open(large.kv.clone(), self.at), &self.cancelled);
        self.runtime.block_on(async {
            let writing = async {
                let mut stream = opening.await?;
                while let Some(piece) = stream.next().await {
                    file.write_all(&piece?)?;
                }
                Ok(())
            };
            let ended = || Error::new(Reason::NodeNotReady, "the projection ends");
            match cancelled.run_until_cancelled(writing).await {
                Some(written) => written,
                None => Err(ended().into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_around_a_prefix_have_their_markers_above_it() {
        assert_eq!(markers_around(""), [""; 0]);
        assert_eq!(markers_around("a/"), ["..import"]);
        assert_eq!(
            markers_around("a/b/c/"),
            ["..import", "a/..import", "a/b/..import"]
        );
    }
}
