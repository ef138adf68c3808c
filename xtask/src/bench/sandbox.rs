//! Cgroups for the servers under load, below one that is made for the bench and removed with it.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

pub struct Slice {
    name: String,
    path: PathBuf,
}

impl Slice {
    pub fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
        let mount = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(2) == Some(&"cgroup2"))
            .and_then(|fields| fields.get(1).map(|path| PathBuf::from(*path)))
            .context("cgroup v2 is not mounted")?;
        let name = format!("fntrace-bench-{}", std::process::id());
        let path = mount.join(&name);
        fs::create_dir(&path).with_context(|| format!("make the cgroup {} (as root)", path.display()))?;
        Ok(Self { name, path })
    }

    /// As `--cgroup` takes it.
    pub fn argument(&self) -> String {
        format!("/{}", self.name)
    }

    /// Makes a sandbox, if it is not there.
    pub fn make(&self, sandbox: &str) -> Result<PathBuf> {
        let path = self.path.join(sandbox);
        if !path.exists() {
            fs::create_dir(&path).with_context(|| format!("make the cgroup {}", path.display()))?;
        }
        Ok(path)
    }

    /// Starts a program in a sandbox of its own.
    pub fn spawn(&self, sandbox: &str, command: &mut Command) -> Result<Child> {
        let path = self.make(sandbox)?;
        let procs = path.join("cgroup.procs");
        let mut procs = OpenOptions::new().write(true).open(&procs).with_context(|| format!("open {procs:?}"))?;
        // SAFETY: runs between fork and exec: one write(2) to a descriptor opened before, no allocation.
        unsafe { command.pre_exec(move || procs.write_all(b"0")) };
        command.spawn().with_context(|| format!("start {command:?}"))
    }

    /// Processor time that all sandboxes have used, in µs.
    pub fn cpu_us(&self) -> Result<u64> {
        let text = fs::read_to_string(self.path.join("cpu.stat")).context("read cpu.stat")?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("cpu.stat without usage")?;
        usage.parse().context("usage_usec is no number")
    }

    /// Ends what runs in the sandboxes and removes them.
    pub fn clear(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                remove(&entry.path());
            }
        }
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        self.clear();
        remove(&self.path);
    }
}

/// The dead leave a cgroup a moment after they were killed.
fn remove(path: &Path) {
    for _ in 0..200 {
        if fs::remove_dir(path).is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    eprintln!("xtask: remove {} by hand", path.display());
}
