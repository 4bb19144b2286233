//! From Kubernetes' objects to findings. Pure: the objects are JSON as the API server gives it, and what is not there is
//! what it is by default. Nothing fails on an object that looks other than expected.

mod pods;

use std::collections::BTreeMap;

use serde_json::Value;

use super::Finding;

/// A list, or why it could not be read.
pub(crate) type Read = Result<Vec<Value>, String>;

/// Everything that was read.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    /// The name that was asked for.
    pub name: String,
    /// None if there is no such StatefulSet.
    pub statefulset: Result<Option<Value>, String>,
    pub pods: Read,
    pub claims: Read,
    pub events: Read,
    pub services: Read,
    pub slices: Read,
    pub policies: Read,
    pub budgets: Read,
    /// Of the whole cluster: many people may not read them.
    pub hosts: Read,
    /// What the admin port of a pod says of itself, where it could be asked.
    pub status: BTreeMap<String, Value>,
}

/// All findings, those that explain others first.
pub(crate) fn examine(objects: &Objects) -> Vec<Finding> {
    let mut findings = Vec::new();
    let set = match &objects.statefulset {
        Ok(Some(set)) => set,
        Ok(None) => {
            findings.push(Finding::problem(
                "statefulset",
                format!("there is no StatefulSet {} in this namespace", objects.name),
                "say which with --namespace, --context and --statefulset; or apply the manifests",
            ));
            return findings;
        }
        Err(why) => {
            findings.push(Finding::problem(
                "statefulset",
                format!("the StatefulSet {} cannot be read: {why}", objects.name),
                "log in to the cluster, or ask for the right to get StatefulSets here",
            ));
            return findings;
        }
    };
    unreadable(objects, &mut findings);
    let seen = Seen::new(objects, set);
    seen.spec(&mut findings);
    seen.service(&mut findings);
    seen.around(&mut findings);
    seen.claims(&mut findings);
    seen.pods(&mut findings);
    seen.places(&mut findings);
    findings
}

fn unreadable(objects: &Objects, findings: &mut Vec<Finding>) {
    let lists = [
        ("pods", &objects.pods),
        ("persistentvolumeclaims", &objects.claims),
        ("events", &objects.events),
        ("services", &objects.services),
        ("endpointslices", &objects.slices),
        ("networkpolicies", &objects.policies),
        ("poddisruptionbudgets", &objects.budgets),
    ];
    for (kind, list) in lists {
        if let Err(why) = list {
            findings.push(Finding::warning(
                "rights",
                format!("{kind} cannot be read, and were not looked at: {why}"),
                format!("ask for the right to list {kind} in this namespace"),
            ));
        }
    }
}

/// What a container of the set is called whose image is podkv's, or embeds it.
const CONTAINER: &str = "podkv";

struct Seen<'a> {
    objects: &'a Objects,
    set: &'a Value,
    container: &'a Value,
    pods: Vec<&'a Value>,
    replicas: u64,
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn number(value: &Value, pointer: &str) -> Option<u64> {
    value.pointer(pointer).and_then(Value::as_u64)
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}

fn name(value: &Value) -> &str {
    text(value, "/metadata/name")
}

fn items(read: &Read) -> &[Value] {
    read.as_deref().unwrap_or_default()
}

