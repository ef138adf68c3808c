//! The agent as an operator runs it: the real binary, its standard output read line by line.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::sandbox::Slice;

/// Loading and verifying every program takes a while on CI's two cores.
const READY: Duration = Duration::from_secs(60);
/// From the last answer to the last path line: the settle time and a good margin.
const LINES: Duration = Duration::from_secs(10);
const END: Duration = Duration::from_secs(20);

/// A running agent. Dropped without [`Agent::stop`], it is killed.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    output: Arc<Shared>,
    stdout: Option<JoinHandle<()>>,
    stderr: Option<JoinHandle<()>>,
}

/// What the agent said until it ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub lines: Vec<Value>,
    pub stderr: Vec<String>,
}

#[derive(Debug, Default)]
struct Shared {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    lines: Vec<Value>,
    stderr: Vec<String>,
    stderr_ended: bool,
}

/// `fntrace`, with no arguments yet.
pub fn fntrace() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fntrace"))
}

/// `fntrace run` on what `--cgroup` is given.
pub fn run(cgroup: &str, arguments: &[&str]) -> Command {
    let mut command = fntrace();
    command.args(["run", "--cgroup", cgroup, "--format", "ndjson", "--settle", "200ms"]);
    if !arguments.contains(&"--tag") {
        // The functions read by no way that a repaired socket breaks.
        command.args(["--tag", "on"]);
    }
    command.args(arguments);
    command
}

/// Runs `fntrace` to its end, which has to come soon.
pub fn fntrace_ends(command: &mut Command) -> Output {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if end(&mut child).is_none() {
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        panic!("{command:?} does not end by itself; stderr:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    child.wait_with_output().unwrap()
}

/// Whether enrolled sockets need a repair on this host's kernel that breaks some ways of reading.
pub fn repairs() -> bool {
    static VERDICT: OnceLock<String> = OnceLock::new();
    let verdict = VERDICT.get_or_init(|| {
        let output = fntrace_ends(fntrace().args(["doctor", "--json"]));
        let report: Value = serde_json::from_slice(&output.stdout).expect("what doctor --json says");
        report["verdict"].as_str().unwrap_or_default().to_owned()
    });
    match verdict.as_str() {
        "tags" => false,
        "tags_if_told" => true,
        verdict => panic!("the agent cannot tag here: {verdict}"),
    }
}

impl Agent {
    /// Starts `fntrace run` on a slice and waits until it says that everything is attached.
    pub fn start(slice: &Slice) -> Self {
        Self::start_with(slice, &[])
    }

    pub fn start_with(slice: &Slice, arguments: &[&str]) -> Self {
        Self::start_on(&slice.argument(), arguments)
    }

    /// On what `--cgroup` is given: a path, or a pattern.
    pub fn start_on(cgroup: &str, arguments: &[&str]) -> Self {
        Self::start_command(run(cgroup, arguments))
    }

    /// What [`run`] made, as another user, say.
    pub fn start_command(command: Command) -> Self {
        let mut agent = Self::spawn(command);
        let stdout = agent.child.stdout.take().unwrap();
        agent.stdout = Some(agent.read_stdout(stdout));
        agent
    }

    /// The same, but standard output is the caller's to read or to close.
    pub fn start_piped(slice: &Slice, arguments: &[&str]) -> (Self, ChildStdout) {
        let mut agent = Self::spawn(run(&slice.argument(), arguments));
        let stdout = agent.child.stdout.take().unwrap();
        (agent, stdout)
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Arc::new(Shared::default());
        let stderr = Some(read_stderr(child.stderr.take().unwrap(), Arc::clone(&output)));
        let agent = Self { child, output, stdout: None, stderr };
        let ready = |line: &String| line.starts_with("fntrace: tracing");
        agent.wait(READY, |said| {
            let started = said.stderr.iter().any(ready);
            assert!(started || !said.stderr_ended, "{command:?} ended at its start; stderr: {:#?}", said.stderr);
            started.then_some(())
        });
        agent
    }

    fn read_stdout(&self, stdout: ChildStdout) -> JoinHandle<()> {
        let output = Arc::clone(&self.output);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let line = line.expect("read the agent's standard output");
                let value = serde_json::from_str(&line).unwrap_or_else(|error| {
                    // Not a panic: it would be lost with this thread. No test finds such a line to be what it wants.
                    Value::from(format!("no JSON ({error}): {line}"))
                });
                output.said.lock().unwrap().lines.push(value);
                output.more.notify_all();
            }
        })
    }

    /// Waits until `found` makes something of the lines on standard output.
    pub fn wait_for<T>(&self, what: &str, mut found: impl FnMut(&[Value]) -> Option<T>) -> T {
        self.wait_lines(LINES, &mut found).unwrap_or_else(|| {
            let said = self.output.said.lock().unwrap_or_else(PoisonError::into_inner);
            panic!("no {what} from the agent; stdout: {:#?}\nstderr: {:#?}", said.lines, said.stderr)
        })
    }

    /// Gives the lines up to `found`, or nothing when the time for it has passed.
    fn wait_lines<T>(&self, time: Duration, found: &mut impl FnMut(&[Value]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + time;
        let mut said = self.output.said.lock().unwrap();
        loop {
            if let Some(result) = found(&said.lines) {
                return Some(result);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            said = self.output.more.wait_timeout(said, left).unwrap().0;
        }
    }

    fn wait<T>(&self, time: Duration, found: impl Fn(&Said) -> Option<T>) -> T {
        let deadline = Instant::now() + time;
        let mut said = self.output.said.lock().unwrap();
        loop {
            if let Some(result) = found(&said) {
                return result;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                panic!("the agent does not get ready; stderr: {:#?}", said.stderr);
            };
            said = self.output.more.wait_timeout(said, left).unwrap().0;
        }
    }

    #[allow(dead_code, reason = "not every test that shares this module asks")]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends the agent with a signal and gives what it said.
    pub fn stop_by(mut self, signal: Signal) -> Finished {
        self.signal(signal);
        self.finish()
    }

    /// Ends the agent as an operator does, which has to succeed.
    pub fn stop(self) -> Finished {
        let finished = self.stop_by(Signal::INT);
        assert!(finished.status.success(), "the agent ended with {}: {:#?}", finished.status, finished.stderr);
        finished
    }

    /// Waits for the agent to end by itself.
    pub fn finish(&mut self) -> Finished {
        let status = end(&mut self.child).expect("the agent does not end");
        for thread in [self.stdout.take(), self.stderr.take()].into_iter().flatten() {
            thread.join().expect("a reader of the agent's output");
        }
        let mut said = self.output.said.lock().unwrap();
        Finished { status, lines: std::mem::take(&mut said.lines), stderr: std::mem::take(&mut said.stderr) }
    }
}

impl Finished {
    /// The last line, which has to be the final statistics.
    pub fn stats(&self) -> &Value {
        let last = self.lines.last().expect("the agent printed nothing");
        assert_eq!(last["type"], "stats", "the last line is not the statistics: {last}");
        last
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_stderr(stderr: ChildStderr, output: Arc<Shared>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            output.said.lock().unwrap_or_else(PoisonError::into_inner).stderr.push(line);
            output.more.notify_all();
        }
        output.said.lock().unwrap_or_else(PoisonError::into_inner).stderr_ended = true;
        output.more.notify_all();
    })
}

fn end(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + END;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}
