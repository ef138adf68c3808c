use std::{
    fs,
    io::{Read as _, Write as _},
    process::{Command, Stdio},
};

use proptest::prelude::*;

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn mount() -> Mount {
    Mount { point: "/sys/fs/cgroup".into(), root: "/".into() }
}

#[test]
fn cgroups_name_themselves_plainly() {
    for (path, name) in [
        ("/fns/checkout-1", "checkout-1"),
        ("/fns/checkout/", "checkout"),
        ("/system.slice/shop.service", "shop"),
        ("/system.slice/two\\x2dwords.scope", "two-words"),
        ("/odd\\xzz\\x2", "odd\\xzz\\x2"),
        (&format!("/system.slice/docker-{ID}.scope"), "0123456789ab"),
        (&format!("/kubepods.slice/cri-containerd-{ID}.scope"), "0123456789ab"),
        (&format!("/system.slice:docker:{ID}"), "0123456789ab"),
        (&format!("/docker/{ID}"), "0123456789ab"),
        ("/", "/"),
        ("/\u{1b}\u{202e}", "unnamed"),
    ] {
        assert_eq!(of_cgroup(path), name, "{path}");
    }
}

#[test]
fn hostile_names_are_made_harmless() {
    assert_eq!(clean(b"\x1b[31mred\x07\r\n").as_deref(), Some("[31mred"));
    assert_eq!(clean("a\u{202e}b\u{200b}c\u{85}d".as_bytes()).as_deref(), Some("abcd"));
    assert_eq!(clean(b"\xff\xfe").as_deref(), Some("\u{fffd}\u{fffd}"));
    assert_eq!(clean(b" \t "), None);
    assert_eq!(clean(&[b'x'; 10_000]).map(|name| name.len()), Some(NAME_MAX));
}

proptest! {
    #[test]
    fn any_bytes_make_a_bounded_visible_name(bytes: Vec<u8>) {
        if let Some(name) = clean(&bytes) {
            prop_assert!(!name.is_empty() && name.len() <= NAME_MAX);
            prop_assert!(!name.chars().any(char::is_control));
        }
    }

    #[test]
    fn any_path_has_a_name(path in "(/[ -~\\\\x0-9a-f]{0,80}){0,3}") {
        prop_assert!(!of_cgroup(&path).is_empty());
    }
}

#[test]
fn the_operator_goes_first() {
    let names = Names::new(mount(), &["/fns/*=any", "/fns/a-1=a", "/sys/fs/cgroup/fns/b=b", "/x=1=one"]).unwrap();
    for (path, name) in [
        ("/fns/a-1", Some("a")),
        ("/fns/b", Some("b")),
        ("/fns/c", Some("any")),
        ("/fns/a-1/inner", Some("any")),
        ("/x=1", Some("one")),
        ("/other", None),
    ] {
        assert_eq!(names.given(path).as_deref(), name, "{path}");
    }
    for bad in ["nothing", "/fns/a=", "=name", "/fns/../x=y"] {
        let error = format!("{:#}", Names::new(mount(), &[bad]).unwrap_err());
        assert!(error.contains("--name") && !error.contains('\n'), "{error}");
    }
}

/// A file tree as container runtimes leave it.
struct State(PathBuf);

impl State {
    fn new(test: &str, files: &[(&str, &str)]) -> Self {
        let root = std::env::temp_dir().join(format!("fntrace-name-{test}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path.replace("ID", ID));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text.replace("ID", ID)).unwrap();
        }
        Self(root)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn containers_are_named_by_their_runtime() {
    let scope = format!("/system.slice/docker-{ID}.scope");
    for (test, path, file, text, name) in [
        (
            "docker",
            &*scope,
            "var/lib/docker/containers/ID/config.v2.json",
            r#"{"Name":"/cart","Config":{"Labels":{}}}"#,
            "cart",
        ),
        (
            "label",
            &*scope,
            "var/lib/docker/containers/ID/config.v2.json",
            r#"{"Name":"/x","Config":{"Labels":{"faas_function":"pay"}}}"#,
            "pay",
        ),
        (
            "containerd",
            &format!("/kubepods/pod1/{ID}"),
            "run/containerd/io.containerd.runtime.v2.task/k8s.io/ID/config.json",
            r#"{"annotations":{"io.kubernetes.cri.container-name":"stock"}}"#,
            "stock",
        ),
        (
            "podman",
            &format!("/machine.slice/libpod-{ID}.scope/container"),
            "var/lib/containers/storage/overlay-containers/containers.json",
            r#"[{"id":"other","names":["no"]},{"id":"ID","names":["mail"]}]"#,
            "mail",
        ),
        (
            "runc",
            "/fns/box",
            "run/runc/box/state.json",
            r#"{"config":{"labels":["bundle=/b","faas_function=ship"]}}"#,
            "ship",
        ),
    ] {
        let state = State::new(test, &[(file, text)]);
        assert_eq!(container::name(&state.0, path).as_deref(), Some(name), "{test}");
        let torn = State::new(test, &[(file, "{\"Name\":")]);
        assert_eq!(container::name(&torn.0, path), None, "{test}, file cut short");
    }
    assert_eq!(container::name(Path::new("/nowhere"), &scope), None);
}

#[test]
fn root_reads_the_environment_of_processes_of_the_sandbox_alone() {
    let mount = Mount::find().expect("this test needs cgroup v2");
    let path = format!("/fntrace-test-name-{}", std::process::id());
    let place = mount.place_of(&path);
    fs::create_dir(&place).expect("this test makes a cgroup: run it as root");
    let names = Names::new(mount, &[] as &[&str]).unwrap();

    let empty = names.resolve(&path);
    // It repeats a byte first: until exec has ended, a process's environment reads as empty, or as its parent's.
    let mut command = Command::new("cat");
    command.env("K_SERVICE", "checkout").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("this test runs cat");
    child.stdin.as_mut().unwrap().write_all(b"1").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let outside = names.resolve(&path);
    fs::write(place.join("cgroup.procs"), child.id().to_string()).unwrap();
    let inside = names.resolve(&path);
    child.kill().unwrap();
    child.wait().unwrap();
    // The kernel lets go of the cgroup a moment after the process is reaped.
    while fs::remove_dir(&place).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
        std::thread::yield_now();
    }

    assert_eq!((empty.text.as_str(), empty.source, empty.provisional), (&path[1..], Source::Cgroup, true));
    assert_eq!(outside, empty);
    assert_eq!(inside, Name { text: "checkout".into(), source: Source::Environment("K_SERVICE"), provisional: false });
}
