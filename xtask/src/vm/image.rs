//! The initramfs: two static programs.

use std::{
    env,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use cpio::{NewcBuilder as Builder, newc::trailer};
use serde_json::Value;

use crate::command::cargo;

/// The C library is linked in whole: the machine has none.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "-Ctarget-feature=+crt-static";

/// Directories to mount on.
const DIRECTORIES: [&str; 4] = ["dev", "proc", "sys", "tmp"];
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Builds both programs and packs them; answers with the archive's place.
pub fn build(root: &Path) -> Result<PathBuf> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the virtual machines are x86-64 ones, and so has to be the machine that builds"
    );
    let (init, fntrace) = programs(root)?;
    let path = root.join("target/vm/initramfs");
    std::fs::create_dir_all(root.join("target/vm")).context("make target/vm")?;
    let mut archive = File::create(&path).with_context(|| format!("write {}", path.display()))?;
    for directory in DIRECTORIES {
        add(&mut archive, directory, DIRECTORY, &mut io::empty(), 0)?;
    }
    add_file(&mut archive, "init", &init)?;
    // The checks find it where cargo told them at their build that it would be.
    let place = fntrace.strip_prefix("/").context("cargo names no absolute path")?;
    let mut above: Vec<_> = place.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
    above.reverse();
    for directory in above.into_iter().filter(|path| !DIRECTORIES.iter().any(|known| Path::new(known) == *path)) {
        add(&mut archive, &directory.to_string_lossy(), DIRECTORY, &mut io::empty(), 0)?;
    }
    add_file(&mut archive, &place.to_string_lossy(), &fntrace)?;
    trailer(archive).context("end the archive")?;
    Ok(path)
}

/// Where `tests/vm` and `fntrace` are, built.
fn programs(root: &Path) -> Result<(PathBuf, PathBuf)> {
    eprintln!("xtask: a static build of the agent and of the checks");
    let flags = env::var("RUSTFLAGS").unwrap_or_default();
    let output = cargo(root)
        .args(["build", "--profile", "vm", "--target", TARGET, "--package", "tracer-user", "--test", "vm"])
        .args(["--bin", "fntrace", "--message-format", "json-render-diagnostics"])
        .env("RUSTFLAGS", format!("{flags} {STATIC}"))
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("run cargo")?;
    ensure!(output.status.success(), "the static build failed: {}", output.status);
    let said = String::from_utf8_lossy(&output.stdout);
    let messages: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let find = |name: &str| {
        let built =
            messages.iter().find(|message| message["target"]["name"] == name && message["executable"].is_string());
        built
            .and_then(|built| built["executable"].as_str())
            .map(PathBuf::from)
            .with_context(|| format!("cargo built no {name}"))
    };
    Ok((find("vm")?, find("fntrace")?))
}

fn add_file(archive: &mut File, name: &str, file: &Path) -> Result<()> {
    let mut content = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let size = content.metadata().context("measure a program")?.len();
    add(archive, name, PROGRAM, &mut content, u32::try_from(size).context("a program of over 4 GiB")?)
}

fn add(archive: &mut File, name: &str, mode: u32, content: &mut dyn io::Read, size: u32) -> Result<()> {
    let mut entry = Builder::new(name).mode(mode).nlink(1).write(archive, size);
    io::copy(content, &mut entry)
        .and_then(|_| entry.flush())
        .and_then(|()| entry.finish().map(drop))
        .with_context(|| format!("pack {name}"))
}
