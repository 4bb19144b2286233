//! A list from the settings: `podkv-0=host:port,podkv-1=host:port`.

use std::collections::BTreeSet;
use std::str::FromStr;

use futures_util::future::BoxFuture;
use podkv_api::{Error, Reason, Result};

use super::{Discovery, Ordinals, Suggestion};
use crate::transport::split_address;

/// Suggests the same addresses for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FixedDiscovery {
    suggestions: Vec<Suggestion>,
}

impl FixedDiscovery {
    pub fn new(suggestions: Vec<Suggestion>) -> Self {
        Self { suggestions }
    }

    /// What it was made of, in that order.
    pub fn suggestions(&self) -> &[Suggestion] {
        &self.suggestions
    }
}

/// Parses `name=host:port,…`. Blanks around the parts are ignored; an empty text is an empty list.
impl FromStr for FixedDiscovery {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        let suggestions = parts.map(parse).collect::<Result<Vec<_>>>()?;
        let mut names = BTreeSet::new();
        for name in suggestions.iter().flat_map(|suggestion| &suggestion.name) {
            if !names.insert(name) {
                return Err(bad(format!("peer {name:?} is listed twice")));
            }
        }
        Ok(Self { suggestions })
    }
}

fn parse(part: &str) -> Result<Suggestion> {
    let (name, address) = part
        .split_once('=')
        .map(|(name, address)| (name.trim(), address.trim()))
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| {
            bad(format!(
                "peer {part:?} is not name=host:port, such as podkv-0=10.0.0.1:2380"
            ))
        })?;
    split_address(address).map_err(|error| bad(format!("peer {name:?}: {error}")))?;
    Ok(Suggestion {
        name: Some(name.into()),
        peer_address: address.into(),
    })
}

impl Discovery for FixedDiscovery {
    fn suggest(&self, _: Ordinals) -> BoxFuture<'_, Result<Vec<Suggestion>>> {
        Box::pin(std::future::ready(Ok(self.suggestions.clone())))
    }
}

fn bad(text: String) -> Error {
    Error::new(Reason::Configuration, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_list_is_names_with_addresses() {
        let list: FixedDiscovery = " podkv-0=localhost:2380, podkv-1=[::1]:2391,"
            .parse()
            .unwrap();
        let expected =
            [("podkv-0", "localhost:2380"), ("podkv-1", "[::1]:2391")].map(|(name, address)| {
                Suggestion {
                    name: Some(name.into()),
                    peer_address: address.into(),
                }
            });
        assert_eq!(list.suggest(Ordinals::default()).await.unwrap(), expected);
        assert_eq!(
            "".parse::<FixedDiscovery>().unwrap(),
            FixedDiscovery::default()
        );
    }

    #[test]
    fn a_bad_list_says_what_is_wrong() {
        for (text, said) in [
            ("localhost:2380", "localhost:2380"),
            ("=localhost:2380", "name=host:port"),
            ("podkv-0=localhost", "podkv-0"),
            ("podkv-0=a:1,podkv-0=b:1", "twice"),
        ] {
            let error = text.parse::<FixedDiscovery>().unwrap_err();
            assert_eq!(error.reason(), Reason::Configuration, "{text}");
            assert!(error.text().contains(said), "{text}: {error}");
        }
    }
}
