//! runc's own state, `/run/runc/ID/state.json`: where nobody stands above it, an id is any name, and the cgroup is wherever
//! the bundle says.

use std::{fs::File, io::BufReader, path::Path};

use serde::Deserialize;

use super::Container;
use crate::{cgroup::Mount, name::clean};

/// Where it is, unless `--root` says otherwise; containerd's and Docker's runc keep theirs elsewhere, and what we want of
/// them is in their own files.
const STATE: &str = "run/runc";
/// Most containers that are looked through for a path.
const MOST: usize = 512;
/// Most bytes of a state file.
const FILE: u64 = 4 << 20;

/// The part of the state that is used (libcontainer's `State`); the rest, most of it, is passed over.
#[derive(Deserialize)]
struct State {
    id: String,
    /// Controller → directory; v2's controller is the empty string.
    #[serde(default)]
    cgroup_paths: std::collections::HashMap<String, String>,
    #[serde(default)]
    config: Config,
}

#[derive(Default, Deserialize)]
struct Config {
    /// Annotations of the bundle, as `key=value`.
    #[serde(default)]
    labels: Option<Vec<String>>,
}

/// The container with this id, if that is its cgroup.
pub(super) fn by_id(root: &Path, mount: &Mount, id: &str, path: &str) -> Option<Container> {
    let state = read(root, id)?;
    is_in(&state, mount, path).then(|| describe(&state))
}

/// The container whose cgroup is at this path or above it. That of the innermost segment's name is the likeliest.
pub(super) fn by_path(root: &Path, mount: &Mount, path: &str) -> Option<Container> {
    let last = path.rsplit('/').find(|segment| !segment.is_empty())?;
    // By systemd: `PREFIX-NAME.scope`.
    let scope = last.strip_suffix(".scope").and_then(|unit| Some(unit.split_once('-')?.1));
    if let Some(found) = [Some(last), scope].into_iter().flatten().find_map(|id| by_id(root, mount, id, path)) {
        return Some(found);
    }
    let containers = std::fs::read_dir(root.join(STATE)).ok()?.flatten().take(MOST);
    let mut states = containers.filter_map(|container| read(root, container.file_name().to_str()?));
    states.find(|state| is_in(state, mount, path)).map(|state| describe(&state))
}

fn read(root: &Path, id: &str) -> Option<State> {
    // An id is a segment of a path, so it cannot lead elsewhere but up.
    if matches!(id, "." | "..") {
        return None;
    }
    let file = File::open(root.join(STATE).join(id).join("state.json")).ok()?;
    serde_json::from_reader(BufReader::new(std::io::Read::take(file, FILE))).ok()
}

/// Whether the cgroup with this path is the container's, or below it.
fn is_in(state: &State, mount: &Mount, path: &str) -> bool {
    let place = mount.place_of(path);
    state.cgroup_paths.get("").is_some_and(|container| container.len() > 1 && place.starts_with(container))
}

fn describe(state: &State) -> Container {
    let labels = state.config.labels.as_deref().unwrap_or_default();
    let get = |name: &str| labels.iter().find_map(|label| label.strip_prefix(name)?.strip_prefix('='));
    let mut found = Container::labelled("runc", get);
    found.id = Some(state.id.clone());
    let name = (state.id.len() != 64).then(|| clean(state.id.as_bytes())).flatten();
    found.named(name)
}
