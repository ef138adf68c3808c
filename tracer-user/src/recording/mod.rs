//! A run, on file: `fntrace run --record FILE` writes down all that the assembler is given, `fntrace replay FILE` gives it
//! to another one, and the same paths come out.
//!
//! The file begins with one line of JSON, [`Preamble`]. Then come entries: a byte for what it is, the length of the rest
//! as 32 bits, and the rest. Numbers are in the machine's byte order, as the records themselves are; the first line says
//! which. What is in it is what the kernel half saw, whole: heads with their fields, environments, parts of stacks.

mod replay;
#[cfg(test)]
mod tests;
mod write;

pub use self::{
    replay::{Replayed, replay},
    write::Recorder,
};

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracer_ebpf::record::LAYOUT;

use crate::{
    assemble::{Config, SandboxInfo},
    path::Resource,
};

/// Raised with any change to the form of the file that an older reader would misunderstand.
const VERSION: u32 = 1;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Preamble {
    fntrace_recording: u32,
    /// The form of the records themselves.
    layout: u32,
    /// `little` or `big`.
    byte_order: String,
    config: Config,
}

impl Preamble {
    fn new(config: Config) -> Self {
        Self { fntrace_recording: VERSION, layout: LAYOUT, byte_order: own_byte_order().to_owned(), config }
    }
}

const fn own_byte_order() -> &'static str {
    if cfg!(target_endian = "little") { "little" } else { "big" }
}

/// What an entry is.
mod kind {
    /// A record, as it was in the ring buffer.
    pub const RECORD: u8 = b'r';
    /// Who a sandbox is: its id, then [`super::Sandbox`] as JSON.
    pub const SANDBOX: u8 = b's';
    /// The wall clock less CLOCK_MONOTONIC, in ns.
    pub const CLOCK: u8 = b'c';
    /// Records that the ring buffer has refused so far.
    pub const LOST: u8 = b'l';
    /// The time, CLOCK_MONOTONIC in ns: what is complete by now is given out.
    pub const ADVANCE: u8 = b'a';
    /// The run has ended.
    pub const FINISH: u8 = b'f';
}

/// [`SandboxInfo`] on file.
#[derive(Debug, Serialize, Deserialize)]
struct Sandbox {
    function: String,
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resource: Option<Resource>,
}

impl From<&SandboxInfo> for Sandbox {
    fn from(info: &SandboxInfo) -> Self {
        Self {
            function: info.function.to_string(),
            path: info.path.to_string(),
            resource: info.resource.as_deref().cloned(),
        }
    }
}

impl From<Sandbox> for SandboxInfo {
    fn from(sandbox: Sandbox) -> Self {
        Self {
            function: Arc::from(sandbox.function),
            path: Arc::from(sandbox.path),
            resource: sandbox.resource.map(Arc::new),
        }
    }
}
