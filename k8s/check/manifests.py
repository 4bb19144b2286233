"""The rendered objects of one cluster, by what they are for."""


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
