//! On what it was measured.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

/// A line that says it: processor, cores, kernel, date.
pub fn describe() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    let date = Command::new("date").arg("+%F").output().context("run date")?;
    Ok(format!(
        "Machine: {cores} × {model}. Kernel: {}. Date: {}.\n",
        kernel.trim(),
        String::from_utf8_lossy(&date.stdout).trim()
    ))
}
