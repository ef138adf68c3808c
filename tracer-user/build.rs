//! Compiles the kernel half and puts the object where `include_bytes_aligned!` finds it.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

/// The name under which `cargo xtask` links a distribution's compiler into rustup.
const LINKED: &str = "bpf";

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed=FNTRACE_BPF_TOOLCHAIN");
    let object = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?).join("fntrace-bpf");
    if env::var_os("AYA_BUILD_SKIP").is_some_and(|skip| skip == "1") {
        // Enough for check, clippy and the tests that load nothing; the loader refuses an empty object.
        return fs::write(&object, []).context("write the stand-in object");
    }
    let toolchain = toolchain()?;
    // SAFETY: a build script is single-threaded at this point. The variable opens `-Z build-std` on a stable compiler.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tracer-ebpf");
    aya_build::build_ebpf(
        [Package { name: "tracer-ebpf", root_dir, ..Default::default() }],
        Toolchain::Custom(&toolchain),
    )
    .context("build the kernel half; `cargo xtask setup` installs what it needs")
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
