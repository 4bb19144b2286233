//! Refuses answers from another cluster, or from this cluster's past.
//!
//! A name may one day lead to another cluster, a volume may be rewound, a lost majority may be
//! recovered while an old node still answers somewhere. Every answer's header is held against what
//! was seen before:
//!
//! ```text
//!   cluster id      must be the one first seen                     else WrongCluster
//!   incarnation     must not be below the highest seen             else WrongIncarnation
//!   revision        of a linearizable answer, in one incarnation:  else RevisionWentBack
//!                   must not be below any linearizable answer
//!                   that was complete before this call began
//! ```
//!
//! The last rule compares with what was complete *before the call began*, not before its answer came:
//! two calls that overlap may finish in either order. A local or bounded read may lag and is exempt.

use std::sync::Mutex;

use podkv_api::{ClusterId, Error, Header, Incarnation, Reason, Result, Revision};

/// What an answer promises about its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// A write, or a linearizable read.
    Linearizable,
    /// Whatever the node had.
    Any,
}

/// What had been seen when a call began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    incarnation: Incarnation,
    revision: Revision,
}

#[derive(Debug, Default)]
struct Seen {
    cluster: Option<ClusterId>,
    incarnation: Incarnation,
    /// The highest of the linearizable answers, within `incarnation`.
    revision: Revision,
}

/// Shared by everything that one client asks, whichever node it asks.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    seen: Mutex<Seen>,
}

impl Fence {
    /// Call before the first attempt of a call; later attempts of it keep the first one's mark, because
    /// a repeated write is answered with its first answer.
    pub fn begin(&self) -> Begun {
        let seen = self.lock();
        Begun {
            incarnation: seen.incarnation,
            revision: seen.revision,
        }
    }

    /// Checks an answer's header and remembers it.
    pub fn admit(&self, begun: Begun, header: Header, freshness: Freshness) -> Result<()> {
        let mut seen = self.lock();
        // A node that belongs to no cluster yet says nothing about one.
        if header.cluster == ClusterId::default() {
            return Ok(());
        }
        let cluster = *seen.cluster.get_or_insert(header.cluster);
        if header.cluster != cluster {
            return Err(Error::new(
                Reason::WrongCluster,
                format!(
                    "member {} answered for cluster {}, but this client talks to cluster {cluster}; \
                     check where its address leads",
                    header.member, header.cluster
                ),
            ));
        }
        if header.incarnation < seen.incarnation {
            return Err(Error::new(
                Reason::WrongIncarnation,
                format!(
                    "member {} answered for incarnation {}, but incarnation {} has been seen: the cluster \
                     was recovered, and this node missed it. Stop it, or give it an empty volume",
                    header.member, header.incarnation, seen.incarnation
                ),
            ));
        }
        if header.incarnation > seen.incarnation {
            seen.incarnation = header.incarnation;
            seen.revision = 0;
        }
        if freshness == Freshness::Linearizable {
            if begun.incarnation == header.incarnation && header.revision < begun.revision {
                return Err(Error::new(
                    Reason::RevisionWentBack,
                    format!(
                        "member {} answered at revision {}, but revision {} had been seen before the call: \
                         acknowledged writes may be lost, or a volume was rewound",
                        header.member, header.revision, begun.revision
                    ),
                )
                .with_revision(header.revision));
            }
            seen.revision = seen.revision.max(header.revision);
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        // Nothing panics while it is held; if something did, the values are still whole.
        self.seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podkv_api::MemberId;

    fn header(cluster: u64, incarnation: u64, revision: Revision) -> Header {
        Header {
            cluster: ClusterId(cluster),
            incarnation: Incarnation(incarnation),
            member: MemberId(1),
            term: 1,
            revision,
        }
    }

    fn ask(fence: &Fence, header: Header) -> Option<Reason> {
        fence
            .admit(fence.begin(), header, Freshness::Linearizable)
            .err()
            .map(|error| error.reason())
    }

    #[test]
    fn a_node_without_a_cluster_pins_nothing() {
        let fence = Fence::default();
        let begun = fence.begin();
        fence.admit(begun, header(0, 0, 0), Freshness::Any).unwrap();
        fence.admit(begun, header(7, 1, 1), Freshness::Any).unwrap();
    }

    #[test]
    fn another_cluster_is_refused_also_for_local_reads() {
        let fence = Fence::default();
        assert_eq!(ask(&fence, header(7, 0, 5)), None);
        assert_eq!(ask(&fence, header(8, 0, 9)), Some(Reason::WrongCluster));
        let local = fence.admit(fence.begin(), header(8, 0, 9), Freshness::Any);
        assert_eq!(local.unwrap_err().reason(), Reason::WrongCluster);
    }

    #[test]
    fn an_older_incarnation_is_refused_and_a_newer_one_starts_afresh() {
        let fence = Fence::default();
        assert_eq!(ask(&fence, header(7, 3, 500)), None);
        assert_eq!(ask(&fence, header(7, 4, 20)), None);
        assert_eq!(
            ask(&fence, header(7, 3, 501)),
            Some(Reason::WrongIncarnation)
        );
    }

    #[test]
    fn a_revision_that_runs_backwards_is_refused() {
        let fence = Fence::default();
        assert_eq!(ask(&fence, header(7, 0, 500)), None);
        assert_eq!(
            ask(&fence, header(7, 0, 499)),
            Some(Reason::RevisionWentBack)
        );
        assert_eq!(ask(&fence, header(7, 0, 500)), None);
    }

    #[test]
    fn overlapping_calls_may_finish_in_either_order() {
        let fence = Fence::default();
        let early = fence.begin();
        assert_eq!(ask(&fence, header(7, 0, 500)), None);
        assert!(
            fence
                .admit(early, header(7, 0, 400), Freshness::Linearizable)
                .is_ok()
        );
        // And the late one did not lower the mark.
        assert_eq!(
            ask(&fence, header(7, 0, 400)),
            Some(Reason::RevisionWentBack)
        );
    }

    #[test]
    fn local_reads_may_lag_and_move_no_mark() {
        let fence = Fence::default();
        assert_eq!(ask(&fence, header(7, 0, 500)), None);
        assert!(
            fence
                .admit(fence.begin(), header(7, 0, 3), Freshness::Any)
                .is_ok()
        );
        assert!(
            fence
                .admit(fence.begin(), header(7, 0, 900), Freshness::Any)
                .is_ok()
        );
        assert_eq!(ask(&fence, header(7, 0, 500)), None);
    }
}
