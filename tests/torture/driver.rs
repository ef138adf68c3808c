//! Starts the process in the sandbox and the agent, says what to do, and judges what comes back.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::{Child, Command as Process, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant, SystemTime},
};

use rustix::process::Signal;

use crate::{
    agent::{self, Agent},
    plan::{ENROLLED, Plan, REPAIRED},
    random::Random,
    sandbox::Slice,
    worker::{CGROUPS, CONTROL, Command, Report},
};

/// How the agent is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// As it runs by default, where it finds that it changes nothing but the head.
    Tags,
    /// As it runs by default, where it finds that it does, and leaves it.
    Observes,
    /// As the operator insists, there.
    TagsAllTheSame,
}

impl Mode {
    /// All that this host's kernel leads to.
    fn here() -> Vec<Self> {
        if agent::repairs() { vec![Self::TagsAllTheSame, Self::Observes] } else { vec![Self::Tags] }
    }
}

/// The seeds of the bounded run begin here; they are the same each time.
const FIXED: u64 = 1;
/// Those that once showed a tag inside a tunnel whose 101 stood in a response of doubtful boundaries.
const ONCE_FAILED: [u64; 9] = [
    28726621483767483,
    31937803490220506,
    39053009186578534,
    48558097430545411,
    51856988541923970,
    51856988541924120,
    55048167623722554,
    62030972660879745,
    65669399808067615,
];
const BATCH: u64 = 400;
/// Connections that are older than the agent.
const OLDER: usize = 60;
/// An answer takes seconds; a lock-up of the whole test would take for ever.
const ANSWER: Duration = Duration::from_secs(300);

pub fn main() {
    let mut torture = Torture::start();
    let started = Instant::now();
    let modes = Mode::here();
    eprintln!("torture: the agent {modes:?}");
    if let Ok(seed) = env::var("FNTRACE_TORTURE_SEED") {
        let seed = seed.parse().expect("FNTRACE_TORTURE_SEED is a number");
        for mode in modes {
            torture.batch(mode, &[seed]);
        }
    } else {
        let minutes = env::var("FNTRACE_TORTURE_MINUTES");
        let minutes: u64 = minutes.map_or(0, |minutes| minutes.parse().expect("FNTRACE_TORTURE_MINUTES is a number"));
        let random = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        eprintln!("torture: fixed seeds from {FIXED}, random ones from {random}");
        let mut seeds = ONCE_FAILED.to_vec();
        seeds.extend((FIXED..FIXED + BATCH).chain((0..BATCH / 4).map(|at| random + at)));
        for mode in &modes {
            torture.batch(*mode, &seeds);
        }
        let mut next = Random::new(random);
        for mode in modes.iter().cycle() {
            if started.elapsed() >= Duration::from_secs(60 * minutes) {
                break;
            }
            let first = next.next() >> 8;
            torture.batch(*mode, &(first..first + BATCH).collect::<Vec<_>>());
        }
    }
    torture.judge(started.elapsed());
}

struct Torture {
    slice: Slice,
    worker: Child,
    control: BufReader<UnixStream>,
    total: Report,
    batches: usize,
    mode: Mode,
}

/// Where a slice is in the file system.
fn directory(slice: &Slice, name: &str) -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
    PathBuf::from(format!("{}{}/{name}", mount.unwrap()[1], slice.argument()))
}

