//! Who the sandboxes of a run are: asked when something happens in them that may answer it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::timeout};
use tracer_ebpf::record::{Body, Record};

use crate::{
    assemble::SandboxInfo,
    name::{self, Identity, Names, Said},
    path::Resource,
    recording::Recorder,
};

/// Finding a name looks into files that a tenant may make slow. The paths do not wait for that.
const PATIENCE: Duration = Duration::from_millis(50);
/// After so many times that it was too slow, a sandbox goes by what is known without files.
const TRIES: u8 = 3;

/// Sandboxes and their names.
pub(super) struct Naming {
    names: Arc<Names>,
    known: HashMap<u64, Known>,
    /// Sandboxes that are to be asked, and those that are to be forgotten after that.
    due: Vec<u64>,
    gone: Vec<u64>,
}

struct Known {
    path: Arc<str>,
    identity: Option<Identity>,
    /// What the environment of a process there said when it started: the process may be gone by now.
    heard: Option<Said>,
    /// Whether it is in `due`.
    due: bool,
    /// Whether it has had to do with a request: its processes are the function's then, and no longer the runtime's.
    works: bool,
    /// Whether it was asked when it did.
    sure: bool,
    tried: u8,
}

impl Naming {
    pub fn new(names: Names) -> Self {
        Self { names: Arc::new(names), known: HashMap::new(), due: Vec::new(), gone: Vec::new() }
    }

    /// Notes a sandbox that was there before the agent.
    pub fn exists(&mut self, sandbox: u64, path: String) {
        let path = Arc::from(path);
        let known = Known { path, identity: None, heard: None, due: false, works: false, sure: false, tried: 0 };
        self.known.insert(sandbox, known);
    }

    /// Takes in a record, before the assembler does.
    pub fn note(&mut self, record: &Record<'_>, assembler: &mut Recorder) {
        let sandbox = record.header.sandbox;
        match record.body {
            Body::SandboxBorn(path) => {
                self.exists(sandbox, String::from_utf8_lossy(path).into_owned());
                if let Some(known) = self.known.get_mut(&sandbox) {
                    let identity = self.names.resolve_at_once(&known.path, None);
                    assembler.sandbox(sandbox, info(&known.path, &identity));
                }
            }
            Body::SandboxGone => self.gone.push(sandbox),
            Body::SandboxExec(environment) => {
                let Some(known) = self.known.get_mut(&sandbox) else { return };
                if let Some(said) = name::said(environment)
                    && said.is_better(known.heard.as_ref())
                {
                    known.heard = Some(said);
                    known.sure = false;
                }
                self.ask(sandbox, false);
            }
            Body::InvocationStart(..) | Body::CallStart(..) | Body::OpaqueStart(..) => self.ask(sandbox, true),
            _ => {}
        }
    }

    /// Has a sandbox asked who it is, by the next [`Naming::find`].
    pub fn ask(&mut self, sandbox: u64, works: bool) {
        let Some(known) = self.known.get_mut(&sandbox) else { return };
        known.works |= works;
        if !known.sure && !std::mem::replace(&mut known.due, true) {
            self.due.push(sandbox);
        }
    }

    /// Finds out what this batch of records has made due, before its paths are given out. Soon after the record of a program
    /// that started, for the runtime's files go with the container; and again once it works for a request.
    /// `hear` is told who each of them is.
    pub async fn find(&mut self, assembler: &mut Recorder, mut hear: impl FnMut(u64, &str, &Identity)) {
        for sandbox in std::mem::take(&mut self.due) {
            let Some(known) = self.known.get_mut(&sandbox) else { continue };
            known.due = false;
            let (names, path, heard) = (Arc::clone(&self.names), Arc::clone(&known.path), known.heard.clone());
            let found = timeout(PATIENCE, spawn_blocking(move || names.resolve(&path, heard.as_ref()))).await;
            let found = match found {
                Ok(Ok(found)) => {
                    known.sure = known.works;
                    found
                }
                // Too slow, for now: it is asked again with the next record.
                _ => {
                    known.tried += 1;
                    known.sure = known.tried >= TRIES;
                    self.names.resolve_at_once(&known.path, known.heard.as_ref())
                }
            };
            match &mut known.identity {
                Some(identity) => identity.improve(found),
                none => *none = Some(found),
            }
            if let Some(identity) = &known.identity {
                assembler.sandbox(sandbox, info(&known.path, identity));
                hear(sandbox, &known.path, identity);
            }
        }
        for sandbox in self.gone.drain(..) {
            self.known.remove(&sandbox);
        }
    }
}

fn info(path: &Arc<str>, identity: &Identity) -> SandboxInfo {
    let resource = (identity.resource != Resource::default()).then(|| Arc::new(identity.resource.clone()));
    SandboxInfo { function: Arc::from(identity.name.text.as_str()), path: Arc::clone(path), resource }
}
