//! What container runtimes write down of a container.
//!
//! Only well-known places are looked at. A host with its runtime's state elsewhere gets what the path says.

mod runc;

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    clean,
    place::{self, Place},
};
use crate::cgroup::Mount;

/// Labels and annotations of platforms that name a function.
const PLATFORMS: [(&str, &str); 2] = [("faas_function", "OpenFaaS"), ("nuclio.io/function-name", "Nuclio")];
/// Those that name the container, which is what a function goes by where nothing else names it; the first wins.
const CONTAINER: [&str; 4] =
    ["io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name", "com.docker.compose.service"];
const NAME: [&str; 3] = ["nerdctl/name", "io.kubernetes.cri-o.Name", "io.container.manager.name"];
const IMAGE: [&str; 3] = ["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName", "nerdctl/image-ref"];
const NAMESPACE: [&str; 2] = ["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"];
const POD: [&str; 2] = ["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"];
const POD_UID: [&str; 2] = ["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"];
const IN_POD: [&str; 2] = ["io.kubernetes.cri.container-name", "io.kubernetes.container.name"];

/// Drivers of the storage that Podman and CRI-O share.
const DRIVERS: [&str; 4] = ["overlay", "vfs", "btrfs", "zfs"];

/// Most bytes of a state file.
const FILE: u64 = 4 << 20;

/// A container, as far as the path and the runtime's files tell. All texts are bounded and visible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Container {
    pub id: Option<String>,
    pub runtime: Option<&'static str>,
    pub name: Option<String>,
    pub image: Option<String>,
    /// What the labels call the function; the container's name where they do not.
    pub function: Option<String>,
    /// The platform whose function it is, and what tells.
    pub platform: Option<(&'static str, &'static str)>,
    pub namespace: Option<String>,
    pub pod: Option<String>,
    pub pod_uid: Option<String>,
    pub name_in_pod: Option<String>,
}

impl Container {
    /// Finds the container of the cgroup with this path, and reads what its runtime wrote down.
    pub fn find(root: &Path, mount: &Mount, path: &str) -> Self {
        let mut found = Self::of_path(path);
        match found.id.clone() {
            Some(id) => {
                let read = docker(root, &id)
                    .or_else(|| containerd(root, &id))
                    .or_else(|| storage(root, &id))
                    .or_else(|| runc::by_id(root, mount, &id, path));
                if let Some(read) = read {
                    found.complete(read);
                }
            }
            // containerd and runc call a container by any name.
            None => {
                if let Some(read) = containerd_by_path(root, path).or_else(|| runc::by_path(root, mount, path)) {
                    found.complete(read);
                }
            }
        }
        found.id = found.id.and_then(|id| clean(id.as_bytes()));
        found
    }

    /// What the path alone tells.
    pub fn of_path(path: &str) -> Self {
        let Place { runtime, id, pod_uid } = Place::of(path);
        let platform = place::is_faasd(path).then_some(("OpenFaaS", "containerd's namespace openfaas-fn"));
        Self { id, runtime, pod_uid, platform, ..Self::default() }
    }

    /// What the path says goes first.
    fn complete(&mut self, read: Self) {
        let old = std::mem::replace(self, read);
        self.id = old.id.or(self.id.take());
        self.runtime = old.runtime.or(self.runtime);
        self.pod_uid = old.pod_uid.or(self.pod_uid.take());
        self.platform = old.platform.or(self.platform);
    }

    /// Takes what labels or annotations say; `get` looks one up.
    fn labelled<'a>(runtime: &'static str, get: impl Fn(&str) -> Option<&'a str>) -> Self {
        let text = |name: &str| clean(get(name)?.as_bytes());
        let first = |names: &[&str]| names.iter().find_map(|name| text(name));
        let claim = PLATFORMS.iter().find_map(|(label, platform)| Some((text(label)?, (*platform, *label))));
        let (function, platform) = claim.unzip();
        Self {
            id: None,
            runtime: Some(runtime),
            name: first(&NAME),
            image: first(&IMAGE),
            function: function.or_else(|| first(&CONTAINER)),
            platform,
            namespace: first(&NAMESPACE),
            pod: first(&POD),
            pod_uid: first(&POD_UID),
            name_in_pod: first(&IN_POD),
        }
    }

    fn named(mut self, name: Option<String>) -> Self {
        self.name = self.name.or(name);
        self.function = self.function.or_else(|| self.name.clone());
        self
    }
}

