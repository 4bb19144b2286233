//! Who may speak to this node.
//!
//! Each check stands for one way in which a call can come from the wrong past or go to the wrong place:
//!
//! | check | what it keeps out | reason |
//! | --- | --- | --- |
//! | certificate, on a TLS connection | a pod that speaks in another's name | `PermissionDenied` |
//! | protocol version, feature range | a release that cannot understand this one | `Unsupported` |
//! | group | a group that this node does not hold | `Unsupported` |
//! | target | a call that reached a pod which took over the address of another | `WrongTarget` |
//! | cluster | another cluster, reached through a reused name | `WrongCluster` |
//! | incarnation | a survivor of before a recovery from a lost majority, or the reverse; see [`Scope`] | `WrongIncarnation` |
//! | boot counter and nonce | a sender whose volume was rewound, or is a copy of another's, mine included | `RewoundVolume` |
//!
//! A certificate must name the pod that the header gives as the sender. The id in the header must be that pod's, if
//! this node's membership knows the id: else a member could send in the name of any other. A Hello and a Join are about
//! a pod too, and it must be the same. What "name" means is in [`podkv_tls::names`]. It is checked first, before
//! anything in the header is believed. Whether a connection must be TLS at all is the listener's to say.
//!
//! What is *not* checked: whether the sender is in my membership. Membership may be known there first, and
//! a node that fell behind must hear from members it has never heard of.

use std::sync::{Arc, OnceLock};

use podkv_api::{ClusterId, Error, Incarnation, MemberId, Reason, Result};
use podkv_proto::peer as wire;
use podkv_tls::Certificate;
use tokio::sync::watch;

use super::header::{FEATURES, GROUP, PROTOCOL_VERSION, PeerHeaders};
use crate::identity::Identity;
use crate::raft::GroupState;

/// Which calls are allowed to what kind of sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Who are you? The target need not be known, nor a cluster. Answered across a recovery of the cluster as well: so
    /// who missed it hears of it.
    Hello,
    /// Reserve, join: to a known target, from a node that need not belong to anything.
    Founding,
    /// Am I still a member? From a member of this incarnation or an earlier one, which is told that it is not.
    Standing,
    /// Everything else: from a member, in the name of its cluster.
    Cluster,
}

/// Who makes a call, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sender {
    pub(crate) id: MemberId,
    /// What the sender is a member of. Always set in [`Scope::Cluster`].
    pub(crate) cluster: Option<(ClusterId, Incarnation)>,
}

/// Checks the header of every call.
#[derive(Clone)]
pub(crate) struct Gate {
    identity: Arc<Identity>,
    /// What follows the name of each pod in certificates, if this node knows it.
    domain: Option<Arc<str>>,
    /// Once there is a group: who its members are.
    group: Arc<OnceLock<watch::Receiver<GroupState>>>,
}

impl Gate {
    pub(crate) fn new(identity: Arc<Identity>) -> Self {
        Self {
            identity,
            domain: None,
            group: Arc::default(),
        }
    }

    /// The domain of the pods in certificates; see [`podkv_tls::names`].
    pub(crate) fn with_domain(mut self, domain: Option<&str>) -> Self {
        self.domain = domain.map(Arc::from);
        self
    }

    /// From now on ids are held against the members' names. Once in the life of a node.
    pub(crate) fn bind_group(&self, group: watch::Receiver<GroupState>) {
        let _ = self.group.set(group);
    }

