//! `cargo xtask fuzz`: the targets of tests/fuzz under libFuzzer, on the stable toolchain.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::command::{cargo, run_loud};

/// bolero's engine, and what libFuzzer wants to know of the code that runs: LLVM's coverage pass, with counters and with
/// what is compared to what.
const FLAGS: &str = "--cfg=fuzzing --cfg=fuzzing_libfuzzer -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cdebug-assertions -Coverflow-checks";

/// Runs the targets, or one of them, for `minutes` in all. What reaches new code stays in target/fuzz/corpus for the next
/// time; what fails is left where `cargo test` tries it first.
pub fn all(root: &Path, minutes: u64, only: Option<&str>) -> Result<()> {
    // With the target named, build scripts and macros are built without the flags.
    let host = text(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let test = || {
        let mut test = cargo(root);
        test.args(["test", "--release", "--package", "fuzz", "--target", host.trim(), "--target-dir", "target/fuzz"])
            .env("RUSTFLAGS", FLAGS)
            // The parsers are not in the BPF object.
            .env("AYA_BUILD_SKIP", "1");
        test
    };
    let list = text(test().args(["--", "--list"]))?;
    let targets: Vec<&str> = list
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| only.is_none_or(|only| only == *name))
        .collect();
    ensure!(!targets.is_empty(), "no such target; there are:\n{list}");
    let seconds = (minutes * 60 / targets.len() as u64).max(1);
    for target in targets {
        let corpus = root.join("target/fuzz/corpus").join(target);
        let crashes = root.join("tests/fuzz/__fuzz__").join(target).join("crashes");
        for directory in [&corpus, &crashes] {
            fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        }
        let (corpus, crashes) = (corpus.display(), crashes.display());
        eprintln!("xtask: fuzz {target} for {seconds} s");
        run_loud(
            test().args(["--", target, "--exact", "--nocapture"]).env("BOLERO_TEST_NAME", target).env(
                "BOLERO_LIBFUZZER_ARGS",
                format!("{corpus} -artifact_prefix={crashes}/ -max_total_time={seconds}"),
            ),
        )?;
        // Empty, if nothing failed.
        let _ = fs::remove_dir(root.join("tests/fuzz/__fuzz__").join(target).join("crashes"));
        let _ = fs::remove_dir(root.join("tests/fuzz/__fuzz__").join(target));
        let _ = fs::remove_dir(root.join("tests/fuzz/__fuzz__"));
    }
    Ok(())
}

fn text(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
