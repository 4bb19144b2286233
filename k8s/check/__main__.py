"""Renders the manifests, checks each against Kubernetes' schemas, and for what podkv needs of them.

Run by `make manifests`. Three things are looked at in every combination that README.md names:

- the schemas, strictly, of the oldest Kubernetes that podkv supports and of the newest that is known here;
- what podkv relies on (`rules.py`): each rule says in its message what goes wrong otherwise;
- that names which stand in several places agree: ports, labels, services, secrets, metrics, settings.

Then the rules themselves are tried: every line of the base is taken away once, and a rule must miss it, unless
the line is listed as free to change (`trial.py`).

With `--render tls sidecar examples/projection` it prints the objects of that combination as JSON and checks nothing: for
tests that start pods as the manifests say.
"""

import json
import sys
from pathlib import Path

import yaml
from manifests import Manifests
from render import K8S, render, render_combination, render_kustomization, snippets
from rules import problems
from schemas import NEWEST, OLDEST, schema_problems
from tree import CLUSTERS, COMBINATIONS, OTHERS, tree_problems
from trial import unnoticed


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
        found.append(f"the base can lose {path}, and no rule of k8s/check/rules.py misses it")
    for problem in found:
        print(f"    {problem}", file=sys.stderr)
    if found:
        sys.exit(1)
    print(f"valid for Kubernetes {OLDEST} (the oldest that is supported) and {NEWEST}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--render"]:
        print(json.dumps(render_combination(sys.argv[2:])))
    else:
        main()
