//! The container's name, from the files that container runtimes keep.
//!
//! Only well-known places are looked at. A host with its runtime's state elsewhere gets the cgroup's name, or `--name`.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::clean;

/// Labels and annotations that name a function, or else the container; the first that is there wins.
const LABELS: [&str; 6] = [
    "faas_function",
    "nuclio.io/function-name",
    "io.kubernetes.cri.container-name",
    "io.kubernetes.container.name",
    "nerdctl/name",
    "com.docker.compose.service",
];

/// Most bytes of a state file.
const FILE: u64 = 4 << 20;

/// The container's id in one segment of a cgroup path: 64 hexadecimal digits, with the runtime's prefix and systemd's
/// suffix around them, or bare.
pub(super) fn id(segment: &str) -> Option<&str> {
    let bare = segment.strip_suffix(".scope").unwrap_or(segment);
    let id = bare.rsplit(['-', ':']).next()?;
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

/// The name, by the innermost container id in a path; a name of runc's own where there is none.
pub(super) fn name(root: &Path, path: &str) -> Option<String> {
    let segments = || path.rsplit('/').filter(|segment| !segment.is_empty());
    match segments().find_map(id) {
        Some(id) => {
            docker(root, id).or_else(|| containerd(root, id)).or_else(|| podman(root, id)).or_else(|| runc(root, id))
        }
        // runc, without systemd, calls the cgroup by the container's id, which is any name.
        None => runc(root, segments().next()?),
    }
}

fn read(root: &Path, path: impl AsRef<Path>) -> Option<Value> {
    let mut text = Vec::new();
    File::open(root.join(path)).ok()?.take(FILE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The first known label of an object whose values are strings.
fn label(labels: &Value) -> Option<String> {
    LABELS.iter().find_map(|name| clean(labels.get(name)?.as_str()?.as_bytes()))
}

/// Docker's own file: labels, then the name, which begins with a `/`.
fn docker(root: &Path, id: &str) -> Option<String> {
    let state = read(root, Path::new("var/lib/docker/containers").join(id).join("config.v2.json"))?;
    let name = || clean(state.get("Name")?.as_str()?.trim_start_matches('/').as_bytes());
    state.pointer("/Config/Labels").and_then(label).or_else(name)
}

/// The OCI bundle of each of containerd's namespaces: annotations.
fn containerd(root: &Path, id: &str) -> Option<String> {
    let tasks = Path::new("run/containerd/io.containerd.runtime.v2.task");
    let namespaces = std::fs::read_dir(root.join(tasks)).ok()?.flatten().take(64);
    namespaces
        .map(|namespace| PathBuf::from(namespace.file_name()))
        .filter_map(|namespace| read(root, tasks.join(namespace).join(id).join("config.json")))
        .find_map(|bundle| label(bundle.get("annotations")?))
}

/// The storage that Podman and CRI-O share: annotations of the bundle, then the list of names.
fn podman(root: &Path, id: &str) -> Option<String> {
    let storage = Path::new("var/lib/containers/storage/overlay-containers");
    let bundle = read(root, storage.join(id).join("userdata/config.json"));
    let name = || {
        let list = read(root, storage.join("containers.json"))?;
        let entry = list.as_array()?.iter().find(|entry| entry.get("id").and_then(Value::as_str) == Some(id))?;
        clean(entry.pointer("/names/0")?.as_str()?.as_bytes())
    };
    bundle.as_ref().and_then(|bundle| label(bundle.get("annotations")?)).or_else(name)
}

/// runc's state: labels, as a list of `key=value`; for a container with a name for an id, that is the cgroup's name too,
/// and is left to it.
fn runc(root: &Path, id: &str) -> Option<String> {
    // The id is a segment of a path, so it cannot lead elsewhere but up.
    if matches!(id, "." | "..") {
        return None;
    }
    let state = read(root, Path::new("run/runc").join(id).join("state.json"))?;
    let labels = state.pointer("/config/labels")?.as_array()?;
    LABELS.iter().find_map(|name| {
        let value = labels.iter().find_map(|label| label.as_str()?.strip_prefix(name)?.strip_prefix('='))?;
        clean(value.as_bytes())
    })
}
