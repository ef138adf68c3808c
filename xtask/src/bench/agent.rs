//! The agent under measurement.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

pub struct Agent {
    child: Child,
    /// Reads all that the agent prints and keeps the end of it.
    output: Option<JoinHandle<Vec<u8>>>,
}

impl Agent {
    /// Starts `fntrace run` on a cgroup and waits until it is attached.
    pub fn start(fntrace: &Path, cgroup: &str, cpus: &str, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new("taskset")
            .args(["-c", cpus])
            .arg(fntrace)
            .args(["run", "--format", "ndjson", "--cgroup", cgroup])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", fntrace.display()))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut stderr = BufReader::new(child.stderr.take().context("no standard error")?);
        let output = Some(thread::spawn(move || tail(stdout)));
        let agent = Self { child, output };
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if stderr.read_line(&mut line).context("read what the agent says")? == 0 {
                bail!("the agent ended at its start: {said}");
            }
            if line.starts_with("fntrace: tracing") {
                break;
            }
            said += &line;
        }
        // What it still says has to go somewhere.
        thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Ok(agent)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Processor time that it has used, in µs.
    pub fn cpu_us(&self) -> Result<u64> {
        let path = format!("/proc/{}/schedstat", self.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let ns: u64 = text.split(' ').next().context("schedstat is empty")?.parse()?;
        Ok(ns / 1000)
    }

    /// Resident memory, in KiB.
    pub fn memory_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Ends it, and gives its last counts.
    pub fn stop(mut self) -> Result<Value> {
        ensure!(
            crate::command::answers(Command::new("kill").args(["-INT", &self.pid().to_string()])),
            "the agent is gone"
        );
        let status = self.child.wait()?;
        ensure!(status.success(), "the agent ended with {status}");
        let output = self.output.take().context("no output")?.join().map_err(|_| anyhow::anyhow!("a reader died"))?;
        let text = String::from_utf8_lossy(&output);
        let last = text.lines().last().context("the agent printed nothing")?;
        let stats: Value = serde_json::from_str(last).context("the agent's last line")?;
        ensure!(stats["type"] == "stats", "the last line is not the counts: {last}");
        Ok(stats)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads to the end, in large pieces and at leisure: what the reader costs is not the agent's.
fn tail(mut from: impl std::io::Read) -> Vec<u8> {
    const KEPT: usize = 64 << 10;
    let mut buffer = vec![0; 1 << 20];
    let mut kept = Vec::new();
    loop {
        let Ok(len @ 1..) = from.read(&mut buffer) else { return kept };
        kept.extend_from_slice(&buffer[..len]);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
        if len < 4096 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
