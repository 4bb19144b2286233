//! When streams should end.

use podkv_api::{Error, Reason};
use podkv_node::{Health, Node};
use podkv_proto::convert::to_status;
use tokio::sync::watch;
use tonic::Status;

/// Completes when the node begins to drain, or is gone.
pub(crate) async fn draining(mut health: watch::Receiver<Health>) {
    // An error means that the node was dropped: that is the end as well.
    let _ = health.wait_for(|health| health.draining).await;
}

/// What a stream ends with then: go on elsewhere, and where the leader is by now.
pub(crate) fn goodbye(node: &Node) -> Status {
    let text = "the node is going to stop: go on at another one";
    let error = Error::new(Reason::NodeNotReady, text);
    to_status(&error.with_leader(node.leader_hint()))
}

/// Refuses to begin a stream that would end at once.
pub(crate) fn refuse_if_draining(node: &Node) -> Result<(), Status> {
    if node.health().borrow().draining {
        Err(goodbye(node))
    } else {
        Ok(())
    }
}
