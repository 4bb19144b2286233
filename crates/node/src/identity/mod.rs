//! Who a node is, and what it has promised. Kept on its volume, so that no restart forgets it.
//!
//! ```text
//!            reserve              become_member            retire
//!   virgin ───────────► reserved ───────────────► member ─────────► retired
//!      ▲                    │                        ▲
//!      └──── release ───────┘                        │
//!      └───────────────── become_member (a join) ────┘
//! ```
//!
//! Each arrow is on the disk before the call returns. There is none back from `member`: a node that may
//! have voted never becomes somebody else's under the same id. Released clusters are refused for
//! ever: their proposer may have counted the acceptance.
//!
//! One hand reaches in from outside: `recovery`, which moves a stopped member on to the next incarnation.
//!
//! Node ids are random, never an ordinal, never used twice: an empty volume under an old id would
//! have forgotten its votes, and nobody would notice.
//!
//! Functions that change something write and fsync: call them through [`Identity::workers`]. Those that
//! only look never wait for a disk.

mod files;
mod folder;
mod marker;
mod peers;
pub(crate) mod promise;
mod recovery;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use podkv_api::{ClusterId, Error, Incarnation, MemberId, Reason};

use crate::storage::Workers;

pub use files::{Aside, IdentityFile, MarkerStore};
pub use folder::DataFolder;
#[cfg(feature = "rocksdb")]
pub(crate) use folder::{CHECKPOINT_PREFIX, LOG_FOLDER, STATE_POINTER, STATE_PREFIX};
use marker::Marker;
pub use marker::{FOLDER_FORMAT, Founder, Phase, Proposal};
use peers::{Observation, PeerBoots};
pub(crate) use recovery::{Recovery, Resident};

/// Founders of one cluster, at most.
pub const MAX_FOUNDERS: usize = 256;
/// The longest pod name or address in a proposal: a DNS name and a port.
const MAX_TEXT_BYTES: usize = 320;
/// Releases that a node may make in its life; each is remembered. Beyond it the volume must be renewed.
const MAX_REFUSED: usize = 4096;

/// A node's identity at run time. Share it by `Arc`.
pub struct Identity {
    markers: Arc<dyn MarkerStore>,
    node_id: MemberId,
    name: String,
    boot_counter: u64,
    boot_nonce: u64,
    /// Replaced whole, after the disk has it.
    marker: RwLock<Arc<Marker>>,
    peers: RwLock<PeerBoots>,
    /// Held while one of the two files is replaced.
    saving: Mutex<Saving>,
}

#[derive(Default)]
struct Saving {
    /// A save failed: the file may be the old one or the new one. Only a restart, which reads it, can tell.
    failed: bool,
}

impl Identity {
    /// Reads who this volume belongs to, or makes it a new node's, and counts this start. Blocking.
    ///
    /// `name` is the pod's name. [`Reason::DataFolder`] if the volume is another pod's or of a newer
    /// format; [`Reason::Corrupt`] if the marker is damaged, or missing although there is data.
    pub fn open(markers: Arc<dyn MarkerStore>, name: &str) -> Result<Self, Error> {
        let place = markers.describe(IdentityFile::Marker);
        if name.is_empty() || name.len() > MAX_TEXT_BYTES {
            return Err(Error::new(
                Reason::Configuration,
                format!(
                    "the node name has {} bytes; expected 1 to {MAX_TEXT_BYTES}",
                    name.len()
                ),
            ));
        }
        let mut marker = match markers.load(IdentityFile::Marker)? {
            Some(bytes) => Marker::decode(&bytes, &place)?,
            None if markers.holds_data()? => return Err(folder::missing_marker(&place)),
            None => Marker {
                node: MemberId(random_id()),
                name: name.to_owned(),
                boot_counter: 0,
                phase: Phase::Virgin,
                refused: Vec::new(),
                founding: None,
            },
        };
        if marker.name != name {
            return Err(Error::new(
                Reason::DataFolder,
                format!(
                    "{place} belongs to pod {:?}, and this is pod {name:?}; mount the volume of this \
                     pod. Nothing was changed",
                    marker.name
                ),
            ));
        }
        recovery::refuse_unfinished(&*markers)?;
        let peers = match markers.load(IdentityFile::Peers)? {
            Some(bytes) => PeerBoots::decode(&bytes, &markers.describe(IdentityFile::Peers))?,
            None => PeerBoots::default(),
        };
        marker.boot_counter = marker
            .boot_counter
            .checked_add(1)
            .ok_or_else(|| Error::internal("the boot counter is exhausted"))?;
        markers.save(IdentityFile::Marker, &marker.encode())?;
        Ok(Self {
            node_id: marker.node,
            name: marker.name.clone(),
            boot_counter: marker.boot_counter,
            boot_nonce: random_id(),
            marker: RwLock::new(Arc::new(marker)),
            peers: RwLock::new(peers),
            saving: Mutex::default(),
            markers,
        })
    }

