//! Exact counts of ranges without walking them.
//!
//! The keys are cut into blocks; the `counts` table has the first key of each block and how many
//! keys it holds. The first block begins at the empty key, so every key lies in one. To count a
//! range is to add up the blocks that lie inside it, and to walk the keys of the two at its edges.
//!
//! ```text
//! counts   "" -> 600          "m" -> 512           "t" -> 700
//! keys     a ... f ... l      m ............ s     t ... w ... z
//! range          f <------------------------------------> w
//!                walk l-f     add 512              walk t-w
//! ```
//!
//! A block is split when it holds more than [`SPLIT_ABOVE`] keys and joined with the next one when
//! both are small. The counts change in the batch that changes the keys, so they are always exact.
//!
//! They are of the present. The count of a revision shortly before is the present one with the changes since
//! then undone. For one that is further away see `past_counts.rs`.

use bytes::Bytes;
use podkv_api::{KeyRange, RangeEnd, Revision};

use crate::codec;
use crate::record::state::{ChangeKindV1, ChangeV1, CountV1};
use crate::schema;
use crate::state::State;
use crate::view::{View, ViewError};

/// What a block has after a split. Larger blocks make the edges of a count dearer, smaller ones
/// its middle.
const BLOCK_KEYS: u64 = 512;
const SPLIT_ABOVE: u64 = 2 * BLOCK_KEYS;
const JOIN_BELOW: u64 = BLOCK_KEYS / 2;

/// A page of the recent past, as of a list that is read in pages, costs at most about this.
const MAX_UNDONE_CHANGES: usize = 10_000;

/// A block of keys: from `first` up to the first key of the next block.
struct Block {
    first: Bytes,
    keys: u64,
}

fn decode(item: (Bytes, Bytes)) -> Result<Block, ViewError> {
    let (key, record) = item;
    let count: CountV1 = codec::decode_record("key count", &record)?;
    Ok(Block {
        first: schema::user_key(&key)?,
        keys: count.keys,
    })
}

/// The block that `key` lies in.
fn block_of(view: &dyn View, key: &Bytes) -> Result<Block, ViewError> {
    let (start, _) = schema::count_bounds(&KeyRange::all());
    let end = schema::just_after(&schema::count_key(key));
    match view.scan(&start, &end, true).next().transpose()? {
        Some(item) => decode(item),
        None => Ok(Block {
            first: Bytes::new(),
            keys: 0,
        }),
    }
}

/// The block after one.
fn block_after(view: &dyn View, block: &Block) -> Result<Option<Block>, ViewError> {
    let (start, end) = schema::count_bounds(&KeyRange::all());
    let start = start.max(schema::just_after(&schema::count_key(&block.first)));
    let next = view.scan(&start, &end, false).next().transpose()?;
    next.map(decode).transpose()
}

fn write(state: &mut State<'_>, block: &Block) {
    let record = codec::encode_record(&CountV1 { keys: block.keys });
    state.put_record(schema::count_key(&block.first), record);
}

/// Counts a key that was just created.
pub(crate) fn add(state: &mut State<'_>, key: &Bytes) -> Result<(), ViewError> {
    let mut block = block_of(&state.overlay, key)?;
    block.keys += 1;
    if block.keys > SPLIT_ABOVE {
        // The block's first key is not always stored: the first block begins at the empty key.
        let range = KeyRange::from(block.first.clone());
        let (start, end) = schema::latest_bounds(&range);
        let middle = state
            .overlay
            .scan(&start, &end, false)
            .nth(BLOCK_KEYS as usize)
            .transpose()?;
        if let Some((middle, _)) = middle {
            let upper = Block {
                first: schema::user_key(&middle)?,
                keys: block.keys - BLOCK_KEYS,
            };
            write(state, &upper);
            block.keys = BLOCK_KEYS;
        }
    }
    write(state, &block);
    Ok(())
}

/// Takes back a key that was just deleted.
pub(crate) fn remove(state: &mut State<'_>, key: &Bytes) -> Result<(), ViewError> {
    let mut block = block_of(&state.overlay, key)?;
    block.keys = block
        .keys
        .checked_sub(1)
        .ok_or_else(|| ViewError::corrupt("a block counts fewer keys than it holds"))?;
    if block.keys < JOIN_BELOW
        && let Some(next) = block_after(&state.overlay, &block)?
        && block.keys + next.keys <= BLOCK_KEYS
    {
        block.keys += next.keys;
        state.delete_record(schema::count_key(&next.first));
    }
    write(state, &block);
    Ok(())
}

/// How many keys a range holds now.
pub(crate) fn count(view: &dyn View, range: &KeyRange) -> Result<u64, ViewError> {
    if range.is_empty() {
        return Ok(0);
    }
    let mut block = block_of(view, &range.start)?;
    let blocks_from = schema::just_after(&schema::count_key(&block.first));
    let (_, blocks_to) = schema::count_bounds(range);
    let mut total = 0;
    for item in view.scan(&blocks_from, &blocks_to, false) {
        let next = decode(item?)?;
        total += if block.first >= range.start {
            block.keys
        } else {
            walk(view, &range.start, RangeEnd::Before(next.first.clone()))?
        };
        block = next;
    }
    // The last block may reach beyond the range.
    total += if block.first >= range.start && range.end == RangeEnd::Unbounded {
        block.keys
    } else {
        walk(view, (&range.start).max(&block.first), range.end.clone())?
    };
    Ok(total)
}

/// How many keys a range held at a past revision: what it holds now, with the changes since then
/// undone. `None` if there are too many of them.
pub(crate) fn count_at(
    view: &dyn View,
    range: &KeyRange,
    at: Revision,
) -> Result<Option<u64>, ViewError> {
    let (mut created, mut deleted) = (0, 0);
    let (start, end) = schema::change_bounds(at.saturating_add(1), Revision::MAX);
    for (looked_at, item) in view.scan(&start, &end, false).enumerate() {
        if looked_at == MAX_UNDONE_CHANGES {
            return Ok(None);
        }
        let (change, key): (ChangeV1, _) = codec::decode_record_with_tail("change", &item?.1)?;
        match change {
            _ if !range.contains(&key) => {}
            ChangeV1 {
                kind: ChangeKindV1::Delete,
                ..
            } => deleted += 1,
            ChangeV1 {
                superseded: None, ..
            } => created += 1,
            _ => {}
        }
    }
    let now = count(view, range)?;
    (now + deleted)
        .checked_sub(created)
        .map(Some)
        .ok_or_else(|| ViewError::corrupt("more keys were created since a revision than there are"))
}

/// Counts keys one by one.
fn walk(view: &dyn View, start: &Bytes, end: RangeEnd) -> Result<u64, ViewError> {
    let range = KeyRange {
        start: start.clone(),
        end,
    };
    let (start, end) = schema::latest_bounds(&range);
    let mut total = 0;
    for item in view.scan(&start, &end, false) {
        item?;
        total += 1;
    }
    Ok(total)
}
