//! `cargo xtask test`: every check, in the order in which they tell most for their time.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    command::{answers, cargo, run, run_loud},
    functions, setup,
};

/// What lies beside the tests and is none that runs here.
const OTHER: [&str; 3] = ["functions", "fuzz", "vm"];

/// Tests that run longer than a minute, left out by `--quick`.
const LONG: [&str; 2] = ["end_to_end", "torture"];

/// Runs all of it and says at the end what was run, for how long, and what could not be.
pub fn all(root: &Path, quick: bool) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("set up", setup::prepare)?;
    if !quick {
        steps.step("set up the functions under test", || functions::prepare(root))?;
    }
    steps.tool("fmt", answers(cargo(root).args(["fmt", "--version"])), || {
        run(cargo(root).args(["fmt", "--all", "--check"]))
    })?;
    steps.tool("clippy", answers(cargo(root).args(["clippy", "--version"])), || {
        run(cargo(root).args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
    })?;
    let kernel_clippy = || Command::new("rustup").args(["run", "bpf", "cargo", "clippy", "--version"]).output();
    let has_clippy = kernel_clippy().is_ok_and(|output| output.status.success());
    steps.tool("clippy, kernel half", has_clippy, || run(&mut clippy_bpf(root)))?;
    steps.step("what the host binary links", || host_is_free_of_aya_ebpf(root))?;
    steps.step("tests", || {
        let mut test = cargo(root);
        test.args(["test", "--workspace", "--no-fail-fast"]);
        if quick {
            test.args(["--lib", "--bins"]);
            for test_name in std::fs::read_dir(root.join("tests")).context("list the tests")?.flatten() {
                let name = test_name.file_name().to_string_lossy().trim_end_matches(".rs").to_owned();
                if !LONG.contains(&name.as_str()) && !OTHER.contains(&name.as_str()) {
                    test.args(["--test", &name]);
                }
            }
        }
        run_loud(&mut test)
    })?;
    steps.report()
}

/// Runs the torture test for longer than [`all`] does, or a single seed of it.
pub fn torture(root: &Path, minutes: u64, seed: Option<u64>) -> Result<()> {
    setup::prepare()?;
    let mut test = cargo(root);
    test.args(["test", "--package", "tracer-user", "--test", "torture", "--", "--nocapture"]);
    match seed {
        Some(seed) => test.env("FNTRACE_TORTURE_SEED", seed.to_string()),
        None => test.env("FNTRACE_TORTURE_MINUTES", minutes.to_string()),
    };
    run_loud(&mut test)
}

/// Runs the tests of the platforms' own shapes, also those whose set-up takes minutes.
pub fn platforms(root: &Path) -> Result<()> {
    setup::prepare()?;
    functions::prepare(root)?;
    functions::prepare_platforms(root)?;
    let mut test = cargo(root);
    test.args(["test", "--package", "tracer-user", "--test", "end_to_end", "--", "--include-ignored"]);
    run_loud(test.args(["lambda::", "watchdogs::", "sidecar::"]))
}

/// aya-ebpf exports a memcpy that would take the place of libc's.
fn host_is_free_of_aya_ebpf(root: &Path) -> Result<()> {
    let tree = cargo(root)
        .args(["tree", "--quiet", "--package", "tracer-user", "--edges", "normal", "--prefix", "none"])
        .output()
        .context("list the dependencies")?;
    ensure!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let listed = String::from_utf8_lossy(&tree.stdout);
    ensure!(listed.contains("tracer-ebpf"), "the list of dependencies is not one:\n{listed}");
    if listed.lines().any(|line| line.starts_with("aya-ebpf ")) {
        bail!("the user half links aya-ebpf: it belongs to the BPF target only");
    }
    Ok(())
}

fn clippy_bpf(root: &Path) -> Command {
    let mut clippy = Command::new("rustup");
    clippy
        .args([
            "run",
            "bpf",
            "cargo",
            "clippy",
            "--quiet",
            "--package",
            "tracer-ebpf",
            "--bins",
            "--features",
            "object",
            "--release",
        ])
        .args(["-Z", "build-std=core", "--target", "bpfel-unknown-none", "--target-dir", "target/bpf-clippy"])
        .args(["--", "--deny", "warnings"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\"\x1f-Ctarget-cpu=v3")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env_remove("RUSTC")
        .current_dir(root);
    clippy
}

/// What was run, and what was not.
#[derive(Default)]
struct Steps {
    done: Vec<(&'static str, Duration)>,
    not_run: Vec<&'static str>,
}

impl Steps {
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        eprintln!("xtask: {name}");
        let start = Instant::now();
        work().with_context(|| name.to_owned())?;
        self.done.push((name, start.elapsed()));
        Ok(())
    }

    /// A step whose tool may be missing on a machine with a minimal toolchain: that is said, not passed over.
    fn tool(&mut self, name: &'static str, is_there: bool, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if is_there {
            return self.step(name, work);
        }
        self.not_run.push(name);
        Ok(())
    }

    fn report(&self) -> Result<()> {
        for (name, time) in &self.done {
            eprintln!("xtask: {:>6.1} s  {name}", time.as_secs_f64());
        }
        for name in &self.not_run {
            eprintln!("xtask: NOT RUN  {name}: the tool is not installed here");
        }
        Ok(())
    }
}
