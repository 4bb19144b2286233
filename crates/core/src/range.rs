//! Reads of a range of keys, now or in the past, all at once or in pages.

use std::cmp::Ordering;
use std::iter::Peekable;

use bytes::Bytes;
use podkv_api::{KeyRange, KeyValue, Range, RangeEnd, RangeResponse, Reason, Revision};

use crate::counts;
use crate::meta::{Meta, read_meta};
use crate::mvcc::{decode_latest, superseded_at, version_at};
use crate::outcome::{Rejection, header_at};
use crate::past_counts::{KeepPastCounts, PastCounts};
use crate::record::state::Stored;
use crate::restore;
use crate::schema;
use crate::state::reject;
use crate::view::{Scan, View, ViewError};

/// How much of a range to read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    /// Stop before the page's keys and values exceed this; the first key always comes.
    pub max_bytes: usize,
    /// Fill in [`RangePage::count`]. Turn it off for the pages after the first.
    pub count: bool,
}

impl Default for PageLimits {
    /// Everything in one page.
    fn default() -> Self {
        Self {
            max_bytes: usize::MAX,
            count: true,
        }
    }
}

/// Part of a range, or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangePage {
    /// The store's revision, also for a read of the past.
    pub revision: Revision,
    pub kvs: Vec<KeyValue>,
    /// How many keys the whole range holds, whatever the limit; 0 if it was not asked for.
    pub count: u64,
    /// True if the request's limit cut keys off.
    pub more: bool,
    /// What to ask for next, if the page was full before the range was done. Pinned to the
    /// revision that this page was read at.
    pub next: Option<Range>,
}

/// Reads a range at a revision. `request.consistency` is the node's affair.
pub fn range(
    view: &dyn View,
    request: &Range,
    page: PageLimits,
) -> Result<Result<RangePage, Rejection>, ViewError> {
    range_with(view, request, page, None)
}

/// The same by a reader that keeps counts of the past: it pays for the first page of a list alone.
pub fn range_with(
    view: &dyn View,
    request: &Range,
    page: PageLimits,
    past_counts: Option<&dyn KeepPastCounts>,
) -> Result<Result<RangePage, Rejection>, ViewError> {
    let meta = read_meta(view)?;
    if restore::under_way(view, &meta)? {
        return Ok(Err(reject(&meta, Reason::Restoring)));
    }
    if let Err(reason) = check_revision(&meta, request.revision) {
        return Ok(Err(reject(&meta, reason)));
    }
    read(view, meta.revision, request, page, past_counts).map(Ok)
}

/// Whether `revision` can be read; 0 is the latest.
pub(crate) fn check_revision(meta: &Meta, revision: Revision) -> Result<(), Reason> {
    if revision > meta.revision {
        return Err(Reason::FutureRevision);
    }
    if revision != 0 && revision < meta.compacted_revision {
        return Err(Reason::Compacted);
    }
    Ok(())
}

/// A whole range as one answer, as a transaction gives it. `newest` is the revision of what the
/// view holds.
pub(crate) fn answer(
    view: &dyn View,
    newest: Revision,
    request: &Range,
) -> Result<RangeResponse, ViewError> {
    let page = read(view, newest, request, PageLimits::default(), None)?;
    Ok(RangeResponse {
        header: header_at(page.revision),
        kvs: page.kvs,
        count: page.count,
        more: page.more,
    })
}

/// Reads a page; the revision was checked.
fn read(
    view: &dyn View,
    newest: Revision,
    request: &Range,
    page: PageLimits,
    past_counts: Option<&dyn KeepPastCounts>,
) -> Result<RangePage, ViewError> {
    let past = request.revision != 0 && request.revision < newest;
    let at = if past { request.revision } else { newest };
    let mut result = RangePage {
        revision: newest,
        kvs: Vec::new(),
        count: 0,
        more: false,
        next: None,
    };
    if request.range.is_empty() {
        return Ok(result);
    }
    if request.count_only && !past {
        result.count = counts::count(view, &request.range)?;
        return Ok(result);
    }
    let mut keys = Keys::open(view, &request.range, request.reverse, past.then_some(at))?;
    let cut = request.count_only || fill(&mut result, &mut keys, request, page.max_bytes, at)?;
    if page.count {
        result.count = match (cut, past) {
            (false, _) => result.kvs.len() as u64,
            (true, false) => counts::count(view, &request.range)?,
            (true, true) => {
                // The key that did not fit was taken from the stream already.
                let unread = u64::from(!request.count_only);
                let read = result.kvs.len() as u64 + unread;
                count_past(view, &request.range, at, past_counts, read, &mut keys)?
            }
        };
    }
    Ok(result)
}

