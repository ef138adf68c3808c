//! What each program of the kernel half takes, as the kernel counts it (`kernel.bpf_stats_enabled`).

use std::{collections::BTreeMap, fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;

use super::{
    agent::Agent,
    load::load,
    pair::{Kind, Pair},
    sandbox::Slice,
};

/// The kernel's switch. Counting costs some 20 ns a run, so it is on for this part only.
pub struct Counting {
    before: String,
}

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Counting {
    pub fn on() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).with_context(|| format!("read {SWITCH}"))?;
        fs::write(SWITCH, "1").with_context(|| format!("write {SWITCH}"))?;
        Ok(Self { before })
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let _ = fs::write(SWITCH, self.before.trim());
    }
}

#[derive(Clone, Copy, Default)]
pub struct Program {
    pub runs: u64,
    pub ns: u64,
    instructions: u64,
}

/// The programs that a process holds, by name.
pub fn programs(pid: u32) -> Result<BTreeMap<String, Program>> {
    let mut names = BTreeMap::new();
    for program in loaded_programs().flatten() {
        if let Some(name) = program.name_as_str() {
            names.insert(u64::from(program.id()), name.to_owned());
        }
    }
    let mut found = BTreeMap::new();
    let directory = format!("/proc/{pid}/fdinfo");
    for entry in fs::read_dir(&directory).with_context(|| format!("list {directory}"))?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().parse::<u64>().ok()
        };
        let (Some(id), Some(runs), Some(ns)) = (field("prog_id"), field("run_cnt"), field("run_time_ns")) else {
            continue;
        };
        if let Some(name) = names.get(&id) {
            let instructions = field("verified_insns").unwrap_or(0);
            found.insert(name.clone(), Program { runs, ns, instructions });
        }
    }
    Ok(found)
}

/// Measures on one core, with all calls tagged and with observing alone.
pub fn measure(root: &Path, fntrace: &Path, kind: Kind, seconds: u32) -> Result<()> {
    let counting = Counting::on()?;
    for (mode, arguments) in [("observing", ["--tag", "off"]), ("tagging all", ["--tag", "on"])] {
        let slice = Slice::new()?;
        let agent = Agent::start(fntrace, &slice.argument(), "1", &arguments)?;
        let pair = Pair::start(root, &slice, kind, "0")?;
        load(&pair.url(), 1, "0").context("warm up")?;
        let before = programs(agent.pid())?;
        let load = load(&pair.url(), seconds, "0")?;
        thread::sleep(Duration::from_millis(100));
        let after = programs(agent.pid())?;
        drop(pair);
        let memory = agent.memory_kib()?;
        let stats = agent.stop()?;
        println!("### Programs: {}, {mode}\n", kind.name());
        println!("| program | runs per request | ns per run | ns per request | verified instructions |");
        println!("|---|---|---|---|---|");
        let mut sum = 0.0;
        for (name, now) in &after {
            let then = before.get(name).copied().unwrap_or_default();
            let (runs, ns) = ((now.runs - then.runs) as f64, (now.ns - then.ns) as f64);
            let requests = load.requests as f64;
            sum += ns / requests;
            println!(
                "| `{name}` | {:.2} | {:.0} | {:.0} | {} |",
                runs / requests,
                if runs > 0.0 { ns / runs } else { 0.0 },
                ns / requests,
                now.instructions
            );
        }
        println!(
            "\n{} requests, {:.0} ns of BPF each; records lost: {}; the agent's memory: {} MiB.\n",
            load.requests,
            sum,
            stats["kernel"]["records_lost"],
            memory / 1024
        );
    }
    drop(counting);
    Ok(())
}
