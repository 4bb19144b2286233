//! `make demo`: the tour on three processes with real disks.

use podkv_client::Client;
use podkv_tests::demo::{self, Stage};
use podkv_tests::process::ProcessCluster;

struct Processes(ProcessCluster);

impl Stage for Processes {
    type Store = Client;

    fn label(&self) -> String {
        let nodes: Vec<String> = self
            .0
            .specs
            .iter()
            .zip(&self.0.nodes)
            .map(|(spec, node)| {
                format!(
                    "{} (process {})",
                    spec.name,
                    node.as_ref().map_or(0, |node| node.pid())
                )
            })
            .collect();
        format!("three nodes serve: {}", nodes.join(", "))
    }

    fn nodes(&self) -> Vec<String> {
        self.0.specs.iter().map(|spec| spec.name.clone()).collect()
    }

    async fn store(&self) -> Client {
        self.0.client()
    }

    async fn store_of(&self, node: usize) -> Client {
        self.0.client_of(node)
    }

    async fn kill_leader(&mut self) -> Result<(usize, String), String> {
        let leader = self.0.leader().await.ok_or("no node claims to lead")?;
        let status = self
            .0
            .status(leader)
            .await
            .map_err(|error| error.to_string())?;
        let pid = self.0.nodes[leader].as_ref().map_or(0, |node| node.pid());
        self.0.kill(leader);
        Ok((
            leader,
            format!(
                "the leader of term {}; SIGKILL to process {pid}",
                status.header.term
            ),
        ))
    }

    async fn revive(&mut self, node: usize) -> Result<(), String> {
        self.0.restart(node);
        self.0.wait_ready(node).await;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let records = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(50_000);
    let cluster = ProcessCluster::start(3).await;
    let folder = cluster.folder.path().to_path_buf();
    match demo::run(Processes(cluster), records, &folder).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(claim) => {
            eprintln!("FAILED: {claim}");
            std::process::ExitCode::FAILURE
        }
    }
}
