//! Sandboxes: cgroup v2 directories that a test makes below a slice of its own, and removes with everything in them.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

static SLICES: AtomicUsize = AtomicUsize::new(0);

/// A cgroup that holds the sandboxes of one test, and a directory for their files.
#[derive(Debug)]
pub struct Slice {
    name: String,
    path: PathBuf,
    files: PathBuf,
    sandboxes: AtomicUsize,
}

/// A cgroup in which one function runs.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    path: PathBuf,
}

impl Slice {
    pub fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the end-to-end tests make cgroups and load BPF programs: run them as root"
        );
        let name = format!("fntrace-test-{}-{}", std::process::id(), SLICES.fetch_add(1, Ordering::Relaxed));
        let path = mount().join(&name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("make the cgroup {}: {error}", path.display()));
        let files = std::env::temp_dir().join(&name);
        fs::create_dir(&files).unwrap_or_else(|error| panic!("make {}: {error}", files.display()));
        Self { name, path, files, sandboxes: AtomicUsize::new(1) }
    }

    /// The slice as `--cgroup` takes it: below the mount of cgroup v2.
    pub fn argument(&self) -> String {
        format!("/{}", self.name)
    }

    /// An empty directory for the files of the test, removed with the slice.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// Makes an empty sandbox; its name is `kind` and a number.
    pub fn sandbox(&self, kind: &str) -> Sandbox {
        let name = format!("{kind}-{}", self.sandboxes.fetch_add(1, Ordering::Relaxed));
        let path = self.path.join(&name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("make the cgroup {}: {error}", path.display()));
        Sandbox { name, path }
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        kill(&self.path);
        remove_all(&self.path);
        // A container runtime makes the same in every hierarchy of cgroup v1 that is there.
        for point in mounts("cgroup") {
            remove_all(&point.join(&self.name));
        }
        let _ = fs::remove_dir_all(&self.files);
    }
}

impl Sandbox {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts a program that is in the sandbox before its first instruction.
    pub fn spawn(&self, command: &mut Command) -> Child {
        let mut procs = self.procs();
        let enter = move || procs.write_all(b"0");
        // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are allowed. It makes one
        // write(2) to a descriptor that was opened before the fork, and allocates nothing.
        unsafe { command.pre_exec(enter) };
        command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"))
    }

    /// Kills everything in the sandbox. The directory goes with the slice.
    pub fn kill(&self) {
        kill(&self.path);
    }

    /// The file through which a process enters the sandbox.
    pub fn procs_file(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    fn procs(&self) -> File {
        let file = self.procs_file();
        OpenOptions::new().write(true).open(&file).unwrap_or_else(|error| panic!("open {}: {error}", file.display()))
    }
}

/// Where cgroup v2 is mounted, alone or beside v1.
pub fn mount() -> PathBuf {
    let point = mounts("cgroup2").into_iter().next();
    point.expect("cgroup v2 is not mounted here: mount -t cgroup2 none /sys/fs/cgroup")
}

fn mounts(kind: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").expect("read /proc/mounts");
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|fields| fields[2] == kind).map(|fields| PathBuf::from(fields[1])).collect()
}

fn kill(path: &Path) {
    if let Err(error) = fs::write(path.join("cgroup.kill"), "1") {
        eprintln!("kill what is in {}: {error}", path.display());
    }
}

/// Removes a cgroup and all below it.
fn remove_all(path: &Path) {
    let children = fs::read_dir(path).into_iter().flatten().flatten();
    for child in children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_all(&child.path());
    }
    remove(path);
}

/// Removes a cgroup once its killed processes are gone. Never panics: it runs while a failed test unwinds.
fn remove(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return,
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            Err(error) => return eprintln!("remove the cgroup {}: {error}", path.display()),
        }
    }
}
