//! Reads of the state.
//!
//! Every read works on one view: a moment of the state that later writes do not move. One key is looked
//! for where the caller is, in memory alone; what needs the disk, or may take long, runs off the async threads.

use std::sync::Arc;

use futures_util::StreamExt;
use podkv_api::{
    Alarm, Bytes, DesiredSize, Error, Header, LeaseId, LeaseStatus, Permission, Range, RangeEnd,
    RangeResponse, RangeStream, Reason, Result, Revision, Txn, TxnResponse,
};
use podkv_core::{
    Answer, AuthInfo, AuthUser, Caller, Meta, PageLimits, RangePage, Rejection, Rights, View,
    ViewError, read_meta,
};
use tokio_util::sync::CancellationToken;

use crate::loans::{Loan, Loans};
use crate::past_counts::KeptPastCounts;
use crate::storage::{StateStore, StateView, Workers};

/// What one chunk of a streamed range holds at most.
const CHUNK_BYTES: usize = 512 << 10;

/// Who reads; `None` may read everything. What it may read is decided on the view that it is read from.
pub(crate) type Reader = Option<Caller>;

/// A refusal for what has nothing to do with a revision.
pub(crate) fn refused(reason: Reason) -> Rejection {
    Rejection {
        reason,
        revision: 0,
    }
}

/// Whether a reader may, by this view.
fn allowed(
    view: &dyn View,
    reader: &Reader,
    may: impl FnOnce(&Rights) -> Result<Result<(), Reason>, ViewError>,
) -> Result<Result<(), Rejection>, ViewError> {
    let Some(caller) = reader else {
        return Ok(Ok(()));
    };
    let allowed = match podkv_core::rights(view, caller)? {
        Ok(rights) => may(&rights)?,
        Err(reason) => Err(reason),
    };
    Ok(allowed.map_err(refused))
}

fn read_range(
    view: &dyn View,
    reader: &Reader,
    request: &Range,
    limits: PageLimits,
    past_counts: &KeptPastCounts,
) -> Result<Result<RangePage, Rejection>, ViewError> {
    match allowed(view, reader, |rights| Ok(rights.may_read(&request.range)))? {
        Ok(()) => podkv_core::range_with(view, request, limits, Some(past_counts)),
        Err(rejection) => Ok(Err(rejection)),
    }
}

/// Reads the state of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Query {
    state: Arc<dyn StateStore>,
    past_counts: Arc<KeptPastCounts>,
    loans: Arc<Loans>,
    /// An answer in one message is at most this large; a larger one must be streamed.
    max_answer_bytes: usize,
}

impl Query {
    pub fn new(state: Arc<dyn StateStore>, max_answer_bytes: usize) -> Self {
        Self {
            state,
            past_counts: Arc::default(),
            loans: Arc::default(),
            max_answer_bytes,
        }
    }

    #[cfg(test)]
    pub fn loans(&self) -> &Loans {
        &self.loans
    }

    /// Takes back the views of streams that nobody reads.
    pub async fn take_back_views(self, stop: CancellationToken) {
        self.loans.run(stop).await;
    }

    /// A whole range in one answer.
    pub async fn range(
        &self,
        header: Header,
        request: Range,
        reader: Reader,
    ) -> Result<RangeResponse> {
        let limits = PageLimits {
            max_bytes: self.max_answer_bytes,
            count: true,
        };
        let max_bytes = self.max_answer_bytes;
        let page = match self.key_in_memory(&request, &reader, limits) {
            Some(page) => page?,
            None => {
                let past_counts = self.past_counts.clone();
                let read = move |view: &dyn StateView| {
                    read_range(view, &reader, &request, limits, &past_counts)
                };
                self.read(read).await??
            }
        };
        if page.next.is_some() {
            return Err(Error::new(
                Reason::RequestTooLarge,
                format!(
                    "the range is larger than one answer may be ({max_bytes} bytes): stream it, or set a limit"
                ),
            ));
        }
        Ok(RangeResponse {
            header: Header {
                revision: page.revision,
                ..header
            },
            kvs: page.kvs,
            count: page.count,
            more: page.more,
        })
    }

