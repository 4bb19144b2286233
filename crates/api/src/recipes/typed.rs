//! Values of one Rust type, stored as JSON.

use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::backoff::Backoff;
use crate::error::{Error, Reason, Result};
use crate::key::KeyRange;
use crate::kv::{Delete, KeyValue, Put, Range, Revision};
use crate::lease::LeaseId;
use crate::store::Store;
use crate::txn::{Compare, Op, Txn};
use crate::watch::{Event, EventKind, Watch, WatchMessage};

/// How often [`Typed::update`] tries. Each failure means that another writer succeeded, so this
/// many in a row are a design to mend, not bad luck.
const MAX_ATTEMPTS: usize = 64;

/// The keys under a prefix, with values of type `T`, as JSON.
///
/// Keys are given and returned without the prefix. A value that is not a `T` is
/// [`Reason::BadValue`]; the text names its key.
///
/// ```no_run
/// use podkv_api::recipes::Typed;
/// use podkv_api::{Result, Store};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Account { cents: i64 }
///
/// async fn deposit<S: Store>(store: S, owner: &str, cents: i64) -> Result<()> {
///     let accounts: Typed<S, Account> = Typed::new(store, "accounts/");
///     // Runs again if somebody else changed the account meanwhile: no deposit is lost.
///     accounts
///         .update(owner, |old| {
///             let old = old.unwrap_or(Account { cents: 0 });
///             Some(Account { cents: old.cents + cents })
///         })
///         .await?;
///     Ok(())
/// }
/// ```
pub struct Typed<S, T> {
    store: S,
    prefix: Bytes,
    value: PhantomData<fn() -> T>,
}

/// A key with its decoded value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<T> {
    /// Without the prefix.
    pub key: Bytes,
    pub value: T,
    /// The revision that created the key (for this life of it).
    pub create_revision: Revision,
    /// The revision that wrote this value.
    pub mod_revision: Revision,
    /// The lease that the key is attached to.
    pub lease: Option<LeaseId>,
}

/// What a typed watch reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// The key was there when the watch began, or was written since.
    Put(Entry<T>),
    /// The key, without the prefix, was deleted or expired at `revision`.
    Delete { key: Bytes, revision: Revision },
    /// Everything up to `revision` has been reported: the entries that were there at the
    /// beginning, or all changes until now. Keep it for [`Typed::watch_from`].
    UpToDate { revision: Revision },
}

/// Changes in the order in which they happened. After [`Reason::BadValue`] it goes on with the
/// next key; after any other error it ends. Dropping it ends the watch.
pub type ChangeStream<T> = Pin<Box<dyn Stream<Item = Result<Change<T>>> + Send>>;

