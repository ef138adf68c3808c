//! What an invocation's line says of its sandbox: who it is, and how it started.

use serde::{Deserialize, Serialize};

/// A sandbox under OpenTelemetry's names (semantic conventions for resources: FaaS, container, k8s). What is not known is
/// left out. All of it is bounded and free of control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// The function, if the operator, the platform or the runtime named it; not where only the cgroup did.
    #[serde(rename = "faas.name", default, skip_serializing_if = "Option::is_none")]
    pub faas_name: Option<Box<str>>,
    /// The function's version, as the platform wrote it into the environment.
    #[serde(rename = "faas.version", default, skip_serializing_if = "Option::is_none")]
    pub faas_version: Option<Box<str>>,
    /// The platform's name of the sandbox; the pod's, else the container's id.
    #[serde(rename = "faas.instance", default, skip_serializing_if = "Option::is_none")]
    pub faas_instance: Option<Box<str>>,
    /// The runtime's id of the container.
    #[serde(rename = "container.id", default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<Box<str>>,
    /// The container's name.
    #[serde(rename = "container.name", default, skip_serializing_if = "Option::is_none")]
    pub container_name: Option<Box<str>>,
    /// The image that it was made from.
    #[serde(rename = "container.image.name", default, skip_serializing_if = "Option::is_none")]
    pub container_image_name: Option<Box<str>>,
    /// Who runs the container: `docker`, `containerd`, `cri-o`, `podman`, `runc`.
    #[serde(rename = "container.runtime.name", default, skip_serializing_if = "Option::is_none")]
    pub container_runtime_name: Option<Box<str>>,
    /// The pod's namespace.
    #[serde(rename = "k8s.namespace.name", default, skip_serializing_if = "Option::is_none")]
    pub k8s_namespace_name: Option<Box<str>>,
    /// The pod's name.
    #[serde(rename = "k8s.pod.name", default, skip_serializing_if = "Option::is_none")]
    pub k8s_pod_name: Option<Box<str>>,
    /// The pod's uid.
    #[serde(rename = "k8s.pod.uid", default, skip_serializing_if = "Option::is_none")]
    pub k8s_pod_uid: Option<Box<str>>,
    /// The container's name in the pod's specification.
    #[serde(rename = "k8s.container.name", default, skip_serializing_if = "Option::is_none")]
    pub k8s_container_name: Option<Box<str>>,
}

/// How a sandbox started, told with its first invocation. Times are in µs after the start of the line, as all of a line's
/// are: negative for what was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColdStart {
    /// Its cgroup was made.
    pub born_us: i64,
    /// The first program ran in it: from here on the time is the function's own, before it was the platform's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_us: Option<i64>,
    /// It began to listen on the port that the request came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_us: Option<i64>,
    /// For how long the call that caused the invocation waited for the start: from the call or the birth, whichever came
    /// later, until the sandbox was ready. 0 for a sandbox that was warm before it was called; absent where no call is
    /// known, or not when it was ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_us: Option<u64>,
}
