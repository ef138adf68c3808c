use proptest::prelude::*;

use super::*;

const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

fn mount() -> Mount {
    Mount { point: "/sys/fs/cgroup/unified".into(), root: "/".into() }
}

#[test]
fn the_mount_is_found_beside_v1() {
    assert_eq!(Mount::parse(HYBRID.as_bytes()), Some(mount()));
}

#[test]
fn optional_fields_and_escapes_are_read() {
    let line = b"30 23 0:26 / /mnt/two\\040words rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate\n";
    let found = Mount::parse(line).unwrap();
    assert_eq!(found.point, PathBuf::from("/mnt/two words"));
}

#[test]
fn the_whole_tree_is_preferred_to_a_part() {
    let table = b"1 1 0:1 /kube/pod /part rw - cgroup2 x rw\n2 1 0:1 / /whole rw - cgroup2 x rw\n";
    assert_eq!(Mount::parse(table).unwrap().point, PathBuf::from("/whole"));
}

#[test]
fn no_cgroup2_is_none() {
    assert_eq!(Mount::parse(b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"), None);
    assert_eq!(Mount::parse(b""), None);
    assert_eq!(Mount::parse(b"1 2 3 / /cgroup2 rw cgroup2 cgroup2 rw\n"), None, "no separator");
}

#[test]
fn paths_and_places_are_opposites() {
    let part = Mount { point: "/part".into(), root: "/kube".into() };
    for (mount, path, place) in [
        (mount(), "/", "/sys/fs/cgroup/unified"),
        (mount(), "/fns/a", "/sys/fs/cgroup/unified/fns/a"),
        (part.clone(), "/kube", "/part"),
        (part, "/kube/a/b", "/part/a/b"),
    ] {
        assert_eq!(mount.path_of(Path::new(place)).as_deref(), Some(path));
        assert_eq!(mount.place_of(path).components().collect::<PathBuf>(), PathBuf::from(place));
    }
    assert_eq!(mount().path_of(Path::new("/sys/fs/cgroup/memory/a")), None);
}

#[test]
fn patterns_select_what_lies_below_a_match() {
    for (pattern, path, selects, matches) in [
        ("/fns", "/fns", true, true),
        ("/fns", "/fns/a/b", true, false),
        ("/fns", "/fns2", false, false),
        ("/fns", "/", false, false),
        ("/", "/", true, true),
        ("/", "/any/thing", true, false),
        ("/fns/*", "/fns", false, false),
        ("/fns/*", "/fns/a", true, true),
        ("/fns/*", "/fns/a/b", true, false),
        ("/fns/c*t-?", "/fns/cart-1", true, true),
        ("/fns/c*t-?", "/fns/cart-12", false, false),
        ("/fns/c*t-?", "/fns/ca/t-1", false, false),
        ("/f*/x", "/fns/x", true, true),
        ("/f*/x", "/fns/y/x", false, false),
        ("/a*b*c", "/aXbYbZc", true, true),
        ("/a*b*c", "/aXbYcZ", false, false),
        ("/?", "/é", false, false), // A `?` is a byte, in the kernel and here.
    ] {
        let parsed = Pattern::new(pattern).unwrap();
        assert_eq!(parsed.selects(path), selects, "{pattern} selects {path}");
        assert_eq!(parsed.matches(path), matches, "{pattern} matches {path}");
    }
}

#[test]
fn patterns_are_brought_to_their_plainest_form() {
    for (text, plain) in [("fns", "/fns"), ("//fns/./a//", "/fns/a"), ("/", "/"), ("", "/")] {
        assert_eq!(Pattern::new(text).unwrap().as_str(), plain);
    }
    assert!(Pattern::new("/fns/../x").is_err());
}

#[test]
fn the_literal_ancestor_ends_before_the_first_glob() {
    for (text, ancestor) in [("/a/b", "/a/b"), ("/a/b*/c", "/a"), ("/a/b/?", "/a/b"), ("/*", "/"), ("/x?/y", "/")] {
        assert_eq!(Pattern::new(text).unwrap().literal_ancestor(), ancestor);
    }
}

proptest! {
    #[test]
    fn selecting_is_matching_an_ancestor(pattern in "(/[ab*?]{1,3}){1,3}", path in "(/[ab]{1,3}){0,4}") {
        let pattern = Pattern::new(&pattern).unwrap();
        let ancestors = path.match_indices('/').map(|(at, _)| &path[..at]).chain([path.as_str()]);
        let by_ancestor = ancestors.filter(|path| !path.is_empty()).any(|path| pattern.matches(path));
        prop_assert_eq!(pattern.selects(&path), by_ancestor);
    }

    #[test]
    fn literals_match_themselves_alone(path in "(/[a-z-]{1,6}){1,4}", other in "(/[a-z-]{1,6}){1,4}") {
        let pattern = Pattern::new(&path).unwrap();
        let plain = pattern.as_str().to_owned();
        prop_assert!(pattern.matches(&plain));
        let below = plain.clone() + "/below";
        prop_assert!(pattern.selects(&below));
        prop_assert_eq!(pattern.matches(&other), other == plain);
    }

    #[test]
    fn mountinfo_of_any_bytes_is_read(table: Vec<u8>) {
        let _ = Mount::parse(&table);
    }
}

/// A cgroup of the test's own, removed with everything below it.
struct Sandbox(PathBuf);

impl Sandbox {
    fn new(name: &str, children: &[&str]) -> (Mount, Self) {
        let mount = Mount::find().expect("this test needs cgroup v2");
        let place = mount.point.join(format!("fntrace-test-{name}-{}", std::process::id()));
        fs::create_dir(&place).expect("this test makes a cgroup: run it as root");
        let sandbox = Self(place);
        for child in children {
            fs::create_dir_all(sandbox.0.join(child)).unwrap();
        }
        (mount, sandbox)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for (_, place) in walk(&self.0).iter().rev() {
            let _ = fs::remove_dir(place);
        }
    }
}

#[test]
fn root_walks_and_finds_ids() {
    let (mount, sandbox) = Sandbox::new("walk", &["a/b", "c"]);
    let mut found: Vec<_> = walk(&sandbox.0).into_iter().map(|(_, place)| mount.path_of(&place).unwrap()).collect();
    found.sort();
    let top = mount.path_of(&sandbox.0).unwrap();
    assert_eq!(found, [top.clone(), format!("{top}/a"), format!("{top}/a/b"), format!("{top}/c")]);
    let inner = sandbox.0.join("a/b");
    let number = id(&inner).unwrap();
    assert_eq!(mount.find_id(number).unwrap(), Some(inner.clone()));
    fs::remove_dir(&inner).unwrap();
    assert_eq!(mount.find_id(number).unwrap(), None);
}

#[test]
fn root_resolves_what_the_operator_wrote() {
    let (mount, sandbox) = Sandbox::new("resolve", &["a-1", "a-2/inner", "b"]);
    let top = mount.path_of(&sandbox.0).unwrap();
    let place = sandbox.0.display();

    let literal = Selection::resolve(&mount, &[format!("{place}/b/")]).unwrap();
    assert_eq!(literal.patterns, [Pattern(format!("{top}/b"))]);
    assert_eq!(literal.roots, [sandbox.0.join("b")]);
    assert_eq!(Selection::resolve(&mount, &[format!("{top}/b")]).unwrap(), literal, "relative to the mount");

    let glob = Selection::resolve(&mount, &[format!("{top}/a-*")]).unwrap();
    assert_eq!(glob.roots, std::slice::from_ref(&sandbox.0));
    let mut paths: Vec<_> = glob.existing(&mount).into_iter().map(|(_, path)| path).collect();
    paths.sort();
    assert_eq!(paths, [format!("{top}/a-1"), format!("{top}/a-2"), format!("{top}/a-2/inner")]);

    let nested = Selection::resolve(&mount, &[format!("{top}/b"), top.clone(), format!("{top}/a-?")]).unwrap();
    assert_eq!(nested.roots, std::slice::from_ref(&sandbox.0), "no root below another");
    assert_eq!(nested.patterns.len(), 3);

    let all = Selection::resolve(&mount, &["/"]).unwrap();
    assert_eq!(all.roots, std::slice::from_ref(&mount.point));
}

#[test]
fn root_refusals_are_one_line_and_say_what_to_do() {
    let (mount, sandbox) = Sandbox::new("refuse", &[]);
    let top = mount.path_of(&sandbox.0).unwrap();
    for (chosen, says) in [
        (format!("{top}/nobody"), "no such cgroup"),
        (format!("{top}/nobody/*"), "no such cgroup"),
        (format!("{top}/cgroup.procs"), "not a directory"),
        ("/proc/self".into(), "not in the cgroup v2 hierarchy"),
        ("/*".into(), "would attach to the root cgroup"),
        ("/fn?/x".into(), "would attach to the root cgroup"),
        (mount.point.display().to_string(), "write `--cgroup /`"),
        ("//".into(), "write `--cgroup /`"),
        (format!("{top}/.."), "contains `..`"),
        (String::new(), "is empty"),
    ] {
        let error = format!("{:#}", Selection::resolve(&mount, &[&chosen]).unwrap_err());
        assert!(error.contains(says), "{chosen}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
