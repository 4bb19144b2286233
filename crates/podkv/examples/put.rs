//! Writes a key and reads it back. Start a cluster first: `podkv dev`.
use podkv::{Client, Put, Store};

#[tokio::main]
async fn main() -> podkv::Result<()> {
    let client = Client::connect(["127.0.0.1:2379"]).await?;
    let put = client.put(Put::new("greeting", "hello")).await?;
    println!("written at revision {}", put.header.revision);
    if let Some(kv) = client.get("greeting").await? {
        println!("{:?}, version {}", kv.value, kv.version);
    }
    client.close().await;
    Ok(())
}
