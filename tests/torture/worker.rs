//! The process in the sandbox. It has both ends of every connection, each socket in the cgroup where it was made, and
//! carries out plans when the driver says so, a line on the control socket each.

use std::{
    collections::HashMap,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    execute::{Gate, Outcome, World, listener, run, socket},
    plan::{ENROLLED, End, Plan, REPAIRED, Side, Turn},
};

/// Where the control socket is.
pub const CONTROL: &str = "FNTRACE_TORTURE_CONTROL";
/// The cgroups of the server and of the client.
pub const CGROUPS: [&str; 2] = ["FNTRACE_TORTURE_SERVER", "FNTRACE_TORTURE_CLIENT"];

/// Plans that are carried out at the same time.
const LANES: u64 = 6;
/// After so many failures a command ends: each may take as long as a receiver waits.
const ENOUGH: usize = 30;
/// Sockets made outside, for the connections that invocations come on.
const OUTSIDE: usize = 3000;
/// A turn that takes this long was not simply sent and received: the shortest delayed acknowledgement is 40 ms.
const STALL: Duration = Duration::from_millis(35);

#[derive(Debug, Serialize, Deserialize)]
pub enum Command {
    /// Carry out the plans without an agent and remember what came of them.
    Base {
        seeds: Vec<u64>,
    },
    /// Carry them out with one and compare.
    Check {
        seeds: Vec<u64>,
    },
    /// Begin them, and stop in the middle of each.
    Open {
        seeds: Vec<u64>,
    },
    /// Go on with these, and compare.
    Release,
    /// Like `Check`, again and again, until `Rest`.
    Churn {
        seeds: Vec<u64>,
    },
    Rest,
    /// How the plans of the commands that follow are made.
    Ways {
        enrolled: bool,
        repaired: bool,
    },
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub plans: usize,
    pub turns: usize,
    pub bytes: usize,
    pub tags: usize,
    pub rewrites: usize,
    /// Heads that nothing keeps from being tagged, and those that were.
    pub plain: usize,
    pub plain_tagged: usize,
    /// Turns over the limit: those that Nagle's algorithm may hold up, with and without the agent.
    pub slow: usize,
    pub slow_before: usize,
    /// Of those the clients' that only their length may make wait: how many there were, and how many took long.
    pub long: usize,
    pub long_slow: usize,
    pub long_slow_before: usize,
    pub worst_ms: u64,
    /// A known difference, see `compare`.
    pub not_reset: usize,
    pub failures: Vec<Failure>,
    /// Seeds and turns that took long, with the agent: that took longer than without, each time they were tried.
    pub stalls: Vec<(u64, usize)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Failure {
    pub seed: u64,
    pub what: String,
}

impl Report {
    pub fn add(&mut self, other: Self) {
        self.plans += other.plans;
        self.turns += other.turns;
        self.bytes += other.bytes;
        self.tags += other.tags;
        self.rewrites += other.rewrites;
        self.plain += other.plain;
        self.plain_tagged += other.plain_tagged;
        self.slow += other.slow;
        self.slow_before += other.slow_before;
        self.long += other.long;
        self.long_slow += other.long_slow;
        self.long_slow_before += other.long_slow_before;
        self.worst_ms = self.worst_ms.max(other.worst_ms);
        self.not_reset += other.not_reset;
        self.failures.extend(other.failures);
        self.stalls.extend(other.stalls);
    }

    fn count(&mut self, outcome: &Outcome) {
        self.plans += 1;
        self.turns += outcome.times.len();
        self.bytes += outcome.bytes;
        self.tags += outcome.tags;
        self.rewrites += outcome.rewrites;
        self.plain += outcome.plain;
        self.plain_tagged += outcome.plain_tagged;
        let worst = outcome.times.iter().max().map_or(0, |time| time.as_millis() as u64);
        self.worst_ms = self.worst_ms.max(worst);
    }

