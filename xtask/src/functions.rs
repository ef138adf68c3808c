//! Set-up of the functions that the end-to-end tests trace (`tests/functions`): what they need is installed into
//! `tests/functions/.cache`, at the versions that the lock files pin. Only interpreters, compilers and nginx come from
//! the machine or its package manager.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    command::{self, answers, find, run},
    golang,
};
use anyhow::{Context as _, Result, ensure};

/// Installs and builds everything that the test functions need; what is up to date is left as it is.
pub fn prepare(root: &Path) -> Result<()> {
    let functions = root.join("tests/functions");
    let cache = functions.join(".cache");
    fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    machine()?;
    python(&functions.join("python"), &cache.join("python"), &[]).context("set up the Python function")?;
    node(&functions.join("node"), &cache.join("node"), false).context("set up the Node.js function")?;
    go(&functions.join("go"), &["main.go"], &[(".", "function")], &cache.join("go"))
        .context("build the Go function")?;
    let packages = [("./callee", "callee"), ("./function", "function")];
    let inputs = ["go.sum", "callee/main.go", "function/main.go"];
    go(&functions.join("edges/go"), &inputs, &packages, &cache.join("edges/go"))
        .context("build the Go edges function")?;
    lambda(&functions.join("lambda"), &cache)?;
    watchdogs(&functions.join("watchdog"), &cache)
}

/// Functions for AWS Lambda, and AWS's own stand-in for it.
fn lambda(source: &Path, cache: &Path) -> Result<()> {
    python(&source.join("python"), &cache.join("lambda-python"), &[]).context("set up awslambdaric")?;
    go(&source.join("go"), &["go.sum", "main.go"], &[(".", "function")], &cache.join("lambda-go"))
        .context("build the Go function for Lambda")?;
    go(&source.join("emulator"), &["go.sum", "tools.go"], &[(EMULATOR, "emulator")], &cache.join("lambda-emulator"))
        .context("build Lambda's emulator")?;
    rust(&source.join("rust"), &cache.join("lambda-rust")).context("build the Rust function for Lambda")
}

/// What stands before functions on other platforms.
fn watchdogs(source: &Path, cache: &Path) -> Result<()> {
    go(source, &["main.go"], &[(".", "function")], &cache.join("watchdog")).context("build the watchdog")?;
    // Of which there is only the source.
    let from_source = ["--no-binary", "openwhisk-docker-action"];
    python(&source.join("openwhisk"), &cache.join("openwhisk"), &from_source).context("set up the OpenWhisk action")
}

/// Installs and builds what only `cargo xtask platforms` needs on top, because it takes minutes.
pub fn prepare_platforms(root: &Path) -> Result<()> {
    let functions = root.join("tests/functions");
    let cache = functions.join(".cache");
    let missing: Vec<_> = ["cmake", "make", "g++"].into_iter().filter(|tool| find(tool).is_none()).collect();
    if !missing.is_empty() {
        command::install(&missing).context("install what aws-lambda-ric is built with")?;
    }
    node(&functions.join("lambda/node"), &cache.join("lambda-node"), true).context("build aws-lambda-ric")?;
    go(&functions.join("knative"), &["go.sum", "tools.go"], &[(QUEUE_PROXY, "queue-proxy")], &cache.join("knative"))
        .context("build Knative's queue-proxy")
}

/// Installs and builds what only `cargo xtask edges` needs on top: its functions in Rust and Java.
pub fn prepare_edges(root: &Path) -> Result<()> {
    let source = root.join("tests/functions/edges");
    let cache = root.join("tests/functions/.cache/edges");
    if find("javac").is_none() {
        command::install(&["default-jdk-headless"]).context("install what the Java function is built with")?;
    }
    java(&source.join("java"), &cache.join("java")).context("build the Java function")?;
    rust(&source.join("rust"), &cache.join("rust")).context("build the Rust function")
}

/// AWS's own stand-in for Lambda.
const EMULATOR: &str = "github.com/aws/aws-lambda-runtime-interface-emulator/cmd/aws-lambda-rie";

