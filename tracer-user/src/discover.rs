//! Finds the sandboxes of functions where the operator named none.
//!
//! Candidates are the containers at the places where runtimes put them. One is taken only if a function's platform shows
//! in it: a variable of its environment that no other software sets, a label, or a place that is one platform's alone.
//! All else is left alone: the programs are attached to the chosen containers, one by one, and not to a slice above them.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::{Agent, Attached},
    cgroup::{self, Mount, Pattern},
    name::{self, Identity},
    text::harmless,
};

/// Where runtimes put containers. Below them, systemd or a runtime may make more cgroups for parts of a container.
const PLACES: [&str; 14] = [
    // Kubernetes with the systemd driver, guaranteed pods and others; in a node that is a container (kind).
    "/kubepods.slice/*/*.scope",
    "/kubepods.slice/*/*/*.scope",
    "/kubelet.slice/kubelet-kubepods.slice/*/*.scope",
    "/kubelet.slice/kubelet-kubepods.slice/*/*/*.scope",
    // With the cgroupfs driver.
    "/kubepods/*/*",
    "/kubepods/*/*/*",
    // faasd.
    "/openfaas-fn/*",
    // Docker, nerdctl, containerd without Kubernetes.
    "/docker/*",
    "/system.slice/docker-*.scope",
    "/system.slice/nerdctl-*.scope",
    "/default/*",
    // Podman.
    "/machine.slice/libpod-*.scope",
    "/libpod_parent/libpod-*",
    "/user.slice/*/*/*/libpod-*.scope",
];

/// Most functions whose discovery is told; after that, they are taken in silence.
const TOLD_MAX: usize = 1000;
/// Most characters of a path or name in a message.
const SHOWN: usize = 256;

/// The containers that were chosen, and those that are to be.
#[derive(Debug)]
pub(crate) struct Discovery {
    mount: Mount,
    /// The part of the tree that is looked at: nothing for all of it.
    below: String,
    patterns: Vec<Pattern>,
    /// Path of a container → what is attached to it; nothing where the kernel refused.
    taken: HashMap<String, Option<Attached>>,
    paths: HashMap<u64, String>,
    due: Vec<(String, String)>,
    gone: Vec<u64>,
    told: HashSet<String>,
}

impl Discovery {
    /// Looks at the cgroups below a path; at all of them if it is empty.
    pub fn new(mount: Mount, below: &str) -> Result<Self> {
        ensure!(below.is_empty() || below.starts_with('/'), "--discover-below `{below}` does not begin with `/`");
        let below = below.trim_end_matches('/').to_owned();
        let patterns = PLACES.iter().map(|place| Pattern::new(&format!("{below}{place}"))).collect::<Result<_>>()?;
        Ok(Self {
            mount,
            below,
            patterns,
            taken: HashMap::new(),
            paths: HashMap::new(),
            due: Vec::new(),
            gone: Vec::new(),
            told: HashSet::new(),
        })
    }

    /// What makes a cgroup a candidate.
    pub fn patterns(&self) -> Vec<String> {
        self.patterns.iter().map(|pattern| pattern.as_str().to_owned()).collect()
    }

    /// The candidates that exist now, with id and path.
    pub fn existing(&self) -> Vec<(u64, String)> {
        let all = cgroup::walk(&self.mount.place_of(&self.below));
        all.into_iter()
            .filter_map(|(id, place)| Some((id, self.mount.path_of(&place)?)))
            .filter(|(_, path)| self.patterns.iter().any(|pattern| pattern.selects(path)))
            .collect()
    }

    /// Hears who a cgroup is; [`Discovery::take`] is due if it is part of a function's container.
    pub fn judge(&mut self, path: &str, identity: &Identity) {
        let Some(platform) = identity.platform else { return };
        let Some(container) = name::container_of(path).filter(|container| self.is_candidate(container)) else { return };
        if self.taken.contains_key(container) || self.due.iter().any(|(due, _)| due == container) {
            return;
        }
        // What is inside of a chosen one is traced with it, and one program must not see a packet twice.
        if self.taken.keys().chain(self.due.iter().map(|(due, _)| due)).any(|taken| overlap(taken, container)) {
            return;
        }
        let why = format!("function {} of {}, by {}", identity.name.text, platform.name, platform.by);
        self.due.push((container.to_owned(), why));
    }

