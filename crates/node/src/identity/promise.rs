//! For how long this node may have promised neither to vote nor to campaign: see `raft/leader_lease.rs`.
//!
//! It is on the disk before the first promise is made, so a start knows for how long the last one may go on. It goes down
//! only when what was promised before is over.
//!
//! ```text
//! PROMISE   milliseconds u64
//! ```

use std::time::Duration;

use podkv_api::Error;
use podkv_core::codec::{self, Decode, Encode, FrameKind};

use super::marker::unreadable;
use super::{IdentityFile, MarkerStore};

#[derive(Encode, Decode)]
#[bincode(crate = "podkv_core::bincode")]
struct PromiseV1 {
    longest_ms: u64,
}

/// Notes that from now on promises are as long as `promise`, or longer if they were before. Returns how long they were.
/// Blocking.
pub(crate) fn begin(markers: &dyn MarkerStore, promise: Duration) -> Result<Duration, Error> {
    let before = load(markers)?;
    if before < promise {
        save(markers, promise)?;
    }
    Ok(before)
}

/// What was promised before this start is over. Blocking.
pub(crate) fn settle(markers: &dyn MarkerStore, promise: Duration) -> Result<(), Error> {
    if load(markers)? <= promise {
        return Ok(());
    }
    match promise.is_zero() {
        true => Ok(markers.remove(IdentityFile::Promise)?),
        false => save(markers, promise),
    }
}

fn load(markers: &dyn MarkerStore) -> Result<Duration, Error> {
    let file = IdentityFile::Promise;
    let Some(bytes) = markers.load(file)? else {
        return Ok(Duration::ZERO);
    };
    let PromiseV1 { longest_ms } =
        codec::decode_frame(FrameKind::Promise, &bytes, file.max_bytes())
            .map_err(|error| unreadable(&markers.describe(file), error))?;
    Ok(Duration::from_millis(longest_ms))
}

fn save(markers: &dyn MarkerStore, promise: Duration) -> Result<(), Error> {
    // Rounded up: it must not be shorter than what is promised.
    let longest_ms = u64::try_from(promise.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    let bytes = codec::encode_frame(FrameKind::Promise, &PromiseV1 { longest_ms });
    Ok(markers.save(IdentityFile::Promise, &bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryDisk, Volume};

    const SHORT: Duration = Duration::from_millis(250);
    const LONG: Duration = Duration::from_millis(1200);

    #[test]
    fn a_start_knows_the_longest_promise_that_may_go_on() {
        let disk = MemoryDisk::new();
        let markers = Volume::memory(&disk).markers();
        assert_eq!(begin(&*markers, LONG).unwrap(), Duration::ZERO);
        // Shorter from now on, but a crash may come before the long one is over.
        assert_eq!(begin(&*markers, SHORT).unwrap(), LONG);
        assert_eq!(begin(&*markers, SHORT).unwrap(), LONG);
        settle(&*markers, SHORT).unwrap();
        assert_eq!(begin(&*markers, LONG).unwrap(), SHORT);
        // Off: nothing is left of it in the end.
        assert_eq!(begin(&*markers, Duration::ZERO).unwrap(), LONG);
        settle(&*markers, Duration::ZERO).unwrap();
        assert!(markers.load(IdentityFile::Promise).unwrap().is_none());
    }

    #[test]
    fn settling_never_shortens_what_is_promised_now() {
        let disk = MemoryDisk::new();
        let markers = Volume::memory(&disk).markers();
        begin(&*markers, LONG).unwrap();
        settle(&*markers, LONG).unwrap();
        assert_eq!(begin(&*markers, LONG).unwrap(), LONG);
    }

    #[test]
    fn the_bytes_are_pinned() {
        let disk = MemoryDisk::new();
        let markers = Volume::memory(&disk).markers();
        begin(&*markers, LONG).unwrap();
        let bytes = markers.load(IdentityFile::Promise).unwrap().unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    /// Written by the first release that made promises.
    const GOLDEN: &str = "011300000000030000004dbcfb0dfbb004";

    #[test]
    fn a_damaged_record_is_not_taken_for_no_promise() {
        let disk = MemoryDisk::new();
        let markers = Volume::memory(&disk).markers();
        markers.save(IdentityFile::Promise, b"damage").unwrap();
        let error = begin(&*markers, SHORT).unwrap_err();
        assert_eq!(error.reason(), podkv_api::Reason::Corrupt);
    }
}
