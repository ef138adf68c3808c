//! Set-up of the functions that the end-to-end tests trace (`tests/functions`): what they need is installed into
//! `tests/functions/.cache`, at the versions that the lock files pin. Only interpreters, compilers and nginx come from
//! the machine or its package manager.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::command::{self, answers, find, run};
use anyhow::{Context as _, Result, ensure};

/// Installs and builds everything that the test functions need; what is up to date is left as it is.
pub fn prepare(root: &Path) -> Result<()> {
    let functions = root.join("tests/functions");
    let cache = functions.join(".cache");
    fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    machine()?;
    python(&functions.join("python"), &cache.join("python")).context("set up the Python function")?;
    python(&functions.join("lambda/python"), &cache.join("lambda-python")).context("set up awslambdaric")?;
    node(&functions.join("node"), &cache.join("node")).context("set up the Node.js function")?;
    go(&functions.join("go"), &cache.join("go"), ".").context("build the Go function")?;
    go(&functions.join("lambda/go"), &cache.join("lambda-go"), ".").context("build the Go function for Lambda")?;
    go(&functions.join("lambda/emulator"), &cache.join("lambda-emulator"), EMULATOR)
        .context("build Lambda's emulator")?;
    rust(&functions.join("lambda/rust"), &cache.join("lambda-rust")).context("build the Rust function for Lambda")
}

/// AWS's own stand-in for Lambda.
const EMULATOR: &str = "github.com/aws/aws-lambda-runtime-interface-emulator/cmd/aws-lambda-rie";

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
    // Servers and clients of what is not HTTP/1.
    for (program, package) in
        [("redis-server", "redis-server"), ("psql", "postgresql-client"), ("curl", "curl"), ("openssl", "openssl")]
    {
        if find(program).is_none() {
            missing.push(package);
        }
    }
    if !Path::new("/usr/lib/postgresql").exists() {
        missing.push("postgresql");
    }
    if missing.is_empty() {
        return Ok(());
    }
    command::install(&missing).context("install what the end-to-end tests need")
}

/// A virtual environment with the packages of `requirements.txt`, which pins their hashes too.
fn python(source: &Path, cache: &Path) -> Result<()> {
    let requirements = source.join("requirements.txt");
    let stamp = Stamp::new(cache, &["python3", "--version"], &[&requirements])?;
    if stamp.is_fresh() {
        return Ok(());
    }
    eprintln!("xtask: the Python packages, into {}", cache.display());
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

/// One binary of a package, with its dependencies as `go.sum` says.
fn go(source: &Path, cache: &Path, package: &str) -> Result<()> {
    let files: Vec<PathBuf> = ["go.mod", "go.sum", "main.go"].map(|name| source.join(name)).into();
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).filter(|file| file.exists()).collect();
    let stamp = Stamp::new(cache, &["go", "version"], &files)?;
    if stamp.is_fresh() {
        return Ok(());
    }
    eprintln!("xtask: the Go program {package} of {}, into {}", source.display(), cache.display());
    stamp.clear()?;
    run(Command::new("go")
        // Without -buildvcs=false the build fails where git does not trust the owner of the work tree.
        .args(["build", "-trimpath", "-buildvcs=false", "-o"])
        .arg(cache.join("function"))
        .arg(package)
        .current_dir(source)
        .env("GOFLAGS", "-mod=readonly")
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0"))?;
    stamp.set()
}

/// One binary, with its dependencies as `Cargo.lock` says.
fn rust(source: &Path, cache: &Path) -> Result<()> {
    let files = ["Cargo.toml", "Cargo.lock", "src/main.rs"].map(|name| source.join(name));
    let stamp = Stamp::new(cache, &["rustc", "--version"], &[&files[0], &files[1], &files[2]])?;
    if stamp.is_fresh() {
        return Ok(());
    }
    eprintln!("xtask: the Rust function for Lambda, into {}", cache.display());
    stamp.clear()?;
    run(command::cargo(source).args(["build", "--quiet", "--locked", "--target-dir"]).arg(cache.join("target")))?;
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