    /// Whether who showed this certificate may send under this header. Plain text may: see the module.
    pub(crate) fn check_certificate(
        &self,
        certificate: Option<&Certificate>,
        header: Option<&wire::PeerHeader>,
    ) -> Result<()> {
        let Some(certificate) = certificate else {
            return Ok(());
        };
        let header = header
            .ok_or_else(|| Error::new(Reason::InvalidArgument, "the call carries no header"))?;
        self.check_named(certificate, &header.sender_name)?;
        let id = MemberId(header.sender_id);
        let known = self.group.get().and_then(|group| {
            let group = group.borrow();
            group.members.nodes.get(&id).map(|node| node.name.clone())
        });
        match known {
            Some(name) if name != header.sender_name => Err(Error::new(
                Reason::PermissionDenied,
                format!(
                    "the call comes from {:?} under the id {id}, which is {name:?}",
                    header.sender_name
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Whether the certificate names this pod.
    pub(crate) fn check_named(&self, certificate: &Certificate, pod: &str) -> Result<()> {
        if certificate.names_pod(pod, self.domain.as_deref()) {
            return Ok(());
        }
        let text = format!(
            "the certificate does not name the pod {pod:?}; its DNS names are: {}",
            certificate.names().join(", ")
        );
        Err(Error::new(Reason::PermissionDenied, text))
    }

    /// The headers of this gate's own node.
    pub(crate) fn headers(&self) -> PeerHeaders {
        PeerHeaders::new(self.identity.clone())
    }

    /// Who sends this, or why it is refused. A node that is not a member yet lets any cluster pass
    /// here: founding decides whom it follows.
    pub(crate) async fn check(
        &self,
        header: Option<&wire::PeerHeader>,
        scope: Scope,
    ) -> Result<Sender> {
        let header = header
            .ok_or_else(|| Error::new(Reason::InvalidArgument, "the call carries no header"))?;
        check_release(header)?;
        self.check_target(header, scope)?;
        let cluster = self.check_cluster(header, scope)?;
        let id = self.check_sender(header).await?;
        Ok(Sender { id, cluster })
    }

    /// Checks the header of an answer, as far as an answer has one: its sender must be known by id.
    pub(crate) async fn check_answer(&self, header: Option<&wire::PeerHeader>) -> Result<MemberId> {
        let header = header
            .ok_or_else(|| Error::new(Reason::InvalidArgument, "the answer carries no header"))?;
        check_release(header)?;
        self.check_sender(header).await
    }

    fn check_target(&self, header: &wire::PeerHeader, scope: Scope) -> Result<()> {
        let me = self.identity.node_id();
        let target = MemberId(header.target_id);
        let not_known = target == MemberId(0) && scope == Scope::Hello;
        if target == me || not_known {
            return Ok(());
        }
        Err(Error::new(
            Reason::WrongTarget,
            format!("the call is for {target}; this node is {me}"),
        ))
    }

    fn check_cluster(
        &self,
        header: &wire::PeerHeader,
        scope: Scope,
    ) -> Result<Option<(ClusterId, Incarnation)>> {
        let theirs = (
            ClusterId(header.cluster_id),
            Incarnation(header.incarnation),
        );
        if theirs.0 == ClusterId(0) {
            return match scope {
                Scope::Hello | Scope::Founding => Ok(None),
                Scope::Standing | Scope::Cluster => Err(Error::new(
                    Reason::WrongCluster,
                    "the sender belongs to no cluster; only hello, reserve and join may come from it",
                )),
            };
        }
        let Some(mine) = self.identity.membership() else {
            return Ok(Some(theirs));
        };
        if theirs.0 != mine.0 {
            let text = format!(
                "the sender belongs to cluster {}, this node to {}",
                theirs.0, mine.0
            );
            return Err(Error::new(Reason::WrongCluster, text));
        }
        let in_time = match scope {
            Scope::Hello => true,
            Scope::Standing => theirs.1 <= mine.1,
            Scope::Founding | Scope::Cluster => theirs.1 == mine.1,
        };
        if !in_time {
            let text = format!(
                "the sender is in incarnation {} of cluster {}, this node in {}",
                theirs.1, mine.0, mine.1
            );
            return Err(Error::new(Reason::WrongIncarnation, text));
        }
        Ok(Some(theirs))
    }

    /// A start that is new is remembered durably, which waits for the disk: off the async threads, and once
    /// per start of a peer.
    async fn check_sender(&self, header: &wire::PeerHeader) -> Result<MemberId> {
        let id = MemberId(header.sender_id);
        let (counter, nonce) = (header.boot_counter, header.boot_nonce);
        if !self.identity.knows_peer(id, counter, nonce) {
            let identity = self.identity.clone();
            identity
                .workers()
                .spawn(move || identity.observe_peer(id, counter, nonce))
                .await
                .map_err(|error| Error::internal("observing a peer failed").with_source(error))??;
        }
        Ok(id)
    }
}

fn check_release(header: &wire::PeerHeader) -> Result<()> {
    if header.protocol_version != PROTOCOL_VERSION {
        let text = format!(
            "the sender speaks peer protocol {}, this node {PROTOCOL_VERSION}",
            header.protocol_version
        );
        return Err(Error::new(Reason::Unsupported, text));
    }
    let overlap = header.feature_min <= *FEATURES.end() && *FEATURES.start() <= header.feature_max;
    if !overlap {
        let text = format!(
            "the sender supports feature levels {} to {}, this node {} to {}",
            header.feature_min,
            header.feature_max,
            FEATURES.start(),
            FEATURES.end()
        );
        return Err(Error::new(Reason::Unsupported, text));
    }
    if header.group_id != GROUP {
        let text = format!("this node holds group {GROUP}, not {}", header.group_id);
        return Err(Error::new(Reason::Unsupported, text));
    }
    Ok(())
}
