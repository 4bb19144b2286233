//! Golden: the objects of a healthy cluster, rendered from the manifests, with one thing changed at a time.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::kube::{Objects, examine};
use super::tests::{golden, told};
use super::*;

/// What `kubectl get -o json` gives of a cluster as `k8s/base` makes it, all of it ready.
const HEALTHY: &str = include_str!("fixtures/kube.json");

fn healthy() -> Objects {
    let mut read: BTreeMap<String, Value> = serde_json::from_str(HEALTHY).unwrap();
    let mut list = |kind: &str| match read.remove(kind) {
        Some(Value::Array(items)) => Ok(items),
        other => panic!("{kind}: {other:?}"),
    };
    Objects {
        name: "podkv".into(),
        pods: list("pods"),
        claims: list("claims"),
        events: list("events"),
        services: list("services"),
        slices: list("slices"),
        policies: list("policies"),
        budgets: list("budgets"),
        hosts: list("hosts"),
        statefulset: Ok(read.remove("statefulset")),
        status: BTreeMap::new(),
    }
}

fn set(objects: &mut Objects) -> &mut Value {
    objects.statefulset.as_mut().unwrap().as_mut().unwrap()
}

fn at<'a>(value: &'a mut Value, pointer: &str) -> &'a mut Value {
    value
        .pointer_mut(pointer)
        .unwrap_or_else(|| panic!("the fixture has no {pointer}"))
}

fn remove(value: &mut Value, pointer: &str, key: &str) {
    let removed = at(value, pointer).as_object_mut().unwrap().remove(key);
    assert!(removed.is_some(), "the fixture has no {pointer}/{key}");
}

fn pod(objects: &mut Objects, ordinal: usize) -> &mut Value {
    &mut objects.pods.as_mut().unwrap()[ordinal]
}

/// The pod runs, and is not ready.
fn unready(objects: &mut Objects, ordinal: usize) {
    *at(pod(objects, ordinal), "/status/conditions/1/status") = json!("False");
    *at(set(objects), "/status/readyReplicas") = json!(2);
}

fn container(objects: &mut Objects, ordinal: usize) -> &mut Value {
    unready(objects, ordinal);
    at(pod(objects, ordinal), "/status/containerStatuses/0")
}

fn event(objects: &mut Objects, of: &str, reason: &str, message: &str) {
    objects.events.as_mut().unwrap().push(json!({
        "type": "Warning", "reason": reason, "message": message,
        "involvedObject": {"name": of}, "lastTimestamp": "2026-11-22T10:00:00Z",
    }));
}

fn headless(objects: &mut Objects) -> &mut Value {
    let services = objects.services.as_mut().unwrap().iter_mut();
    let mut named = services.filter(|one| one["metadata"]["name"] == "podkv-headless");
    named.next().unwrap()
}

fn env(objects: &mut Objects) -> &mut Vec<Value> {
    at(set(objects), "/spec/template/spec/containers/0/env")
        .as_array_mut()
        .unwrap()
}

type Change = fn(&mut Objects);

