//! Who calls: by the token that came with the call.

use podkv_api::{Error, Reason, Result};
use podkv_node::{Access, Node};
use tonic::metadata::MetadataMap;

/// The names under which a token comes, first come, first served: etcd's clients send the first, HTTP's the second.
const NAMES: [&str; 2] = ["token", "authorization"];

/// The node as the caller may use it.
pub(crate) async fn access(node: &Node, metadata: &MetadataMap) -> Result<Access> {
    let token = match NAMES.iter().find_map(|name| metadata.get(*name)) {
        None => None,
        Some(value) => {
            let text = value.to_str().map_err(|_| {
                Error::new(
                    Reason::Unauthenticated,
                    "the token is not one: it is no text",
                )
            })?;
            Some(text.strip_prefix("Bearer ").unwrap_or(text))
        }
    };
    node.access(token).await
}
