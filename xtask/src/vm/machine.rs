//! One boot: QEMU, its serial ports, and a limit in time.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";
/// The most that a boot may take, checks and all. By emulation it takes one minute or two, of which most goes to the
/// kernel's verifier; more where the machine has other work.
const LIMIT: Duration = Duration::from_secs(600);
/// Lines of the console that are shown of a boot that did not end as it should.
const TAIL: usize = 30;

/// How a check came out: a line of `tests/vm`.
#[derive(Debug, Deserialize)]
pub struct Check {
    /// Its name.
    #[serde(rename = "check")]
    pub name: String,
    /// Whether it passed.
    pub ok: bool,
    /// What it found, or why it failed.
    pub says: String,
    /// How long it took.
    pub seconds: f32,
}

/// A line on the port for results.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Check(Check),
    /// All are done; the kernel's release.
    End {
        end: String,
    },
}

/// What came of a boot.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The checks that came to an end.
    pub checks: Vec<Check>,
    /// What the kernel calls itself; `None` if the checks did not come to their end.
    pub release: Option<String>,
    /// Why the checks did not come to their end, with the last lines of the console.
    pub broken: Option<String>,
    /// From start to end.
    pub time: Duration,
}

/// Boots a kernel into the checks. `options` go to the kernel's command line.
///
/// # Errors
///
/// Where QEMU cannot be started. What goes wrong inside is part of the outcome.
pub fn boot(kernel: &Path, image: &Path, options: &str) -> Result<Outcome> {
    let console = image.with_file_name("console");
    let output = File::create(&console).with_context(|| format!("write {}", console.display()))?;
    let start = Instant::now();
    let mut machine = Machine(
        Command::new(QEMU)
            .args(["-machine", "accel=tcg", "-cpu", "max", "-smp", "2", "-m", "1024"])
            // It ends where the machine would start again, as it does after a panic.
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio", "-kernel"])
            .arg(kernel)
            .arg("-initrd")
            .arg(image)
            // Without a look at the timer, which fails where the emulation gets no processor for a moment.
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 no_timer_check {options}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {QEMU}"))?,
    );
    let (send, lines) = mpsc::channel();
    let results = BufReader::new(machine.0.stdout.take().context("QEMU has no standard output")?);
    thread::spawn(move || results.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    let mut outcome = Outcome::default();
    let broken = loop {
        match lines.recv_timeout(LIMIT.saturating_sub(start.elapsed())) {
            Ok(line) => match serde_json::from_str(line.trim()) {
                Ok(Line::Check(check)) => outcome.checks.push(check),
                Ok(Line::End { end }) => {
                    outcome.release = Some(end);
                    break None;
                }
                Err(error) => break Some(format!("a line that is no result ({error}): {line}")),
            },
            Err(mpsc::RecvTimeoutError::Timeout) => break Some(format!("not done within {} s", LIMIT.as_secs())),
            Err(mpsc::RecvTimeoutError::Disconnected) => break Some("it ended before its checks did".to_owned()),
        }
    };
    outcome.time = start.elapsed();
    outcome.broken = broken.map(|why| format!("{why}; the console's last lines:\n{}", tail(&console)));
    Ok(outcome)
}

fn tail(console: &Path) -> String {
    let said = fs::read(console).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

/// Ends the machine with the boot, whatever it does then.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
