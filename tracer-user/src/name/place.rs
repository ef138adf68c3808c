//! What a cgroup's path alone says of the container in it.
//!
//! Runtimes agree on little: the id is a segment, or stands behind the runtime's prefix in a systemd scope, or behind
//! colons where a runtime without systemd was given systemd's form. Kubernetes puts the pod's uid one level above, with
//! `_` for `-` under systemd.

/// A container's place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Who made the cgroup, where the path tells.
    pub runtime: Option<&'static str>,
    /// The container's id.
    pub id: Option<String>,
    /// The pod's uid, in its ordinary form.
    pub pod_uid: Option<String>,
}

/// What stands before the id in a scope, and whose it is.
const PREFIXES: [(&str, &str); 6] = [
    ("cri-containerd", "containerd"),
    ("nerdctl", "containerd"),
    ("docker", "docker"),
    ("libpod", "podman"),
    ("crio", "cri-o"),
    ("runc", "runc"),
];

/// Directories of runtimes that put containers straight below them.
const PARENTS: [(&str, &str); 4] =
    [("docker", "docker"), ("libpod_parent", "podman"), ("openfaas-fn", "containerd"), ("k8s.io", "containerd")];

/// Above faasd's functions: the namespace of containerd that they are in.
const FAASD: &str = "/openfaas-fn/";

/// Hexadecimal digits of an id, in all of these runtimes.
const ID: usize = 64;
/// Digits and dashes of a uid: with dashes, and the hash without any that stands for the uid of a static pod.
const UIDS: [usize; 2] = [36, 32];

impl Place {
    /// Reads a path; the innermost container counts.
    pub fn of(path: &str) -> Self {
        let pod_uid = path.rsplit('/').find_map(pod_uid);
        let (runtime, id) = innermost(path).map_or((None, None), |(_, runtime, id)| (runtime, Some(id.to_owned())));
        Self { runtime, id, pod_uid }
    }
}

/// The path of the innermost container that this path is, or is below.
pub(super) fn container(path: &str) -> Option<&str> {
    innermost(path).map(|(container, ..)| container)
}

/// Whether the path is of one of faasd's functions.
pub(super) fn is_faasd(path: &str) -> bool {
    path.strip_prefix(FAASD).is_some_and(|name| !name.is_empty())
}

/// Path, runtime and id of the innermost container.
fn innermost(path: &str) -> Option<(&str, Option<&'static str>, &str)> {
    let mut place = path.trim_end_matches('/');
    while let Some((above, segment)) = place.rsplit_once('/') {
        let parent = above.rsplit('/').next().and_then(|parent| find(&PARENTS, parent));
        if let Some((prefix, id)) = id(segment) {
            let runtime = prefix.and_then(|prefix| find(&PREFIXES, prefix)).or(parent);
            return Some((place, runtime, id));
        }
        // A namespace of containerd, in which an id is any name: faasd's is the function's.
        if parent == Some("containerd") && above.rfind('/') == Some(0) && !segment.is_empty() {
            return Some((place, parent, segment));
        }
        place = above;
    }
    None
}

