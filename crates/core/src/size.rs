//! How many pods there should be: which word on that counts.
//!
//! Sizes come from the pods' StatefulSet, read by whoever leads, or from a person. An old read must never
//! undo a newer one, and another StatefulSet must not take a cluster over by its mere existence:
//!
//! ```text
//!   nothing known yet               counts
//!   the same source                 counts if its generation is larger
//!   set by hand                     counts, whatever was there
//!   another source                  counts if it says the same size: so it changes nothing now,
//!                                   and its later generations are followed
//! ```
//!
//! The last rule lets a StatefulSet be deleted with `--cascade=orphan` and made anew, as one does to resize
//! volumes: the new one, with a new UID, takes over without a person if it begins where the old one ended.

use podkv_api::{DesiredSize, Reason};

use crate::codec;
use crate::outcome::{Answer, Rejection};
use crate::record::state::DesiredSizeV1;
use crate::schema;
use crate::state::State;
use crate::view::{View, ViewError};

/// The size that counts; `None` if nobody has set one.
pub fn desired_size(view: &dyn View) -> Result<Option<DesiredSize>, ViewError> {
    match view.get(&schema::desired_size_key())? {
        None => Ok(None),
        Some(record) => {
            let size: DesiredSizeV1 = codec::decode_record("desired size", &record)?;
            Ok(Some(size.try_into()?))
        }
    }
}

/// Does `new` take the place of what is known?
pub fn size_counts(known: Option<&DesiredSize>, new: &DesiredSize) -> bool {
    known.is_none_or(|known| {
        let same_size = (known.start, known.replicas) == (new.start, new.replicas);
        match known.source == new.source {
            true => new.generation > known.generation,
            false => new.source.is_empty() || same_size,
        }
    })
}

impl State<'_> {
    pub(crate) fn set_desired_size(
        &mut self,
        new: &DesiredSize,
    ) -> Result<Result<Answer, Rejection>, ViewError> {
        let current = desired_size(&self.overlay)?;
        if current.as_ref() == Some(new) {
            return Ok(Ok(Answer::Done));
        }
        if !size_counts(current.as_ref(), new) {
            return Ok(Err(self.reject(Reason::InvalidArgument)));
        }
        let record = codec::encode_record(&DesiredSizeV1::from(new));
        self.put_record(schema::desired_size_key(), record);
        Ok(Ok(Answer::Done))
    }
}