    fn fails(&mut self, seed: u64, what: String) {
        eprintln!("torture: seed {seed}: {what}");
        self.failures.push(Failure { seed, what });
    }
}

/// What came of each plan without an agent.
type Bases = Mutex<HashMap<u64, Outcome>>;

struct Worker {
    world: World,
    bases: Bases,
}

/// Runs until the driver closes the control socket.
pub fn main() {
    let control = env::var_os(CONTROL).expect("the process of the sandbox is started by the torture test itself");
    let worker = Arc::new(Worker { world: world(), bases: Mutex::default() });
    let control = UnixStream::connect(control).unwrap();
    let mut answers = control.try_clone().unwrap();
    let mut opened: Option<(Arc<Gate>, Vec<JoinHandle<Report>>)> = None;
    let mut churning: Option<(Arc<AtomicBool>, JoinHandle<Report>)> = None;
    for line in BufReader::new(control).lines() {
        let mut report = Report::default();
        match serde_json::from_str(&line.unwrap()).unwrap() {
            Command::Base { seeds } => report = worker.base(&seeds),
            Command::Check { seeds } => {
                worker.world.fresh();
                report = worker.check(&seeds, &AtomicBool::new(false));
            }
            Command::Open { seeds } => opened = Some(worker.open(&seeds)),
            Command::Release => {
                let (gate, threads) = opened.take().unwrap();
                gate.open();
                threads.into_iter().for_each(|thread| report.add(thread.join().unwrap()));
            }
            Command::Churn { seeds } => {
                let stop = Arc::new(AtomicBool::new(false));
                let (worker, stopped) = (Arc::clone(&worker), Arc::clone(&stop));
                churning = Some((stop, thread::spawn(move || worker.churn(&seeds, &stopped))));
            }
            Command::Ways { enrolled, repaired } => {
                ENROLLED.store(enrolled, Ordering::Relaxed);
                REPAIRED.store(repaired, Ordering::Relaxed);
            }
            Command::Rest => {
                let (stop, thread) = churning.take().unwrap();
                stop.store(true, Ordering::Relaxed);
                report = thread.join().unwrap();
            }
        }
        writeln!(answers, "{}", serde_json::to_string(&report).unwrap()).unwrap();
    }
}

/// Makes each socket where it has to be, and ends up in the client's sandbox.
fn world() -> World {
    let enter = |cgroup| {
        let procs = PathBuf::from(env::var_os(cgroup).unwrap()).join("cgroup.procs");
        fs::write(&procs, "0").unwrap_or_else(|error| panic!("enter {}: {error}", procs.display()));
    };
    let outside = listener();
    let sockets = (0..OUTSIDE).map(|_| socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()).collect();
    enter(CGROUPS[0]);
    let sandbox = listener();
    enter(CGROUPS[1]);
    World::new([outside, sandbox, listener()], sockets)
}

impl Worker {
    /// Carries out `work` for each seed, several at a time, and adds up what it reports.
    fn each(&self, seeds: &[u64], stop: &AtomicBool, work: impl Fn(u64) -> Report + Sync) -> Report {
        let (next, failures) = (AtomicU64::new(0), AtomicUsize::new(0));
        let lane = || {
            let mut report = Report::default();
            while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                if stop.load(Ordering::Relaxed) || failures.load(Ordering::Relaxed) >= ENOUGH {
                    break;
                }
                let one = work(*seed);
                failures.fetch_add(one.failures.len(), Ordering::Relaxed);
                report.add(one);
            }
            report
        };
        let mut report = Report::default();
        thread::scope(|scope| {
            // A plan that is repeated must not meet itself: its trace contexts are the same.
            let count = if env::var_os("FNTRACE_TORTURE_SEED").is_some() { 1 } else { LANES };
            let lanes: Vec<_> = (0..count).map(|_| scope.spawn(lane)).collect();
            lanes.into_iter().for_each(|lane| report.add(lane.join().unwrap()));
        });
        report
    }

    fn base(&self, seeds: &[u64]) -> Report {
        self.each(seeds, &AtomicBool::new(false), |seed| {
            let plan = Plan::new(seed);
            let outcome = run(&plan, &self.world, None);
            let mut report = Report::default();
            report.count(&outcome);
            if let Some(failure) = &outcome.failure {
                report.fails(seed, format!("without an agent: {failure}"));
            }
            if outcome.tags > 0 {
                report.fails(seed, "tagged without an agent".to_owned());
            }
            let mut bases = self.bases.lock().unwrap();
            let times = bases.remove(&seed).map(|base| base.times).unwrap_or_default();
            let mut outcome = outcome;
            for (time, other) in outcome.times.iter_mut().zip(times) {
                *time = other.max(*time);
            }
            let slow = outcome.times.iter().enumerate().filter(|(_, time)| **time >= STALL);
            report.stalls.extend(slow.map(|(at, _)| (seed, at)));
            bases.insert(seed, outcome);
            report
        })
    }

