//! The user half: what a record costs it, how much memory it takes, how soon it is there, and how large it is.

use std::{fs, path::Path, process::Command, thread, time::Duration, time::Instant};

use anyhow::{Context as _, Result, ensure};

use super::{
    agent::Agent,
    load::load,
    pair::{Kind, Pair},
    sandbox::Slice,
    table::Spread,
};

/// Measures and prints.
pub fn measure(root: &Path, fntrace: &Path, rounds: u32) -> Result<()> {
    println!("### The user half\n");
    assembly(root)?;
    recorded(root, fntrace, rounds)?;
    sandboxes(fntrace)?;
    start_up(fntrace, rounds)?;
    size(fntrace)
}

/// Made-up records, in a process of their own: `tracer-user/examples/assembly.rs` prints the tables.
fn assembly(root: &Path) -> Result<()> {
    crate::command::run_loud(crate::command::cargo(root).args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "tracer-user",
        "--example",
        "assembly",
    ]))
}

/// A run under load, recorded, and replayed on one core: decoding, assembly and output, of records as the kernel half makes
/// them.
fn recorded(root: &Path, fntrace: &Path, rounds: u32) -> Result<()> {
    let file = std::env::temp_dir().join(format!("fntrace-bench-{}.recording", std::process::id()));
    let recording = file.to_str().context("a temporary file with a name that is no text")?;
    let slice = Slice::new()?;
    let agent = Agent::start(fntrace, &slice.argument(), "1", &["--tag", "on", "--record", recording])?;
    let pair = Pair::start(root, &slice, Kind::Nginx, "0")?;
    load(&pair.url(), 3, "0")?;
    drop(pair);
    let stats = agent.stop()?;
    let records = stats["records"].as_object().context("no counts of records")?;
    let records: u64 = records.values().filter_map(serde_json::Value::as_u64).sum();
    let paths = stats["paths"].as_u64().context("no count of paths")?;
    ensure!(paths > 10_000, "only {paths} paths were recorded");
    let bytes = fs::metadata(&file)?.len();
    let mut each = Vec::new();
    for _ in 0..rounds {
        let begin = Instant::now();
        let mut command = Command::new("taskset");
        command.args(["-c", "1"]).arg(fntrace).args(["replay", "--format", "ndjson", recording]);
        let status = command.stdout(std::process::Stdio::null()).status().context("replay the recording")?;
        ensure!(status.success(), "the replay ended with {status}");
        each.push(begin.elapsed().as_secs_f64() * 1e6 / records as f64);
    }
    fs::remove_file(&file)?;
    let rate =
        Spread::of(each.iter().map(|each| records as f64 / paths as f64 * 1e-6 * each).map(f64::recip).collect());
    println!(
        "A recorded run of nginx → nginx: {records} records, {paths} paths, {} bytes a record. Replayed to ndjson on one \
         core: {} µs per record, {} paths/s. Medians of {rounds} with quartiles.\n",
        bytes / records,
        Spread::of(each).text(2),
        rate.text(0)
    );
    Ok(())
}

/// The agent's memory against the number of sandboxes.
fn sandboxes(fntrace: &Path) -> Result<()> {
    println!("| sandboxes | the process's memory, MiB | the maps' memory, MiB |");
    println!("|---|---|---|");
    for count in [1, 10, 100, 1000] {
        let slice = Slice::new()?;
        for number in 0..count {
            slice.make(&format!("sandbox-{number}"))?;
        }
        let agent = Agent::start(fntrace, &slice.argument(), "0,1", &["--tag", "on"])?;
        thread::sleep(Duration::from_millis(300));
        let (process, maps) = (agent.memory_kib()?, maps_kib(agent.pid())?);
        agent.stop()?;
        println!("| {count} | {:.1} | {:.1} |", process as f64 / 1024.0, maps as f64 / 1024.0);
    }
    println!();
    Ok(())
}

/// What the kernel charges for the maps that a process holds, in KiB.
fn maps_kib(pid: u32) -> Result<u64> {
    let directory = format!("/proc/{pid}/fdinfo");
    let mut found = std::collections::BTreeMap::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("list {directory}"))?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let field = |name: &str| -> Option<u64> {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .and_then(|text| text.trim().parse().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id"), field("memlock")) {
            found.insert(id, bytes);
        }
    }
    ensure!(!found.is_empty(), "the agent holds no maps");
    Ok(found.values().sum::<u64>() / 1024)
}

/// From exec until everything is attached, and to the end.
fn start_up(fntrace: &Path, rounds: u32) -> Result<()> {
    let slice = Slice::new()?;
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begin = Instant::now();
        let agent = Agent::start(fntrace, &slice.argument(), "0,1", &["--tag", "on"])?;
        starts.push(begin.elapsed().as_secs_f64() * 1000.0);
        let begin = Instant::now();
        agent.stop()?;
        ends.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    println!(
        "From exec until all is attached (the next request is traced): {} ms; from SIGINT to its end: {} ms. Medians of \
         {rounds} with quartiles.\n",
        Spread::of(starts).text(0),
        Spread::of(ends).text(0)
    );
    Ok(())
}

fn size(fntrace: &Path) -> Result<()> {
    let megabytes = |path: &Path| -> Result<f64> { Ok(fs::metadata(path)?.len() as f64 / 1e6) };
    let stripped = std::env::temp_dir().join(format!("fntrace-stripped-{}", std::process::id()));
    let strips = crate::command::answers(Command::new("strip").arg("-o").arg(&stripped).arg(fntrace));
    let without =
        if strips { format!("; {:.1} MB without debug information", megabytes(&stripped)?) } else { String::new() };
    let _ = fs::remove_file(&stripped);
    println!("The binary, both halves in one file: {:.1} MB{without}.\n", megabytes(fntrace)?);
    Ok(())
}