/// Whether a label selector's `matchLabels` fit. An empty selector selects everything.
fn selects(selector: Option<&Value>, labels: Option<&Value>) -> bool {
    let Some(wanted) = selector.and_then(Value::as_object) else {
        return true;
    };
    wanted
        .iter()
        .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

impl<'a> Seen<'a> {
    fn new(objects: &'a Objects, set: &'a Value) -> Self {
        let containers = list(set, "/spec/template/spec/containers")
            .iter()
            .chain(list(set, "/spec/template/spec/initContainers"));
        let container = containers
            .clone()
            .find(|one| text(one, "/name") == CONTAINER)
            .or_else(|| containers.clone().next())
            .unwrap_or(&Value::Null);
        let owned = |pod: &&Value| {
            list(pod, "/metadata/ownerReferences").iter().any(|owner| {
                text(owner, "/kind") == "StatefulSet" && text(owner, "/name") == objects.name
            })
        };
        Self {
            objects,
            set,
            container,
            pods: items(&objects.pods).iter().filter(owned).collect(),
            replicas: number(set, "/spec/replicas").unwrap_or(1),
        }
    }

    fn variable(&self, wanted: &str) -> Option<&'a str> {
        let variables = list(self.container, "/env").iter();
        let mut named = variables.filter(|one| text(one, "/name") == wanted);
        named.next().map(|one| text(one, "/value"))
    }

    /// What of the StatefulSet is not as podkv needs it.
    fn spec(&self, findings: &mut Vec<Finding>) {
        const CHECK: &str = "statefulset";
        let set = self.set;
        let ready = number(set, "/status/readyReplicas").unwrap_or_default();
        findings.push(match (self.replicas, ready) {
            (0, _) => Finding::warning(
                CHECK,
                "it is scaled to 0: the cluster is suspended",
                "kubectl scale it up again: the same members come back",
            ),
            (wanted, ready) if ready < wanted => Finding::problem(
                CHECK,
                format!("{ready} of {wanted} pods are ready"),
                "see the findings about its pods",
            ),
            (wanted, _) => Finding::ok(CHECK, format!("all {wanted} pods are ready")),
        });
        if text(set, "/spec/podManagementPolicy") != "Parallel" {
            findings.push(Finding::problem(
                CHECK,
                "podManagementPolicy is OrderedReady: podkv-1 starts only when podkv-0 is ready, which needs podkv-1",
                "set it to Parallel; that takes a new StatefulSet: kubectl delete --cascade=orphan, then apply",
            ));
        }
        let retention = "/spec/persistentVolumeClaimRetentionPolicy";
        for (when, what) in [
            ("whenDeleted", "is deleted"),
            ("whenScaled", "is scaled down"),
        ] {
            if text(set, &format!("{retention}/{when}")) == "Delete" {
                findings.push(Finding::problem(
                    CHECK,
                    format!("the volumes are deleted when it {what} ({when}: Delete)"),
                    "set it to Retain: volumes are the data, and only a person should delete them",
                ));
            }
        }
        if number(set, "/spec/updateStrategy/rollingUpdate/partition").unwrap_or_default() > 0 {
            findings.push(Finding::warning(
                CHECK,
                "a partition holds back the rollout for some pods",
                "set updateStrategy.rollingUpdate.partition to 0 when you have seen that the new release works",
            ));
        }
        self.size_setting(findings);
        self.pod_template(findings);
    }

    fn size_setting(&self, findings: &mut Vec<Finding>) {
        const CHECK: &str = "settings";
        match (
            self.variable("PODKV_STATEFULSET"),
            self.variable("PODKV_REPLICAS"),
        ) {
            (Some(_), Some(_)) => findings.push(Finding::problem(
                CHECK,
                "PODKV_STATEFULSET and PODKV_REPLICAS are both set: no node starts",
                "drop PODKV_REPLICAS: the StatefulSet says how many pods there should be",
            )),
            (Some(named), None) if named != self.objects.name => findings.push(Finding::problem(
                CHECK,
                format!(
                    "PODKV_STATEFULSET is {named}, and these are pods of {}",
                    self.objects.name
                ),
                format!("set it to {}", self.objects.name),
            )),
            (None, Some(replicas))
                if replicas != self.replicas.to_string() && self.replicas > 0 =>
            {
                findings.push(Finding::problem(
                    CHECK,
                    format!(
                        "PODKV_REPLICAS is {replicas}, and the StatefulSet has {} pods",
                        self.replicas
                    ),
                    "make both the same, or set PODKV_STATEFULSET, and the number is read",
                ));
            }
            _ => {}
        }
        let grace = number(
            self.set,
            "/spec/template/spec/terminationGracePeriodSeconds",
        )
        .unwrap_or(30);
        let told = self.variable("PODKV_TERMINATION_GRACE").unwrap_or("120s");
        let told_seconds = crate::settings::parse_duration(told).map(|told| told.as_secs());
        if told_seconds.is_some_and(|told| told > grace) {
            findings.push(Finding::warning(
                CHECK,
                format!("the pods have {grace} s to end (terminationGracePeriodSeconds), and podkv reckons with {told}"),
                format!("set terminationGracePeriodSeconds to 120, or PODKV_TERMINATION_GRACE to {grace}s: else pods that \
                         are scaled away are killed before the others have taken them out"),
            ));
        }
    }

    fn pod_template(&self, findings: &mut Vec<Finding>) {
        const CHECK: &str = "pods";
        if self.container.pointer("/lifecycle/preStop").is_none() {
            findings.push(Finding::warning(
                CHECK,
                "there is no preStop: a pod that ends stops serving before clients know it",
                "add lifecycle.preStop.sleep of 5 s, as in k8s/base/statefulset.yaml",
            ));
        }
        for probe in ["readinessProbe", "startupProbe"] {
            if self.container.get(probe).is_none() {
                findings.push(Finding::warning(
                    CHECK,
                    format!("there is no {probe}"),
                    "take it from k8s/base/statefulset.yaml: rollouts wait for it, and a long replay is no failure",
                ));
            }
        }
        let links = self.set.pointer("/spec/template/spec/enableServiceLinks");
        if links != Some(&Value::Bool(false)) {
            findings.push(Finding::warning(
                CHECK,
                "enableServiceLinks is on: each Service adds variables to the pods that look like settings",
                "set enableServiceLinks: false",
            ));
        }
        let in_memory = self.variable("PODKV_STORAGE") == Some("memory");
        if in_memory {
            findings.push(Finding::warning(
                CHECK,
                "memory storage: acknowledged writes go with the pods",
                "set PODKV_STORAGE=disk, if the data matters",
            ));
        } else if list(self.set, "/spec/volumeClaimTemplates").is_empty() {
            findings.push(Finding::problem(
                CHECK,
                "there is no volumeClaimTemplate: each pod that is made anew has lost its data",
                "add one, as in k8s/base/statefulset.yaml; that takes a new StatefulSet",
            ));
        }
    }

    /// The headless service, by which the pods find each other.
    fn service(&self, findings: &mut Vec<Finding>) {
        const CHECK: &str = "service";
        if self.objects.services.is_err() {
            return;
        }
        let wanted = text(self.set, "/spec/serviceName");
        if let Some(told) = self.variable("PODKV_HEADLESS_SERVICE")
            && told != wanted
        {
            findings.push(Finding::problem(
                CHECK,
                format!("PODKV_HEADLESS_SERVICE is {told}, and the StatefulSet's serviceName is {wanted}"),
                "make both the same: pods have names only in the service that serviceName says",
            ));
        }
        let services = items(&self.objects.services);
        let Some(service) = services.iter().find(|one| name(one) == wanted) else {
            findings.push(Finding::problem(
                CHECK,
                format!("there is no Service {wanted}: the pods have no names"),
                "apply k8s/base/services.yaml",
            ));
            return;
        };
        let before = findings.len();
        if text(service, "/spec/clusterIP") != "None" {
            findings.push(Finding::problem(
                CHECK,
                format!("{wanted} has an address of its own: it is not headless"),
                "delete it and apply it again with clusterIP: None",
            ));
        }
        if service.pointer("/spec/publishNotReadyAddresses") != Some(&Value::Bool(true)) {
            findings.push(Finding::problem(
                CHECK,
                format!("{wanted} lacks publishNotReadyAddresses: pods that are not ready cannot find each other, and \
                         become ready only together"),
                "set publishNotReadyAddresses: true",
            ));
        }
        if !list(service, "/spec/ports")
            .iter()
            .any(|port| text(port, "/name") == "grpc-peer")
        {
            findings.push(Finding::problem(
                CHECK,
                format!("{wanted} has no port named grpc-peer: there are no SRV records to find the pods by"),
                "name the port 2380 grpc-peer",
            ));
        }
        let labels = self.set.pointer("/spec/template/metadata/labels");
        if !selects(service.pointer("/spec/selector"), labels) {
            findings.push(Finding::problem(
                CHECK,
                format!("{wanted} does not select the pods of the StatefulSet"),
                "make its selector the labels of the pods",
            ));
        }
        self.endpoints(wanted, findings);
        if findings.len() == before {
            findings.push(Finding::ok(CHECK, format!("{wanted} names the pods")));
        }
    }

    /// The addresses that the service lists.
    fn endpoints(&self, wanted: &str, findings: &mut Vec<Finding>) {
        let endpoints: usize = items(&self.objects.slices)
            .iter()
            .filter(|slice| {
                let of = slice.pointer("/metadata/labels/kubernetes.io~1service-name");
                of.and_then(Value::as_str) == Some(wanted)
            })
            .map(|slice| list(slice, "/endpoints").len())
            .sum();
        if self.objects.slices.is_ok() && endpoints < self.pods.len() {
            findings.push(Finding::warning(
                "service",
                format!("{wanted} lists {endpoints} addresses, and there are {} pods", self.pods.len()),
                "it follows within seconds; if it stays, a pod has no address yet, or the labels differ",
            ));
        }
    }

    /// Disruption budget and network policies.
    fn around(&self, findings: &mut Vec<Finding>) {
        let labels = self.set.pointer("/spec/template/metadata/labels");
        let budgets = items(&self.objects.budgets);
        let has_budget = budgets
            .iter()
            .any(|one| selects(one.pointer("/spec/selector/matchLabels"), labels));
        if self.objects.budgets.is_ok() && !has_budget && self.replicas > 1 {
            findings.push(Finding::warning(
                "budget",
                "there is no PodDisruptionBudget: draining two hosts at once takes the majority",
                "apply k8s/base/poddisruptionbudget.yaml",
            ));
        }
        let applying: Vec<&Value> = items(&self.objects.policies)
            .iter()
            .filter(|one| selects(one.pointer("/spec/podSelector/matchLabels"), labels))
            .filter(|one| {
                let types = list(one, "/spec/policyTypes");
                types.is_empty() || types.iter().any(|one| one == "Ingress")
            })
            .collect();
        let lets_in = |wanted: u64, port_name: &str| {
            let mut rules = applying.iter().flat_map(|one| list(one, "/spec/ingress"));
            rules.any(|rule| {
                let ports = list(rule, "/ports");
                ports.is_empty()
                    || ports.iter().any(|port| {
                        number(port, "/port") == Some(wanted) || text(port, "/port") == port_name
                    })
            })
        };
        for (port, port_name, whom) in [
            (2380, "grpc-peer", "the pods cannot reach each other"),
            (2379, "grpc-client", "no client reaches the pods"),
        ] {
            if !applying.is_empty() && !lets_in(port, port_name) {
                let names: Vec<_> = applying.iter().map(|one| name(one)).collect();
                findings.push(Finding::problem(
                    "network",
                    format!(
                        "no NetworkPolicy ({}) lets anybody in on port {port}: {whom}",
                        names.join(", ")
                    ),
                    "apply k8s/base/networkpolicy.yaml, and change it there",
                ));
            }
        }
    }
}