impl<S, T> Typed<S, T>
where
    S: Store,
    T: Serialize + DeserializeOwned + Send + 'static,
{
    /// `prefix` should end with a separator: `users/`, not `users`.
    pub fn new(store: S, prefix: impl Into<Bytes>) -> Self {
        Self {
            store,
            prefix: prefix.into(),
            value: PhantomData,
        }
    }

    /// The key in the store: with the prefix.
    pub fn full_key(&self, key: impl AsRef<[u8]>) -> Bytes {
        [&self.prefix[..], key.as_ref()].concat().into()
    }

    /// All keys under the prefix: what to give to a [`Mirror`](super::Mirror).
    pub fn key_range(&self) -> KeyRange {
        KeyRange::prefix(self.prefix.clone())
    }

    /// Decodes what was read in another way: from a [`Mirror`](super::Mirror), or in a transaction.
    ///
    /// # Errors
    ///
    /// [`Reason::BadValue`].
    pub fn decode(&self, kv: &KeyValue) -> Result<Entry<T>> {
        entry(&self.prefix, kv)
    }

    /// The value, or `None` if there is no such key. Linearizable.
    ///
    /// # Errors
    ///
    /// [`Reason::BadValue`], and as [`Store::range`].
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<T>> {
        let found = self.store.get(self.full_key(key)).await?;
        found.as_ref().map(decode).transpose()
    }

    /// The value with its metadata, or `None` if there is no such key. Linearizable.
    ///
    /// # Errors
    ///
    /// As [`Typed::get`].
    pub async fn entry(&self, key: impl AsRef<[u8]>) -> Result<Option<Entry<T>>> {
        let found = self.store.get(self.full_key(key)).await?;
        found.map(|kv| entry(&self.prefix, &kv)).transpose()
    }

    /// Writes the value, whatever was there. Returns the revision of the write.
    ///
    /// # Errors
    ///
    /// [`Reason::BadValue`] if the value has no JSON form, and as [`Store::put`].
    pub async fn put(&self, key: impl AsRef<[u8]>, value: &T) -> Result<Revision> {
        let put = Put::new(self.full_key(key), encode(value)?);
        Ok(self.store.put(put).await?.header.revision)
    }

    /// Deletes the key. Returns the revision of the deletion, or `None` if there was no such key.
    ///
    /// # Errors
    ///
    /// As [`Store::delete`].
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Option<Revision>> {
        let delete = Delete::new(KeyRange::key(self.full_key(key)));
        let answer = self.store.delete(delete).await?;
        Ok((answer.deleted > 0).then_some(answer.header.revision))
    }

    /// Everything under the prefix, in key order, as of one revision. Linearizable.
    ///
    /// # Errors
    ///
    /// As [`Typed::get`]: one bad value fails the list.
    pub async fn list(&self) -> Result<Vec<Entry<T>>> {
        let range = Range::new(self.key_range());
        let mut chunks = self.store.range_stream(range).await?;
        let mut entries = Vec::new();
        while let Some(chunk) = chunks.next().await {
            for kv in &chunk?.kvs {
                entries.push(entry(&self.prefix, kv)?);
            }
        }
        Ok(entries)
    }

    /// Reads the value, lets `change` make the new one, and writes that only if nobody wrote the
    /// key meanwhile; else all over again. `change` gets `None` if there is no such key, and
    /// returns `None` to delete it. It may run many times, so it must have no effects of its own.
    ///
    /// A value that comes out as it went in is not written. A lease or TTL of the key stays.
    /// Returns what the key holds now, `None` if nothing; its `mod_revision` is what
    /// [`Mirror::wait_for`](super::Mirror::wait_for) takes.
    ///
    /// # Errors
    ///
    /// - [`Reason::Contention`] if other writers were faster 64 times in a row. Nothing was written.
    /// - [`Reason::BadValue`] if the old value is not a `T`, or the new one has no JSON form.
    /// - As [`Store::txn`]. If [`Error::outcome_unknown`], the update may have been applied. It is
    ///   never repeated by itself: it might be applied twice. Read the key to find out.
    pub async fn update<F>(&self, key: impl AsRef<[u8]>, mut change: F) -> Result<Option<Entry<T>>>
    where
        F: FnMut(Option<T>) -> Option<T>,
    {
        let key = self.full_key(key);
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(250));
        for _ in 0..MAX_ATTEMPTS {
            let found = self.store.get(key.clone()).await?;
            let value = change(found.as_ref().map(decode).transpose()?);
            let read_at = found.as_ref().map_or(0, |kv| kv.mod_revision);
            let Some(write) = write(&key, found.as_ref(), value.as_ref())? else {
                return Ok(self.updated(&key, value, found.as_ref(), read_at));
            };
            let unchanged = Compare::unchanged_since(key.clone(), read_at);
            let txn = Txn::new().when([unchanged]).then([write]);
            let answer = self.store.txn(txn).await?;
            if answer.succeeded {
                return Ok(self.updated(&key, value, found.as_ref(), answer.header.revision));
            }
            // Wait first, read after: what is read now would be old again by then.
            sleep(backoff.delay()).await;
        }
        let name = key.escape_ascii().to_string();
        let text = format!("{name:?} changed under each of {MAX_ATTEMPTS} attempts to update it");
        Err(Error::new(Reason::Contention, text))
    }

    /// What a key holds after an update at `revision`, given what was there before.
    fn updated(
        &self,
        key: &Bytes,
        value: Option<T>,
        found: Option<&KeyValue>,
        revision: Revision,
    ) -> Option<Entry<T>> {
        value.map(|value| Entry {
            key: without_prefix(&self.prefix, key),
            value,
            create_revision: found.map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            lease: found.and_then(|kv| kv.lease),
        })
    }

    /// Reports the entries that are there, then [`Change::UpToDate`], then every change.
    ///
    /// # Errors
    ///
    /// As [`Store::watch`]. After [`Reason::WatchLost`], go on with [`Typed::watch_from`] or start
    /// over; a [`Mirror`](super::Mirror) does that by itself.
    pub async fn watch(&self) -> Result<ChangeStream<T>> {
        self.changes(self.watch_request().list()).await
    }

    /// Reports every change from `revision` on.
    ///
    /// # Errors
    ///
    /// [`Reason::Compacted`] if those changes are forgotten, and as [`Typed::watch`].
    pub async fn watch_from(&self, revision: Revision) -> Result<ChangeStream<T>> {
        self.changes(self.watch_request().from_revision(revision))
            .await
    }

    fn watch_request(&self) -> Watch {
        Watch::new(self.key_range()).bookmarks()
    }

    async fn changes(&self, watch: Watch) -> Result<ChangeStream<T>> {
        let messages = self.store.watch(watch).await?;
        let prefix = self.prefix.clone();
        let changes =
            messages.flat_map(move |message| stream::iter(decode_message(&prefix, message)));
        Ok(changes.boxed())
    }
}

