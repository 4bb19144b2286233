//! Ranges as etcd has them: order and filters on top of what the core reads.
//!
//! The core reads in key order, from either end, up to a limit. Everything else must see the whole range before it
//! knows the first key of the answer. Two things about it are etcd's and odd:
//!
//! - `count` is of the range, whatever limit and filters; `more` is what is left after filters and order.
//! - A target other than the key with no order sorts upwards, but the limit is applied *before*, in key order.

use std::cmp::Ordering;

use podkv_api::{Consistency, KeyValue, Range, RangeResponse};
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use tonic::Status;

use super::convert::{key_values, required_key_range, signed};

/// What is left to do with the keys that were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    target: SortTarget,
    /// `None`: in the order in which they were read.
    order: Option<Direction>,
    filters: Filters,
    /// 0 is none.
    limit: u64,
    keys_only: bool,
    /// The core's own answer is the answer.
    is_plain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// Inclusive bounds; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Filters {
    min_mod: i64,
    max_mod: i64,
    min_create: i64,
    max_create: i64,
}

impl Filters {
    fn is_none(self) -> bool {
        self == Self::default()
    }

    fn keep(self, kv: &KeyValue) -> bool {
        let within = |revision: u64, min: i64, max: i64| {
            let revision = signed(revision);
            (min == 0 || revision >= min) && (max == 0 || revision <= max)
        };
        within(kv.mod_revision, self.min_mod, self.max_mod)
            && within(kv.create_revision, self.min_create, self.max_create)
    }
}

/// What to read, and what to do with it then.
pub(super) fn range(request: pb::RangeRequest) -> Result<(Range, Shape), Status> {
    let unknown = |field| Status::invalid_argument(format!("etcdserver: unknown {field}"));
    let order = SortOrder::try_from(request.sort_order).map_err(|_| unknown("sort_order"))?;
    let target = SortTarget::try_from(request.sort_target).map_err(|_| unknown("sort_target"))?;
    let range = required_key_range(request.key, request.range_end)?;
    let filters = Filters {
        min_mod: request.min_mod_revision,
        max_mod: request.max_mod_revision,
        min_create: request.min_create_revision,
        max_create: request.max_create_revision,
    };
    let limit = u64::try_from(request.limit).unwrap_or(0);
    let by_key = target == SortTarget::Key;
    let consistency = match request.serializable {
        true => Consistency::Local,
        false => Consistency::Linearizable,
    };
    let mut read = Range {
        range,
        limit: 0,
        reverse: false,
        keys_only: false,
        count_only: request.count_only,
        revision: u64::try_from(request.revision).unwrap_or(0),
        consistency,
    };
    let mut shape = Shape {
        target,
        order: None,
        filters,
        limit,
        keys_only: request.keys_only,
        is_plain: false,
    };
    match order {
        // The store's own order: the limit is applied where it is read.
        SortOrder::None | SortOrder::Ascend if by_key && filters.is_none() => {
            read.limit = limit;
            shape.is_plain = true;
        }
        SortOrder::Descend if by_key && filters.is_none() => {
            read.limit = limit;
            read.reverse = true;
            shape.is_plain = true;
        }
        SortOrder::None | SortOrder::Ascend if by_key => {}
        SortOrder::Descend if by_key => read.reverse = true,
        SortOrder::None => {
            shape.order = Some(Direction::Up);
            // One more than asked for takes part in the order: the odd rule above.
            if filters.is_none() && limit > 0 {
                read.limit = limit.saturating_add(1);
            }
        }
        SortOrder::Ascend => shape.order = Some(Direction::Up),
        SortOrder::Descend => shape.order = Some(Direction::Down),
    }
    read.keys_only = request.keys_only && target != SortTarget::Value;
    Ok((read, shape))
}

impl Shape {
    /// True if the core's own answer is the answer.
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Takes up the next part of what was read.
    pub fn gather(&self, into: &mut Gathered, part: Vec<KeyValue>) {
        for kv in part.into_iter().filter(|kv| self.filters.keep(kv)) {
            into.matched += 1;
            into.bytes += size(&kv);
            into.kvs.push(kv);
        }
        // Never more in memory than twice what is asked for.
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        if !self.is_plain && limit > 0 && into.kvs.len() / 2 > limit {
            self.sort(&mut into.kvs);
            into.kvs.truncate(limit);
            into.bytes = into.kvs.iter().map(size).sum();
        }
    }

    fn sort(&self, kvs: &mut [KeyValue]) {
        let Some(direction) = self.order else { return };
        // Stable: equals stay in key order.
        kvs.sort_by(|a, b| {
            let order = match self.target {
                SortTarget::Key => a.key.cmp(&b.key),
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.create_revision.cmp(&b.create_revision),
                SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
                SortTarget::Value => a.value.cmp(&b.value),
            };
            match direction {
                Direction::Up => order,
                Direction::Down => Ordering::reverse(order),
            }
        });
    }

    /// The answer, of all that was gathered; `cut` if the core's own limit left keys out.
    pub fn finish(
        &self,
        gathered: Gathered,
        count: u64,
        cut: bool,
        header: pb::ResponseHeader,
    ) -> pb::RangeResponse {
        let Gathered {
            mut kvs, matched, ..
        } = gathered;
        if self.is_plain {
            return self.message(kvs, cut, count, header);
        }
        self.sort(&mut kvs);
        let more = self.limit > 0 && matched > self.limit;
        if more {
            kvs.truncate(usize::try_from(self.limit).unwrap_or(usize::MAX));
        }
        self.message(kvs, more, count, header)
    }

    /// The answer of a range that came as a whole.
    pub fn apply(&self, response: RangeResponse, header: pb::ResponseHeader) -> pb::RangeResponse {
        if self.is_plain {
            return self.message(response.kvs, response.more, response.count, header);
        }
        let mut gathered = Gathered::default();
        self.gather(&mut gathered, response.kvs);
        self.finish(gathered, response.count, response.more, header)
    }

    fn message(
        &self,
        kvs: Vec<KeyValue>,
        more: bool,
        count: u64,
        header: pb::ResponseHeader,
    ) -> pb::RangeResponse {
        let mut kvs = key_values(kvs);
        if self.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        pb::RangeResponse {
            header: Some(header),
            kvs,
            more,
            count: signed(count),
        }
    }
}

/// What of a range can be in the answer.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    kvs: Vec<KeyValue>,
    /// How many keys passed the filters; some of them may be out again.
    matched: u64,
    /// Of keys and values that are held.
    pub bytes: usize,
}

fn size(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len()
}
