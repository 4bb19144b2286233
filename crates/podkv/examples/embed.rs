//! The application is the node: a replica of one, with its data in a folder. Reads are function calls.
use podkv::node::{Node, NodeConfig, StorageConfig};
use podkv::{Put, Store};

#[tokio::main]
async fn main() -> podkv::Result<()> {
    let data_dir = std::env::temp_dir().join("podkv-embed");
    let config = NodeConfig::new("app-0", StorageConfig::Disk { data_dir });
    let node = Node::builder(config).start().await?;
    let put = node.put(Put::new("greeting", "hello")).await?;
    println!("durable at revision {}", put.header.revision);
    node.shutdown().await;
    Ok(())
}
