//! What the manifests cannot do without, each with the scenario that misses it.
//!
//! `make rehearse REHEARSE=--removals` takes one after the other out and plays that scenario: it must fail. What nothing
//! at run time can miss (budget, spreading, network policy: the rehearsal has neither drains nor a scheduler nor a
//! firewall) is for `make manifests`, which tries its rules in the same way.

/// A part of the manifests, by its path, and who misses it.
pub struct Removal {
    pub path: &'static str,
    pub scenario: &'static str,
    /// The scenario misses it only at full length.
    pub full: bool,
}

const fn missed_by(scenario: &'static str, path: &'static str) -> Removal {
    Removal {
        path,
        scenario,
        full: false,
    }
}

const fn missed_at_length_by(scenario: &'static str, path: &'static str) -> Removal {
    Removal {
        path,
        scenario,
        full: true,
    }
}

pub const REMOVALS: &[Removal] = &[
    // Names.
    missed_by("first-start", "StatefulSet/spec/serviceName"),
    missed_by("first-start", "Service/spec/clusterIP"),
    missed_by("first-start", "Service/spec/selector"),
    missed_by("first-start", "Service/spec/publishNotReadyAddresses"),
    missed_by("rolling-restart", "Service/spec/ports/0"),
    // The program, and what it is told.
    missed_by(
        "first-start",
        "StatefulSet/spec/template/spec/containers/0/args",
    ),
    // PODKV_NAME, PODKV_HEADLESS_SERVICE, PODKV_STATEFULSET, PODKV_LOG_FORMAT.
    missed_by(
        "new-addresses",
        "StatefulSet/spec/template/spec/containers/0/env/0",
    ),
    missed_by(
        "first-start",
        "StatefulSet/spec/template/spec/containers/0/env/1",
    ),
    missed_by(
        "first-start",
        "StatefulSet/spec/template/spec/containers/0/env/2",
    ),
    missed_by(
        "rolling-restart",
        "StatefulSet/spec/template/spec/containers/0/env/3",
    ),
    // The one that probes ask. Of the others Kubernetes reads nothing: services lead to numbers.
    missed_by(
        "rolling-restart",
        "StatefulSet/spec/template/spec/containers/0/ports/2",
    ),
    // Starting and stopping.
    missed_by(
        "slow-start",
        "StatefulSet/spec/template/spec/containers/0/startupProbe",
    ),
    missed_at_length_by(
        "kills",
        "StatefulSet/spec/template/spec/containers/0/livenessProbe",
    ),
    missed_by(
        "rolling-restart",
        "StatefulSet/spec/template/spec/containers/0/readinessProbe",
    ),
    missed_by(
        "rolling-restart",
        "StatefulSet/spec/template/spec/containers/0/lifecycle",
    ),
    missed_by(
        "scaling",
        "StatefulSet/spec/template/spec/terminationGracePeriodSeconds",
    ),
    // The volume, and who may write there.
    missed_by("first-start", "StatefulSet/spec/volumeClaimTemplates/0"),
    missed_by(
        "first-start",
        "StatefulSet/spec/template/spec/containers/0/volumeMounts/0",
    ),
    missed_by(
        "first-start",
        "StatefulSet/spec/template/spec/securityContext/fsGroup",
    ),
    missed_by(
        "first-start",
        "StatefulSet/spec/template/spec/securityContext/seccompProfile",
    ),
    missed_by(
        "first-start",
        "StatefulSet/spec/template/spec/containers/0/securityContext",
    ),
    // The right to read the size.
    missed_by(
        "first-start",
        "StatefulSet/spec/template/spec/serviceAccountName",
    ),
    missed_by("first-start", "Role/rules/0"),
    missed_by("first-start", "RoleBinding/subjects/0"),
];
