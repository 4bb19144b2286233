//! Digests, to compare replicas.

use podkv_api::{KeyRange, Range, Revision};
use sha2::{Digest, Sha256};

use crate::codec;
use crate::outcome::Rejection;
use crate::range::{PageLimits, range};
use crate::record::KeyValueV1;
use crate::schema;
use crate::view::{View, ViewError};

/// SHA-256 over every key and value that the core owns. Equal on replicas that applied the same
/// entries.
pub fn state_digest(view: &dyn View) -> Result<[u8; 32], ViewError> {
    let mut hash = Sha256::new();
    for (start, end) in schema::core_bounds() {
        for item in view.scan(&start, &end, false) {
            let (key, value) = item?;
            for part in [key, value] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(&part);
            }
        }
    }
    Ok(hash.finalize().into())
}

/// SHA-256 over the users' keys with values and metadata as of a revision (0 is the latest), so
/// that replicas at different positions can be compared.
pub fn data_digest(
    view: &dyn View,
    revision: Revision,
) -> Result<Result<[u8; 32], Rejection>, ViewError> {
    let mut hash = Sha256::new();
    let mut next = Some(Range::new(KeyRange::all()).at(revision));
    let page_limits = PageLimits {
        max_bytes: 1024 * 1024,
        count: false,
    };
    while let Some(request) = next {
        let page = match range(view, &request, page_limits)? {
            Ok(page) => page,
            Err(rejection) => return Ok(Err(rejection)),
        };
        for kv in &page.kvs {
            codec::hash_into(&mut hash, &KeyValueV1::from(kv));
        }
        next = page.next;
    }
    Ok(Ok(hash.finalize().into()))
}