impl<S: Clone, T> Clone for Typed<S, T> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            prefix: self.prefix.clone(),
            value: PhantomData,
        }
    }
}

impl<S, T> std::fmt::Debug for Typed<S, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Typed")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// The write that turns what was found into `value`; `None` if there is nothing to do.
fn write<T: Serialize>(
    key: &Bytes,
    found: Option<&KeyValue>,
    value: Option<&T>,
) -> Result<Option<Op>> {
    let Some(value) = value else {
        let delete = || Delete::new(KeyRange::key(key.clone())).into();
        return Ok(found.map(|_| delete()));
    };
    let bytes = encode(value)?;
    if found.is_some_and(|kv| kv.value == bytes) {
        return Ok(None);
    }
    let mut put = Put::new(key.clone(), bytes);
    // The caller changes the value, not how long the key lives.
    put.ignore_lease = found.is_some();
    Ok(Some(put.into()))
}

fn decode_message<T: DeserializeOwned>(
    prefix: &Bytes,
    message: Result<WatchMessage>,
) -> Vec<Result<Change<T>>> {
    let put = |kv: &KeyValue| entry(prefix, kv).map(Change::Put);
    match message {
        Ok(WatchMessage::Created { .. }) => Vec::new(),
        Ok(WatchMessage::List { kvs, .. }) => kvs.iter().map(put).collect(),
        Ok(WatchMessage::Events {
            events, revision, ..
        }) => {
            let change = |event: &Event| match event.kind {
                EventKind::Put => put(&event.kv),
                EventKind::Delete => Ok(Change::Delete {
                    key: without_prefix(prefix, &event.kv.key),
                    revision,
                }),
            };
            events.iter().map(change).collect()
        }
        Ok(WatchMessage::Listed { revision, .. } | WatchMessage::Bookmark { revision, .. }) => {
            vec![Ok(Change::UpToDate { revision })]
        }
        Err(error) => vec![Err(error)],
    }
}

fn entry<T: DeserializeOwned>(prefix: &Bytes, kv: &KeyValue) -> Result<Entry<T>> {
    Ok(Entry {
        key: without_prefix(prefix, &kv.key),
        value: decode(kv)?,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        lease: kv.lease,
    })
}

fn without_prefix(prefix: &Bytes, key: &Bytes) -> Bytes {
    // A store that answers with a key from elsewhere is broken, but no reason to panic.
    match key.strip_prefix(&prefix[..]) {
        Some(rest) => key.slice_ref(rest),
        None => key.clone(),
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Bytes> {
    let bytes = serde_json::to_vec(value).map_err(|error| {
        Error::new(Reason::BadValue, "the value has no JSON form").with_source(error)
    })?;
    Ok(bytes.into())
}

fn decode<T: DeserializeOwned>(kv: &KeyValue) -> Result<T> {
    serde_json::from_slice(&kv.value).map_err(|error| {
        let name = kv.key.escape_ascii().to_string();
        let text = format!(
            "the value of {name:?} is not a {}",
            std::any::type_name::<T>()
        );
        Error::new(Reason::BadValue, text).with_source(error)
    })
}
