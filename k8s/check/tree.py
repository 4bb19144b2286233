"""What the rest of the tree says: settings, metrics, versions. They must be the same everywhere."""

import re

from render import K8S, ROOT
from schemas import OLDEST

# The components that the README says go together.
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
# Of the examples, those that are clusters, and those that are not.
CLUSTERS = ["production"]
OTHERS = ["backup", "projection", "read-only"]
# Components for pods that are no nodes. Examples render them.
FOR_APPLICATIONS = {"projection"}


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
    named = {word for one in COMBINATIONS for word in one} | FOR_APPLICATIONS
    for folder in (K8S / "components").iterdir():
        if folder.name not in named or f"`{folder.name}`" not in readme:
            yield f"components/{folder.name} is not rendered here, or not in the README"


SETTINGS = settings_of_the_program()
METRICS = metrics_of_the_program()
