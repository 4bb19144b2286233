//! The remote client and real nodes: nothing is lost, nothing is applied twice, nothing is missed,
//! while leaders die. (Promises 2, 3 and 4 of the design, from a client's side.)

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use podkv::testing::TestCluster;
use podkv::{Client, KeyRange, Put, Range, Result, Store, Watch, WatchMessage};
use podkv_server::Server;

const WRITERS: usize = 8;
const WRITES: usize = 100;
/// Far longer than an election; a busy machine may need it.
const DEADLINE: Duration = Duration::from_secs(60);

/// Nodes in memory, each with its port for clients.
struct Remote {
    cluster: TestCluster,
    servers: Vec<Option<Server>>,
    addresses: Vec<String>,
}

impl Remote {
    async fn start() -> Result<Self> {
        let cluster = podkv::testing::cluster(3).await;
        let mut servers = Vec::new();
        for index in 0..cluster.size() {
            let server = Server::builder(cluster.node(index));
            servers.push(Some(server.listen("127.0.0.1:0").await?));
        }
        let address =
            |server: &Option<Server>| server.as_ref().map(|one| one.local_address().to_owned());
        let addresses = servers.iter().filter_map(address).collect();
        Ok(Self {
            cluster,
            servers,
            addresses,
        })
    }

    /// Ends the leader and its connections as `kill -9` would.
    async fn kill_leader(&mut self) -> usize {
        let leader = self.cluster.leader().await;
        drop(self.servers[leader].take());
        self.cluster.kill(leader).await;
        leader
    }

    async fn restart(&mut self, index: usize) -> Result<()> {
        self.cluster.restart(index).await?;
        let server = Server::builder(self.cluster.node(index));
        self.servers[index] = Some(server.listen(&self.addresses[index]).await?);
        Ok(())
    }
}

async fn write(client: Client, writer: usize, done: Arc<AtomicUsize>) -> Result<()> {
    for i in 0..WRITES {
        client
            .put(Put::new(format!("k{writer}-{i:03}"), "v"))
            .await?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// The revisions of the events, until there are as many as writes.
async fn follow(client: Client) -> Result<Vec<u64>> {
    let watch = Watch::new(KeyRange::prefix("k")).from_revision(1);
    let mut messages = client.watch(watch).await?;
    let mut revisions = Vec::new();
    while revisions.len() < WRITERS * WRITES
        && let Some(message) = messages.next().await
    {
        if let WatchMessage::Events {
            revision, events, ..
        } = message?
        {
            assert_eq!(events.len(), 1);
            revisions.push(revision);
        }
    }
    Ok(revisions)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_missed_while_leaders_die() -> Result<()> {
    let mut remote = Remote::start().await?;
    let client = Client::builder()
        .endpoints(remote.addresses.clone())
        .fixed(true)
        .deadline(DEADLINE)
        .connect()
        .await?;
    let done = Arc::new(AtomicUsize::new(0));
    let follower = tokio::spawn(follow(client.clone()));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(client.clone(), writer, done.clone())))
        .collect();
    for part in 1..=2 {
        while done.load(Ordering::Relaxed) < part * WRITERS * WRITES / 3 {
            tokio::task::yield_now().await;
        }
        let killed = remote.kill_leader().await;
        // The others go on first.
        remote.cluster.leader().await;
        remote.restart(killed).await?;
    }
    for writer in writers {
        writer.await.expect("a writer panicked")?;
    }
    let all = client.range(Range::new(KeyRange::prefix("k"))).await?;
    assert_eq!(all.kvs.len(), WRITERS * WRITES);
    assert!(
        all.kvs.iter().all(|kv| kv.version == 1),
        "a write was applied twice"
    );
    // The empty store is revision 1; nothing but the writes made revisions.
    assert_eq!(all.header.revision, 1 + (WRITERS * WRITES) as u64);
    let seen = follower.await.expect("the follower panicked")?;
    let expected: Vec<u64> = (2..2 + (WRITERS * WRITES) as u64).collect();
    assert_eq!(seen, expected);
    client.close().await;
    remote.cluster.shutdown().await;
    Ok(())
}
