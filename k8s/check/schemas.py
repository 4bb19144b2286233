"""Whether objects are what Kubernetes, cert-manager and the Prometheus operator take."""

import kubernetes_validate
from cloudcoil.models.cert_manager import v1 as cert_manager
from cloudcoil.models.prometheus_operator import v1 as prometheus
from manifests import name_of

# The native `sleep` of preStop is on by default from 1.30 on; all else that is used here is older.
OLDEST = "1.30"
NEWEST = kubernetes_validate.latest_version()

# Objects that others define. Their models drop what they do not know, which is how a typing error is found.
MODELS = {
    ("cert-manager.io/v1", "Issuer"): cert_manager.Issuer,
    ("cert-manager.io/v1", "Certificate"): cert_manager.Certificate,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): prometheus.ServiceMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): prometheus.PrometheusRule,
}


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