fn find(table: &[(&str, &'static str)], word: &str) -> Option<&'static str> {
    table.iter().find(|(known, _)| *known == word).map(|(_, runtime)| *runtime)
}

/// The id in a segment, and the runtime's prefix before it. Podman's and CRI-O's monitors stand beside their containers
/// under the same id, and are none.
pub(super) fn id(segment: &str) -> Option<(Option<&str>, &str)> {
    let bare = segment.strip_suffix(".scope").unwrap_or(segment);
    let (prefix, id) = match bare.rfind(['-', ':']) {
        Some(at) => (Some(bare.get(..at)?), bare.get(at + 1..)?),
        None => (None, bare),
    };
    // `kubepods-….slice:cri-containerd:ID`
    let prefix = prefix.map(|prefix| prefix.rsplit(':').next().unwrap_or(prefix));
    let is_id = id.len() == ID && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_monitor = prefix.is_some_and(|prefix| prefix.ends_with("conmon"));
    (is_id && !is_monitor).then_some((prefix, id))
}

/// `kubepods-burstable-podUID.slice`, `podUID`, or the former before colons.
fn pod_uid(segment: &str) -> Option<String> {
    let unit = segment.split(':').next()?;
    let systemd = unit.strip_suffix(".slice");
    let uid = match systemd {
        Some(unit) if unit.contains("kubepods") => unit.rsplit_once("-pod")?.1.replace('_', "-"),
        Some(_) => return None,
        None => unit.strip_prefix("pod")?.to_owned(),
    };
    let is_uid = UIDS.contains(&uid.len())
        && uid.bytes().enumerate().all(|(index, byte)| match byte {
            b'-' => uid.len() == UIDS[0] && matches!(index, 8 | 13 | 18 | 23),
            byte => byte.is_ascii_hexdigit(),
        });
    is_uid.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const B: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
    const UID: &str = "1b2e8d44-9f0a-4c9e-a6d1-3c5f0f1e2d3c";
    const UID_: &str = "1b2e8d44_9f0a_4c9e_a6d1_3c5f0f1e2d3c";
    const STATIC: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

    #[test]
    fn every_form_of_path_is_read() {
        for (path, runtime, id, pod_uid) in [
            // Docker: systemd's driver, cgroupfs, cgroupfs given systemd's form; in a slice of the operator's.
            (format!("/system.slice/docker-{A}.scope"), Some("docker"), Some(A), None),
            (format!("/docker/{A}"), Some("docker"), Some(A), None),
            (format!("/system.slice:docker:{A}"), Some("docker"), Some(A), None),
            (format!("/shop.slice/docker-{A}.scope"), Some("docker"), Some(A), None),
            // systemd inside the container, and a container inside it.
            (format!("/docker/{A}/init.scope"), Some("docker"), Some(A), None),
            (format!("/docker/{A}/docker/{B}"), Some("docker"), Some(B), None),
            // Podman: rootful, rootless, cgroupfs; not its monitor.
            (format!("/machine.slice/libpod-{A}.scope/container"), Some("podman"), Some(A), None),
            (
                format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope"),
                Some("podman"),
                Some(A),
                None,
            ),
            (format!("/libpod_parent/libpod-{A}"), Some("podman"), Some(A), None),
            (format!("/machine.slice/libpod-conmon-{A}.scope"), None, None, None),
            // containerd without Kubernetes, and faasd.
            (format!("/system.slice/nerdctl-{A}.scope"), Some("containerd"), Some(A), None),
            (format!("/default/{A}"), None, Some(A), None),
            ("/openfaas-fn/figlet".into(), Some("containerd"), Some("figlet"), None),
            ("/openfaas-fn/figlet/worker".into(), Some("containerd"), Some("figlet"), None),
            // Kubernetes by systemd, in each class of service; kind's; CRI-O's.
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/cri-containerd-{A}.scope"
                ),
                Some("containerd"),
                Some(A),
                Some(UID),
            ),
            (
                format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-{A}.scope"),
                Some("cri-o"),
                Some(A),
                Some(UID),
            ),
            (format!("/kubepods.slice/kubepods-pod{UID_}.slice/docker-{A}.scope"), Some("docker"), Some(A), Some(UID)),
            (
                format!("/kubepods.slice/kubepods-pod{UID_}.slice/crio-{A}.scope/container"),
                Some("cri-o"),
                Some(A),
                Some(UID),
            ),
            (format!("/kubepods.slice/kubepods-pod{UID_}.slice/crio-conmon-{A}.scope"), None, None, Some(UID)),
            (
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{A}.scope"
                ),
                Some("containerd"),
                Some(A),
                Some(UID),
            ),
            (format!("/kubepods.slice/kubepods-pod{STATIC}.slice"), None, None, Some(STATIC)),
            // Kubernetes by cgroupfs, and containerd's runc without systemd in a host with it.
            (format!("/kubepods/burstable/pod{UID}/{A}"), None, Some(A), Some(UID)),
            (format!("/kubepods/pod{UID}/{A}"), None, Some(A), Some(UID)),
            (format!("/kubepods/besteffort/pod{UID}/crio-{A}"), Some("cri-o"), Some(A), Some(UID)),
            (
                format!("/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{A}"),
                Some("containerd"),
                Some(A),
                Some(UID),
            ),
            // runc by systemd.
            (format!("/system.slice/runc-{A}.scope"), Some("runc"), Some(A), None),
            // Not containers, though they try.
            ("/".into(), None, None, None),
            ("/fns/checkout-1".into(), None, None, None),
            (format!("/fns/{}", &A[1..]), None, None, None),
            (format!("/fns/{A}0"), None, None, None),
            (format!("/fns/{}z", &A[1..]), None, None, None),
            ("/kubepods/podcast".into(), None, None, None),
            ("/kubepods/pod1b2e8d44-9f0a-4c9e-a6d1-3c5f0f1e2d3cc".into(), None, None, None),
            ("/kubepods/pod-----------------------------------e".into(), None, None, None),
            (format!("/shop.slice/shop-pod{UID_}.slice"), None, None, None),
            ("/a/openfaas-fn/figlet".into(), None, None, None),
        ] {
            let wanted = Place { runtime, id: id.map(str::to_owned), pod_uid: pod_uid.map(str::to_owned) };
            assert_eq!(Place::of(&path), wanted, "{path}");
        }
    }

    #[test]
    fn a_container_ends_where_its_id_stands() {
        let crio = format!("/kubepods.slice/kubepods-pod{UID_}.slice/crio-{A}.scope");
        for (path, wanted) in [
            (format!("{crio}/container/worker"), Some(&*crio)),
            (crio.clone(), Some(&*crio)),
            (format!("/docker/{A}/docker/{B}/init.scope"), Some(&*format!("/docker/{A}/docker/{B}"))),
            ("/openfaas-fn/figlet/worker/".to_owned(), Some("/openfaas-fn/figlet")),
            ("/openfaas-fn".to_owned(), None),
            ("/fns/checkout".to_owned(), None),
            ("/".to_owned(), None),
        ] {
            assert_eq!(container(&path), wanted, "{path}");
        }
        assert!(is_faasd("/openfaas-fn/figlet/worker"));
        assert!(
            ["/openfaas-fn/", "/openfaas-fn", "/openfaas-fnx/figlet", "/a/openfaas-fn/b"].iter().all(|p| !is_faasd(p))
        );
    }
}
