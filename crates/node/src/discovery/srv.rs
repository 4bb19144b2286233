//! DNS: the service records of the headless service.
//!
//! `_grpc-peer._tcp.podkv-headless.default.svc.cluster.local.` lists every pod of the service that has an
//! address, ready or not (`publishNotReadyAddresses`). What is made of the answer:
//!
//! ```text
//!   pods                    those, and the expected ordinals that are missing among them: an answer may be
//!                           old or partial, and fewer pods must never be found than are expected
//!   no such name, nothing   an error. This pod itself should be listed, so the answer is wrong, or too
//!                           early, or the service is not there
//!   no answer, a failure    the expected ordinals alone; an error if fewer than two are expected
//! ```
//!
//! The last line lets a cluster come together where only long answers are lost (they need TCP, which a
//! firewall may forbid) and addresses still resolve. It founds nothing by mistake: all of the expected pods must
//! answer, and be virgins. A cluster of that size that lives has a majority of its volumes, so at least one of
//! those answers is a member's. A single expected pod would ask nobody but itself: silence would mean "I am
//! alone".

use futures_util::future::BoxFuture;
use podkv_api::{Error, Reason, Result};

use super::{Discovery, OrdinalDiscovery, Ordinals, Suggestion};
use crate::dns::{Dns, DnsFailure, SrvTarget};

/// The port's name in the headless service. Only named ports have service records.
pub const PEER_PORT_NAME: &str = "grpc-peer";

/// Asks DNS each time.
pub struct SrvDiscovery {
    dns: Dns,
    ordinals: OrdinalDiscovery,
    name: String,
}

impl SrvDiscovery {
    /// Of the pods of one StatefulSet behind one headless service.
    pub fn new(dns: Dns, ordinals: OrdinalDiscovery) -> Self {
        let name = format!("_{PEER_PORT_NAME}._tcp.{}", ordinals.domain);
        Self {
            dns,
            ordinals,
            name,
        }
    }

    /// What is asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    async fn ask(&self, expected: Ordinals) -> Result<Vec<Suggestion>> {
        match self.dns.srv(&self.name).await {
            Ok(targets) => Ok(self.complete(targets, expected)),
            Err(DnsFailure::NoSuchName) => Err(Error::new(
                Reason::Unreachable,
                format!(
                    "DNS knows nothing of {}: is the headless service there, with publishNotReadyAddresses \
                     and a port named {PEER_PORT_NAME}, and are namespace and cluster domain right?",
                    self.name
                ),
            )),
            Err(failure) if expected.replicas < 2 => Err(Error::new(
                Reason::Unreachable,
                format!("{} could not be looked up: {failure}", self.name),
            )
            .with_source(failure)),
            Err(failure) => {
                tracing::debug!(name = self.name, %failure, "no service records; asking the expected pods");
                Ok(self.ordinals.names(expected))
            }
        }
    }

    fn complete(&self, targets: Vec<SrvTarget>, expected: Ordinals) -> Vec<Suggestion> {
        let mut suggestions: Vec<_> = targets
            .into_iter()
            .map(|SrvTarget { host, port }| Suggestion {
                name: host.split('.').next().map(Into::into),
                peer_address: format!("{host}:{port}"),
            })
            .collect();
        for expected in self.ordinals.names(expected) {
            if suggestions.iter().all(|known| known.name != expected.name) {
                suggestions.push(expected);
            }
        }
        suggestions
    }
}

impl Discovery for SrvDiscovery {
    fn suggest(&self, expected: Ordinals) -> BoxFuture<'_, Result<Vec<Suggestion>>> {
        Box::pin(self.ask(expected))
    }
}

#[cfg(test)]
mod tests;
