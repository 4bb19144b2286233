//! What a node serves for other nodes: forwarded writes, read indexes, changes of membership.

use std::sync::Weak;

use podkv_api::{Bytes, Error, Incarnation, MemberId, Reason};
use podkv_proto::peer as wire;
use tonic::{Status, Streaming};

use super::admin::from_wire;
use super::{Inner, Node};
use crate::membership::LogPosition;
use crate::peer::{NodeCalls, Reply, ReplyStream};
use crate::write::serve_forward;

/// Weak, because the service that holds it is owned by the node.
pub(super) struct Calls(pub Weak<Inner>);

impl Calls {
    fn node(&self) -> Result<Node, Status> {
        self.0
            .upgrade()
            .map(Node)
            .ok_or_else(|| Status::unavailable("the node is stopping"))
    }
}

impl NodeCalls for Calls {
    fn forward(
        &self,
        first: wire::ForwardRequest,
        rest: Streaming<wire::ForwardRequest>,
    ) -> ReplyStream<wire::ForwardResponse> {
        match self.node() {
            Ok(node) => {
                let inner = &node.0;
                serve_forward(
                    inner.writer.clone(),
                    first,
                    rest,
                    &inner.tasks,
                    inner.stop.clone(),
                )
            }
            Err(status) => Box::pin(futures_util::stream::iter([Err(status)])),
        }
    }

    fn read_index(&self, _: wire::ReadIndexRequest) -> Reply<'_, wire::ReadIndexResponse> {
        Box::pin(async move {
            let node = self.node()?;
            let term = node.0.group.state().borrow().term;
            Ok(match node.read_position().await {
                Ok(position) => wire::ReadIndexResponse {
                    read_log_id: Some(wire::LogId {
                        term: position.term,
                        index: position.index,
                    }),
                    refusal: None,
                    term,
                },
                Err(error) => wire::ReadIndexResponse {
                    read_log_id: None,
                    refusal: Some(refusal(&error)),
                    term,
                },
            })
        })
    }

    fn standing(&self, request: wire::StandingRequest) -> Reply<'_, wire::StandingResponse> {
        Box::pin(async move {
            let node = self.node()?;
            // The gate has checked that there is one.
            let header = request.header.unwrap_or_default();
            let (sender, incarnation) =
                (MemberId(header.sender_id), Incarnation(header.incarnation));
            let found = node.is_member(sender, incarnation).await;
            Ok(wire::StandingResponse {
                refusal: found.as_ref().err().map(refusal),
                // Who cannot be told is not told that it is gone.
                member: found.unwrap_or(true),
            })
        })
    }

    fn digest(&self, request: wire::DigestRequest) -> Reply<'_, wire::DigestResponse> {
        Box::pin(async move {
            let node = self.node()?;
            Ok(match node.digest_at(request.revision).await {
                Ok(sha256) => wire::DigestResponse {
                    refusal: None,
                    sha256: sha256.to_vec().into(),
                },
                Err(error) => wire::DigestResponse {
                    refusal: Some(refusal(&error)),
                    sha256: Bytes::new(),
                },
            })
        })
    }

    fn admin(&self, request: wire::AdminRequest) -> Reply<'_, wire::AdminResponse> {
        Box::pin(async move {
            let node = self.node()?;
            let Some(change) = request.change else {
                return Err(Status::invalid_argument("change is not set"));
            };
            // Not passed on again: the sender knows better where the leader is.
            let result = if node.is_leader() {
                node.change_here(from_wire(change)).await
            } else {
                Err(Error::new(Reason::NotLeader, "this node does not lead"))
            };
            Ok(match result {
                Ok(MemberId(leader_id)) => wire::AdminResponse {
                    refusal: None,
                    leader_id,
                    outcome_unknown: false,
                },
                Err(error) => wire::AdminResponse {
                    refusal: Some(refusal(&error)),
                    leader_id: node.leader().map_or(0, |id| id.0),
                    outcome_unknown: error.outcome_unknown(),
                },
            })
        })
    }
}

impl Node {
    /// Whether `id` is a member, beyond doubt; as the leader. Of an earlier incarnation nobody is, whatever its id:
    /// it is the volume of a member from before the recovery, or a copy of one.
    async fn is_member(&self, id: MemberId, incarnation: Incarnation) -> Result<bool, Error> {
        self.confirmed_position().await?;
        let state = self.0.group.state().borrow().clone();
        if !state.members_committed {
            let text = "a membership change is not committed yet: ask again";
            return Err(Error::new(Reason::NodeNotReady, text));
        }
        let (_, mine) = self.cluster();
        Ok(incarnation == mine && state.members.contains(id))
    }

    /// A position that holds everything committed when this was called; as the leader, by its lease or by a round.
    async fn read_position(&self) -> Result<LogPosition, Error> {
        match self.0.group.lease_index() {
            Some(position) => {
                self.0.read_index.by_lease();
                Ok(position)
            }
            None => self.confirmed_position().await,
        }
    }

    /// A position that holds everything committed when this was called; as the leader, by a round. Followers' readers
    /// share rounds with this node's own.
    async fn confirmed_position(&self) -> Result<LogPosition, Error> {
        if !self.is_leader() {
            return Err(Error::new(Reason::NotLeader, "this node does not lead"));
        }
        let timeout = self.0.config.timing.election_max;
        Ok(self.0.read_index.linearizable(timeout).await?.position)
    }
}

fn refusal(error: &Error) -> wire::Refusal {
    wire::Refusal {
        reason: u32::from(error.reason() as u16),
        text: error.text().into(),
    }
}
