//! Running other programs.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

/// Debian's hook that tells maintainer scripts whether they may start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The cargo that runs this, in the work tree.
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// Installs Debian packages.
///
/// # Errors
///
/// Where there is no apt-get, or it fails; the message names the packages.
pub fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if find("apt-get").is_none() {
        bail!("needed is what Debian calls {list}: install it with this machine's package manager");
    }
    eprintln!("xtask: apt-get install {list}");
    let _policy = NoServices::new()?;
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    run(Command::new("apt-get")
        .args(["install", "-qq", "--yes", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive"))
    .with_context(|| format!("install {list} (as root: `apt-get install {list}`)"))
}

/// Keeps packages from starting their services while it lives: the tests want nginx's program, not a server on port 80.
/// A policy that the machine already has stays in force.
struct NoServices {
    mine: bool,
}

impl NoServices {
    fn new() -> Result<Self> {
        let path = Path::new(POLICY);
        if path.exists() {
            return Ok(Self { mine: false });
        }
        let refused = || format!("write {POLICY} (installing packages takes root)");
        fs::write(path, "#!/bin/sh\nexit 101\n").with_context(refused)?;
        let policy = Self { mine: true };
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(refused)?;
        Ok(policy)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.mine
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("xtask: remove {POLICY} by hand: {error}");
        }
    }
}

/// Where a program is, also where Debian keeps those of the administrator.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Whether a command can be run and succeeds. Its output is not shown.
pub fn answers(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Runs a command to its end. What it says goes to standard error: standard output is for data, and a demo's may be
/// piped into a program.
pub fn run(command: &mut Command) -> Result<()> {
    run_loud(command.stdout(std::io::stderr()))
}

/// The same, with standard output as it is: for tests, whose results are the data.
pub fn run_loud(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}
