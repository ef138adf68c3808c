//! The demo's cgroups: a slice, in it one directory for each sandbox. Made, filled, emptied and removed here.

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    ops::Deref,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::unix::pipe,
    time::timeout,
};

use super::{
    container::{self, Runc},
    function::READY,
};

/// Begins the name of every slice; the demo's process id follows.
pub const PREFIX: &str = "fntrace-demo-";
/// Within this time a function must be ready, and a killed sandbox empty.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to start a function: a program and its first arguments, to which the function's name is added.
#[derive(Clone, Debug)]
pub struct Launcher(pub Vec<OsString>);

impl Default for Launcher {
    /// This executable, by the name that stays right if the file is replaced while it runs.
    fn default() -> Self {
        Self(vec!["/proc/self/exe".into(), "demo-function".into()])
    }
}

/// The directory of all sandboxes of one demo.
///
/// While its demo lives, it holds a lock on the directory, which the kernel drops when the process ends, however it
/// does. So a slice that can be locked is a dead demo's leftover. A process id alone could not tell: it may have been
/// given to another process since.
#[derive(Debug)]
pub struct Slice {
    path: PathBuf,
    /// Not read; held until the process ends, or the slice is gone.
    _lock: File,
    launcher: Launcher,
    /// Makes the sandboxes, if they are to be containers.
    runc: Option<Runc>,
    /// `None` once the slice is closed: nothing may be started in it any more.
    sandboxes: Mutex<Option<Vec<Sandbox>>>,
}

#[derive(Debug)]
struct Sandbox {
    path: PathBuf,
    process: Child,
}

impl Slice {
    /// Makes a slice below the mount point of cgroup v2, after removing what dead demos left there.
    pub fn create(mount: &Path, launcher: Launcher, containers: bool) -> Result<Owner> {
        remove_leftovers(mount)?;
        for n in 1.. {
            let pid = process::id();
            let name = if n == 1 { format!("{PREFIX}{pid}") } else { format!("{PREFIX}{pid}.{n}") };
            let path = mount.join(&name);
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!(
                            "make the sandboxes' directory {}: needs root and cgroup v2 mounted writable",
                            path.display()
                        )
                    });
                }
            }
            let lock = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            lock.lock().with_context(|| format!("lock {}", path.display()))?;
            // Another demo's start may have taken it for a leftover before it was locked.
            if fs::metadata(&path).is_ok_and(|now| lock.metadata().is_ok_and(|locked| locked.ino() == now.ino())) {
                let runc = containers.then(|| Runc::new(&name)).transpose()?;
                return Ok(Owner(Arc::new(Self {
                    path,
                    _lock: lock,
                    launcher,
                    runc,
                    sandboxes: Mutex::new(Some(Vec::new())),
                })));
            }
        }
        bail!("no name is free below {}", mount.display())
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a function in a new sandbox of that name; returns the address at which it listens, once it does.
    pub async fn start(&self, sandbox: &str, function: &str, environment: &[(String, String)]) -> Result<String> {
        let ready = self.spawn(sandbox, function, environment).with_context(|| format!("start {sandbox}"))?;
        let ready = pipe::Receiver::from_owned_fd(ready).context("the function's standard output")?;
        let mut lines = BufReader::new(ready).lines();
        let address = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(address) = line.strip_prefix(READY) {
                    return Ok(address.to_owned());
                }
            }
            bail!("it ended before it was ready")
        };
        timeout(PATIENCE, address)
            .await
            .unwrap_or_else(|_| bail!("it was not ready within {} s", PATIENCE.as_secs()))
            .with_context(|| format!("start {sandbox}"))
    }

    fn spawn(&self, sandbox: &str, function: &str, environment: &[(String, String)]) -> Result<OwnedFd> {
        let mut open = self.sandboxes();
        let sandboxes = open.as_mut().context("the demo is ending")?;
        let path = self.path.join(sandbox);
        let mut process = match &self.runc {
            // It makes the cgroup, and removes it in the end.
            Some(runc) => start(&mut runc.command(sandbox, &self.launcher.0, function, environment)?)?,
            None => {
                fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
                let spawned = self.spawn_into(&path, function, environment);
                if spawned.is_err() {
                    let _ = fs::remove_dir(&path);
                }
                spawned?
            }
        };
        let output = process.stdout.take();
        sandboxes.push(Sandbox { path, process });
        Ok(output.context("the function has no standard output")?.into())
    }

    fn spawn_into(&self, sandbox: &Path, function: &str, environment: &[(String, String)]) -> Result<Child> {
        let (program, arguments) = self.launcher.0.split_first().context("nothing to start the function with")?;
        let members = sandbox.join("cgroup.procs");
        let members =
            File::options().write(true).open(&members).with_context(|| format!("open {}", members.display()))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg(function)
            .env_clear()
            .env("FUNCTION_NAME", function)
            .envs(environment.iter().map(|(key, value)| (key, value)));
        // SAFETY: between fork and exec the closure makes one system call, on a descriptor that it owns, and does not
        // allocate: "0" stands for the writing process itself.
        unsafe { command.pre_exec(move || (&members).write_all(b"0")) };
        start(&mut command)
    }

    /// Ends a sandbox and removes it.
    pub fn retire(&self, sandbox: &str) -> Result<()> {
        let mut open = self.sandboxes();
        let Some(sandboxes) = open.as_mut() else { return Ok(()) };
        let path = self.path.join(sandbox);
        let Some(at) = sandboxes.iter().position(|sandbox| sandbox.path == path) else { return Ok(()) };
        empty(&path)?;
        let mut sandbox = sandboxes.swap_remove(at);
        drop(open);
        sandbox.process.wait().context("wait for the function's end")?;
        match &self.runc {
            Some(_) => Ok(()),
            None => remove(&path),
        }
    }

    /// Ends all sandboxes and removes them, and the slice. The second call finds nothing left to do.
    pub fn close(&self) -> Result<()> {
        let Some(mut sandboxes) = self.sandboxes().take() else { return Ok(()) };
        empty(&self.path)?;
        for sandbox in &mut sandboxes {
            sandbox.process.wait().context("wait for the function's end")?;
        }
        remove(&self.path)?;
        self.runc.as_ref().map_or(Ok(()), Runc::clear)
    }

    /// Is the sandbox's process still there?
    pub fn is_alive(&self, sandbox: &str) -> bool {
        let path = self.path.join(sandbox);
        let mut open = self.sandboxes();
        let found = open.iter_mut().flatten().find(|sandbox| sandbox.path == path);
        found.is_some_and(|sandbox| matches!(sandbox.process.try_wait(), Ok(None)))
    }

    /// Has [`close`](Self::close) been called?
    pub fn is_closed(&self) -> bool {
        self.sandboxes().is_none()
    }

    fn sandboxes(&self) -> MutexGuard<'_, Option<Vec<Sandbox>>> {
        // A panic elsewhere must not keep the sandboxes from being removed.
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever holds this holds the slice: dropping it closes the slice, even while tasks that share it are still to end.
#[derive(Debug)]
pub struct Owner(Arc<Slice>);

