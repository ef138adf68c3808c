//! `cargo xtask test --vm`: the agent on other kernels than this machine's.
//!
//! Debian's kernels boot in QEMU, by emulation, which is the same everywhere, into an initramfs that holds two static programs:
//! `fntrace`, and as the first process the checks of `tests/vm`. Each tells how its checks came out over a serial port.

mod image;
mod kernel;
mod machine;

use std::path::Path;

use anyhow::{Result, ensure};

use crate::{command, setup};
use kernel::{KERNELS, Kernel};
use machine::Outcome;

/// The ways to boot a kernel, with a word for each. The second is the ways of two kinds of hosts in one: Secure Boot locks
/// the kernel down, and an older Docker mounts cgroup v1 beside v2.
const WAYS: [(&str, &str); 2] = [("plain", ""), ("locked down, hybrid", "lockdown=integrity fntrace.hybrid")];
/// The one way to boot a kernel below the floor: the agent has to refuse it.
const REFUSED: [(&str, &str); 1] = [("too old", "fntrace.refuse")];

/// Boots every kernel in every way and says how each check came out.
///
/// # Errors
///
/// If a check failed or a boot did not come to its end. A kernel that cannot be had is told and is no error.
pub fn test(root: &Path) -> Result<()> {
    setup::prepare()?;
    if command::find(machine::QEMU).is_none() {
        command::install(&["qemu-system-x86"])?;
    }
    let image = image::build(root)?;
    let cache = root.join("target/vm");
    let (mut boots, mut not_run) = (Vec::new(), Vec::new());
    for kernel in &KERNELS {
        let file = match kernel.fetch(&cache) {
            Ok(file) => file,
            Err(error) => {
                not_run.push((kernel, error));
                continue;
            }
        };
        for (way, options) in if kernel.refused { &REFUSED[..] } else { &WAYS } {
            eprintln!("xtask: Linux {} ({}), {way}", kernel.version, kernel.suite);
            let outcome = machine::boot(&file, &image, options)?;
            report(kernel, way, &outcome);
            boots.push(outcome);
        }
    }
    for (kernel, error) in &not_run {
        println!("NOT RUN  Linux {}: it cannot be had from {}: {error:#}", kernel.version, kernel.suite);
    }
    let checks = boots.iter().flat_map(|boot| &boot.checks);
    let (passed, failed) = checks.partition::<Vec<_>, _>(|check| check.ok);
    let broken = boots.iter().filter(|boot| boot.broken.is_some()).count();
    println!("vm: {} passed, {} failed, {broken} boots broken, {} not run", passed.len(), failed.len(), not_run.len());
    ensure!(failed.is_empty() && broken == 0, "not every check passed on every kernel");
    ensure!(!passed.is_empty(), "no kernel could be had: nothing was checked");
    Ok(())
}

fn report(kernel: &Kernel, way: &str, outcome: &Outcome) {
    let release = outcome.release.as_deref().unwrap_or(kernel.version);
    println!("Linux {release} ({}), {way}, {:.0} s", kernel.suite, outcome.time.as_secs_f32());
    for check in &outcome.checks {
        let status = if check.ok { "ok  " } else { "FAIL" };
        let says = check.says.replace('\n', "\n        ");
        println!("  {status}  {:28}  {:5.1} s  {says}", check.name, check.seconds);
    }
    if let Some(broken) = &outcome.broken {
        println!("  FAIL  {broken}");
    }
}
