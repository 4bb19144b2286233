//! Large values that come from another podkv: whole, before their key names them.
//!
//! To etcd's API, records and chunks are keys like any other (`podkv_api::large`), so the copy brings them, and the watch tells
//! of them as they are written. But here they live under this cluster's collector, which knows nothing of the other:
//!
//! - the record of an upload has a lease. It ends here while it is kept alive there, if the importer stood still for so long;
//! - a key that holds something else for a moment and then the old value again may lose its record here, and not there.
//!
//! Either takes the chunks. So a put that names an upload is applied only beside a record that is known to be whole:
//!
//! ```text
//!   the record here holds the manifest                whole, as nobody writes such a record otherwise
//!   the record here has a lease, and all chunks       whole
//!   else, and there is a record there                 put the record with a lease of our own, and the chunks that are missing
//!   else                                              it only looks like a large value
//! ```
//!
//! While there is a record, nobody collects its chunks. So what was counted beside a record is there as long as the record
//! is unchanged, and the transaction compares that.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use podkv_api::large::{Manifest, RESERVED, chunk_key, chunks_from, record_key};
use podkv_api::{Compare, Error, KeyRange, KeyValue, LeaseId, Op, Put, Range, RangeEnd, Reason};
use podkv_api::{Result, Revision, Store, Txn};
use tokio::time::Instant;

use super::follow::Leases;
use super::source::Source;

/// Of the lease under which missing chunks are brought. It is kept alive, and what a dead importer leaves is only space.
const TTL: Duration = Duration::from_secs(60);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Names of chunks in one answer.
const NAMES_PER_PAGE: u64 = 256;

/// A put whose value names an upload.
struct Named {
    key: Bytes,
    value: Bytes,
    manifest: Manifest,
}

impl Named {
    fn of(op: &Op) -> Result<Option<Self>> {
        let Op::Put(put) = op else { return Ok(None) };
        if put.key.starts_with(RESERVED) {
            return Ok(None);
        }
        let manifest = Manifest::decode(&put.value)?;
        Ok(manifest.map(|manifest| Self {
            key: put.key.clone(),
            value: put.value.clone(),
            manifest,
        }))
    }

    fn record(&self) -> Bytes {
        record_key(self.manifest.upload, &self.key)
    }

    fn chunk(&self, number: u32) -> Bytes {
        chunk_key(self.manifest.upload, number, &self.key)
    }

    /// Names of this upload.
    fn chunks(&self) -> KeyRange {
        let mut range = chunks_from(self.manifest.upload);
        if let Some(next) = self.manifest.upload.0.checked_add(1) {
            let next = chunks_from(podkv_api::large::UploadId(next));
            range.end = RangeEnd::Before(next.start);
        }
        range
    }
}

/// Applies what the source did in one transaction at `at`, as soon as every large value that it names is here.
///
/// # Errors
/// Those of either side.
pub(super) async fn apply(
    source: &Source,
    store: &impl Store,
    leases: &mut Leases,
    ops: Vec<Op>,
    at: Revision,
) -> Result<()> {
    let mut named = Vec::new();
    for op in &ops {
        named.extend(Named::of(op)?);
    }
    loop {
        let mut conditions = Vec::new();
        let mut all = ops.clone();
        for value in &named {
            let record = value.record();
            let here = store.get(record.clone()).await?;
            let since = here.as_ref().map_or(0, |record| record.mod_revision);
            if !is_whole(store, value, here.as_ref()).await? {
                if source.at(record, at).await?.as_ref() == Some(&value.value) {
                    bring(source, store, leases, value, since, at).await?;
                    conditions.push(None);
                }
                continue;
            }
            if here.is_some_and(|record| record.lease.is_some()) {
                all.push(Put::new(record.clone(), value.value.clone()).into());
            }
            conditions.push(Some(Compare::unchanged_since(record, since)));
        }
        // What was brought is looked at again.
        let Some(conditions) = conditions.into_iter().collect::<Option<Vec<_>>>() else {
            continue;
        };
        let txn = Txn::new().when(conditions).then(each_key_once(all));
        if store.txn(txn).await?.succeeded {
            return Ok(());
        }
    }
}

/// A transaction puts no key twice: the source's own put of a record stays.
fn each_key_once(ops: Vec<Op>) -> Vec<Op> {
    let mut seen = BTreeSet::new();
    let mut is_new = |op: &Op| match op {
        Op::Put(put) => seen.insert(put.key.clone()),
        _ => true,
    };
    ops.into_iter().filter(|op| is_new(op)).collect()
}

async fn is_whole(store: &impl Store, value: &Named, record: Option<&KeyValue>) -> Result<bool> {
    let Some(record) = record else {
        return Ok(false);
    };
    if record.lease.is_none() {
        return Ok(record.value == value.value);
    }
    let count = Range::new(value.chunks()).count_only();
    Ok(store.range(count).await?.count == u64::from(value.manifest.chunks()))
}

/// Brings what is missing of a value. If somebody else changed the record meanwhile, not all of it.
async fn bring(
    source: &Source,
    store: &impl Store,
    leases: &mut Leases,
    value: &Named,
    since: Revision,
    at: Revision,
) -> Result<()> {
    let record = value.record();
    let mut lease = Held::grant(store).await?;
    let put = Put::new(record.clone(), "").lease(lease.id);
    let unchanged = Compare::unchanged_since(record.clone(), since);
    let begin = Txn::new().when([unchanged]).then([put.into()]);
    let begun = store.txn(begin).await?;
    let since = begun.header.revision;
    if !begun.succeeded {
        return Ok(());
    }
    let here = names(store, value.chunks()).await?;
    for number in 0..value.manifest.chunks() {
        let name = value.chunk(number);
        if here.contains(&name) {
            continue;
        }
        let chunk = source.at(name.clone(), at).await?.ok_or_else(|| {
            let key = value.key.escape_ascii();
            let text = format!("etcd has no chunk {number} of the large value {key}");
            Error::new(Reason::Corrupt, text)
        })?;
        let unchanged = Compare::unchanged_since(record.clone(), since);
        let put = Txn::new()
            .when([unchanged])
            .then([Put::new(name, chunk).into()]);
        if !store.txn(put).await?.succeeded {
            return Ok(());
        }
        lease.keep(store).await?;
        // It may take minutes, and the others do not wait.
        leases.keep_at_times(source, store).await?;
    }
    Ok(())
}

async fn names(store: &impl Store, mut range: KeyRange) -> Result<BTreeSet<Bytes>> {
    let mut names = BTreeSet::new();
    loop {
        let page = Range::new(range.clone()).keys_only().limit(NAMES_PER_PAGE);
        let page = store.range(page).await?;
        let last = page.kvs.last().map(|kv| kv.key.clone());
        names.extend(page.kvs.into_iter().map(|kv| kv.key));
        match last {
            Some(last) if page.more => range.start = [&last[..], b"\0"].concat().into(),
            _ => return Ok(names),
        }
    }
}

/// A lease of this importer. It ends by itself.
struct Held {
    id: LeaseId,
    kept: Instant,
}

impl Held {
    async fn grant(store: &impl Store) -> Result<Self> {
        let id = store.lease_grant(TTL, None).await?.lease;
        let kept = Instant::now();
        Ok(Self { id, kept })
    }

    async fn keep(&mut self, store: &impl Store) -> Result<()> {
        if self.kept.elapsed() > KEEP_ALIVE {
            store.lease_keep_alive(self.id).await?;
            self.kept = Instant::now();
        }
        Ok(())
    }
}
