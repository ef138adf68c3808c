//! `--go-uprobes`: finds the Go programs that the sandboxes run, so that the agent can put breakpoints into them.
//!
//! A breakpoint belongs to a file, not to a process: each is looked at once, and whoever runs it later has the
//! breakpoints from its start. A thread of its own looks, because the files are a tenant's and may be slow to answer.

mod binary;

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub use self::binary::{Points, Program};
use crate::{
    cgroup::{Mount, Selection},
    text::harmless,
};

/// How often to look for new programs. One that starts makes it look at once, but for a rest in between.
const EVERY: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_millis(20);
/// So many that are not probed are named: tenants can make any number.
const LEFT_MAX: usize = 100;
/// Most characters of a sandbox's path that are shown.
const SHOWN_MAX: usize = 256;
/// Most Go programs that are probed: each takes the agent a handful of descriptors.
const PROGRAMS_MAX: usize = 256;

/// What was found.
#[derive(Debug)]
pub enum Found {
    /// A Go program, its file, and the sandbox that runs it.
    Program { program: Program, file: File, sandbox: String },
    /// A program that nobody runs any more, to make room for others.
    Gone(Id),
    /// One that cannot be probed, in words for the operator.
    LeftAlone(String),
    /// All there was has been looked at.
    Looked,
}

/// The thread that looks. It ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    look: SyncSender<()>,
    found: UnboundedReceiver<Found>,
}

impl Watch {
    /// Begins to look at what runs in the selected cgroups.
    ///
    /// # Errors
    ///
    /// If no thread can be made.
    pub fn start(mount: Mount, selection: Selection) -> io::Result<Self> {
        let (look, asked) = sync_channel(1);
        let (to, found) = unbounded_channel();
        let mut looker = Looker { mount, selection, seen: HashMap::new(), programs: 0, left: 0 };
        thread::Builder::new().name("fntrace-go".to_owned()).spawn(move || {
            loop {
                // The reader has gone: the agent ends.
                if looker.look(&to).is_none() {
                    return;
                }
                thread::sleep(REST);
                if asked.recv_timeout(EVERY) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        })?;
        Ok(Self { look, found })
    }

    /// Looks again now.
    pub fn look(&self) {
        // If it is asked already, that will do.
        let _ = self.look.try_send(());
    }

    /// The next thing found.
    pub async fn next(&mut self) -> Option<Found> {
        self.found.recv().await
    }
}

/// A file: device and inode.
pub type Id = (u64, u64);

/// Which file this is.
///
/// # Errors
///
/// If the kernel does not say.
pub fn id(file: &File) -> io::Result<Id> {
    file.metadata().map(|file| id_of(&file))
}

fn id_of(file: &fs::Metadata) -> Id {
    (file.dev(), file.ino())
}

struct Looker {
    mount: Mount,
    selection: Selection,
    /// Every file that was running when last looked at, and whether it is probed; and those that are probed.
    seen: HashMap<Id, bool>,
    programs: usize,
    /// How many were left alone.
    left: usize,
}

impl Looker {
    /// Tells of every program that is new. `None` if nobody listens any more.
    fn look(&mut self, to: &UnboundedSender<Found>) -> Option<()> {
        let mut running = HashSet::new();
        for (_, sandbox) in self.selection.existing(&self.mount) {
            let list = fs::read_to_string(self.mount.place_of(&sandbox).join("cgroup.procs")).unwrap_or_default();
            // A process of another pid namespace is listed as 0.
            for pid in list.lines().filter(|pid| *pid != "0") {
                let process = Path::new("/proc").join(pid);
                let Some(seen) = fs::metadata(process.join("exe")).ok().map(|file| id_of(&file)) else { continue };
                running.insert(seen);
                if self.seen.contains_key(&seen) {
                    continue;
                }
                // It may have ended, or have become another program.
                let Ok(file) = binary::of_process(&process) else { continue };
                let Ok(id) = id(&file) else { continue };
                running.insert(id);
                let found = self.judge(file, &harmless(&sandbox, SHOWN_MAX));
                self.seen.insert(id, matches!(found, Some(Found::Program { .. })));
                if let Some(found) = found {
                    to.send(found).ok()?;
                }
            }
        }
        // The kernel holds what is probed; the number of any other file may become a new one's.
        let full = self.programs >= PROGRAMS_MAX;
        let Self { seen, programs, .. } = self;
        let mut gone = Vec::new();
        seen.retain(|id, probed| {
            let stays = running.contains(id) || (*probed && !full);
            if *probed && !stays {
                *programs -= 1;
                gone.push(*id);
            }
            stays
        });
        for id in gone {
            to.send(Found::Gone(id)).ok()?;
        }
        to.send(Found::Looked).ok()
    }

    fn judge(&mut self, file: File, sandbox: &str) -> Option<Found> {
        let why = match file.try_clone().map_err(anyhow::Error::from).and_then(binary::look) {
            Ok(None) => return None,
            Ok(Some(program)) if self.programs < PROGRAMS_MAX => {
                self.programs += 1;
                return Some(Found::Program { program, file, sandbox: sandbox.to_owned() });
            }
            Ok(Some(_)) => format!("{PROGRAMS_MAX} are probed already"),
            Err(why) => format!("{why:#}"),
        };
        self.left += 1;
        match self.left.cmp(&LEFT_MAX) {
            Ordering::Less => Some(Found::LeftAlone(format!("the Go program in {sandbox} is not probed: {why}"))),
            Ordering::Equal => {
                Some(Found::LeftAlone("further Go programs that are not probed are not named".to_owned()))
            }
            Ordering::Greater => None,
        }
    }
}