    fn is_candidate(&self, container: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(container))
    }

    /// Hears that a cgroup is gone.
    pub fn gone(&mut self, cgroup: u64) {
        if self.paths.contains_key(&cgroup) {
            self.gone.push(cgroup);
        }
    }

    /// Containers that were judged to be functions' and are not traced yet.
    pub fn due(&self) -> impl Iterator<Item = PathBuf> {
        self.due.iter().map(|(path, _)| self.mount.place_of(path))
    }

    /// How many are traced.
    pub fn len(&self) -> usize {
        self.taken.values().flatten().count()
    }

    /// Has the agent trace what was judged to be functions', and says so, once for each function.
    pub fn take(&mut self, agent: &mut Agent) {
        for id in self.gone.drain(..) {
            let attached = self.paths.remove(&id).and_then(|path| self.taken.remove(&path)).flatten();
            attached.into_iter().for_each(|attached| agent.let_go(attached));
        }
        for (path, why) in self.due.drain(..) {
            let place = self.mount.place_of(&path);
            let chosen = cgroup::id(&place).context("look at it").and_then(|id| Ok((id, agent.choose(&place)?)));
            let shown = harmless(&path, SHOWN);
            match chosen {
                Ok((id, attached)) => {
                    if self.told.len() < TOLD_MAX && self.told.insert(why.clone()) {
                        eprintln!("fntrace: found {shown}: {}", harmless(&why, SHOWN));
                    }
                    self.paths.insert(id, path.clone());
                    self.taken.insert(path, Some(attached));
                }
                // Gone while it was looked at.
                Err(_) if !place.exists() => {}
                Err(error) => {
                    eprintln!("fntrace: {shown} is not traced: {error:#}");
                    self.taken.insert(path, None);
                }
            }
        }
    }
}

/// Whether one path is below the other.
fn overlap(a: &str, b: &str) -> bool {
    let below = |path: &str, above: &str| path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
    below(a, b) || below(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        name::{Name, Platform, Source},
        path::Resource,
    };

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn discovery(below: &str) -> Discovery {
        Discovery::new(Mount { point: "/sys/fs/cgroup".into(), root: "/".into() }, below).unwrap()
    }

    fn identity(platform: Option<&'static str>) -> Identity {
        let name = Name { text: "checkout".into(), source: Source::Cgroup };
        let platform = platform.map(|name| Platform { name, by: "K_SERVICE" });
        Identity { name, resource: Resource::default(), platform }
    }

    fn chosen(discovery: &Discovery) -> Vec<&str> {
        discovery.due.iter().map(|(path, _)| path.as_str()).collect()
    }

    #[test]
    fn only_containers_in_which_a_platform_shows_are_taken() {
        let mut discovery = discovery("");
        for (path, platform) in [
            (format!("/docker/{A}"), None),
            // A process of no container may say what it likes, and so may one where no runtime puts containers.
            ("/system.slice/shop.service".into(), Some("Knative")),
            ("/user.slice/user-1000.slice/session-1.scope".into(), Some("Knative")),
            (format!("/shop/{A}"), Some("Knative")),
            (format!("/kubepods/burstable/pod1/{A}/{A}"), Some("Knative")),
            ("/kubepods/burstable/pod1".into(), Some("Knative")),
        ] {
            discovery.judge(&path, &identity(platform));
            assert_eq!(chosen(&discovery), [] as [&str; 0], "{path}");
        }
        for path in [format!("/docker/{A}/init.scope"), format!("/docker/{A}")] {
            discovery.judge(&path, &identity(Some("Knative")));
        }
        discovery.judge("/openfaas-fn/figlet", &identity(Some("OpenFaaS")));
        assert_eq!(chosen(&discovery), [&*format!("/docker/{A}"), "/openfaas-fn/figlet"], "the container, once");
        assert_eq!(discovery.due[0].1, "function checkout of Knative, by K_SERVICE");
    }

    #[test]
    fn what_lies_in_one_that_is_chosen_is_not_chosen_again() {
        let mut discovery = discovery("/part");
        discovery.judge(&format!("/docker/{A}"), &identity(Some("Knative")));
        assert_eq!(chosen(&discovery), [] as [&str; 0], "outside of the part");
        let outer = format!("/part/kubepods/pod1/{A}");
        discovery.judge(&outer, &identity(Some("Knative")));
        discovery.judge(&format!("{outer}/{A}"), &identity(Some("Knative")));
        assert_eq!(chosen(&discovery), [&*outer]);
        assert!(!overlap("/docker/ab", "/docker/abc") && overlap("/docker/ab", "/docker/ab/c"));
    }

    #[test]
    fn the_kernel_half_has_room_for_the_patterns() {
        let discovery = discovery(&"/x".repeat(90));
        assert!(discovery.patterns().iter().all(|text| tracer_ebpf::glob::Pattern::new(text.as_bytes()).is_some()));
        assert!(discovery.patterns().len() <= 16, "hooks/cgroups.rs, matches_any");
        assert!(Discovery::new(discovery.mount, "fns").is_err());
    }
}