/// What Knative puts beside each function.
const QUEUE_PROXY: &str = "knative.dev/serving/cmd/queue";

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
    // Containers, and networks of their own.
    for (program, package) in [("runc", "runc"), ("ip", "iproute2"), ("iptables", "iptables")] {
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
fn python(source: &Path, cache: &Path, more: &[&str]) -> Result<()> {
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
        .args(["--require-hashes", "--no-deps", "--only-binary", ":all:"])
        .args(more)
        .arg("--requirement")
        .arg(&requirements))?;
    stamp.set()
}

/// `node_modules` as `package-lock.json` says; `builds` if packages have to be built after they came.
fn node(source: &Path, cache: &Path, builds: bool) -> Result<()> {
    let files = ["package.json", "package-lock.json"].map(|name| source.join(name));
    let stamp = Stamp::new(cache, &["node", "--version"], &[&files[0], &files[1]])?;
    if stamp.is_fresh() {
        return Ok(());
    }
    eprintln!("xtask: the packages for Node.js, into {}", cache.display());
    stamp.clear()?;
    for file in &files {
        let copy = cache.join(file.file_name().context("a file without a name")?);
        fs::copy(file, &copy).with_context(|| format!("copy {} to {}", file.display(), copy.display()))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--loglevel", "error"]).current_dir(cache);
    if !builds {
        npm.arg("--ignore-scripts");
    } else if let Some(prefix) = find("node").as_deref().and_then(Path::parent).and_then(Path::parent)
        && prefix.join("include/node/node.h").exists()
    {
        // Node's own headers, if they came with it; else node-gyp fetches them.
        npm.env("npm_config_nodedir", prefix);
    }
    run(&mut npm)?;
    stamp.set()
}

/// A binary of each package, in the module whose `go.mod` is in `source`.
fn go(source: &Path, inputs: &[&str], packages: &[(&str, &str)], cache: &Path) -> Result<()> {
    let files: Vec<_> = ["go.mod"].iter().chain(inputs).map(|name| source.join(name)).collect();
    let program = golang::program()?;
    let version = [program.to_str().context("go's path is not UTF-8")?, "version"];
    let stamp = Stamp::new(cache, &version, &files.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    if stamp.is_fresh() {
        return Ok(());
    }
    eprintln!("xtask: functions in Go, into {}", cache.display());
    stamp.clear()?;
    for (package, binary) in packages {
        run(Command::new(&program)
            // Without -buildvcs=false the build fails where git does not trust the owner of the work tree.
            .args(["build", "-trimpath", "-buildvcs=false", "-o"])
            .arg(cache.join(binary))
            .arg(package)
            .current_dir(source)
            .env("GOTOOLCHAIN", "local")
            .env("CGO_ENABLED", "0"))?;
    }
    stamp.set()
}

/// Classes that any JDK from 17 on runs.
fn java(source: &Path, cache: &Path) -> Result<()> {
    let file = source.join("Function.java");
    let stamp = Stamp::new(cache, &["javac", "--version"], &[&file])?;
    if stamp.is_fresh() {
        return Ok(());
    }
    eprintln!("xtask: the function in Java, into {}", cache.display());
    stamp.clear()?;
    run(Command::new("javac").args(["--release", "17", "-d"]).arg(cache).arg(&file))?;
    stamp.set()
}

/// A crate outside of the workspace, with dependencies of its own.
fn rust(source: &Path, cache: &Path) -> Result<()> {
    let files = ["Cargo.toml", "Cargo.lock", "src/main.rs"].map(|name| source.join(name));
    let stamp = Stamp::new(cache, &["cargo", "--version"], &[&files[0], &files[1], &files[2]])?;
    if stamp.is_fresh() {
        return Ok(());
    }
    eprintln!("xtask: the function in Rust, into {}", cache.display());
    stamp.clear()?;
    run(command::cargo(source).args(["build", "--quiet", "--locked", "--release", "--target-dir"]).arg(cache))?;
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
