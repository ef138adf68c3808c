//! A Go that is new enough for the functions under test.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

/// What AWS's emulator of Lambda asks for, in its go.mod.
const LEAST: (u32, u32) = (1, 26);
/// What is fetched where the machine's own is older: Go's own module of toolchains, which any `go` with modules downloads
/// and checks against Go's database of sums (<https://go.dev/doc/toolchain>).
const FETCHED: &str = "1.26.8";

/// The `go` to build with: the machine's, or the one that it fetches.
///
/// # Errors
///
/// If there is none, or it is too old and the newer one cannot be had.
pub fn program() -> Result<PathBuf> {
    let own = ask(&["env", "GOVERSION"])?;
    if is_enough(&own) {
        return Ok("go".into());
    }
    let machine = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let module = format!("golang.org/toolchain@v0.0.1-go{FETCHED}.linux-{machine}");
    let root = PathBuf::from(ask(&["env", "GOMODCACHE"])?).join(&module);
    let program = root.join("bin/go");
    if !program.exists() {
        eprintln!("xtask: go {FETCHED}, for this machine's is {own}");
        ask(&["mod", "download", &module])?;
    }
    // A Go that knows nothing of toolchains leaves them as plain files.
    for directory in [root.join("bin"), root.join("pkg/tool").join(format!("linux_{machine}"))] {
        for file in fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))? {
            let file = file?.path();
            let mode = fs::metadata(&file)?.permissions().mode();
            if mode & 0o111 == 0 {
                fs::set_permissions(&file, fs::Permissions::from_mode(mode | 0o555))?;
            }
        }
    }
    Ok(program)
}

/// What the machine's own Go answers.
fn ask(arguments: &[&str]) -> Result<String> {
    let output = Command::new("go").args(arguments).env("GOTOOLCHAIN", "local").output().context("run go")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`go {}` failed: {error}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn is_enough(version: &str) -> bool {
    let mut parts = version.trim_start_matches("go").split('.').map_while(|part| part.parse().ok());
    parts.next().zip(parts.next()).is_some_and(|version| version >= LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for version in ["go1.26.8", "go1.27", "go2.0.1"] {
            assert!(is_enough(version), "{version}");
        }
        for version in ["go1.19.8", "go1.25.9", "", "devel"] {
            assert!(!is_enough(version), "{version}");
        }
    }
}
