"""Renders the manifests, checks each against Kubernetes' schemas, and for what podkv needs of them.

Run by `make manifests`. Three things are looked at in every combination that README.md names:

- the schemas, strictly, of the oldest Kubernetes that podkv supports and of the newest that is known here;
- what podkv relies on (`problems`): each rule says in its message what goes wrong otherwise;
- that names which stand in several places agree: ports, labels, services, secrets, metrics, settings.

Then the rules themselves are tried: every line of the base is taken away once, and a rule must miss it, unless
the line is listed as free to change (`FREE`).
"""

import copy
import fnmatch
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml
from cloudcoil.models.cert_manager import v1 as cert_manager
from cloudcoil.models.prometheus_operator import v1 as prometheus

K8S = Path(__file__).resolve().parent
ROOT = K8S.parent

# The native `sleep` of preStop is on by default from 1.30 on; all else that is used here is older.
OLDEST = "1.30"
NEWEST = kubernetes_validate.latest_version()

COMBINATIONS = [
    [],
    ["read-write-once-pod"],
    ["monitoring"],
    ["tls"],
    ["tls", "monitoring", "read-write-once-pod"],
    ["sidecar"],
    ["tls", "monitoring", "read-write-once-pod", "sidecar"],
    ["embedded"],
    ["read-write-once-pod", "embedded"],
]
CLUSTERS = ["production"]
OTHERS = ["backup"]

# Objects that others define. Their models drop what they do not know, which is how a typing error is found.
MODELS = {
    ("cert-manager.io/v1", "Issuer"): cert_manager.Issuer,
    ("cert-manager.io/v1", "Certificate"): cert_manager.Certificate,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): prometheus.ServiceMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): prometheus.PrometheusRule,
}

# Metrics of others: of Prometheus itself, of kubelets, of kube-state-metrics.
FOREIGN_METRICS = {
    "up",
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
    "kube_statefulset_replicas",
    "kube_statefulset_status_replicas_ready",
}

# Settings that the manifests make and that the program does not have yet. To be emptied: one that it has is
# refused here.
COMING_SETTINGS = {
    "PODKV_HEADLESS_SERVICE",
    "PODKV_STATEFULSET",
    "PODKV_TLS",
    "PODKV_TLS_CERT",
    "PODKV_TLS_KEY",
    "PODKV_TLS_CA",
}

# Lines of the base that anybody may change without asking podkv.
FREE = [
    "*.annotations*",
    "Service.*.ipFamilyPolicy",
    "Service.podkv-headless.spec.ports.*http-admin*",
    "Service.podkv-headless.spec.ports.*grpc-client*",
    # Written by Kustomize.
    "RoleBinding.podkv.subjects.*.namespace",
    # Soft spreading over zones.
    "StatefulSet.podkv.spec.template.spec.topologySpreadConstraints.1*",
    "StatefulSet.podkv.spec.volumeClaimTemplates.0.spec.resources*",
    # How patient the probes are, within limits. That they are there, and what they ask, is not free.
    "*Probe.periodSeconds",
    "*Probe.timeoutSeconds",
    "*.env.*PODKV_MAX_VOTERS*",
    "*.env.*PODKV_LOG_FORMAT*",
]


# ---------------------------------------------------------------- rendering


def render(folder):
    result = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{folder} cannot be rendered:\n{result.stderr}")
    if result.stderr:
        sys.exit(f"{folder} is rendered with a warning:\n{result.stderr}")
    return [item for item in yaml.safe_load_all(result.stdout) if item]


def render_kustomization(kustomization):
    """Renders what is written as if it were in a folder of examples/."""
    with tempfile.TemporaryDirectory() as folder:
        # Kustomize takes no absolute paths, and follows links before it looks at `..`.
        k8s = os.path.relpath(K8S, os.path.realpath(folder))
        Path(folder, "kustomization.yaml").write_text(kustomization.replace("../..", k8s))
        return render(folder)


def render_combination(components):
    kustomization = {
        "namespace": "podkv",
        "resources": ["../../base"],
        "components": [f"../../components/{name}" for name in components],
    }
    return render_kustomization(yaml.safe_dump(kustomization))


