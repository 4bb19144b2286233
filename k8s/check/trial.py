"""Tries the rules: every line of the base is taken away once, and a rule must miss it."""

import copy
import fnmatch

from manifests import Manifests
from rules import problems

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
    "*.env.*PODKV_LOG_FORMAT*",
]


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
