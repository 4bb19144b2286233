//! The names that a StatefulSet gives its pods, asked of nobody: `podkv-0`, `podkv-1`, …

use futures_util::future::BoxFuture;
use podkv_api::Result;

use super::{Discovery, Ordinals, Suggestion};

/// Suggests every expected ordinal under its stable name.
///
/// It proves nothing: a name is suggested whether its pod exists or not. Alone it is safe for founding
/// two or more replicas, all of which must answer. For founding one it is an empty list in
/// disguise; see [`super::SrvDiscovery`], which uses it second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrdinalDiscovery {
    /// The StatefulSet's name: `podkv` of `podkv-0`.
    pub base: String,
    /// What the names of pods end with: `podkv-headless.default.svc.cluster.local.`
    pub domain: String,
    pub port: u16,
}

impl OrdinalDiscovery {
    pub(super) fn names(&self, expected: Ordinals) -> Vec<Suggestion> {
        let (base, domain, port) = (&self.base, &self.domain, self.port);
        let suggestions = expected.range().map(|ordinal| Suggestion {
            name: Some(format!("{base}-{ordinal}")),
            peer_address: format!("{base}-{ordinal}.{domain}:{port}"),
        });
        suggestions.collect()
    }
}

impl Discovery for OrdinalDiscovery {
    fn suggest(&self, expected: Ordinals) -> BoxFuture<'_, Result<Vec<Suggestion>>> {
        Box::pin(std::future::ready(Ok(self.names(expected))))
    }
}
