//! Moves a key if nobody has moved it before: all of it, or nothing.
use podkv::{Client, Compare, Delete, KeyRange, Put, Store, Txn};

#[tokio::main]
async fn main() -> podkv::Result<()> {
    let client = Client::connect(["127.0.0.1:2379"]).await?;
    client.put(Put::new("task/new", "brew tea")).await?;
    let txn = Txn::new()
        .when([Compare::exists("task/new"), Compare::absent("task/done")])
        .then([Delete::new(KeyRange::key("task/new")).into()])
        .then([Put::new("task/done", "brew tea").into()]);
    println!("moved: {}", client.txn(txn).await?.succeeded);
    Ok(())
}
