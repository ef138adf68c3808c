//! Set-up of the functions that the end-to-end tests trace (`tests/functions`): what they need is installed into
//! `tests/functions/.cache`, at the versions that the lock files pin. Only interpreters, compilers and nginx come from
//! the machine or its package manager.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

/// Debian's hook that tells maintainer scripts whether they may start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs and builds everything that the test functions need; what is up to date is left as it is.
pub fn prepare(root: &Path) -> Result<()> {
    let functions = root.join("tests/functions");
    let cache = functions.join(".cache");
    fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    machine()?;
    python(&functions.join("python"), &cache.join("python")).context("set up the Python function")?;
    node(&functions.join("node"), &cache.join("node")).context("set up the Node.js function")?;
    go(&functions.join("go"), &cache.join("go")).context("build the Go function")
}

/// Sees that interpreters, compiler and nginx are there; on Debian and its kin the missing ones are installed.
fn machine() -> Result<()> {
    let mut missing = Vec::new();
    // A Debian python3 without its venv package has the module, but not the pip that a new environment gets.
    if !answers(Command::new("python3").args(["-c", "import ensurepip, venv"])) {
        missing.push("python3-venv");
    }
    for (program, package) in [("node", "nodejs"), ("npm", "npm"), ("go", "golang-go"), ("nginx", "nginx-light")] {
        if find(program).is_none() {
            missing.push(package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if find("apt-get").is_none() {
        bail!("the end-to-end tests need what Debian calls {list}; install it with this machine's package manager");
    }
    eprintln!("xtask: apt-get install {list}");
    let _policy = NoServices::new()?;
    run(Command::new("apt-get").args(["update", "--quiet"]))?;
    run(Command::new("apt-get")
        .args(["install", "--quiet", "--yes", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive"))
    .with_context(|| format!("install {list} (as root: `apt-get install {list}`)"))
}

/// A virtual environment with the packages of `requirements.txt`, which pins their hashes too.
fn python(source: &Path, cache: &Path) -> Result<()> {
    let requirements = source.join("requirements.txt");
    let stamp = Stamp::new(cache, &["python3", "--version"], &[&requirements])?;
    if stamp.is_fresh() {
        return Ok(());
    }
    eprintln!("xtask: functions-framework for Python, into {}", cache.display());
    stamp.clear()?;
    let venv = cache.join("venv");
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    run(Command::new(venv.join("bin/python"))
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(["--require-hashes", "--no-deps", "--only-binary", ":all:", "--requirement"])
        .arg(&requirements))?;
    stamp.set()
}

/// `node_modules` as `package-lock.json` says.
fn node(source: &Path, cache: &Path) -> Result<()> {
    let files = ["package.json", "package-lock.json"].map(|name| source.join(name));
    let stamp = Stamp::new(cache, &["node", "--version"], &[&files[0], &files[1]])?;
    if stamp.is_fresh() {
        return Ok(());
    }
    eprintln!("xtask: functions-framework for Node.js, into {}", cache.display());
    stamp.clear()?;
    for file in &files {
        let copy = cache.join(file.file_name().context("a file without a name")?);
        fs::copy(file, &copy).with_context(|| format!("copy {} to {}", file.display(), copy.display()))?;
    }
    run(Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"])
        .current_dir(cache))?;
    stamp.set()
}

/// One binary; it has no dependency outside Go's standard library.
fn go(source: &Path, cache: &Path) -> Result<()> {
    let files = ["go.mod", "main.go"].map(|name| source.join(name));
    let stamp = Stamp::new(cache, &["go", "version"], &[&files[0], &files[1]])?;
    if stamp.is_fresh() {
        return Ok(());
    }
    eprintln!("xtask: the Go function, into {}", cache.display());
    stamp.clear()?;
    run(Command::new("go")
        // Without -buildvcs=false the build fails where git does not trust the owner of the work tree.
        .args(["build", "-trimpath", "-buildvcs=false", "-o"])
        .arg(cache.join("function"))
        .arg(".")
        .current_dir(source)
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0"))?;
    stamp.set()
}

/// What a cached piece was made from: the tool's version and the text of the input files, kept beside it.
struct Stamp {
    directory: PathBuf,
    made_from: String,
}

impl Stamp {
    fn new(directory: &Path, version: &[&str], inputs: &[&Path]) -> Result<Self> {
        let (program, arguments) = version.split_first().context("no program to ask for its version")?;
        let output = Command::new(program).args(arguments).output().with_context(|| format!("run {program}"))?;
        ensure!(output.status.success(), "`{}` failed: {}", version.join(" "), output.status);
        // The directory is part of it: a virtual environment does not survive a move.
        let mut made_from = format!("{}\n{}", directory.display(), String::from_utf8_lossy(&output.stdout));
        for input in inputs {
            made_from += &fs::read_to_string(input).with_context(|| format!("read {}", input.display()))?;
        }
        Ok(Self { directory: directory.to_owned(), made_from })
    }

    fn file(&self) -> PathBuf {
        self.directory.join("made-from")
    }

    fn is_fresh(&self) -> bool {
        fs::read_to_string(self.file()).is_ok_and(|text| text == self.made_from)
    }

    /// Leaves an empty directory, so that a broken or older piece is never half reused.
    fn clear(&self) -> Result<()> {
        let path = self.directory.display();
        if self.directory.exists() {
            fs::remove_dir_all(&self.directory).with_context(|| format!("empty {path}"))?;
        }
        fs::create_dir_all(&self.directory).with_context(|| format!("make {path}"))
    }

    fn set(&self) -> Result<()> {
        fs::write(self.file(), &self.made_from).with_context(|| format!("write {}", self.file().display()))
    }
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

/// Where a program is, looking also where Debian keeps servers.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

fn answers(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Runs a command to its end; its output is the user's to see.
fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}
