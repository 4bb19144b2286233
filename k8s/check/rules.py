"""What podkv needs of its manifests. Each rule says in its message what goes wrong otherwise."""

import re

import yaml

from manifests import at, name_of
from tree import METRICS, SETTINGS

# Metrics of others: of Prometheus itself, of kubelets, of kube-state-metrics.
FOREIGN_METRICS = {
    "up",
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
    "kube_statefulset_replicas",
    "kube_statefulset_status_replicas_ready",
}


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
    folder = m.env.get("DATA_DIR") if m.is_embedded else m.env.get("PODKV_DATA_DIR", "/var/lib/podkv")
    mounts = {one.get("mountPath"): one.get("name") for one in m.container.get("volumeMounts", [])}
    if not folder or mounts.get(folder) not in [at(claim, "metadata.name") for claim in claims]:
        yield f"the data folder {folder} is not on the volume"


def settings(m):
    if m.is_embedded:
        expected = {"HEADLESS_SERVICE": at(m.set, "spec.serviceName"), "STATEFULSET": at(m.set, "metadata.name")}
        for name, value in expected.items():
            if m.env.get(name) != value:
                yield f"{name} is not {value}"
        return
    expected = {
        "PODKV_NAME": "metadata.name",
        "PODKV_HEADLESS_SERVICE": at(m.set, "spec.serviceName"),
        "PODKV_STATEFULSET": at(m.set, "metadata.name"),
    }
    for name, value in expected.items():
        if m.env.get(name) != value:
            yield f"{name} is {m.env.get(name)!r}, expected {value!r}"
    for name in m.env:
        if name not in SETTINGS:
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
