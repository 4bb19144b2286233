//! The Rust client: it finds the pods through the headless service, retries, and writes once.

use podkv_api::{Put, Store as _};
use podkv_client::{Builder, Client};

use super::{Notes, PACE};
use crate::Result;
use crate::stage::Stage;

impl Stage {
    /// A client as an application of the namespace has it.
    pub fn client(&self) -> Result<Client> {
        Ok(self.client_builder().build()?)
    }

    pub fn client_builder(&self) -> Builder {
        let builder = Client::builder().service(format!("{}.:2379", self.service_name("podkv-headless")));
        match self.tls() {
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
