//! What the agent costs those that it has nothing to do with: its tracepoints run for every task of the host.
//!
//! The tasks are threads of this process, which is in no sandbox.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};

use super::{
    agent::Agent,
    programs::{Counting, Program, programs},
    sandbox::Slice,
    table::Spread,
};

/// A piece of work, and how often it is done in a measurement.
struct Work {
    name: &'static str,
    /// The program that it makes run.
    program: &'static str,
    times: u64,
    run: fn(u64) -> Result<()>,
}

const WORK: [Work; 4] = [
    Work { name: "wake a thread of the same process", program: "fn_wake", times: 20_000, run: wakes },
    Work { name: "make a thread, and its end", program: "fn_fork", times: 4000, run: threads },
    Work { name: "read from a TCP connection", program: "fn_read", times: 20_000, run: reads },
    Work { name: "connect and close", program: "fn_state", times: 2000, run: connects },
];

/// Two threads send each other a byte; each reading waits.
fn echo<S: std::io::Read + std::io::Write + Send>(mut one: S, mut other: S, times: u64) -> Result<()> {
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut byte = [0];
            while other.read_exact(&mut byte).is_ok() && other.write_all(&byte).is_ok() {}
        });
        let mut byte = [1];
        for _ in 0..times / 2 {
            one.write_all(&byte)?;
            one.read_exact(&mut byte)?;
        }
        drop(one);
        Ok(())
    })
}

fn wakes(times: u64) -> Result<()> {
    let (one, other) = UnixStream::pair()?;
    echo(one, other, times)
}

fn threads(times: u64) -> Result<()> {
    for _ in 0..times {
        thread::spawn(|| {}).join().map_err(|_| anyhow::anyhow!("a thread died"))?;
    }
    Ok(())
}

fn reads(times: u64) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    one.set_nodelay(true)?;
    other.set_nodelay(true)?;
    echo(one, other, times)
}

fn connects(times: u64) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    for _ in 0..times {
        let mut one = TcpStream::connect(address)?;
        let (mut other, _) = listener.accept()?;
        one.write_all(b"x")?;
        other.read_exact(&mut [0])?;
    }
    Ok(())
}

/// The time that each piece of work takes, and the time that each program takes a run.
#[derive(Default)]
struct Figures {
    work_ns: Vec<f64>,
    run_ns: BTreeMap<String, f64>,
}

fn figures(agent: Option<&Agent>) -> Result<Figures> {
    let mut figures = Figures::default();
    for work in &WORK {
        let begin = Instant::now();
        (work.run)(work.times).context(work.name)?;
        figures.work_ns.push(begin.elapsed().as_nanos() as f64 / work.times as f64);
    }
    if let Some(agent) = agent {
        let counting = Counting::on()?;
        let before = programs(agent.pid())?;
        for work in &WORK {
            (work.run)(work.times).context(work.name)?;
        }
        let after = programs(agent.pid())?;
        drop(counting);
        for (name, now) in after {
            let Program { runs, ns, .. } = before.get(&name).copied().unwrap_or_default();
            if now.runs > runs {
                figures.run_ns.insert(name, (now.ns - ns) as f64 / (now.runs - runs) as f64);
            }
        }
    }
    Ok(figures)
}

/// Measures without the agent, with programs that return at once, and with the agent, and prints the table.
pub fn measure(fntrace: &Path, rounds: u32) -> Result<()> {
    let slice = Slice::new()?;
    let modes: [Option<&[&str]>; 3] = [None, Some(&["--tag", "off", "--floor"]), Some(&["--tag", "off"])];
    let mut all: [Vec<Figures>; 3] = Default::default();
    for _ in 0..rounds {
        for (mode, all) in modes.iter().zip(&mut all) {
            let agent = mode.map(|arguments| Agent::start(fntrace, &slice.argument(), "0,1", arguments)).transpose()?;
            all.push(figures(agent.as_ref())?);
            if let Some(agent) = agent {
                agent.stop()?;
            }
        }
    }
    println!("### Tasks outside of all sandboxes\n");
    println!(
        "Each in ns. What a program takes a run includes the clock that the kernel looks at to count it; the same for an \
         empty program is beside it, so what is its own is the difference. Medians of {rounds} rounds with quartiles.\n"
    );
    println!("| work | untraced | with the agent, ratio | program | an empty one, a run | this one, a run | its own |");
    println!("|---|---|---|---|---|---|---|");
    let [untraced, floor, agent] = &all;
    for (index, work) in WORK.iter().enumerate() {
        let time = |figures: &[Figures]| figures.iter().map(|one| one.work_ns[index]).collect::<Vec<_>>();
        let run = |figures: &[Figures]| {
            figures.iter().map(|one| one.run_ns.get(work.program).copied().unwrap_or(f64::NAN)).collect::<Vec<_>>()
        };
        let ratio = time(agent).iter().zip(time(untraced)).map(|(with, without)| with / without).collect();
        let own = run(agent).iter().zip(run(floor)).map(|(this, empty)| this - empty).collect();
        println!(
            "| {} | {} | {} | `{}` | {} | {} | {} |",
            work.name,
            Spread::of(time(untraced)).text(0),
            Spread::of(ratio).text(3),
            work.program,
            Spread::of(run(floor)).text(0),
            Spread::of(run(agent)).text(0),
            Spread::of(own).text(0),
        );
    }
    println!();
    Ok(())
}
