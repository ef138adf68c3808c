//! Compiles the kernel half and puts the object where `include_bytes_aligned!` finds it.
//!
//! aya-build does the same, but leaves no way to choose the instruction set: atomic operations that return a value need
//! BPF v3 (Linux 5.12).

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

/// The name under which `cargo xtask` links a distribution's compiler into rustup.
const LINKED: &str = "bpf";

/// The kernel half's artefact.
const OBJECT: &str = "fntrace-bpf";

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed=FNTRACE_BPF_TOOLCHAIN");
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    println!("cargo:rerun-if-changed=../tracer-ebpf");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let object = out.join(OBJECT);
    if env::var_os("AYA_BUILD_SKIP").is_some_and(|skip| skip == "1") {
        // Enough for check, clippy and the tests that load nothing; the loader refuses an empty object.
        return fs::write(&object, []).context("write the stand-in object");
    }
    let target = match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH is not set")?;
    let built = build(&toolchain()?, target, &arch, &out.join("bpf"))?;
    fs::copy(&built, &object).with_context(|| format!("copy {}", built.display()))?;
    Ok(())
}

fn build(toolchain: &str, target: &str, arch: &str, target_dir: &Path) -> Result<PathBuf> {
    let arch = format!("--cfg=bpf_target_arch=\"{arch}\"");
    // Words of a head lie at any address; x86-64 and arm64 load them in one instruction.
    let flags = [
        &arch,
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        "-Ctarget-cpu=v3",
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
    ];
    let output = Command::new("rustup")
        .args([
            "run",
            toolchain,
            "cargo",
            "build",
            "--release",
            "--quiet",
            "--package",
            "tracer-ebpf",
            "--bins",
            "--features",
            "object",
        ])
        .args(["-Z", "build-std=core", "--target", target, "--target-dir"])
        .arg(target_dir)
        // The unstable flag, on a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // Cargo sets these to the compiler of the user half.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN")
        .output()
        .context("run rustup")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "the kernel half does not build (`cargo xtask setup` installs what it needs):\n{said}"
    );
    for line in said.lines() {
        println!("cargo:warning={line}");
    }
    Ok(target_dir.join(target).join("release").join(OBJECT))
}

/// The rustup toolchain whose compiler has the source of `core` and an LLVM that bpf-linker can read.
fn toolchain() -> Result<String> {
    if let Ok(name) = env::var("FNTRACE_BPF_TOOLCHAIN") {
        return Ok(name);
    }
    for name in [LINKED, "nightly"] {
        let sysroot = Command::new("rustup").args(["run", name, "rustc", "--print", "sysroot"]).output();
        if let Ok(output) = sysroot
            && output.status.success()
            && PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
                .join("lib/rustlib/src/rust/library/core")
                .exists()
        {
            return Ok(name.to_owned());
        }
    }
    bail!("no Rust toolchain here can build for BPF; run `cargo xtask setup` once")
}