    /// One key, if everything that it takes is in memory: microseconds, where a blocking task costs more.
    fn key_in_memory(
        &self,
        request: &Range,
        reader: &Reader,
        limits: PageLimits,
    ) -> Option<Result<RangePage, Rejection>> {
        if request.range.end != RangeEnd::Single {
            return None;
        }
        // Any failure is for the full read to find: it says what is wrong.
        let view = self.state.view_in_memory();
        read_range(&*view, reader, request, limits, &self.past_counts).ok()
    }

    /// A range in chunks, all of one revision. The next chunk is read when the last one was taken.
    pub fn range_stream(&self, header: Header, request: Range, reader: Reader) -> RangeStream {
        struct Reading {
            view: Arc<Loan>,
            next: Option<Range>,
            first: bool,
            total: u64,
            /// Until it was found to be allowed.
            reader: Reader,
            past_counts: Arc<KeptPastCounts>,
            workers: Workers,
        }
        let start = Reading {
            view: self.loans.lend(&self.state),
            next: Some(request),
            first: true,
            total: 0,
            reader,
            past_counts: self.past_counts.clone(),
            workers: self.state.workers(),
        };
        let chunks = futures_util::stream::try_unfold(start, move |mut reading| async move {
            let Some(request) = reading.next.take() else {
                return Ok(None);
            };
            let limits = PageLimits {
                max_bytes: CHUNK_BYTES,
                count: reading.first,
            };
            let view = reading.view.view();
            let reader = reading.reader.take();
            let past_counts = reading.past_counts.clone();
            let read = move || read_range(&*view, &reader, &request, limits, &past_counts);
            let page = blocking(&reading.workers, read).await??;
            if reading.first {
                reading.total = page.count;
                reading.first = false;
            }
            let last = page.next.is_none();
            reading.next = page.next;
            let chunk = RangeResponse {
                header: Header {
                    revision: page.revision,
                    ..header
                },
                kvs: page.kvs,
                count: if last { reading.total } else { 0 },
                more: last && page.more,
            };
            Ok(Some((chunk, reading)))
        });
        chunks.boxed()
    }

    pub async fn txn(&self, header: Header, txn: Txn, reader: Reader) -> Result<TxnResponse> {
        let read = move |view: &dyn StateView| match allowed(view, &reader, |rights| {
            rights.may_run(view, &txn)
        })? {
            Ok(()) => podkv_core::txn_read(view, &txn),
            Err(rejection) => Ok(Err(rejection)),
        };
        let response = self.read(read).await??;
        let mut answer = Answer::Txn(response);
        answer.stamp(header);
        match answer {
            Answer::Txn(response) => Ok(response),
            _ => Err(Error::internal(
                "a transaction was answered by something else",
            )),
        }
    }

    pub async fn lease_status(
        &self,
        header: Header,
        id: LeaseId,
        keys: bool,
        now_ms: Option<u64>,
        reader: Reader,
    ) -> Result<LeaseStatus> {
        let may = move |rights: &Rights, view: &dyn View| match keys {
            true => rights.may_read_lease(view, id),
            false => Ok(Ok(())),
        };
        let status = self.read_whole(move |view| {
            if let Err(rejection) = allowed(view, &reader, |rights| may(rights, view))? {
                return Ok(Err(rejection));
            }
            let meta = read_meta(view)?;
            let status = podkv_core::lease_status(view, id, keys)?;
            Ok(Ok(status.map(|status| (status, meta.clock_ms))))
        });
        let (mut status, state_clock_ms) = status.await??.ok_or_else(|| {
            Error::new(
                Reason::LeaseNotFound,
                format!("lease {id} does not exist: it expired or was revoked"),
            )
        })?;
        status.header = Header {
            revision: status.header.revision,
            ..header
        };
        // The state's clock is as old as the last entry; a leader knows better.
        let passed = now_ms
            .unwrap_or(state_clock_ms)
            .saturating_sub(state_clock_ms);
        status.remaining_ms = status.remaining_ms.saturating_sub(passed);
        Ok(status)
    }

