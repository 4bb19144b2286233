//! Pods and their volumes: why one is not there, not up, or not ready; and which fall together.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{CONTAINER, Finding, Seen, items, list, name, number, text};

impl Seen<'_> {
    pub(super) fn claims(&self, findings: &mut Vec<Finding>) {
        const CHECK: &str = "volume";
        let templates: Vec<&str> = list(self.set, "/spec/volumeClaimTemplates")
            .iter()
            .map(name)
            .collect();
        for claim in items(&self.objects.claims) {
            let ours = templates.iter().any(|template| {
                name(claim).starts_with(&format!("{template}-{}-", self.objects.name))
            });
            if !ours {
                continue;
            }
            let named = name(claim);
            match text(claim, "/status/phase") {
                "Bound" => {}
                "Lost" => findings.push(Finding::problem(
                    CHECK,
                    format!("the volume of {named} is lost"),
                    format!("if it is gone for good and the other pods have a majority: kubectl delete pvc {named} and its \
                             pod; it joins anew. Without a majority: \"Recover\" in k8s/README.md"),
                )),
                _ => findings.push(Finding::problem(
                    CHECK,
                    format!("{named} has no volume yet{}", self.because(named)),
                    "see whether the storage class exists and can provide such a volume where the pod may run: \
                     kubectl describe pvc",
                )),
            }
        }
    }

    /// The newest warning about an object.
    fn because(&self, object: &str) -> String {
        let events = items(&self.objects.events).iter().filter(|event| {
            text(event, "/involvedObject/name") == object && text(event, "/type") != "Normal"
        });
        let when = |event: &&Value| {
            let times = [
                "/lastTimestamp",
                "/eventTime",
                "/metadata/creationTimestamp",
            ];
            times
                .map(|time| text(event, time))
                .into_iter()
                .max()
                .map(str::to_owned)
        };
        events.max_by_key(when).map_or_else(String::new, |event| {
            format!(
                ": {} ({})",
                text(event, "/message").trim(),
                text(event, "/reason")
            )
        })
    }

    pub(super) fn pods(&self, findings: &mut Vec<Finding>) {
        const CHECK: &str = "pod";
        if self.objects.pods.is_ok() && (self.pods.len() as u64) < self.replicas {
            findings.push(Finding::problem(
                CHECK,
                format!(
                    "{} of {} pods exist{}",
                    self.pods.len(),
                    self.replicas,
                    self.because(&self.objects.name)
                ),
                "what keeps the StatefulSet from making them (a quota, pod security, an admission webhook) stands in \
                 kubectl describe statefulset",
            ));
        }
        for pod in &self.pods {
            self.pod(pod, findings);
        }
    }

    fn pod(&self, pod: &Value, findings: &mut Vec<Finding>) {
        const CHECK: &str = "pod";
        let named = name(pod);
        let condition = |wanted: &str| {
            let conditions = list(pod, "/status/conditions").iter();
            conditions.clone().find(|one| text(one, "/type") == wanted)
        };
        if !text(pod, "/metadata/deletionTimestamp").is_empty() {
            findings.push(Finding::warning(
                CHECK,
                format!("{named} is being deleted"),
                "if it stays so, its host is gone: \"A local volume on a dead node\" in k8s/README.md",
            ));
            return;
        }
        if let Some(scheduled) = condition("PodScheduled")
            && text(scheduled, "/status") == "False"
        {
            findings.push(Finding::problem(
                CHECK,
                format!("{named} has no host: {}", text(scheduled, "/message")),
                "give it one: capacity, taints, the zone of its volume, or one more host, since two nodes never share one",
            ));
            return;
        }
        let before = findings.len();
        let statuses = list(pod, "/status/containerStatuses")
            .iter()
            .chain(list(pod, "/status/initContainerStatuses"));
        for status in statuses {
            self.container_status(named, status, findings);
        }
        if findings.len() > before {
            return;
        }
        let is_ready = condition("Ready").is_some_and(|ready| text(ready, "/status") == "True");
        if is_ready {
            findings.push(Finding::ok(CHECK, format!("{named} is ready")));
            return;
        }
        let says = self
            .objects
            .status
            .get(named)
            .map(|status| text(status, "/reason"));
        findings.push(match says {
            Some(why) if !why.is_empty() => Finding::problem(
                CHECK,
                format!("{named} is not ready; it says: {why}"),
                format!("kubectl exec {named} -c {CONTAINER} -- podkv doctor looks from inside"),
            ),
            _ => Finding::problem(
                CHECK,
                format!("{named} is not ready{}", self.because(named)),
                format!("kubectl logs {named} -c {CONTAINER} says what it does"),
            ),
        });
    }

    fn container_status(&self, pod: &str, status: &Value, findings: &mut Vec<Finding>) {
        const CHECK: &str = "pod";
        let waiting = text(status, "/state/waiting/reason");
        let last = |field: &str| text(status, &format!("/lastState/terminated/{field}")).to_owned();
        let restarts = number(status, "/restartCount").unwrap_or_default();
        if last("reason") == "OOMKilled" {
            findings.push(Finding::problem(
                CHECK,
                format!("{pod} was killed for its memory, {restarts} restarts so far"),
                "raise the memory limit: caches follow it. A larger cache-bytes than a quarter of it does this too",
            ));
        }
        match waiting {
            "" | "PodInitializing" | "ContainerCreating" => {
                if waiting == "ContainerCreating" {
                    let why = self.because(pod);
                    if !why.is_empty() {
                        findings.push(Finding::problem(
                            CHECK,
                            format!("{pod} does not start{why}"),
                            "what is missing (a volume that another host still holds, a Secret) must come first",
                        ));
                    }
                }
            }
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" => {
                findings.push(Finding::problem(
                    CHECK,
                    format!(
                        "{pod}: the image {} cannot be pulled: {}",
                        text(status, "/image"),
                        text(status, "/state/waiting/message")
                    ),
                    "check name and tag, and imagePullSecrets",
                ))
            }
            "CrashLoopBackOff" => {
                let code = number(status, "/lastState/terminated/exitCode");
                let message = last("message");
                let because = match (message.trim(), code) {
                    ("", Some(code)) => format!("exit code {code}"),
                    ("", None) => "it does not say why".into(),
                    (message, _) => message.to_owned(),
                };
                findings.push(Finding::problem(
                    CHECK,
                    format!("{pod} ends again and again, {restarts} restarts so far: {because}"),
                    format!("kubectl logs {pod} -c {CONTAINER} --previous; the last line names what is wrong. Exit codes: 2 a \
                             setting, 4 the volume or its membership, 1 a disk"),
                ));
            }
            reason => findings.push(Finding::problem(
                CHECK,
                format!(
                    "{pod} waits: {reason}: {}",
                    text(status, "/state/waiting/message")
                ),
                "kubectl describe pod says more",
            )),
        }
    }

    /// What falls together.
    pub(super) fn places(&self, findings: &mut Vec<Finding>) {
        const CHECK: &str = "spread";
        let mut by_host: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for pod in &self.pods {
            let host = text(pod, "/spec/nodeName");
            if !host.is_empty() {
                by_host.entry(host).or_default().push(name(pod));
            }
        }
        for (host, pods) in by_host.iter().filter(|(_, pods)| pods.len() > 1) {
            findings.push(Finding::warning(
                CHECK,
                format!("{} are on one host, {host}, and fall together", pods.join(", ")),
                "spread them: topologySpreadConstraints as in k8s/base/statefulset.yaml, and a host for each pod",
            ));
        }
        let zones: BTreeSet<&str> = items(&self.objects.hosts)
            .iter()
            .filter(|host| by_host.contains_key(name(host)))
            .map(|host| {
                let zone = host.pointer("/metadata/labels/topology.kubernetes.io~1zone");
                zone.and_then(Value::as_str).unwrap_or("")
            })
            .collect();
        let placed: usize = by_host.values().map(Vec::len).sum();
        if zones.len() == 2 && !zones.contains("") && placed as u64 >= self.replicas {
            let zones: Vec<_> = zones.into_iter().collect();
            findings.push(Finding::warning(
                CHECK,
                format!("the pods are in two zones ({}): one of them holds a majority, and writes stop with it", zones.join(", ")),
                "use three zones: \"Two zones are not high availability\" in k8s/README.md",
            ));
        }
    }
}