    fn check(&self, seeds: &[u64], stop: &AtomicBool) -> Report {
        self.each(seeds, stop, |seed| {
            let plan = Plan::new(seed);
            let mut report = Report::default();
            let mut slow = self.compare(&plan, run(&plan, &self.world, None), &mut report);
            // Once is the machine; each time is the agent.
            for _ in 0..3 {
                if slow.is_empty() || !report.failures.is_empty() {
                    break;
                }
                let again = self.compare(&plan, run(&plan, &self.world, None), &mut report);
                slow.retain(|turn| again.contains(turn));
            }
            report.stalls.extend(slow.into_iter().map(|turn| (seed, turn)));
            report
        })
    }

    fn churn(&self, seeds: &[u64], stop: &AtomicBool) -> Report {
        let mut report = Report::default();
        while !stop.load(Ordering::Relaxed) && report.failures.len() < ENOUGH {
            report.add(self.each(seeds, stop, |seed| {
                let plan = Plan::new(seed);
                let mut report = Report::default();
                self.compare(&plan, run(&plan, &self.world, None), &mut report);
                report
            }));
        }
        report
    }

    fn open(self: &Arc<Self>, seeds: &[u64]) -> (Arc<Gate>, Vec<JoinHandle<Report>>) {
        let gate = Arc::new(Gate::default());
        let start = |seed: &u64| {
            let (worker, gate, plan) = (Arc::clone(self), Arc::clone(&gate), Plan::new(*seed));
            thread::spawn(move || {
                let mut report = Report::default();
                let mut outcome = run(&plan, &worker.world, Some(&gate));
                // One turn waited for the agent.
                outcome.times.iter_mut().for_each(|time| *time = Duration::ZERO);
                worker.compare(&plan, outcome, &mut report);
                report
            })
        };
        let threads = seeds.iter().map(start).collect();
        gate.filled(seeds.len());
        (gate, threads)
    }

    /// Reports where an outcome differs from the one without an agent, and gives the turns that took too long.
    fn compare(&self, plan: &Plan, outcome: Outcome, report: &mut Report) -> Vec<usize> {
        report.count(&outcome);
        let bases = self.bases.lock().unwrap();
        let base = &bases[&plan.seed];
        if let Some(failure) = outcome.failure {
            report.fails(plan.seed, failure);
        } else if plan.end == End::ClientClosesUnread && only_the_reset(&outcome.log, &base.log) {
            report.not_reset += 1;
        } else if let Some((ours, theirs)) = outcome.log.iter().zip(&base.log).find(|(ours, theirs)| ours != theirs) {
            report.fails(plan.seed, format!("differs: {ours:?}, without an agent {theirs:?}"));
        } else if outcome.log.len() != base.log.len() {
            report.fails(plan.seed, format!("differs: {:?}, without an agent {:?}", outcome.log, base.log));
        }
        let mut slow = Vec::new();
        for (at, (time, before)) in outcome.times.iter().zip(&base.times).enumerate() {
            let Turn { prompt, long, from, .. } = plan.turns[at];
            let (now_slow, then_slow) = (usize::from(*time >= STALL), usize::from(*before >= STALL));
            if !prompt {
                report.slow += now_slow;
                report.slow_before += then_slow;
            }
            if long && from == Side::Client {
                report.long += 1;
                report.long_slow += now_slow;
                report.long_slow_before += then_slow;
            }
            let limit = if prompt { STALL } else { *before + Duration::from_secs(1) };
            if *time >= limit && *before < limit {
                slow.push(at);
            }
        }
        slow
    }
}

/// Known: of a socket in a sockhash with a verdict program the kernel keeps what was received in a queue that `close`
/// does not look at, so the other side is told of an end where it would see a reset (net/ipv4/tcp.c, __tcp_close).
fn only_the_reset(ours: &[String], theirs: &[String]) -> bool {
    let (Some((our_last, ours)), Some((their_last, theirs))) = (ours.split_last(), theirs.split_last()) else {
        return false;
    };
    ours == theirs && our_last.ends_with(", end") && their_last.ends_with(", ConnectionReset")
}
