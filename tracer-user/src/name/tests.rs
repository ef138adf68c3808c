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

/// What a runtime's file makes of a path, and that a file cut short makes of it what the path says.
fn read(test: &str, path: &str, file: &str, text: &str) -> Container {
    let (path, mount) = (path.replace("ID", ID), mount());
    let state = State::new(test, &[(file, text)]);
    let found = Container::find(&state.0, &mount, &path);
    let torn = State::new(test, &[(file, "{\"Name\":")]);
    assert_eq!(Container::find(&torn.0, &mount, &path), Container::of_path(&path), "{test}, file cut short");
    assert_eq!(Container::find(Path::new("/nowhere"), &mount, &path), Container::of_path(&path), "{test}, no file");
    found
}

#[test]
fn containers_are_described_by_their_runtime() {
    let some = |text: &str| Some(text.to_owned());
    let id = Some(ID.to_owned());
    let (docker, tasks) =
        ("var/lib/docker/containers/ID/config.v2.json", "run/containerd/io.containerd.runtime.v2.task");
    let storage = "containers/storage/overlay-containers";
    let base = |runtime| Container { id: id.clone(), runtime: Some(runtime), ..Container::default() };

    let found = read(
        "docker",
        "/system.slice/docker-ID.scope",
        docker,
        r#"{"Name":"/cart","Config":{"Labels":{},"Image":"shop/cart:3"}}"#,
    );
    let cart = Container { name: some("cart"), image: some("shop/cart:3"), function: some("cart"), ..base("docker") };
    assert_eq!(found, cart);

    let found = read("label", "/docker/ID", docker, r#"{"Name":"/x","Config":{"Labels":{"faas_function":"pay"}}}"#);
    assert_eq!(
        found,
        Container {
            name: some("x"),
            function: some("pay"),
            platform: Some(("OpenFaaS", "faas_function")),
            ..base("docker")
        }
    );

    // Kubernetes by containerd, cgroupfs driver: the path does not say who.
    let uid = "1b2e8d44-9f0a-4c9e-a6d1-3c5f0f1e2d3c";
    let found = read(
        "cri",
        &format!("/kubepods/burstable/pod{uid}/ID"),
        &format!("{tasks}/k8s.io/ID/config.json"),
        r#"{"annotations":{"io.kubernetes.cri.container-name":"stock","io.kubernetes.cri.sandbox-name":"stock-7f",
            "io.kubernetes.cri.sandbox-namespace":"shop","io.kubernetes.cri.sandbox-uid":"not the path's",
            "io.kubernetes.cri.image-name":"registry.example/stock@sha256:1"}}"#,
    );
    let stock = Container {
        image: some("registry.example/stock@sha256:1"),
        function: some("stock"),
        namespace: some("shop"),
        pod: some("stock-7f"),
        pod_uid: some(uid),
        name_in_pod: some("stock"),
        ..base("containerd")
    };
    assert_eq!(found, stock);

    let found = read(
        "crio",
        "/kubepods.slice/kubepods-pod1b2e8d44_9f0a_4c9e_a6d1_3c5f0f1e2d3c.slice/crio-ID.scope",
        &format!("run/{storage}/ID/userdata/config.json"),
        r#"{"annotations":{"io.kubernetes.cri-o.ContainerID":"ID","io.kubernetes.cri-o.Name":"k8s_stock_stock-7f_shop",
            "io.kubernetes.container.name":"stock","io.kubernetes.pod.name":"stock-7f","io.kubernetes.pod.namespace":"shop",
            "io.kubernetes.cri-o.ImageName":"registry.example/stock:1"}}"#,
    );
    let (name, image) = (some("k8s_stock_stock-7f_shop"), some("registry.example/stock:1"));
    assert_eq!(found, Container { name, image, runtime: Some("cri-o"), ..stock });

    let list = r#"[{"id":"other","names":["no"]},{"id":"ID","names":["mail"]}]"#;
    let found =
        read("podman", "/machine.slice/libpod-ID.scope/container", &format!("var/lib/{storage}/containers.json"), list);
    assert_eq!(found, Container { name: some("mail"), function: some("mail"), ..base("podman") });

    // What Podman 4.3 writes with another driver.
    let bundle = r#"{"annotations":{"io.container.manager":"libpod","io.kubernetes.cri-o.TTY":"false"}}"#;
    let vfs = "var/lib/containers/storage/vfs-containers";
    let state = State::new(
        "vfs",
        &[(&format!("{vfs}/ID/userdata/config.json"), bundle), (&format!("{vfs}/containers.json"), list)],
    );
    let found = Container::find(&state.0, &mount(), &format!("/libpod_parent/libpod-{ID}"));
    assert_eq!(found, Container { name: some("mail"), function: some("mail"), ..base("podman") });

    // Wherever containerd's client wants it.
    let (file, text) = (format!("{tasks}/default/pay/config.json"), r#"{"linux":{"cgroupsPath":"/fns/pay"}}"#);
    let pay = Container { id: some("pay"), name: some("pay"), function: some("pay"), ..base("containerd") };
    assert_eq!(read("ctr", "/fns/pay", &file, text), pay);
    assert_eq!(read("ctr-other", "/others/pay", &file, text), Container::default());

    // faasd's containers are named by their function.
    let found = read("faasd", "/openfaas-fn/figlet", &format!("{tasks}/openfaas-fn/figlet/config.json"), "{}");
    let platform = Some(("OpenFaaS", "containerd's namespace openfaas-fn"));
    let (id, name, function) = (some("figlet"), some("figlet"), some("figlet"));
    let figlet = Container { id, name, function, platform, ..base("containerd") };
    assert_eq!(found, figlet);
}

