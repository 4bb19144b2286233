//! Runs `kubectl` and takes what it prints. It knows every way in which people log in; podkv knows none of them.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use super::Finding;
use super::kube::{Objects, Read, examine};

/// One call, with the login that may come first: some plugins open a browser.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Asked of kubectl itself, for one request to the API server.
const REQUEST_TIMEOUT: &str = "--request-timeout=20s";
const ADMIN_PORT: u16 = 2381;

/// Where to look.
#[derive(Clone, Debug)]
pub(crate) struct Kubectl {
    pub namespace: Option<String>,
    pub context: Option<String>,
}

impl Kubectl {
    /// Reads everything and judges it.
    pub async fn examine(&self, statefulset: &str) -> Vec<Finding> {
        // Alone and first: if it fails for want of a login, the others need not try.
        let set = self
            .run(&[
                "get",
                "statefulset",
                statefulset,
                "--ignore-not-found",
                "-o",
                "json",
            ])
            .await;
        let statefulset_read = set.and_then(|printed| match printed.trim() {
            "" => Ok(None),
            printed => parse(printed).map(Some),
        });
        let mut objects = Objects {
            name: statefulset.into(),
            statefulset: statefulset_read,
            pods: Ok(Vec::new()),
            claims: Ok(Vec::new()),
            events: Ok(Vec::new()),
            services: Ok(Vec::new()),
            slices: Ok(Vec::new()),
            policies: Ok(Vec::new()),
            budgets: Ok(Vec::new()),
            hosts: Ok(Vec::new()),
            status: BTreeMap::new(),
        };
        if let Ok(Some(set)) = &objects.statefulset {
            let namespace = set.pointer("/metadata/namespace").and_then(Value::as_str);
            let namespace = namespace.unwrap_or("default").to_owned();
            self.fill(&mut objects, &namespace).await;
        }
        examine(&objects)
    }

    async fn fill(&self, objects: &mut Objects, namespace: &str) {
        (
            objects.pods,
            objects.claims,
            objects.events,
            objects.services,
            objects.slices,
            objects.policies,
            objects.budgets,
            objects.hosts,
        ) = tokio::join!(
            self.list("pods"),
            self.list("persistentvolumeclaims"),
            self.list("events"),
            self.list("services"),
            self.list("endpointslices"),
            self.list("networkpolicies"),
            self.list("poddisruptionbudgets"),
            self.list("nodes"),
        );
        let base = format!("{}-", objects.name);
        let pods = objects.pods.as_deref().unwrap_or_default().iter();
        let names = pods.filter_map(|pod| pod.pointer("/metadata/name")?.as_str());
        let asked = names
            .filter(|name| name.starts_with(&base))
            .map(async |name| {
                let path =
                    format!("/api/v1/namespaces/{namespace}/pods/{name}:{ADMIN_PORT}/proxy/status");
                let said = self.run(&["get", "--raw", &path]).await.ok()?;
                Some((name.to_owned(), serde_json::from_str(&said).ok()?))
            });
        // Who may not use the proxy learns a little less.
        objects.status = join_all(asked).await.into_iter().flatten().collect();
    }

    async fn list(&self, kind: &str) -> Read {
        let read = parse(&self.run(&["get", kind, "-o", "json"]).await?)?;
        let items = read.get("items").and_then(Value::as_array);
        Ok(items.cloned().unwrap_or_default())
    }

    /// What kubectl prints, or the last line of what it complains of.
    async fn run(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new("kubectl");
        command
            .args(args)
            .arg(REQUEST_TIMEOUT)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(context) = &self.context {
            command.arg("--context").arg(context);
        }
        if let Some(namespace) = &self.namespace {
            command.arg("--namespace").arg(namespace);
        }
        let output = timeout(CALL_TIMEOUT, command.output())
            .await
            .map_err(|_| format!("kubectl did not end within {CALL_TIMEOUT:?}"))?
            .map_err(|error| format!("kubectl cannot be run: {error}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        let last = complaint
            .trim()
            .lines()
            .last()
            .unwrap_or("kubectl failed without a word");
        Err(last.to_owned())
    }
}

fn parse(printed: &str) -> Result<Value, String> {
    serde_json::from_str(printed).map_err(|error| format!("kubectl printed no JSON: {error}"))
}