/// Keys of the past that are counted one by one before anything else is tried.
const COUNTED_FIRST: u64 = 2_048;

/// How many keys a range held, `read` of which were taken from `keys`. The cheapest way first.
fn count_past(
    view: &dyn View,
    range: &KeyRange,
    at: Revision,
    past_counts: Option<&dyn KeepPastCounts>,
    read: u64,
    keys: &mut Keys<'_>,
) -> Result<u64, ViewError> {
    if let Some(counts) = past_counts.and_then(|kept| kept.kept(at)) {
        return counts.count(view, range);
    }
    let some = keys.count_up_to(COUNTED_FIRST)?;
    if some < COUNTED_FIRST {
        return Ok(read + some);
    }
    if let Some(count) = counts::count_at(view, range, at)? {
        return Ok(count);
    }
    match past_counts {
        Some(kept) => {
            let counts = kept.keep(at, &mut || PastCounts::walk(view, at))?;
            counts.count(view, range)
        }
        None => Ok(read + some + keys.count_up_to(u64::MAX)?),
    }
}

/// Fills a page. True if it ended before the range did: with one more key taken from the stream.
fn fill(
    result: &mut RangePage,
    keys: &mut Keys<'_>,
    request: &Range,
    max_bytes: usize,
    at: Revision,
) -> Result<bool, ViewError> {
    let mut bytes = 0;
    while let Some((key, mut stored)) = keys.next()? {
        if request.limit != 0 && result.kvs.len() as u64 >= request.limit {
            result.more = true;
            return Ok(true);
        }
        if request.keys_only {
            stored.value = Bytes::new();
        }
        bytes += key.len() + stored.value.len();
        if bytes > max_bytes && !result.kvs.is_empty() {
            result.next = Some(rest(request, &result.kvs, at));
            return Ok(true);
        }
        result.kvs.push(stored.key_value(key));
    }
    Ok(false)
}

/// The part of a request that comes after the keys that were read.
fn rest(request: &Range, read: &[KeyValue], at: Revision) -> Range {
    let mut next = request.clone();
    next.revision = at;
    next.limit = request.limit.saturating_sub(read.len() as u64);
    if let Some(last) = read.last() {
        if request.reverse {
            next.range.end = RangeEnd::Before(last.key.clone());
        } else {
            next.range.start = schema::just_after(&last.key);
        }
    }
    next
}

/// The keys of a range with the version that a read sees, one after another.
pub(crate) enum Keys<'a> {
    One(Option<(Bytes, Stored)>),
    Latest(Scan<'a>),
    Past(Past<'a>),
}

impl<'a> Keys<'a> {
    pub(crate) fn open(
        view: &'a dyn View,
        range: &KeyRange,
        reverse: bool,
        past: Option<Revision>,
    ) -> Result<Self, ViewError> {
        if range.is_single() {
            let stored = version_at(view, &range.start, past.unwrap_or(Revision::MAX))?;
            return Ok(Self::One(
                stored.map(|stored| (range.start.clone(), stored)),
            ));
        }
        let (start, end) = schema::latest_bounds(range);
        let latest = view.scan(&start, &end, reverse);
        Ok(match past {
            None => Self::Latest(latest),
            Some(at) => Self::Past(Past {
                latest: latest.peekable(),
                superseded: Superseded::open(view, range, reverse, at),
                peeked: None,
                reverse,
                at,
            }),
        })
    }

    /// Takes keys until `most` were taken or none is left. How many.
    pub(crate) fn count_up_to(&mut self, most: u64) -> Result<u64, ViewError> {
        let mut taken = 0;
        while taken < most && self.next()?.is_some() {
            taken += 1;
        }
        Ok(taken)
    }

    pub(crate) fn next(&mut self) -> Result<Option<(Bytes, Stored)>, ViewError> {
        match self {
            Self::One(item) => Ok(item.take()),
            Self::Latest(scan) => match scan.next().transpose()? {
                None => Ok(None),
                Some((key, record)) => Ok(Some((schema::user_key(&key)?, decode_latest(record)?))),
            },
            Self::Past(past) => past.next(),
        }
    }
}

/// A read of the past: `latest` where it is old enough, else what `history` has for the key.
pub(crate) struct Past<'a> {
    latest: Peekable<Scan<'a>>,
    superseded: Superseded<'a>,
    /// The next key of the history, with the version that is visible in it.
    peeked: Option<(Bytes, Option<Bytes>)>,
    reverse: bool,
    at: Revision,
}

