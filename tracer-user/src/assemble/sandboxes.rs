//! What is known of the sandboxes: their names, how they started, which are gone.

use std::sync::Arc;

use tracer_ebpf::record::{Header, Kind};

use super::{Assembler, birth::Birth};
use crate::path::Resource;

/// What is known of a sandbox from outside the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxInfo {
    /// The function's name.
    pub function: Arc<str>,
    /// The path below the cgroup v2 root.
    pub path: Arc<str>,
    /// What else is known of it.
    pub resource: Option<Arc<Resource>>,
}

impl SandboxInfo {
    fn unnamed(cgroup_id: u64) -> Self {
        let name: Arc<str> = format!("cgroup:{cgroup_id}").into();
        Self { function: Arc::clone(&name), path: name, resource: None }
    }
}

/// Sandboxes whose names are kept after they are gone, for paths that are still to be given out.
const GONE_MAX: usize = 4096;
/// Sandboxes whose names are kept at all.
pub(super) const SANDBOXES_MAX: usize = 1 << 17;

#[derive(Debug, Default)]
pub(super) struct Sandbox {
    pub info: Option<SandboxInfo>,
    /// If that was seen.
    pub birth: Option<Birth>,
    pub gone: bool,
    /// A runtime that is ready for its first invocation.
    pub ready: Option<Ready>,
}

/// A runtime that polls, and has asked for its first invocation. Times are CLOCK_MONOTONIC, ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    pub pid: u32,
    pub began_ns: u64,
    pub at_ns: u64,
}

impl Assembler {
    pub(super) fn sandbox_entry(&mut self, cgroup_id: u64) -> Option<&mut Sandbox> {
        if self.sandboxes.len() >= SANDBOXES_MAX && !self.sandboxes.contains_key(&cgroup_id) {
            self.totals.sandboxes_full += 1;
            return None;
        }
        Some(self.sandboxes.entry(cgroup_id).or_default())
    }

    pub(super) fn born(&mut self, header: &Header, path: &[u8]) {
        self.totals.records.count(Kind::SandboxBorn);
        let fallback: Arc<str> = String::from_utf8_lossy(path).into();
        if let Some(sandbox) = self.sandbox_entry(header.sandbox) {
            if sandbox.gone {
                *sandbox = Sandbox::default();
            }
            sandbox.birth = Some(Birth::new(header.at_ns));
            let info = || SandboxInfo { function: fallback.clone(), path: fallback, resource: None };
            sandbox.info.get_or_insert_with(info);
        }
    }

    pub(super) fn birth(&mut self, cgroup_id: u64) -> Option<&mut Birth> {
        self.sandboxes.get_mut(&cgroup_id)?.birth.as_mut()
    }

    pub(super) fn sandbox_gone(&mut self, header: &Header) {
        self.totals.records.count(Kind::SandboxGone);
        let Some(sandbox) = self.sandboxes.get_mut(&header.sandbox) else { return };
        if !std::mem::replace(&mut sandbox.gone, true) {
            self.gone.push_back(header.sandbox);
        }
        if self.gone.len() > GONE_MAX
            && let Some(oldest) = self.gone.pop_front()
            && self.sandboxes.get(&oldest).is_some_and(|sandbox| sandbox.gone)
        {
            self.sandboxes.remove(&oldest);
        }
    }

    /// What is known of a sandbox; it goes by its cgroup id if it has no name.
    pub(super) fn sandbox_info(&self, cgroup_id: u64) -> SandboxInfo {
        let known = self.sandboxes.get(&cgroup_id).and_then(|sandbox| sandbox.info.as_ref());
        known.cloned().unwrap_or_else(|| SandboxInfo::unnamed(cgroup_id))
    }

    /// The function that a sandbox runs.
    pub(super) fn function(&self, cgroup_id: u64) -> Arc<str> {
        let known = self.sandboxes.get(&cgroup_id).and_then(|sandbox| sandbox.info.as_ref());
        known.map_or_else(|| SandboxInfo::unnamed(cgroup_id).function, |info| Arc::clone(&info.function))
    }
}
