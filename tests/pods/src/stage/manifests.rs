//! What the manifests say, read as Kubernetes reads it: a field that is not there has Kubernetes' default.
//!
//! Nothing here repeats the manifests. Take a probe, a port or a variable out of them, and the pods of the
//! rehearsal are without it, too.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Result;

/// The objects of one rendering, of `.ci/manifests --render`.
#[derive(Clone, Debug)]
pub struct Manifests {
    objects: Vec<Value>,
}

impl Manifests {
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self {
            objects: serde_json::from_str(text)?,
        })
    }

    /// Takes something out, as `StatefulSet/spec/template/spec/containers/0/lifecycle`: to see a scenario fail.
    pub fn without(mut self, path: &str) -> Result<Self> {
        let missing = || format!("the manifests have no {path}");
        let (kind, rest) = path.split_once('/').ok_or_else(missing)?;
        let (parent, last) = rest.rsplit_once('/').unwrap_or(("", rest));
        let parent = match parent {
            "" => String::new(),
            parent => format!("/{parent}"),
        };
        let mut removed = false;
        for object in &mut self.objects {
            if object["kind"] != kind {
                continue;
            }
            removed |= match object.pointer_mut(&parent) {
                Some(Value::Object(fields)) => fields.remove(last).is_some(),
                Some(Value::Array(items)) => match last.parse::<usize>() {
                    Ok(index) if index < items.len() => {
                        items.remove(index);
                        true
                    }
                    _ => false,
                },
                _ => false,
            };
        }
        if removed {
            Ok(self)
        } else {
            Err(missing().into())
        }
    }

    fn raw(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects
            .iter()
            .filter(move |object| object["kind"] == kind)
    }

    fn all<T: DeserializeOwned>(&self, kind: &str) -> Result<Vec<T>> {
        self.raw(kind)
            .map(|object| Ok(serde_json::from_value(object.clone())?))
            .collect()
    }

    /// The StatefulSet, as an API server would keep it.
    pub fn stateful_set(&self) -> Result<Value> {
        let found = self.raw("StatefulSet").next().cloned();
        found.ok_or_else(|| "the manifests have no StatefulSet".into())
    }

    pub fn deployment(&self, name: &str) -> Result<Deployment> {
        let found: Vec<Deployment> = self.all("Deployment")?;
        let found = found.into_iter().find(|one| one.metadata.name == name);
        found.ok_or_else(|| format!("the manifests have no Deployment {name}").into())
    }

    pub fn services(&self) -> Result<Vec<Service>> {
        self.all("Service")
    }

    pub fn roles(&self) -> Result<Vec<Role>> {
        self.all("Role")
    }

    pub fn role_bindings(&self) -> Result<Vec<RoleBinding>> {
        self.all("RoleBinding")
    }

    pub fn service_account(&self, name: &str) -> Result<Option<ServiceAccount>> {
        let accounts: Vec<ServiceAccount> = self.all("ServiceAccount")?;
        Ok(accounts
            .into_iter()
            .find(|account| account.metadata.name == name))
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct Metadata {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct StatefulSet {
    pub metadata: Metadata,
    pub spec: StatefulSetSpec,
}

impl StatefulSet {
    pub fn parse(object: &Value) -> Result<Self> {
        Ok(serde_json::from_value(object.clone())?)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatefulSetSpec {
    #[serde(default = "one")]
    pub replicas: u32,
    #[serde(default)]
    pub service_name: String,
    #[serde(default)]
    pub pod_management_policy: String,
    #[serde(default)]
    pub min_ready_seconds: u64,
    pub template: PodTemplate,
    #[serde(default)]
    pub volume_claim_templates: Vec<VolumeClaimTemplate>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Deployment {
    pub metadata: Metadata,
    pub spec: DeploymentSpec,
}

#[derive(Clone, Debug, Deserialize)]
pub struct DeploymentSpec {
    #[serde(default = "one")]
    pub replicas: u32,
    pub template: PodTemplate,
}

#[derive(Clone, Debug, Deserialize)]
pub struct PodTemplate {
    pub metadata: Metadata,
    pub spec: PodSpec,
}

#[derive(Clone, Debug, Deserialize)]
pub struct VolumeClaimTemplate {
    pub metadata: Metadata,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    #[serde(default)]
    pub service_account_name: String,
    pub automount_service_account_token: Option<bool>,
    #[serde(default = "yes")]
    pub enable_service_links: bool,
    #[serde(default = "default_grace")]
    pub termination_grace_period_seconds: u64,
    #[serde(default)]
    pub security_context: PodSecurity,
    #[serde(default)]
    pub share_process_namespace: bool,
    #[serde(default)]
    pub init_containers: Vec<Container>,
    pub containers: Vec<Container>,
    #[serde(default)]
    pub volumes: Vec<Volume>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSecurity {
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    #[serde(default)]
    pub run_as_non_root: bool,
    pub fs_group: Option<u32>,
    pub seccomp_profile: Option<SeccompProfile>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct SeccompProfile {
    #[serde(rename = "type")]
    pub kind: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    pub name: String,
    pub secret: Option<SecretSource>,
    pub empty_dir: Option<EmptyDir>,
}

/// How large it may become is not played.
#[derive(Clone, Debug, Deserialize)]
pub struct EmptyDir {}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretSource {
    pub secret_name: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    #[serde(default)]
    pub image: String,
    /// `Always`: an init container that stays, a sidecar.
    #[serde(default)]
    pub restart_policy: String,
    /// In place of the image's program.
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<Variable>,
    #[serde(default)]
    pub ports: Vec<ContainerPort>,
    pub startup_probe: Option<Probe>,
    pub liveness_probe: Option<Probe>,
    pub readiness_probe: Option<Probe>,
    pub lifecycle: Option<Lifecycle>,
    #[serde(default)]
    pub security_context: ContainerSecurity,
    #[serde(default)]
    pub volume_mounts: Vec<VolumeMount>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Variable {
    pub name: String,
    #[serde(default)]
    pub value: String,
    pub value_from: Option<VariableSource>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VariableSource {
    pub field_ref: FieldRef,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldRef {
    pub field_path: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    #[serde(default)]
    pub name: String,
    pub container_port: u16,
}

/// A port by number, or by the name that the container gives it.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    Number(u16),
    Name(String),
}

impl Container {
    pub fn port(&self, port: &PortRef) -> Option<u16> {
        match port {
            PortRef::Number(number) => Some(*number),
            PortRef::Name(name) => self
                .ports
                .iter()
                .find(|port| port.name == *name)
                .map(|port| port.container_port),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// One of these two.
    pub http_get: Option<HttpGet>,
    pub tcp_socket: Option<TcpSocket>,
    #[serde(default)]
    pub initial_delay_seconds: u64,
    #[serde(default = "ten")]
    pub period_seconds: u64,
    #[serde(default = "one_second")]
    pub timeout_seconds: u64,
    #[serde(default = "three")]
    pub failure_threshold: u32,
    #[serde(default = "one")]
    pub success_threshold: u32,
}

#[derive(Clone, Debug, Deserialize)]
pub struct HttpGet {
    #[serde(default)]
    pub path: String,
    pub port: PortRef,
}

#[derive(Clone, Debug, Deserialize)]
pub struct TcpSocket {
    pub port: PortRef,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    pub pre_stop: Option<Hook>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Hook {
    pub sleep: Option<Sleep>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Sleep {
    pub seconds: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerSecurity {
    pub allow_privilege_escalation: Option<bool>,
    #[serde(default)]
    pub read_only_root_filesystem: bool,
    #[serde(default)]
    pub capabilities: Capabilities,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Capabilities {
    #[serde(default)]
    pub drop: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    pub name: String,
    pub mount_path: String,
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    pub metadata: Metadata,
    pub spec: ServiceSpec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(default, rename = "clusterIP")]
    pub cluster_ip: String,
    #[serde(default)]
    pub publish_not_ready_addresses: bool,
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    #[serde(default)]
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    #[serde(default)]
    pub name: String,
    pub port: u16,
    pub target_port: Option<PortRef>,
}

impl Service {
    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip == "None"
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct Role {
    pub metadata: Metadata,
    #[serde(default)]
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    #[serde(default)]
    pub api_groups: Vec<String>,
    #[serde(default)]
    pub resources: Vec<String>,
    #[serde(default)]
    pub resource_names: Vec<String>,
    #[serde(default)]
    pub verbs: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleBinding {
    pub metadata: Metadata,
    pub role_ref: RoleRef,
    #[serde(default)]
    pub subjects: Vec<Subject>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct RoleRef {
    pub kind: String,
    pub name: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Subject {
    pub kind: String,
    pub name: String,
    #[serde(default)]
    pub namespace: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccount {
    pub metadata: Metadata,
    pub automount_service_account_token: Option<bool>,
}

/// What the admission of a namespace with `pod-security.kubernetes.io/enforce: restricted` refuses; and a root that
/// can be written, which is our own rule.
pub fn admit(spec: &PodSpec) -> Result<()> {
    let pod = &spec.security_context;
    let mut missing = Vec::new();
    if !pod.run_as_non_root || pod.run_as_user == Some(0) {
        missing.push("runAsNonRoot");
    }
    let seccomp = pod.seccomp_profile.as_ref();
    if seccomp.is_none_or(|profile| profile.kind != "RuntimeDefault") {
        missing.push("seccompProfile");
    }
    for container in spec.init_containers.iter().chain(&spec.containers) {
        let security = &container.security_context;
        if security.allow_privilege_escalation != Some(false) {
            missing.push("allowPrivilegeEscalation: false");
        }
        if !security.capabilities.drop.iter().any(|name| name == "ALL") {
            missing.push("capabilities.drop: [ALL]");
        }
        if !security.read_only_root_filesystem {
            missing.push("readOnlyRootFilesystem");
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("admission refuses the pod: it lacks {}", missing.join(", ")).into())
}

fn one() -> u32 {
    1
}

fn three() -> u32 {
    3
}

fn one_second() -> u64 {
    1
}

fn ten() -> u64 {
    10
}

fn default_grace() -> u64 {
    30
}

fn yes() -> bool {
    true
}
