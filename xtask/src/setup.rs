//! What the kernel half is built with, on a machine that has only Rust's ordinary toolchain.
//!
//! Two things are missing there: a compiler that has the source of `core` (the BPF target has no compiled one), and
//! bpf-linker, whose LLVM must be of the compiler's major version. There are two ways to both: Debian's packages, and
//! rustup's nightly. This finds out which of them the machine can go, and says what it does.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::command::{answers, find, install, run};

/// The rustup name of Debian's compiler.
const LINKED: &str = "bpf";
const NIGHTLY: &str = "nightly";
const BPF_LINKER: &str = "0.13.0";
/// Debian's compiler and its source, and the LLVM that goes with it.
const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev"];
const LLVM: &str = "/usr/lib/llvm-22";

/// Sees to both. Does nothing, and says nothing, where they are there.
pub fn prepare() -> Result<()> {
    ensure!(
        find("rustup").is_some(),
        "rustup is not installed: the build asks it for the compiler of the kernel half (https://rustup.rs)"
    );
    let toolchain = match usable() {
        Some(toolchain) => toolchain,
        None => compiler()?,
    };
    linker(toolchain)
}

/// The toolchain that can build the kernel half already, if there is one.
fn usable() -> Option<&'static str> {
    [LINKED, NIGHTLY].into_iter().find(|name| {
        let sysroot = Command::new("rustup").args(["run", name, "rustc", "--print", "sysroot"]).output();
        sysroot.is_ok_and(|output| {
            let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
            output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core").exists()
        })
    })
}

fn compiler() -> Result<&'static str> {
    if debian_has_it() {
        eprintln!(
            "xtask: the kernel half needs a compiler with the source of `core`: Debian's, as the toolchain `{LINKED}`"
        );
        install(&PACKAGES)?;
        run(Command::new("rustup").args(["toolchain", "link", LINKED, "/usr"]))?;
        return Ok(LINKED);
    }
    eprintln!("xtask: the kernel half needs a compiler with the source of `core`: rustup's `{NIGHTLY}`");
    run(Command::new("rustup").args([
        "toolchain",
        "install",
        NIGHTLY,
        "--profile",
        "minimal",
        "--component",
        "rust-src",
    ]))
    .context("neither Debian's packages nor rustup's nightly are to be had here")?;
    Ok(NIGHTLY)
}

/// Whether apt knows the compiler, after a look at the newest lists.
fn debian_has_it() -> bool {
    if find("apt-get").is_none() {
        return false;
    }
    let known = || answers(Command::new("apt-cache").args(["show", "--quiet", PACKAGES[0], PACKAGES[3]]));
    known() || (answers(Command::new("apt-get").args(["update", "--quiet"])) && known())
}

fn linker(toolchain: &str) -> Result<()> {
    let there = Command::new("bpf-linker").arg("--version").output();
    if there.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(BPF_LINKER)) {
        return Ok(());
    }
    eprintln!("xtask: bpf-linker {BPF_LINKER}, by cargo (about a minute)");
    let mut cargo = Command::new("cargo");
    if toolchain == LINKED {
        if !PathBuf::from(LLVM).exists() {
            install(&PACKAGES[3..])?;
        }
        cargo.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--no-default-features"]);
        cargo.args(["--features", "llvm-22"]).env("LLVM_PREFIX", LLVM);
    } else {
        // Its default is the LLVM that the compiler itself brings.
        cargo.args(["+nightly", "install", "bpf-linker", "--version", BPF_LINKER, "--locked"]);
    }
    run(&mut cargo).context("install bpf-linker")
}