impl Past<'_> {
    fn next(&mut self) -> Result<Option<(Bytes, Stored)>, ViewError> {
        loop {
            if self.peeked.is_none() {
                self.peeked = self.superseded.next()?;
            }
            let latest_key = match self.latest.peek() {
                None => None,
                Some(Ok((key, _))) => Some(schema::user_key(key)?),
                Some(Err(_)) => {
                    self.latest.next().transpose()?;
                    continue;
                }
            };
            let order = match (&latest_key, &self.peeked) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(latest), Some((old, _))) if self.reverse => old.cmp(latest),
                (Some(latest), Some((old, _))) => latest.cmp(old),
            };
            let old = match order {
                Ordering::Less => None,
                Ordering::Equal | Ordering::Greater => self.peeked.take(),
            };
            if order != Ordering::Greater
                && let Some((key, record)) = self.latest.next().transpose()?
            {
                let stored = decode_latest(record)?;
                if stored.meta.mod_revision <= self.at {
                    return Ok(Some((schema::user_key(&key)?, stored)));
                }
            }
            if let Some((key, Some(record))) = old
                && let Some(stored) = Stored::decode(record)?
            {
                return Ok(Some((key, stored)));
            }
        }
    }
}

/// The keys of a range that have history, each with its newest version not above `at`.
struct Superseded<'a> {
    view: &'a dyn View,
    end: Bytes,
    start: Bytes,
    reverse: bool,
    at: Revision,
    scan: Peekable<Scan<'a>>,
}

/// A key with more versions than this is left by a seek instead of step by step.
const STEPS_BEFORE_SEEK: usize = 16;

impl<'a> Superseded<'a> {
    fn open(view: &'a dyn View, range: &KeyRange, reverse: bool, at: Revision) -> Self {
        let (start, end) = schema::history_bounds(range);
        Self {
            scan: view.scan(&start, &end, reverse).peekable(),
            view,
            start,
            end,
            reverse,
            at,
        }
    }

    fn next(&mut self) -> Result<Option<(Bytes, Option<Bytes>)>, ViewError> {
        let Some((first, record)) = self.scan.next().transpose()? else {
            return Ok(None);
        };
        let (key, revision) = schema::read_history_key(&first)?;
        let mut newest = (revision <= self.at).then_some((revision, record));
        let versions = schema::history_bounds_of(&key, Revision::MAX);
        for _ in 0..STEPS_BEFORE_SEEK {
            let same_key = |item: &Result<(Bytes, Bytes), ViewError>| match item {
                Ok((next, _)) => *next >= versions.0 && *next < versions.1,
                Err(_) => true,
            };
            let Some((next, record)) = self.scan.next_if(same_key).transpose()? else {
                return Ok(Some((key, newest.map(|(_, record)| record))));
            };
            let (_, revision) = schema::read_history_key(&next)?;
            if revision <= self.at && newest.as_ref().is_none_or(|(found, _)| *found < revision) {
                newest = Some((revision, record));
            }
        }
        self.leave(versions);
        let stored = superseded_at(self.view, &key, self.at)?;
        Ok(Some((key, stored.map(|stored| stored.record))))
    }

    /// Goes on after all versions of a key.
    fn leave(&mut self, versions: (Bytes, Bytes)) {
        if self.reverse {
            self.end = versions.0;
        } else {
            self.start = versions.1;
        }
        self.scan = self
            .view
            .scan(&self.start, &self.end, self.reverse)
            .peekable();
    }
}
