//! Breakpoints in Go programs (`--go-uprobes`).

use std::{fs::File, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::programs::{
    UProbe,
    uprobe::{UProbeLinkId, UProbeScope},
};

use super::Agent;
use crate::go::{self, Id, Points, Program};

/// The maps that nothing else uses.
pub(super) const MAPS: [&str; 3] = ["CALLING", "STARTING", "ANSWERED"];

const PROGRAMS: [&str; 7] =
    ["fn_go_started", "fn_go_start", "fn_go_serve", "fn_go_send", "fn_go_receive", "fn_go_call", "fn_go_write"];

/// A breakpoint, and the program that it runs.
pub(super) type Link = (&'static str, UProbeLinkId);

impl Agent {
    pub(super) fn load_go(&mut self) -> Result<()> {
        for name in PROGRAMS {
            let program: &mut UProbe = self.program(name)?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        Ok(())
    }

    /// Probes a Go program, in every process that runs it or will.
    ///
    /// # Errors
    ///
    /// What the kernel refuses. The program is left as it was then.
    pub(crate) fn probe_go(&mut self, program: &Program, file: &File) -> Result<()> {
        let id = go::id(file).context("look at its file")?;
        let mut links = Vec::new();
        let attached = self.attach_go(&program.points, file, &mut links);
        self.probed.insert(id, links);
        if attached.is_err() {
            self.leave_go(id);
        }
        attached
    }

    /// In the order in which nothing wrong is concluded while a part is missing: goroutines start clean before any is
    /// known, and are known before their calls are told to those who write.
    fn attach_go(&mut self, points: &Points, file: &File, links: &mut Vec<Link>) -> Result<()> {
        let [started, start, serve, send, receive, call, write] = PROGRAMS;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let places = points.started.iter().map(|place| (started, *place));
        let others = [
            (start, points.start),
            (serve, points.serve),
            (send, points.send),
            (receive, points.receive),
            (call, points.call),
            (write, points.write),
        ];
        for (name, place) in places.chain(others) {
            let program: &mut UProbe = self.program(name)?;
            let link = program.attach(place, &path, UProbeScope::AllProcesses);
            links.push((name, link.with_context(|| format!("attach {name}"))?));
        }
        Ok(())
    }

    /// Takes the breakpoints out of a program.
    pub(crate) fn leave_go(&mut self, id: Id) {
        for (name, link) in self.probed.remove(&id).unwrap_or_default().into_iter().rev() {
            if let Ok::<&mut UProbe, _>(program) = self.program(name) {
                // It goes with the agent at the latest.
                let _ = program.detach(link);
            }
        }
    }
}
