"""Kustomize: folders, combinations of components, and what the README writes out."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

K8S = Path(__file__).resolve().parent.parent
ROOT = K8S.parent


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


def render_combination(names):
    """The base with components, and beside it examples that are no clusters, like examples/projection."""
    examples = [name for name in names if name.startswith("examples/")]
    kustomization = {
        "namespace": "podkv",
        "resources": ["../../base", *(f"../../{name}" for name in examples)],
        "components": [f"../../components/{name}" for name in names if name not in examples],
    }
    return render_kustomization(yaml.safe_dump(kustomization))


def snippets():
    """The kustomizations that are written out in the README."""
    return re.findall(r"```yaml\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)