    pub async fn leases(&self, reader: Reader) -> Result<(Revision, Vec<LeaseId>)> {
        let read = move |view: &dyn StateView| {
            if let Err(rejection) = allowed(view, &reader, |_| Ok(Ok(())))? {
                return Ok(Err(rejection));
            }
            Ok(Ok((read_meta(view)?.revision, podkv_core::leases(view)?)))
        };
        Ok(self.read_whole(read).await??)
    }

    /// What a caller may do, by the state as it is.
    pub async fn rights(&self, caller: Caller) -> Result<Rights> {
        let read = move |view: &dyn View| podkv_core::rights(view, &caller);
        let rights = self.read_small(read).await?;
        Ok(rights.map_err(refused)?)
    }

    pub async fn auth(&self) -> Result<AuthInfo> {
        self.read_small(podkv_core::auth_info).await
    }

    pub async fn user(&self, name: String) -> Result<Option<AuthUser>> {
        self.read_small(move |view| podkv_core::auth_user(view, &name))
            .await
    }

    pub async fn users(&self) -> Result<Vec<String>> {
        self.read(|view| podkv_core::auth_users(view)).await
    }

    pub async fn role(&self, name: String) -> Result<Option<Vec<Permission>>> {
        self.read(move |view| podkv_core::auth_role(view, &name))
            .await
    }

    pub async fn roles(&self) -> Result<Vec<String>> {
        self.read(|view| podkv_core::auth_roles(view)).await
    }

    pub async fn data_digest(&self, revision: Revision) -> Result<(Meta, [u8; 32])> {
        let read = move |view: &dyn StateView| {
            let meta = read_meta(view)?;
            let digest = podkv_core::data_digest(view, revision)?;
            Ok(digest.map(|digest| (meta, digest)))
        };
        Ok(self.read(read).await??)
    }

    pub async fn meta(&self) -> Result<Meta> {
        self.read(|view| read_meta(view)).await
    }

    pub async fn desired_size(&self) -> Result<Option<DesiredSize>> {
        self.read(|view| podkv_core::desired_size(view)).await
    }

    pub async fn alarms(&self) -> Result<Vec<Alarm>> {
        self.read(|view| podkv_core::alarms(view)).await
    }

    pub async fn frozen(&self) -> Result<Vec<Bytes>> {
        self.read_whole(|view| podkv_core::frozen_prefixes(view))
            .await
    }

    /// Refuses a state that a backup is being restored into; ranges do that by themselves.
    async fn read_whole<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn StateView) -> Result<T, ViewError> + Send + 'static,
    ) -> Result<T> {
        let found = self.read(move |view| match podkv_core::restoring(view)? {
            true => Ok(None),
            false => read(view).map(Some),
        });
        found.await?.ok_or_else(restoring)
    }

    /// Reads a few keys: in memory alone, if they are there.
    async fn read_small<T: Send + 'static>(
        &self,
        read: impl Fn(&dyn View) -> Result<T, ViewError> + Send + 'static,
    ) -> Result<T> {
        // Any failure is for the full read to find: it says what is wrong.
        if let Ok(found) = read(&*self.state.view_in_memory()) {
            return Ok(found);
        }
        self.read(move |view| read(view)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn StateView) -> Result<T, ViewError> + Send + 'static,
    ) -> Result<T> {
        let state = self.state.clone();
        let workers = state.workers();
        blocking(&workers, move || read(&*state.view())).await
    }
}

/// The error of reads while a backup is being restored.
pub(crate) fn restoring() -> Error {
    let (reason, revision) = (Reason::Restoring, Meta::default().revision);
    podkv_core::Rejection { reason, revision }.into()
}

/// Runs a read where it may wait for the disk.
async fn blocking<T: Send + 'static>(
    workers: &Workers,
    read: impl FnOnce() -> Result<T, ViewError> + Send + 'static,
) -> Result<T> {
    match workers.spawn(read).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            tracing::error!(%error, "the state cannot be read");
            Err(
                Error::internal("the state cannot be read; the node's log says more")
                    .with_source(error),
            )
        }
        Err(_) => Err(Error::new(
            Reason::NodeNotReady,
            "the node is stopping: ask another one",
        )),
    }
}
