//! A profile beside `run`: in a file that is rewritten, whole, as paths come.

use std::{
    io,
    path::{Path as FilePath, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Profile,
    findings::findings,
    form::{Format, Look, Report},
    late::Late,
    write_atomically,
};
use crate::path::Line;

/// Least time between two writings.
const EVERY: Duration = Duration::from_secs(1);
/// Lines that may wait for the thread. Beyond, whoever gives them waits: nothing is lost, nothing grows.
const QUEUE: usize = 4096;

/// Keeps a profile in a file. It has a thread of its own, so that neither counting nor the disk delays the paths.
#[derive(Debug)]
pub struct Live {
    lines: mpsc::SyncSender<Line>,
    keeper: JoinHandle<io::Result<()>>,
}

impl Live {
    /// Writes an empty profile to `file` and begins to keep it. What the file holds goes by the ending of its name:
    /// `.html`, `.dot`, `.folded` or `.txt` (tables); JSON else.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn start(file: PathBuf) -> io::Result<Self> {
        let keeper = Keeper { format: format(&file), file, profile: Profile::default(), late: Late::default() };
        keeper.write()?;
        let (lines, from) = mpsc::sync_channel(QUEUE);
        let keeper = thread::Builder::new().name("profile".to_owned()).spawn(move || keeper.run(&from))?;
        Ok(Self { lines, keeper })
    }

    /// Takes in what was given out.
    pub fn line(&self, line: Line) {
        // The thread ends only with the channel, or by a panic, which `end` reports.
        let _ = self.lines.send(line);
    }

    /// Writes the profile of all that was taken in.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn end(self) -> io::Result<()> {
        drop(self.lines);
        self.keeper.join().unwrap_or_else(|_| Err(io::Error::other("the profile's thread broke off")))
    }
}

/// The form that a file's name asks for.
fn format(file: &FilePath) -> Format {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("html") => Format::Html,
        Some("dot") => Format::Dot,
        Some("folded") => Format::Folded,
        Some("txt") => Format::Table,
        _ => Format::Json,
    }
}

struct Keeper {
    file: PathBuf,
    format: Format,
    profile: Profile,
    late: Late,
}

impl Keeper {
    fn run(mut self, lines: &mpsc::Receiver<Line>) -> io::Result<()> {
        let (mut changed, mut failing) = (false, false);
        let mut next = Instant::now() + EVERY;
        loop {
            let wait = if changed { next.saturating_duration_since(Instant::now()) } else { Duration::MAX };
            match lines.recv_timeout(wait) {
                Ok(line) => {
                    self.late.line(&mut self.profile, line);
                    changed = true;
                }
                Err(RecvTimeoutError::Disconnected) => return self.write(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if changed && Instant::now() >= next {
                let written = self.write();
                // Told once, until it works again; at the end it is an error of the command.
                if let (Err(error), false) = (&written, failing) {
                    eprintln!("fntrace: write {}: {error}", self.file.display());
                }
                (changed, failing) = (false, written.is_err());
                next = Instant::now() + EVERY;
            }
        }
    }

    /// Writes what has come so far, paths that still wait for their parts included.
    fn write(&self) -> io::Result<()> {
        let mut profile = self.profile.clone();
        self.late.clone().finish(&mut profile);
        let findings = findings(&profile);
        let report = Report { profile: &profile, findings: &findings, changes: None };
        write_atomically(&self.file, |out| report.write(self.format, Look::default(), out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_the_form() {
        for (name, form) in
            [("a.html", Format::Html), ("b.dot", Format::Dot), ("p", Format::Json), (".txt", Format::Json)]
        {
            assert_eq!(format(FilePath::new(name)), form, "{name}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_at_once() {
        assert!(Live::start(PathBuf::from("/nowhere/at/all.json")).is_err());
    }
}
