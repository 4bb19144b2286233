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

/// What a stream ends with then.
pub(crate) fn goodbye() -> Status {
    to_status(&Error::new(
        Reason::NodeNotReady,
        "the node is going to stop: go on at another one",
    ))
}

/// Refuses to begin a stream that would end at once.
pub(crate) fn refuse_if_draining(node: &Node) -> Result<(), Status> {
    if node.health().borrow().draining {
        Err(goodbye())
    } else {
        Ok(())
    }
}
