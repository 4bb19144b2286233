//! The question whether this node is still a member of its cluster.
//!
//! Whoever was removed may never hear of it through the log: the leader stops replicating to it. So the leader is asked,
//! and its answer counts, because it gives one only once it has confirmed that it leads.

use podkv_api::{Error, Reason, Result};
use podkv_proto::convert::{Call, from_status};
use podkv_proto::peer as wire;

use super::pool::PeerClient;

/// Asks the node behind `client`.
///
/// # Errors
/// [`Reason::NodeNotReady`] if that node does not lead, or cannot make sure that it does; others if it does not answer.
pub(crate) async fn is_member(mut client: PeerClient, header: wire::PeerHeader) -> Result<bool> {
    let request = wire::StandingRequest {
        header: Some(header),
    };
    // To ask changes nothing, so it may be asked again.
    let answer = client.standing(request).await;
    let answer = answer
        .map_err(|status| from_status(&status, Call::Read))?
        .into_inner();
    match answer.refusal {
        None => Ok(answer.member),
        Some(refusal) => Err(Error::new(Reason::NodeNotReady, refusal.text)),
    }
}
