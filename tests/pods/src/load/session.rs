//! The Rust client: it finds the pods through the headless service, retries, and writes once.

use podkv_api::{Put, Store as _};
use podkv_client::{Builder, Client};
use podkv_tls::TlsOptions;

use super::{Notes, PACE};
use crate::Result;
use crate::stage::Stage;

impl Stage {
    /// A client as an application of the namespace has it.
    pub fn client(&self) -> Result<Client> {
        Ok(self.client_builder().build()?)
    }

    /// It speaks TLS if the nodes require it.
    pub fn client_builder(&self) -> Builder {
        self.builder(self.tls())
    }

    pub(super) fn client_with(&self, tls: Option<TlsOptions>) -> Result<Client> {
        Ok(self.builder(tls).build()?)
    }

    fn builder(&self, tls: Option<TlsOptions>) -> Builder {
        let service = format!("{}.:2379", self.service_name("podkv-headless"));
        let builder = Client::builder().service(service);
        match tls {
            Some(tls) => builder.tls(tls),
            None => builder,
        }
    }
}

pub(super) async fn write(client: Client, prefix: String, mut notes: Notes) {
    let mut number = 0_u64;
    while notes.next(PACE).await {
        number += 1;
        let (key, value) = (format!("{prefix}/{number}"), format!("{number}"));
        match client.put(Put::new(key.clone(), value.clone())).await {
            Ok(_) => notes.acknowledged(key, value, true),
            Err(error) => notes.failed(key, value, format!("{:?}: {error}", error.reason())),
        }
    }
    client.close().await;
}