impl Owner {
    /// A share in the slice that does not keep it open.
    pub fn share(&self) -> Arc<Slice> {
        self.0.clone()
    }
}

impl Deref for Owner {
    type Target = Slice;

    fn deref(&self) -> &Slice {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            eprintln!("fntrace demo: {} is left over: {error:#}", self.path.display());
        }
    }
}

/// Removes the slices of demos that ended without doing so.
fn remove_leftovers(mount: &Path) -> Result<()> {
    let entries = fs::read_dir(mount).with_context(|| format!("read {}", mount.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !path.is_dir() {
            continue;
        }
        let Ok(directory) = File::open(&path) else { continue };
        match directory.try_lock() {
            Ok(()) => {}
            // A demo that runs.
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("lock {}", path.display())),
        }
        let slice = entry.file_name().to_string_lossy().into_owned();
        let removed = empty(&path).and_then(|()| remove(&path)).and_then(|()| container::clear(&slice));
        if let Err(error) = removed {
            eprintln!("fntrace demo: {} of an earlier demo stays: {error:#}", path.display());
        }
    }
    Ok(())
}

/// Starts a function, or what starts it.
fn start(command: &mut Command) -> Result<Child> {
    command
        // Standard input is the lifeline (see `function::parent_ended`), standard output says when it is ready.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Ctrl-C at the terminal is for the demo alone, which then ends its functions in good order.
        .process_group(0);
    command.spawn().with_context(|| format!("start {}", Path::new(command.get_program()).display()))
}

/// Kills every process in a cgroup and below it, and waits until none is left. One that is gone is empty: who runs a
/// container removes its cgroup.
fn empty(cgroup: &Path) -> Result<()> {
    let kill = cgroup.join("cgroup.kill");
    match fs::write(&kill, "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        killed => killed.with_context(|| format!("write {}", kill.display()))?,
    }
    let events = cgroup.join("cgroup.events");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = match fs::read_to_string(&events) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => return Ok(()),
            state => state.with_context(|| format!("read {}", events.display()))?,
        };
        if state.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "its processes do not end");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Removes an empty cgroup and those below it.
fn remove(cgroup: &Path) -> Result<()> {
    for entry in fs::read_dir(cgroup).with_context(|| format!("read {}", cgroup.display()))?.flatten() {
        if entry.path().is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup).with_context(|| format!("remove {}", cgroup.display()))
}