const SCENARIOS: &[(&str, Change)] = &[
    ("nothing is wrong", |_| ()),
    ("no StatefulSet", |seen| seen.statefulset = Ok(None)),
    ("no rights", |seen| {
        seen.statefulset =
            Err("Error from server (Forbidden): statefulsets.apps \"podkv\" is forbidden".into());
    }),
    ("rights for some", |seen| {
        seen.events = Err("Error from server (Forbidden): events is forbidden".into());
        seen.hosts = Err("Error from server (Forbidden): nodes is forbidden".into());
    }),
    ("scaled to 0", |seen| {
        *at(set(seen), "/spec/replicas") = json!(0);
        seen.pods = Ok(Vec::new());
    }),
    ("OrderedReady", |seen| {
        *at(set(seen), "/spec/podManagementPolicy") = json!("OrderedReady")
    }),
    ("volumes that are deleted", |seen| {
        *at(
            set(seen),
            "/spec/persistentVolumeClaimRetentionPolicy/whenScaled",
        ) = json!("Delete");
    }),
    ("two words on the size", |seen| {
        env(seen).push(json!({"name": "PODKV_REPLICAS", "value": "3"}))
    }),
    ("a wrong size", |seen| {
        env(seen).retain(|one| one["name"] != "PODKV_STATEFULSET");
        env(seen).push(json!({"name": "PODKV_REPLICAS", "value": "5"}));
    }),
    ("a short grace", |seen| {
        *at(
            set(seen),
            "/spec/template/spec/terminationGracePeriodSeconds",
        ) = json!(30)
    }),
    ("no preStop, no readiness", |seen| {
        remove(
            set(seen),
            "/spec/template/spec/containers/0/lifecycle",
            "preStop",
        );
        remove(
            set(seen),
            "/spec/template/spec/containers/0",
            "readinessProbe",
        );
    }),
    ("service links", |seen| {
        remove(set(seen), "/spec/template/spec", "enableServiceLinks")
    }),
    ("no volumes", |seen| {
        remove(set(seen), "/spec", "volumeClaimTemplates")
    }),
    ("no headless service", |seen| {
        seen.services
            .as_mut()
            .unwrap()
            .retain(|one| one["metadata"]["name"] != "podkv-headless");
    }),
    ("pods that are not ready are not published", |seen| {
        remove(headless(seen), "/spec", "publishNotReadyAddresses");
    }),
    ("a port without the name", |seen| {
        for port in at(headless(seen), "/spec/ports").as_array_mut().unwrap() {
            port["name"] = json!(format!("x-{}", port["name"].as_str().unwrap()));
        }
    }),
    ("no budget", |seen| seen.budgets = Ok(Vec::new())),
    ("a policy that keeps peers out", |seen| {
        seen.policies = Ok(vec![json!({
            "metadata": {"name": "deny"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": 2379}]}]},
        })]);
    }),
    ("no host for a pod", |seen| {
        unready(seen, 2);
        let conditions = at(pod(seen, 2), "/status/conditions/0");
        *conditions = json!({"type": "PodScheduled", "status": "False", "message":
            "0/3 nodes are available: 3 node(s) had volume node affinity conflict"});
        remove(pod(seen, 2), "/spec", "nodeName");
    }),
    ("a claim that waits", |seen| {
        unready(seen, 1);
        seen.claims.as_mut().unwrap()[1]["status"]["phase"] = json!("Pending");
        event(
            seen,
            "data-podkv-1",
            "ProvisioningFailed",
            "storageclass.storage.k8s.io \"fast\" not found",
        );
    }),
    ("a lost volume", |seen| {
        seen.claims.as_mut().unwrap()[1]["status"]["phase"] = json!("Lost");
    }),
    ("a quota", |seen| {
        seen.pods.as_mut().unwrap().pop();
        *at(set(seen), "/status/readyReplicas") = json!(2);
        event(
            seen,
            "podkv",
            "FailedCreate",
            "create Pod podkv-2 failed: exceeded quota: memory",
        );
        seen.slices.as_mut().unwrap()[0]["endpoints"]
            .as_array_mut()
            .unwrap()
            .pop();
    }),
    ("no image", |seen| {
        container(seen, 0)["state"] = json!({"waiting": {"reason": "ImagePullBackOff",
            "message": "Back-off pulling image \"podkv:0.1.0\""}});
    }),
    ("a bad setting", |seen| {
        let container = container(seen, 0);
        container["state"] =
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}});
        container["lastState"] = json!({"terminated": {"exitCode": 2, "reason": "Error"}});
        container["restartCount"] = json!(7);
    }),
    ("too little memory", |seen| {
        let container = container(seen, 0);
        container["lastState"] = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        container["restartCount"] = json!(3);
    }),
    ("a volume that another host holds", |seen| {
        container(seen, 1)["state"] = json!({"waiting": {"reason": "ContainerCreating"}});
        event(
            seen,
            "podkv-1",
            "FailedAttachVolume",
            "Multi-Attach error for volume \"pv-1\"",
        );
    }),
    ("not ready, and it says why", |seen| {
        unready(seen, 2);
        seen.status.insert(
            "podkv-2".into(),
            json!({"ready": false, "reason": "no leader for 10s"}),
        );
    }),
    ("not ready, and it cannot be asked", |seen| {
        unready(seen, 2);
        event(
            seen,
            "podkv-2",
            "Unhealthy",
            "Readiness probe failed: HTTP probe failed with statuscode: 503",
        );
    }),
    ("on its way out", |seen| {
        pod(seen, 1)["metadata"]["deletionTimestamp"] = json!("2026-11-22T10:00:00Z");
    }),
    ("two on one host, in two zones", |seen| {
        *at(pod(seen, 1), "/spec/nodeName") = json!("worker-0");
    }),
];

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    let mut printed = String::new();
    for (title, change) in SCENARIOS {
        let mut seen = healthy();
        change(&mut seen);
        let findings = examine(&seen);
        for finding in &findings {
            let is_ok = finding.level == Level::Ok;
            assert_eq!(finding.todo.is_empty(), is_ok, "{title}: {finding}");
        }
        told(&mut printed, title, &findings);
    }
    golden("kube.txt", &printed);
}
