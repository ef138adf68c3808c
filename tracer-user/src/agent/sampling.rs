//! Which paths the kernel half records, and what it costs.

use std::{os::fd::OwnedFd, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    maps::{Array, HashMap, MapData},
    sys::{Stats, enable_stats},
};

use super::{Agent, map};

/// The share of paths that is recorded, by place; see the kernel half's `sampling`.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Sampling {
    functions: HashMap<MapData, u64, u64>,
    roots: Array<MapData, u64>,
    shares: Array<MapData, u64>,
}

impl Sampling {
    /// Gives a sandbox the place of its function.
    ///
    /// # Errors
    ///
    /// If the map is full.
    pub fn place(&mut self, cgroup: u64, place: usize) -> Result<()> {
        self.functions.insert(cgroup, place as u64, 0).context("note a sandbox's function")
    }

    /// Forgets a sandbox.
    pub fn forget(&mut self, cgroup: u64) {
        // It may never have had a place.
        let _ = self.functions.remove(&cgroup);
    }

    /// Sets the part of a place's paths that is recorded, from 0 to 1.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn set_share(&mut self, place: usize, share: f64) -> Result<()> {
        const ALL: f64 = (1u64 << 32) as f64;
        self.shares.set(place as u32, (share * ALL) as u64, 0).context("set a share")
    }

    /// How many paths have begun in a place's sandboxes.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn roots(&self, place: usize) -> Result<u64> {
        self.roots.get(&(place as u32), 0).context("read how many paths began")
    }
}

/// As long as it lives, the kernel counts the time that programs run: all of the host's.
#[derive(Debug)]
pub struct RunTime {
    _held: OwnedFd,
}

impl RunTime {
    /// Begins to count (Linux 5.8).
    ///
    /// # Errors
    ///
    /// Without `CAP_SYS_ADMIN`.
    pub fn count() -> Result<Self> {
        let held =
            enable_stats(Stats::RunTime).context("count the run time of BPF programs (it takes CAP_SYS_ADMIN)")?;
        Ok(Self { _held: held })
    }
}

impl Agent {
    /// The maps that say what is recorded. Once only.
    ///
    /// # Errors
    ///
    /// If they have been taken.
    pub fn sampling(&mut self) -> Result<Sampling> {
        let bpf = self.bpf()?;
        Ok(Sampling {
            functions: HashMap::try_from(map(bpf, "FUNCTIONS")?)?,
            roots: Array::try_from(map(bpf, "ROOTS")?)?,
            shares: Array::try_from(map(bpf, "SHARES")?)?,
        })
    }

    /// How long the programs have run while a [`RunTime`] lived; nothing once they are detached.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell.
    pub fn run_time(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for (name, program) in self.bpf.iter().flat_map(aya::Ebpf::programs) {
            match program.info() {
                Ok(info) => sum += info.run_time(),
                Err(aya::programs::ProgramError::NotLoaded) => {}
                Err(error) => return Err(error).with_context(|| format!("ask how long {name} has run")),
            }
        }
        Ok(sum)
    }
}