def snippets():
    """The kustomizations that are written out in the README."""
    return re.findall(r"```yaml\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)


# ---------------------------------------------------------------- schemas


def dropped(given, kept, path=""):
    """Paths of `given` that a model did not keep."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{path}.{key}"
            else:
                yield from dropped(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(kept, list):
        for index, (one, other) in enumerate(zip(given, kept)):
            yield from dropped(one, other, f"{path}.{index}")


def schema_problems(item):
    model = MODELS.get((item["apiVersion"], item["kind"]))
    if model:
        kept = model.model_validate(item).model_dump(by_alias=True, exclude_unset=True, mode="json")
        for path in dropped(item, kept):
            yield f"{name_of(item)}: {path} is no field of {item['kind']}"
        return
    for version in (OLDEST, NEWEST):
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            path = ".".join(str(part) for part in error.path)
            yield f"{name_of(item)}: {path}: {error.message} (Kubernetes {version})"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield f"{name_of(item)}: {error.message}"


# ---------------------------------------------------------------- what podkv needs


def name_of(item):
    return f"{item['kind']}/{item['metadata']['name']}"


def at(item, path, default=None):
    """The value at a path of keys and indexes, or the default."""
    for part in path.split("."):
        if isinstance(item, list):
            item = item[int(part)] if int(part) < len(item) else None
        elif isinstance(item, dict):
            item = item.get(part)
        if item is None:
            return default
    return item


class Manifests:
    """The rendered objects, by what they are for. What is missing is an empty object, and a problem."""

    def __init__(self, items, components):
        self.items = items
        self.components = components
        sets = self.of_kind("StatefulSet")
        self.set = sets[0] if len(sets) == 1 else {}
        self.pod = at(self.set, "spec.template.spec", {})
        places = ("initContainers", "containers") if "sidecar" in components else ("containers",)
        containers = [one for place in places for one in self.pod.get(place, [])]
        self.container = containers[0] if containers else {}
        # A variable from the downward API has no value, but a place.
        self.env = {
            one.get("name"): one.get("value", at(one, "valueFrom.fieldRef.fieldPath"))
            for one in self.container.get("env", [])
        }
        self.ports = {
            one.get("name"): one.get("containerPort") for one in self.container.get("ports", [])
        }
        self.labels = at(self.set, "spec.template.metadata.labels", {})
        self.is_embedded = "embedded" in components

    def of_kind(self, kind):
        return [item for item in self.items if item["kind"] == kind]

    def get(self, kind, name):
        for item in self.of_kind(kind):
            if item["metadata"]["name"] == name:
                return item
        return {}

    def selects(self, selector):
        """Whether labels to match are there, and are those of the pods."""
        return bool(selector) and selector.items() <= self.labels.items()


def problems(all_of_it):
    for rule in RULES:
        for problem in rule(all_of_it):
            yield f"{rule.__name__}: {problem}"


def wants(item, expected, name):
    for path, value in expected.items():
        found = at(item, path)
        if found != value:
            yield f"{name}: {path} is {found!r}, expected {value!r}"


def stateful_set(m):
    yield from wants(
        m.set,
        {
            "spec.replicas": 3,
            "spec.podManagementPolicy": "Parallel",
            "spec.updateStrategy.type": "RollingUpdate",
            "spec.persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        },
        "StatefulSet",
    )
    if at(m.set, "spec.minReadySeconds", 0) < 5:
        yield "minReadySeconds is below 5: a rolling update outruns the endpoints"
    if not m.selects(at(m.set, "spec.selector.matchLabels", {})):
        yield "the selector is not that of its pods"


def pods(m):
    yield from wants(
        m.pod,
        {
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 120,
            "securityContext.runAsNonRoot": True,
            "securityContext.runAsUser": 65532,
            "securityContext.runAsGroup": 65532,
            "securityContext.fsGroup": 65532,
            "securityContext.fsGroupChangePolicy": "OnRootMismatch",
            "securityContext.seccompProfile.type": "RuntimeDefault",
        },
        "pod",
    )
    for container in m.pod.get("initContainers", []) + m.pod.get("containers", []):
        yield from wants(
            container,
            {
                "securityContext.allowPrivilegeEscalation": False,
                "securityContext.readOnlyRootFilesystem": True,
                "securityContext.capabilities.drop": ["ALL"],
            },
            container.get("name"),
        )
        limit = at(container, "resources.limits.memory")
        if not limit or at(container, "resources.requests.memory") != limit:
            yield f"{container.get('name')}: caches are sized by the memory limit, so it must also be requested"
        if not at(container, "resources.requests.cpu"):
            yield f"{container.get('name')}: without a CPU request it gets what others leave"
        if at(container, "resources.limits.cpu"):
            yield f"{container.get('name')}: a CPU limit: a throttled node misses heartbeats"
    if "sidecar" in m.components and m.container.get("restartPolicy") != "Always":
        yield "an init container that is not restarted is no sidecar: the application would never start"


def spread(m):
    constraints = m.pod.get("topologySpreadConstraints", [])
    hard = [one for one in constraints if one.get("topologyKey") == "kubernetes.io/hostname"]
    if not hard or hard[0].get("whenUnsatisfiable") != "DoNotSchedule" or hard[0].get("maxSkew") != 1:
        yield "two nodes may land on one host"
    for one in constraints:
        if not m.selects(at(one, "labelSelector.matchLabels", {})):
            yield f"{one.get('topologyKey')}: counts other pods than these"


def disruptions(m):
    budgets = m.of_kind("PodDisruptionBudget")
    if len(budgets) != 1:
        yield f"{len(budgets)} budgets: drains of hosts may take a majority"
    for budget in budgets:
        yield from wants(
            budget,
            {"spec.maxUnavailable": 1, "spec.unhealthyPodEvictionPolicy": "IfHealthyBudget"},
            name_of(budget),
        )
        if not m.selects(at(budget, "spec.selector.matchLabels", {})):
            yield "protects other pods than these"


def program(m):
    name, image = ("flags", "podkv-flags") if m.is_embedded else ("podkv", "podkv")
    if m.container.get("name") != name or image != m.container.get("image", "").split("/")[-1].split(":")[0]:
        yield f"the first container is not {name} from the image {image}"
    if m.container.get("args") != ["serve"]:
        yield "the container does not run `serve`"


def stops(m):
    if at(m.container, "lifecycle.preStop") != {"sleep": {"seconds": 5}}:
        yield "preStop must be the kubelet's sleep of 5 s: the image has no shell, and endpoints lag"


def probes(m):
    paths = {"startupProbe": "/startupz", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    if m.is_embedded:
        paths = {"startupProbe": "/", "livenessProbe": "/", "readinessProbe": "/readyz"}
    for probe, path in paths.items():
        if at(m.container, f"{probe}.httpGet.path") != path:
            yield f"{probe} does not ask {path}"
        if at(m.container, f"{probe}.httpGet.port") not in m.ports:
            yield f"{probe} asks a port that the container does not have"
    # Seconds. A replay that is cut short begins anew; a busy node must not be killed for being slow.
    patience = {"startupProbe": 1800, "livenessProbe": 60}
    for probe, least in patience.items():
        given = at(m.container, f"{probe}.periodSeconds", 10) * at(m.container, f"{probe}.failureThreshold", 3)
        if given < least:
            yield f"{probe} gives up after {given} s, before {least} s"
    if at(m.container, "readinessProbe.failureThreshold", 3) > 2:
        yield "readinessProbe: a node that drains stays in the endpoints for too long"


def volume(m):
    claims = at(m.set, "spec.volumeClaimTemplates", [])
    modes = ["ReadWriteOncePod"] if "read-write-once-pod" in m.components else ["ReadWriteOnce"]
    if [at(claim, "spec.accessModes") for claim in claims] != [modes]:
        yield f"there must be one claim, {modes[0]}"
    folder = m.env.get("DATA_DIR" if m.is_embedded else "PODKV_DATA_DIR")
    mounts = {one.get("mountPath"): one.get("name") for one in m.container.get("volumeMounts", [])}
    if not folder or mounts.get(folder) not in [at(claim, "metadata.name") for claim in claims]:
        yield f"the data folder {folder} is not on the volume"


def settings(m):
    if m.is_embedded:
        if m.env.get("POD_NAME") != "metadata.name":
            yield "the pod's name does not come from the downward API"
        set_name, service = at(m.set, "metadata.name"), at(m.set, "spec.serviceName")
        peers = [f"{set_name}-{n}={set_name}-{n}.{service}:2380" for n in range(at(m.set, "spec.replicas", 0))]
        if m.env.get("PEERS") != ",".join(peers):
            yield f"PEERS is not {','.join(peers)}"
        return
    expected = {
        "PODKV_NAME": "metadata.name",
        "PODKV_HEADLESS_SERVICE": at(m.set, "spec.serviceName"),
        "PODKV_STATEFULSET": at(m.set, "metadata.name"),
        # Of both families.
        "PODKV_CLIENT_LISTEN": "[::]:2379",
        "PODKV_PEER_LISTEN": "[::]:2380",
        "PODKV_ADMIN_LISTEN": "[::]:2381",
    }
    for name, value in expected.items():
        if m.env.get(name) != value:
            yield f"{name} is {m.env.get(name)!r}, expected {value!r}"
    for name in m.env:
        if name in COMING_SETTINGS and name in SETTINGS:
            yield f"{name} is a setting of podkv by now: take it out of COMING_SETTINGS"
        if name not in COMING_SETTINGS | SETTINGS:
            yield f"{name} is no setting of podkv"
        # Kubernetes makes such names of services.
        if re.search(r"_PORT(_|$)|_SERVICE_", name):
            yield f"{name} may be injected by Kubernetes"


def ports(m):
    expected = {"grpc-client": 2379, "grpc-peer": 2380, "http-admin": 2381}
    if m.is_embedded:
        expected = {"http": 8080, "grpc-peer": 2380}
    if m.ports != expected:
        yield f"the container's ports are {m.ports}, expected {expected}"


def services(m):
    headless = m.get("Service", at(m.set, "spec.serviceName"))
    if not headless:
        yield "the StatefulSet's service is not there: its pods have no names"
    yield from wants(
        headless, {"spec.clusterIP": "None", "spec.publishNotReadyAddresses": True}, "headless service"
    )
    if "grpc-peer" not in [port.get("name") for port in at(headless, "spec.ports", [])]:
        yield "the headless service has no port grpc-peer: there are SRV records for named ports only"
    for service in m.of_kind("Service"):
        if not m.selects(at(service, "spec.selector", {})):
            yield f"{name_of(service)} selects other pods"
        if not at(service, "spec.ports"):
            yield f"{name_of(service)} has no ports"
        for port in at(service, "spec.ports", []):
            number = m.ports.get(port.get("name"))
            if number is None or port.get("targetPort") != number:
                yield f"{name_of(service)}: {port} does not lead to the number of a container's port of that name"
            elif port.get("port") not in (number, 80):
                yield f"{name_of(service)}: {port} has another number than the container's"
    if m.is_embedded:
        return
    yield from wants(m.get("Service", "podkv"), {"spec.publishNotReadyAddresses": None}, "client service")
    yield from wants(
        m.get("Service", "podkv-local"), {"spec.publishNotReadyAddresses": True}, "service for local reads"
    )
    for name in ("podkv", "podkv-local"):
        if [port.get("port") for port in at(m.get("Service", name), "spec.ports", [])] != [2379]:
            yield f"Service/{name} does not lead to the port of clients"


def rights(m):
    account = m.pod.get("serviceAccountName")
    if not m.get("ServiceAccount", account).get("automountServiceAccountToken"):
        yield "the pod has no token to read its StatefulSet with"
    roles, bindings = m.of_kind("Role"), m.of_kind("RoleBinding")
    if m.of_kind("ClusterRole") or m.of_kind("ClusterRoleBinding") or len(roles) != 1 or len(bindings) != 1:
        yield "rights beyond one Role"
        return
    wanted = {
        "apiGroups": ["apps"],
        "resources": ["statefulsets"],
        "resourceNames": [at(m.set, "metadata.name")],
        "verbs": ["get"],
    }
    if roles[0].get("rules") != [wanted]:
        yield f"the Role is {roles[0].get('rules')}, expected {[wanted]}"
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": roles[0]["metadata"]["name"]}
    if bindings[0].get("roleRef") != role:
        yield "the binding is of another Role"
    subject = {"kind": "ServiceAccount", "name": account}
    if [{key: one.get(key) for key in subject} for one in bindings[0].get("subjects", [])] != [subject]:
        yield "the Role is bound to somebody else"


def network(m):
    policies = m.of_kind("NetworkPolicy")
    if len(policies) != 1:
        yield f"{len(policies)} policies for what may come in"
        return
    policy = policies[0]
    if not m.selects(at(policy, "spec.podSelector.matchLabels", {})):
        yield "it is about other pods"
    if at(policy, "spec.policyTypes") != ["Ingress"]:
        yield "it is not about what comes in alone"
    names = {number: name for name, number in m.ports.items()}
    doors = {}
    for rule in at(policy, "spec.ingress", []):
        if not rule.get("from") or not all(rule["from"]):
            yield f"everybody is let in to {rule.get('ports')}"
        if not rule.get("ports"):
            yield f"every port is open to {rule.get('from')}"
        for port in rule.get("ports", []):
            doors[names.get(port.get("port"))] = rule.get("from")
            if port.get("port") not in names:
                yield f"port {port.get('port')} is not the number of one of the container's"
    peers = doors.get("grpc-peer") or []
    if not peers or not all(m.selects(at(one, "podSelector.matchLabels", {})) for one in peers):
        yield "the port of peers must be open to the pods of this cluster, and to nobody else"
    if ("http" if m.is_embedded else "grpc-client") not in doors:
        yield "nobody is let in to the port of clients"
    if ("http-admin" in doors) != ("monitoring" in m.components):
        yield "port http-admin is open to Prometheus if there is monitoring, else to nobody"


def tls(m):
    if "tls" not in m.components:
        return
    certificate = m.get("Certificate", "podkv-tls")
    mounts = {one["name"]: one for one in m.container.get("volumeMounts", [])}
    folder = at(mounts, "tls.mountPath")
    expected = {
        "PODKV_TLS": "require",
        "PODKV_TLS_CERT": f"{folder}/tls.crt",
        "PODKV_TLS_KEY": f"{folder}/tls.key",
        "PODKV_TLS_CA": f"{folder}/ca.crt",
    }
    for name, value in expected.items():
        if m.env.get(name) != value:
            yield f"{name} is {m.env.get(name)!r}, expected {value!r}"
    if "subPath" in mounts.get("tls", {}):
        yield "a file mounted by subPath is never renewed"
    secrets = [at(one, "secret.secretName") for one in m.pod.get("volumes", []) if one["name"] == "tls"]
    if secrets != [at(certificate, "spec.secretName")]:
        yield "the pods mount another secret than the certificate is written to"
    if not {"server auth", "client auth"} <= set(at(certificate, "spec.usages", [])):
        yield "each node is a server, and a client of the others"
    namespace = at(m.set, "metadata.namespace")
    headless = at(m.set, "spec.serviceName")
    names = {"localhost", f"*.{headless}.{namespace}.svc.cluster.local"}
    for service in m.of_kind("Service"):
        short = service["metadata"]["name"]
        names |= {short, f"{short}.{namespace}.svc", f"{short}.{namespace}.svc.cluster.local"}
    missing = names - set(at(certificate, "spec.dnsNames", []))
    if missing:
        yield f"the certificate does not name {', '.join(sorted(missing))}"
    issuers = {item["metadata"]["name"]: item for item in m.of_kind("Issuer")}
    for item in m.of_kind("Certificate"):
        if at(item, "spec.issuerRef.name") not in issuers:
            yield f"{name_of(item)} has no issuer"
    authority = issuers.get(at(certificate, "spec.issuerRef.name"), {})
    signers = [at(one, "spec.secretName") for one in m.of_kind("Certificate") if at(one, "spec.isCA")]
    if at(authority, "spec.ca.secretName") not in signers:
        yield "the issuer signs with an authority that nobody makes"


def metric_names(expression):
    expression = re.sub(r'"[^"]*"', "", expression)
    # Labels to group or join by, and label matchers, are no metrics.
    expression = re.sub(r"\b(by|on|without|group_right|group_left|ignoring)\s*\([^)]*\)", "", expression)
    expression = re.sub(r"\{[^}]*\}", "", expression)
    words = re.findall(r"[a-zA-Z_:][\w:]*(?!\w*\s*\()", expression)
    keywords = {"and", "or", "unless", "by", "on", "bool", "__rate_interval"}
    return {word for word in words if "_" in word or word == "up"} - keywords - FUNCTIONS


FUNCTIONS = {"histogram_quantile", "predict_linear", "last_over_time", "max_over_time"}


def monitoring(m):
    if "monitoring" not in m.components:
        return
    for monitor in m.of_kind("ServiceMonitor"):
        selector = at(monitor, "spec.selector.matchLabels", {})
        chosen = [one for one in m.of_kind("Service") if selector.items() <= at(one, "metadata.labels", {}).items()]
        if [at(one, "spec.publishNotReadyAddresses") for one in chosen] != [True]:
            yield "the scraped service must be one, and list nodes that are not ready"
        ports = [port["name"] for one in chosen for port in at(one, "spec.ports", [])]
        for endpoint in at(monitor, "spec.endpoints", []):
            if endpoint.get("port") not in ports:
                yield f"the scraped service has no port {endpoint.get('port')}"
    expressions, alerts = [], set()
    for rules in m.of_kind("PrometheusRule"):
        for rule in (rule for group in at(rules, "spec.groups", []) for rule in group["rules"]):
            alerts.add(rule["alert"])
            said = [at(rule, path) for path in ("annotations.summary", "annotations.description")]
            if at(rule, "labels.severity") not in ("critical", "warning") or not all(said):
                yield f"{rule['alert']} does not say how bad it is, what it means, or what to do"
            expressions.append((rule["alert"], rule["expr"]))
    for alert in ("NoLeader", "MemberDown", "ReplicationLag", "FsyncSlow", "DiskFilling", "NotDurable"):
        if f"Podkv{alert}" not in alerts:
            yield f"the alert Podkv{alert} is missing"
    dashboard = at(m.get("ConfigMap", "podkv-dashboard"), "data", {})
    for text in dashboard.values():
        for panel in yaml.safe_load(text)["panels"]:
            expressions += [(panel["title"], target["expr"]) for target in panel["targets"]]
    if not dashboard:
        yield "there is no dashboard"
    for where, expression in expressions:
        names = metric_names(expression)
        if not names:
            yield f"{where} asks for no metric"
        for name in names - METRICS - FOREIGN_METRICS:
            yield f"{where}: podkv has no metric {name}"


RULES = [
    stateful_set,
    pods,
    spread,
    disruptions,
    program,
    stops,
    probes,
    volume,
    settings,
    ports,
    services,
    rights,
    network,
    tls,
    monitoring,
]


# ---------------------------------------------------------------- the rest of the tree


def settings_of_the_program():
    source = (ROOT / "crates/server/src/settings.rs").read_text()
    table = source[source.index("settings! {") : source.index("/// Where a value came from")]
    names = re.findall(r'^\s*[A-Z_]+ = "([a-z-]+)"', table, re.MULTILINE)
    return {f"PODKV_{name.replace('-', '_').upper()}" for name in names}


def metrics_of_the_program():
    source = (ROOT / "crates/server/src/admin/metrics.rs").read_text()
    source = source[: source.index("#[cfg(test)]")]
    names = {f"podkv_{name}" for name in re.findall(r'"([a-z][a-z0-9_]*)"', source)}
    return names | {f"{name}_bucket" for name in names}


def tree_problems():
    """What stands twice in the tree must be the same."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    toolchain = re.search(r'channel = "(.*)"', (ROOT / "rust-toolchain.toml").read_text()).group(1)
    if f"ARG RUST_VERSION={toolchain}\n" not in dockerfile:
        yield f"Dockerfile: RUST_VERSION is not {toolchain}, as in rust-toolchain.toml"
    if "\nUSER 65532:65532\n" not in dockerfile:
        yield "Dockerfile: the user is not the one of the manifests, 65532"
    version = re.search(r'\nversion = "(.*)"', (ROOT / "Cargo.toml").read_text()).group(1)
    for path in K8S.rglob("*.yaml"):
        for tag in re.findall(r"(?:image: podkv[a-z-]*:|value: podkv-flags:|newTag: )(.*)", path.read_text()):
            if tag != version:
                yield f"{path.relative_to(ROOT)}: the image's tag is {tag}, Cargo.toml says {version}"
    readme = (K8S / "README.md").read_text()
    if f"Kubernetes {OLDEST}" not in readme:
        yield f"k8s/README.md does not say Kubernetes {OLDEST}"
    for folder in (K8S / "examples").iterdir():
        if folder.name not in CLUSTERS + OTHERS or f"examples/{folder.name}" not in readme:
            yield f"examples/{folder.name} is not rendered here, or not in the README"
    named = {word for one in COMBINATIONS for word in one}
    for folder in (K8S / "components").iterdir():
        if folder.name not in named or f"`{folder.name}`" not in readme:
            yield f"components/{folder.name} is not rendered here, or not in the README"


# ---------------------------------------------------------------- trying the rules


def leaves(value, path):
    """(path, parent, key) of every line: leaves, and the things that hold them."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(pairs):
        # Elements of a list that have a name go by it.
        has_name = isinstance(value, list) and isinstance(child, dict) and "name" in child
        label = child["name"] if has_name else key
        yield f"{path}.{label}", value, key
        yield from leaves(child, f"{path}.{label}")


def unnoticed(items):
    """Lines of the base that can go without any rule's noticing."""
    for number, item in enumerate(items):
        name = f"{item['kind']}.{item['metadata']['name']}"
        for index, (path, _, key) in enumerate(leaves(item, name)):
            # The schemas ask for these, and labels of objects are there for people.
            is_head = path.startswith(f"{name}.metadata") or key in ("apiVersion", "kind")
            if is_head or any(fnmatch.fnmatch(path, pattern) for pattern in FREE):
                continue
            damaged = copy.deepcopy(items)
            _, parent, key = list(leaves(damaged[number], name))[index]
            del parent[key]
            if not any(problems(Manifests(damaged, []))):
                yield path


SETTINGS = settings_of_the_program()
METRICS = metrics_of_the_program()


def main():
    found = list(tree_problems())
    targets = [(" + ".join(["base", *names]), render_combination(names), names) for names in COMBINATIONS]
    for name in CLUSTERS:
        folder = K8S / "examples" / name
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        components = [Path(path).name for path in kustomization.get("components", [])]
        targets.append((f"examples/{name}", render(folder), components))
    for title, items, components in targets:
        here = [problem for item in items for problem in schema_problems(item)]
        here += problems(Manifests(items, components))
        print(f"{title}: {len(items)} objects, {f'{len(here)} problems' if here else 'ok'}")
        found += [f"{title}: {problem}" for problem in here]
    # No clusters, or changed on purpose: the schemas only.
    others = [(f"examples/{name}", render(K8S / "examples" / name)) for name in OTHERS]
    others += [(f"README, yaml {n}", render_kustomization(text)) for n, text in enumerate(snippets(), 1)]
    for title, items in others:
        here = [problem for item in items for problem in schema_problems(item)]
        print(f"{title}: {len(items)} objects, {f'{len(here)} problems' if here else 'ok'}")
        found += [f"{title}: {problem}" for problem in here]
    base = targets[0][1]
    for path in unnoticed(base):
        found.append(f"the base can lose {path}, and no rule of k8s/check.py misses it")
    for problem in found:
        print(f"    {problem}", file=sys.stderr)
    if found:
        sys.exit(1)
    print(f"valid for Kubernetes {OLDEST} (the oldest that is supported) and {NEWEST}")


if __name__ == "__main__":
    main()
