//! `make try`: the tour on memory storage, inside this process. NOT DURABLE.

use podkv_node::Node;
use podkv_node::testing::{TestCluster, cluster};
use podkv_tests::demo::{self, Stage};

struct InProcess(TestCluster);

impl Stage for InProcess {
    type Store = Node;

    fn label(&self) -> String {
        "three nodes on memory storage, in one process: NOT DURABLE, for a first look only".into()
    }

    fn nodes(&self) -> Vec<String> {
        (0..3).map(|index| format!("podkv-{index}")).collect()
    }

    async fn store(&self) -> Node {
        // Not the leader: the tour is about to kill that one, and this program with it.
        let leader = self.0.leader().await;
        self.0.node((leader + 1) % 3)
    }

    async fn store_of(&self, node: usize) -> Node {
        self.0.node(node)
    }

    async fn kill_leader(&mut self) -> Result<(usize, String), String> {
        let leader = self.0.kill_leader().await;
        Ok((
            leader,
            "the leader; dropped with everything it had not synced".into(),
        ))
    }

    async fn revive(&mut self, node: usize) -> Result<(), String> {
        self.0
            .restart(node)
            .await
            .map_err(|error| error.to_string())
    }
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let records = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(20_000);
    let Ok(folder) = tempfile::tempdir() else {
        eprintln!("FAILED: no temporary folder");
        return std::process::ExitCode::FAILURE;
    };
    match demo::run(InProcess(cluster(3).await), records, folder.path()).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(claim) => {
            eprintln!("FAILED: {claim}");
            std::process::ExitCode::FAILURE
        }
    }
}