#[test]
fn runc_is_asked_where_its_container_lies() {
    let file = "run/runc/box/state.json";
    let state = |place: &str| {
        format!(
            r#"{{"id":"box","cgroup_paths":{{"":"{place}","memory":"/sys/fs/cgroup/memory/fns/box"}},
                "config":{{"labels":["bundle=/b","faas_function=ship"]}}}}"#
        )
    };
    let some = |text: &str| Some(text.to_owned());
    let ship = Container {
        id: some("box"),
        runtime: Some("runc"),
        name: some("box"),
        function: some("ship"),
        platform: Some(("OpenFaaS", "faas_function")),
        ..Container::default()
    };
    for (path, place) in [
        ("/fns/box", "/sys/fs/cgroup/fns/box"),
        ("/fns/box/inner", "/sys/fs/cgroup/fns/box"),
        ("/fns.slice/runc-box.scope", "/sys/fs/cgroup/fns.slice/runc-box.scope"),
        // Wherever the bundle wants it.
        ("/fns/another", "/sys/fs/cgroup/fns/another"),
    ] {
        assert_eq!(read("runc", path, file, &state(place)), ship, "{path}");
    }
    // A cgroup that only has the name of a container of somewhere else.
    assert_eq!(read("runc-other", "/fns/box", file, &state("/sys/fs/cgroup/others/box")), Container::default());
    assert_eq!(read("runc-above", "/fns/..", file, &state("/sys/fs/cgroup/others/box")), Container::default());
}

#[test]
fn what_runtimes_wrote_down_is_bounded_and_visible() {
    let long = "x".repeat(10_000);
    let text = format!(
        "{{\"Name\":\"/{long}\",\"Config\":{{\"Image\":\"a\\u001b[2J\\u202eb\",\"Labels\":{{\"faas_function\":\"\\n\"}}}}}}"
    );
    let found = read("hostile", "/docker/ID", "var/lib/docker/containers/ID/config.v2.json", &text);
    assert_eq!(found.name.as_ref().map(String::len), Some(NAME_MAX));
    assert_eq!((found.image.as_deref(), &found.function), (Some("a[2Jb"), &found.name), "an empty label is none");
}

#[test]
fn what_is_gone_since_stays_known() {
    let names = Names::new(mount(), &[] as &[&str]).unwrap();
    let said = said(b"PATH=/bin\0K_SERVICE=checkout\0K_REVISION=checkout-3\0HOME=/").unwrap();
    let path = format!("/docker/{ID}");
    let mut identity = names.resolve_at_once(&path, Some(&said));
    let json = serde_json::to_value(&identity.resource).unwrap();
    let all = serde_json::json!({"faas.name": "checkout", "faas.version": "checkout-3", "faas.instance": ID,
        "container.id": ID, "container.runtime.name": "docker"});
    assert_eq!(json, all);
    let (first, nothing) = (identity.clone(), names.resolve_at_once("/other", None));
    identity.improve(nothing);
    assert_eq!(identity, first);
}

#[test]
fn root_reads_the_environment_of_processes_of_the_sandbox_alone() {
    let mount = Mount::find().expect("this test needs cgroup v2");
    let path = format!("/fntrace-test-name-{}", std::process::id());
    let place = mount.place_of(&path);
    fs::create_dir(&place).expect("this test makes a cgroup: run it as root");
    let names = Names::new(mount, &[] as &[&str]).unwrap();

    let empty = names.resolve(&path, None);
    // It repeats a byte first: until exec has ended, a process's environment reads as empty, or as its parent's.
    let mut command = Command::new("cat");
    command.env("K_SERVICE", "checkout").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("this test runs cat");
    child.stdin.as_mut().unwrap().write_all(b"1").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let outside = names.resolve(&path, None);
    fs::write(place.join("cgroup.procs"), child.id().to_string()).unwrap();
    let inside = names.resolve(&path, None);
    child.kill().unwrap();
    child.wait().unwrap();
    // The kernel lets go of the cgroup a moment after the process is reaped.
    while fs::remove_dir(&place).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
        std::thread::yield_now();
    }

    assert_eq!((empty.name.text.as_str(), empty.name.source), (&path[1..], Source::Cgroup));
    assert_eq!(outside, empty);
    assert_eq!(inside.name, Name { text: "checkout".into(), source: Source::Environment("K_SERVICE") });
    assert_eq!(inside.resource.faas_name.as_deref(), Some("checkout"));
}