fn read(root: &Path, path: impl AsRef<Path>) -> Option<Value> {
    let mut text = Vec::new();
    File::open(root.join(path)).ok()?.take(FILE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn text(value: &Value, pointer: &str) -> Option<String> {
    clean(value.pointer(pointer)?.as_str()?.as_bytes())
}

/// Docker's own file: labels, then the name, which begins with a `/`.
fn docker(root: &Path, id: &str) -> Option<Container> {
    let state = read(root, Path::new("var/lib/docker/containers").join(id).join("config.v2.json"))?;
    let labels = state.pointer("/Config/Labels").unwrap_or(&Value::Null);
    let mut found = Container::labelled("docker", |label| labels.get(label)?.as_str());
    found.image = found.image.or_else(|| text(&state, "/Config/Image"));
    let name = || clean(state.get("Name")?.as_str()?.trim_start_matches('/').as_bytes());
    Some(found.named(name()))
}

/// The OCI bundle of each of containerd's namespaces: annotations. An id that is a name is the container's.
fn containerd(root: &Path, id: &str) -> Option<Container> {
    containerd_bundle(root, id, |_| true)
}

/// The container that is called as the cgroup is, and whose bundle says that it is there.
fn containerd_by_path(root: &Path, path: &str) -> Option<Container> {
    let name = path.rsplit('/').find(|segment| !matches!(*segment, "" | "." | ".."))?;
    let is_there = |bundle: &Value| bundle.pointer("/linux/cgroupsPath").and_then(Value::as_str) == Some(path);
    let mut found = containerd_bundle(root, name, is_there)?;
    found.id = Some(name.to_owned());
    Some(found)
}

fn containerd_bundle(root: &Path, id: &str, is_it: impl Fn(&Value) -> bool) -> Option<Container> {
    let tasks = Path::new("run/containerd/io.containerd.runtime.v2.task");
    let namespaces = std::fs::read_dir(root.join(tasks)).ok()?.flatten().take(64);
    let bundle = namespaces
        .map(|namespace| PathBuf::from(namespace.file_name()))
        .filter_map(|namespace| read(root, tasks.join(namespace).join(id).join("config.json")))
        .find(is_it)?;
    let annotations = bundle.get("annotations").unwrap_or(&Value::Null);
    let found = Container::labelled("containerd", |label| annotations.get(label)?.as_str());
    Some(found.named((id.len() != 64).then(|| clean(id.as_bytes())).flatten()))
}

/// The storage that Podman and CRI-O share, by its driver: annotations of the bundle, then the list of names.
fn storage(root: &Path, id: &str) -> Option<Container> {
    let places = || {
        let homes = ["var/lib/containers/storage", "run/containers/storage"].into_iter();
        homes.flat_map(|home| DRIVERS.map(|driver| Path::new(home).join(format!("{driver}-containers"))))
    };
    let bundle = places().find_map(|place| read(root, place.join(id).join("userdata/config.json")));
    let name = || {
        let list = places().find_map(|place| read(root, place.join("containers.json")))?;
        let entry = list.as_array()?.iter().find(|entry| entry.get("id").and_then(Value::as_str) == Some(id))?;
        text(entry, "/names/0")
    };
    let Some(bundle) = bundle else { return Some(Container::default().named(Some(name()?))) };
    let annotations = bundle.get("annotations").unwrap_or(&Value::Null);
    let is_crio = annotations.get("io.kubernetes.cri-o.ContainerID").is_some();
    let runtime = if is_crio { "cri-o" } else { "podman" };
    let found = Container::labelled(runtime, |label| annotations.get(label)?.as_str());
    let name = if found.name.is_none() { name() } else { None };
    Some(found.named(name))
}
