//! Servers under load, without the agent and with it, mode by mode.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    agent::Agent,
    load::load,
    otel::Collector,
    pair::{Kind, Pair},
    sandbox::Slice,
    table::Spread,
};

/// How the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Untraced,
    /// The programs return at once, on the hooks of observing.
    Floor,
    Observing,
    /// With enrolled sockets and what repairs them: what the kernel takes for being able to tag.
    TagFloor,
    Tagging,
    /// One path in a hundred is recorded; the tags of the others say that they are not.
    Sampling,
    /// OpenTelemetry's auto-instrumentation inside the functions, instead of the agent.
    OpenTelemetry,
}

impl Mode {
    fn all(kind: Kind) -> Vec<Self> {
        let mut all = vec![Self::Untraced, Self::Floor, Self::Observing, Self::TagFloor, Self::Tagging, Self::Sampling];
        if matches!(kind, Kind::Node | Kind::Python) {
            all.push(Self::OpenTelemetry);
        }
        all
    }

    fn name(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Floor => "floor: empty programs",
            Self::Observing => "observing",
            Self::TagFloor => "floor, sockets enrolled",
            Self::Tagging => "tagging all",
            Self::Sampling => "recording 1 %",
            Self::OpenTelemetry => "OpenTelemetry instead",
        }
    }

    fn arguments(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Untraced | Self::OpenTelemetry => None,
            Self::Floor => Some(&["--tag", "off", "--floor"]),
            Self::Observing => Some(&["--tag", "off"]),
            Self::TagFloor => Some(&["--tag", "on", "--floor"]),
            Self::Tagging => Some(&["--tag", "on"]),
            Self::Sampling => Some(&["--tag", "on", "--sample", "0.01"]),
        }
    }

    /// Whether the agent did what the mode is named after.
    fn check(self, stats: &Value, requests: u64) -> Result<()> {
        let calls = |tag: &str| stats["kernel_tags"][tag].as_u64().unwrap_or(0);
        let seen = match self {
            Self::Untraced | Self::OpenTelemetry => return Ok(()),
            Self::Floor | Self::TagFloor => {
                let records = stats["kernel"]["records"].as_u64().context("no count of records")?;
                ensure!(records < 100, "the floor made {records} records");
                return Ok(());
            }
            Self::Observing => calls("off"),
            Self::Tagging => calls("injected"),
            Self::Sampling => {
                let paths = stats["paths"].as_u64().context("no count of paths")?;
                ensure!(paths > 0 && paths < requests / 20, "1 %: {paths} paths of {requests} requests");
                calls("injected")
            }
        };
        ensure!(seen * 100 >= requests * 99, "{}: {seen} of {requests} calls: {stats}", self.name());
        Ok(())
    }
}

struct Figures {
    throughput: f64,
    p50_us: f64,
    p99_us: f64,
    /// The servers', per request.
    cpu_us: f64,
    agent_us: f64,
    /// Of the records, which the ring buffer refused.
    lost: f64,
}