    pub fn node_id(&self) -> MemberId {
        self.node_id
    }

    /// Where changes of it run.
    pub fn workers(&self) -> Workers {
        self.markers.workers()
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How often this node was started; on the disk.
    pub fn boot_counter(&self) -> u64 {
        self.boot_counter
    }

    /// Random, of this start alone. Tells two starts under one counter apart.
    pub fn boot_nonce(&self) -> u64 {
        self.boot_nonce
    }

    pub fn phase(&self) -> Phase {
        self.marker().phase.clone()
    }

    /// The cluster that this node is a member of.
    pub fn membership(&self) -> Option<(ClusterId, Incarnation)> {
        match self.marker().phase {
            Phase::Member {
                cluster,
                incarnation,
            } => Some((cluster, incarnation)),
            _ => None,
        }
    }

    /// The proposal through which this node became a member; `None` if it joined, or is none.
    pub fn founding(&self) -> Option<Proposal> {
        self.marker().founding.clone()
    }

    /// True if this node accepted that cluster once and released it.
    pub fn refuses(&self, cluster: ClusterId) -> bool {
        self.marker().refused.contains(&cluster)
    }

    /// Accepts a proposal: durably, and at most one. The same one again is fine. Blocking.
    ///
    /// The caller has compared `replicas` with its own setting.
    pub fn reserve(&self, proposal: Proposal) -> Result<(), Error> {
        self.check_proposal(&proposal)?;
        self.transition(|marker| match &marker.phase {
            Phase::Reserved(accepted) if *accepted == proposal => Ok(false),
            Phase::Virgin => {
                refuse_released(marker, proposal.cluster)?;
                marker.phase = Phase::Reserved(proposal);
                Ok(true)
            }
            phase => Err(conflict(format!(
                "this node cannot accept cluster {}: it is {phase}",
                proposal.cluster
            ))),
        })
    }

    /// Takes an acceptance back and refuses that cluster for ever. Only before this node's first vote or
    /// append; after [`Identity::become_member`] it is too late. A virgin node has nothing to
    /// release, which is fine. Blocking.
    pub fn release(&self) -> Result<(), Error> {
        self.transition(|marker| match &marker.phase {
            Phase::Virgin => Ok(false),
            Phase::Reserved(proposal) => {
                if marker.refused.len() >= MAX_REFUSED {
                    return Err(conflict(format!(
                        "this node has released {MAX_REFUSED} clusters and can remember no more; give \
                         its pod an empty volume"
                    )));
                }
                marker.refused.push(proposal.cluster);
                marker.phase = Phase::Virgin;
                Ok(true)
            }
            phase => Err(conflict(format!("this node has nothing to release: it is {phase}"))),
        })
    }

    /// Becomes a member: of the cluster that it is reserved for, or, still virgin, of one that it joins.
    /// Must return before this node's first vote or append. The same again is fine. Blocking.
    pub fn become_member(&self, cluster: ClusterId, incarnation: Incarnation) -> Result<(), Error> {
        let member = Phase::Member {
            cluster,
            incarnation,
        };
        self.transition(|marker| match &marker.phase {
            Phase::Reserved(proposal) if proposal.cluster == cluster => {
                marker.founding = Some(proposal.clone());
                marker.phase = member;
                Ok(true)
            }
            Phase::Virgin => {
                refuse_released(marker, cluster)?;
                marker.phase = member;
                Ok(true)
            }
            phase if *phase == member => Ok(false),
            Phase::Member {
                cluster: own,
                incarnation: own_incarnation,
            } if *own == cluster => Err(Error::new(
                Reason::WrongIncarnation,
                format!(
                    "this node is a member of cluster {cluster} in incarnation {own_incarnation}, not \
                     {incarnation}; give its pod an empty volume to join anew"
                ),
            )),
            phase => Err(Error::new(
                Reason::WrongCluster,
                format!("this node cannot become a member of cluster {cluster}: it is {phase}"),
            )),
        })
    }

    /// Ends this node id: its cluster removed it. Blocking.
    pub fn retire(&self) -> Result<(), Error> {
        self.transition(|marker| match marker.phase {
            Phase::Member {
                cluster,
                incarnation,
            } => {
                marker.phase = Phase::Retired {
                    cluster,
                    incarnation,
                };
                Ok(true)
            }
            Phase::Retired { .. } => Ok(false),
            ref phase => Err(conflict(format!(
                "only a member can retire: this node is {phase}"
            ))),
        })
    }

    /// Looks at a peer's start, as its calls' headers state it: [`Reason::RewoundVolume`] if its volume
    /// was rewound or copied. A later start is remembered durably.
    ///
    /// Blocks only when the start is new, which [`Identity::knows_peer`] tells. A message of an earlier
    /// start that arrives late is refused as well; nobody waits for its answer.
    pub fn observe_peer(&self, id: MemberId, boot_counter: u64, nonce: u64) -> Result<(), Error> {
        if id == self.node_id {
            if (boot_counter, nonce) == (self.boot_counter, self.boot_nonce) {
                return Ok(());
            }
            return Err(peers::rewound(
                id,
                "it has the id of the node that it calls",
            ));
        }
        if id == MemberId(0) || boot_counter == 0 {
            return Err(Error::new(
                Reason::InvalidArgument,
                "a peer's id and boot counter start at 1",
            ));
        }
        match self.peers().judge(id, boot_counter, nonce)? {
            Observation::Known => return Ok(()),
            Observation::New => {}
        }
        let mut saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have been faster, with a later start.
        let mut peers = self.peers().clone();
        if let Observation::New = peers.judge(id, boot_counter, nonce)? {
            peers.insert(id, boot_counter, nonce);
            self.save(&mut saving, IdentityFile::Peers, &peers.encode())?;
            *self.peers.write().unwrap_or_else(PoisonError::into_inner) = peers;
        }
        Ok(())
    }

    /// True if this very start has been observed, so that [`Identity::observe_peer`] would not block.
    pub fn knows_peer(&self, id: MemberId, boot_counter: u64, nonce: u64) -> bool {
        matches!(
            self.peers().judge(id, boot_counter, nonce),
            Ok(Observation::Known)
        )
    }

    fn marker(&self) -> Arc<Marker> {
        let marker = self.marker.read();
        marker.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn peers(&self) -> std::sync::RwLockReadGuard<'_, PeerBoots> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `change` move the marker on, and saves it if it says so.
    fn transition(
        &self,
        change: impl FnOnce(&mut Marker) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut marker = Marker::clone(&self.marker());
        if change(&mut marker)? {
            tracing::info!(node = %self.node_id, phase = %marker.phase, "the node's phase changes");
            self.save(&mut saving, IdentityFile::Marker, &marker.encode())?;
            *self.marker.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(marker);
        }
        Ok(())
    }

    fn save(&self, saving: &mut Saving, file: IdentityFile, bytes: &[u8]) -> Result<(), Error> {
        if saving.failed {
            return Err(Error::internal(format!(
                "an earlier write beside {} failed; restart the node",
                self.markers.describe(file)
            )));
        }
        // What is written must be readable: the limits below make sure of it.
        if bytes.len() > file.max_bytes() {
            return Err(Error::internal(format!(
                "{} would have {} bytes, above the limit of {}",
                self.markers.describe(file),
                bytes.len(),
                file.max_bytes()
            )));
        }
        self.markers.save(file, bytes).map_err(|error| {
            saving.failed = true;
            Error::from(error)
        })
    }

    /// A proposal that nobody should accept is refused before it costs an fsync.
    fn check_proposal(&self, proposal: &Proposal) -> Result<(), Error> {
        let bad = |text: String| Err(Error::new(Reason::InvalidArgument, text));
        let founders = &proposal.founders;
        if proposal.cluster == ClusterId(0) {
            return bad("the proposed cluster id is 0".into());
        }
        if founders.len() > MAX_FOUNDERS || founders.len() != proposal.replicas as usize {
            return bad(format!(
                "the proposal names {} founders for {} replicas; expected one each, at most {MAX_FOUNDERS}",
                founders.len(),
                proposal.replicas
            ));
        }
        let names: BTreeSet<_> = founders.iter().map(|founder| &founder.name).collect();
        let ids: BTreeSet<_> = founders.iter().map(|founder| founder.id).collect();
        if names.len() != founders.len()
            || ids.len() != founders.len()
            || ids.contains(&MemberId(0))
        {
            return bad("the proposal names a founder twice, or one without an id".into());
        }
        let is_long = |text: &String| text.len() > MAX_TEXT_BYTES;
        if founders.iter().any(|founder| {
            is_long(&founder.name)
                || is_long(&founder.peer_address)
                || is_long(&founder.client_address)
        }) {
            return bad(format!(
                "the proposal has a name or address of more than {MAX_TEXT_BYTES} bytes"
            ));
        }
        if !founders.iter().any(|founder| founder.voter) {
            return bad("the proposal has no voter".into());
        }
        if !founders
            .iter()
            .any(|founder| founder.id == self.node_id && founder.name == self.name)
        {
            return bad(format!(
                "the proposal does not name this node, {} with id {}",
                self.name, self.node_id
            ));
        }
        Ok(())
    }
}

fn refuse_released(marker: &Marker, cluster: ClusterId) -> Result<(), Error> {
    if marker.refused.contains(&cluster) {
        return Err(conflict(format!(
            "this node released cluster {cluster} and never takes part in it; give its pod an empty \
             volume to join it under a new id"
        )));
    }
    Ok(())
}

fn conflict(text: String) -> Error {
    Error::new(Reason::MembershipConflict, text)
}

/// Random and never 0, which stands for "none" on the wire.
fn random_id() -> u64 {
    loop {
        let id = rand::random();
        if id != 0 {
            return id;
        }
    }
}

#[cfg(test)]
mod tests;
