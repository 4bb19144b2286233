//! How much may be in flight on one node: a bound on proposals and on their bytes.
//!
//! Beyond it a write is refused at once, with advice to come back. Waiting here would only hide the
//! overload and grow memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use podkv_api::{Error, Reason, Result};

#[derive(Clone, Debug)]
pub(crate) struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max_proposals: usize,
    max_bytes: usize,
    proposals: AtomicUsize,
    bytes: AtomicUsize,
}

/// Room for one proposal, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Inner>,
    bytes: usize,
}

impl Admission {
    pub fn new(max_proposals: usize, max_bytes: usize) -> Self {
        Self(Arc::new(Inner {
            max_proposals,
            max_bytes,
            proposals: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        }))
    }

    pub fn max_proposals(&self) -> usize {
        self.0.max_proposals
    }

    pub fn in_flight(&self) -> usize {
        self.0.proposals.load(Ordering::Relaxed)
    }

    /// Admits a proposal, or says that there is too much in flight. A proposal larger than the bound
    /// passes when nothing else is in flight, so that the bound can never refuse it for ever.
    pub fn admit(&self, bytes: usize) -> Result<Permit> {
        let proposals = self.0.proposals.fetch_add(1, Ordering::AcqRel) + 1;
        let total = self.0.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let permit = Permit {
            admission: self.0.clone(),
            bytes,
        };
        let alone = total == bytes;
        if proposals > self.0.max_proposals || (total > self.0.max_bytes && !alone) {
            drop(permit);
            return Err(Error::new(
                Reason::Overloaded,
                format!(
                    "too much in flight on this node ({proposals} writes, {total} bytes): \
                     wait for some answers, then try again"
                ),
            ));
        }
        Ok(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.proposals.fetch_sub(1, Ordering::AcqRel);
        self.admission.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_beyond_either_bound_and_gives_room_back() {
        let admission = Admission::new(2, 100);
        let first = admission.admit(60).unwrap();
        assert_eq!(
            admission.admit(60).unwrap_err().reason(),
            Reason::Overloaded
        );
        let second = admission.admit(10).unwrap();
        assert_eq!(admission.admit(1).unwrap_err().reason(), Reason::Overloaded);
        drop((first, second));
        assert_eq!(admission.in_flight(), 0);
        admission
            .admit(1_000)
            .expect("one that is larger than the bound passes alone");
    }
}