/// Measures a pair of servers in all modes and prints the table.
///
/// With one core, servers and load share CPU 0 and the agent's user half has the other to itself, where there is one:
/// what it takes is in a column of its own. With two, all share both.
pub fn measure(root: &Path, fntrace: &Path, kind: Kind, cores: u8, rounds: u32, seconds: u32) -> Result<()> {
    let (cpus, agents) = if cores == 1 { ("0", "1") } else { ("0,1", "0,1") };
    let slice = Slice::new()?;
    let modes = Mode::all(kind);
    let mut figures: Vec<Vec<Figures>> = modes.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for (index, mode) in modes.iter().copied().enumerate() {
            let one = run(root, fntrace, &slice, kind, mode, cpus, agents, seconds);
            figures[index].push(one.with_context(|| format!("{} {}, round {round}", kind.name(), mode.name()))?);
        }
    }
    print(kind, &modes, cores, rounds, &figures);
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "what, how, and where")]
fn run(
    root: &Path,
    fntrace: &Path,
    slice: &Slice,
    kind: Kind,
    mode: Mode,
    cpus: &str,
    agents: &str,
    seconds: u32,
) -> Result<Figures> {
    let agent =
        mode.arguments().map(|arguments| Agent::start(fntrace, &slice.argument(), agents, arguments)).transpose()?;
    let collector = if mode == Mode::OpenTelemetry { Some(Collector::start(root, kind)?) } else { None };
    let environment = collector.as_ref().map_or(Vec::new(), Collector::environment);
    // After the agent, so that it sees their connections begin.
    let pair = Pair::start_with(root, slice, kind, cpus, &environment)?;
    load(&pair.url(), 1, cpus).context("warm up")?;
    let cpu = |agent: &Option<Agent>| agent.as_ref().map_or(Ok(0), Agent::cpu_us);
    let (servers_before, agent_before) = (slice.cpu_us()?, cpu(&agent)?);
    let load = load(&pair.url(), seconds, cpus)?;
    let (servers_after, agent_after) = (slice.cpu_us()?, cpu(&agent)?);
    drop(pair);
    if let Some(collector) = collector {
        collector.stop()?;
    }
    let mut lost = 0.0;
    if let Some(agent) = agent {
        let stats = agent.stop()?;
        mode.check(&stats, load.requests)?;
        let count = |name: &str| stats["kernel"][name].as_f64().unwrap_or(0.0);
        lost = count("records_lost") / (count("records") + count("records_lost")).max(1.0);
    }
    let per_request = |us: u64| us as f64 / load.requests as f64;
    Ok(Figures {
        throughput: load.throughput,
        p50_us: load.p50_us,
        p99_us: load.p99_us,
        cpu_us: per_request(servers_after - servers_before),
        agent_us: per_request(agent_after - agent_before),
        lost,
    })
}

fn print(kind: Kind, modes: &[Mode], cores: u8, rounds: u32, figures: &[Vec<Figures>]) {
    let untraced = &figures[0];
    let ratio = |mode: &[Figures], of: fn(&Figures) -> f64| {
        Spread::of(mode.iter().zip(untraced).map(|(one, base)| of(one) / of(base)).collect())
    };
    let plain = |mode: &[Figures], of: fn(&Figures) -> f64| Spread::of(mode.iter().map(of).collect());
    let own = plain(untraced, |one| one.throughput);
    println!(
        "### {}, {cores} core{}\n\nUntraced: {} requests/s; p50 {} µs, p99 {} µs; {} µs of CPU in the servers per \
         request. The others as ratios to it, medians of {rounds} rounds with their quartiles.\n",
        kind.name(),
        if cores == 1 { "" } else { "s" },
        own.text(0),
        plain(untraced, |one| one.p50_us).text(0),
        plain(untraced, |one| one.p99_us).text(0),
        plain(untraced, |one| one.cpu_us).text(1),
    );
    println!("| mode | throughput | p50 | p99 | servers' CPU | agent's CPU, µs per request | records lost |");
    println!("|---|---|---|---|---|---|---|");
    for (mode, figures) in modes.iter().zip(figures).skip(1) {
        println!(
            "| {} | {} | {} | {} | {} | {} | {:.1} % |",
            mode.name(),
            ratio(figures, |one| one.throughput).text(3),
            ratio(figures, |one| one.p50_us).text(2),
            ratio(figures, |one| one.p99_us).text(2),
            ratio(figures, |one| one.cpu_us).text(3),
            plain(figures, |one| one.agent_us).text(1),
            plain(figures, |one| one.lost).median * 100.0,
        );
    }
    let spread = own.high / own.low - 1.0;
    if spread > 0.05 {
        println!(
            "\nThe untraced runs themselves lie {:.0} % apart: differences below that are not to be read.",
            spread * 100.0
        );
    }
    println!();
}
