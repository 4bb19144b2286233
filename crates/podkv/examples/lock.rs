//! One worker at a time, wherever they run; what it writes counts only while it holds the lock.
use podkv::recipes::Mutex;
use podkv::{Client, Put, Store, Txn};

#[tokio::main]
async fn main() -> podkv::Result<()> {
    let client = Client::connect(["127.0.0.1:2379"]).await?;
    let guard = Mutex::new(client.clone(), "jobs/nightly").lock().await?;
    println!("mine, with fencing token {}", guard.fencing_token());
    let done = Put::new("jobs/nightly-done", "yes");
    let txn = Txn::new().when([guard.fence()]).then([done.into()]);
    println!("still mine: {}", client.txn(txn).await?.succeeded);
    guard.unlock().await
}
