//! Lists what is there, then follows every change, without a gap, also over a node's death.
use futures_util::StreamExt;
use podkv::{Client, KeyRange, Store, Watch};

#[tokio::main]
async fn main() -> podkv::Result<()> {
    let client = Client::connect(["127.0.0.1:2379"]).await?;
    let watch = Watch::new(KeyRange::prefix("task/")).list();
    let mut messages = client.watch(watch).await?;
    while let Some(message) = messages.next().await {
        println!("{:?}", message?);
    }
    Ok(())
}