impl Torture {
    fn start() -> Self {
        let slice = Slice::new();
        let [server, client] = ["server", "client"].map(|kind| slice.sandbox(kind));
        let path = slice.files().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let mut command = Process::new(env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "worker", "--nocapture"]).stdin(Stdio::null()).stdout(Stdio::null());
        command.env(CONTROL, path).env(CGROUPS[0], directory(&slice, server.name()));
        let mut worker = command.env(CGROUPS[1], directory(&slice, client.name())).spawn().unwrap();
        listener.set_nonblocking(true).unwrap();
        let control = loop {
            if let Ok((control, _)) = listener.accept() {
                break control;
            }
            assert!(worker.try_wait().unwrap().is_none(), "the process in the sandbox does not start");
            thread::sleep(Duration::from_millis(10));
        };
        control.set_nonblocking(false).unwrap();
        control.set_read_timeout(Some(ANSWER)).unwrap();
        Self { slice, worker, control: BufReader::new(control), total: Report::default(), batches: 0, mode: Mode::Tags }
    }

    fn order(&mut self, command: &Command) -> Report {
        writeln!(self.control.get_mut(), "{}", serde_json::to_string(command).unwrap()).unwrap();
        let mut line = String::new();
        self.control.read_line(&mut line).expect("the process in the sandbox does not answer");
        serde_json::from_str(&line).expect("the process in the sandbox has ended")
    }

    fn agent(&self) -> Agent {
        // Without the option, `--tag auto`: the harness says `on` otherwise.
        let tag = if self.mode == Mode::TagsAllTheSame { "on" } else { "auto" };
        Agent::start_with(&self.slice, &["--tag", tag])
    }

    fn batch(&mut self, mode: Mode, seeds: &[u64]) {
        self.batches += 1;
        self.mode = mode;
        let (enrolled, repaired) = (mode != Mode::Observes, mode == Mode::TagsAllTheSame);
        ENROLLED.store(enrolled, Ordering::Relaxed);
        REPAIRED.store(repaired, Ordering::Relaxed);
        self.order(&Command::Ways { enrolled, repaired });
        eprintln!("torture: batch {}: the agent {mode:?}", self.batches);
        if let [seed] = seeds {
            eprint!("{}", Plan::new(*seed));
        }
        let started = Instant::now();
        let said = |what: &str| eprintln!("torture: batch: {what} at {:.1} s", started.elapsed().as_secs_f32());
        // Twice, for the times.
        for _ in 0..2 {
            let base = self.order(&Command::Base { seeds: seeds.to_vec() });
            self.total.failures.extend(base.failures);
        }
        said("untraced");
        self.order(&Command::Open { seeds: seeds.iter().copied().take(OLDER).collect() });
        let agent = self.agent();
        said("agent attached");
        let older = self.order(&Command::Release);
        let mut checked = self.order(&Command::Check { seeds: seeds.to_vec() });
        said("traced");
        let finished = agent.stop();
        let suspects = std::mem::take(&mut checked.stalls);
        let seen = [older.tags + checked.tags, older.rewrites + checked.rewrites];
        let stats = finished.stats();
        if older.failures.is_empty() && checked.failures.is_empty() {
            for (name, seen) in ["injected", "rewritten"].into_iter().zip(seen) {
                let said = &stats["kernel_tags"][name];
                assert_eq!(*said, seen, "{name}: the agent's count is not what arrived: {stats}");
            }
        }
        assert_eq!(stats["kernel"]["tag_stuck"], 0, "{stats}");
        assert!(stats["kernel"]["packets"].as_u64() > Some(0), "the agent saw nothing: {stats}");
        if mode != Mode::TagsAllTheSame {
            assert_eq!(older.not_reset + checked.not_reset, 0, "ends that are not told as a reset");
        }
        if mode == Mode::Observes {
            assert_eq!(seen, [0, 0], "it only observes");
        }
        eprintln!("torture: {}", stats["kernel_tags"]);
        self.confirm(suspects);
        self.total.add(older);
        self.total.add(checked);
        self.churn(seeds);
        said("agents killed and restarted");
        let Report { plans, bytes, tags, slow, slow_before, .. } = &self.total;
        eprintln!(
            "torture: {plans} plans, {bytes} bytes, {tags} tags, slow {slow} (untraced {slow_before}), {} failures",
            self.total.failures.len()
        );
    }

    /// Turns that took long with the agent, among others: do they without it, too? And with it, alone?
    fn confirm(&mut self, suspects: Vec<(u64, usize)>) {
        for (seed, turn) in suspects {
            let without = self.order(&Command::Base { seeds: vec![seed; 4] });
            if without.stalls.contains(&(seed, turn)) {
                continue;
            }
            let agent = self.agent();
            let with = self.order(&Command::Check { seeds: vec![seed] });
            agent.stop();
            if with.stalls.contains(&(seed, turn)) {
                eprintln!("torture: seed {seed}: turn {turn} stalls with the agent, and not without");
                self.total.stalls.push((seed, turn));
            }
        }
    }

    /// Agents come and go in the midst of it.
    fn churn(&mut self, seeds: &[u64]) {
        let churn = Command::Churn { seeds: seeds.to_vec() };
        self.order(&churn);
        for signal in [Signal::KILL, Signal::INT, Signal::KILL] {
            let mut agent = self.agent();
            thread::sleep(Duration::from_millis(500));
            if signal == Signal::INT {
                agent.signal(Signal::STOP);
                thread::sleep(Duration::from_millis(700));
                agent.signal(Signal::CONT);
            }
            agent.signal(signal);
            agent.finish();
            thread::sleep(Duration::from_millis(200));
        }
        let churned = self.order(&Command::Rest);
        self.total.add(churned);
    }

    fn judge(self, time: Duration) {
        let total = &self.total;
        eprintln!(
            "torture: {} batches in {time:.0?}: {} plans, {} turns, {} bytes, {} tags, {} rewritten; of {} plain heads \
             {} tagged; worst turn {} ms; {} slow turns, {} without an agent",
            self.batches,
            total.plans,
            total.turns,
            total.bytes,
            total.tags,
            total.rewrites,
            total.plain,
            total.plain_tagged,
            total.worst_ms,
            total.slow,
            total.slow_before
        );
        eprintln!(
            "torture: of {} long messages of clients without TCP_NODELAY {} waited, {} without an agent",
            total.long, total.long_slow, total.long_slow_before
        );
        eprintln!("torture: known, on repaired sockets: {} ends not told as a reset", total.not_reset);
        assert!(total.failures.is_empty(), "{} failures: {:#?}", total.failures.len(), total.failures.first());
        assert!(total.stalls.is_empty(), "stalls (seed, turn): {:?}", total.stalls);
        let most = total.slow_before + total.slow_before / 2 + 20;
        assert!(total.slow <= most, "{} turns took long, {} without an agent", total.slow, total.slow_before);
        if env::var_os("FNTRACE_TORTURE_SEED").is_none() {
            assert!(total.tags > 0, "the agent wrote no tag at all");
            assert!(total.rewrites > 0, "nothing was rewritten");
        }
    }
}

impl Drop for Torture {
    fn drop(&mut self) {
        // The rest of what it started dies with the slice.
        let _ = self.worker.kill();
        let _ = self.worker.wait();
    }
}
