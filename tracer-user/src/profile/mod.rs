//! What is known of functions over many invocations: `fntrace profile`.
//!
//! A [`Profile`] takes paths one by one and keeps counts in bounded memory, whatever the paths hold. Profiles merge, in
//! any order and any parts, to exactly the profile of all their paths ([`bounded`] says how that goes together with
//! bounds). [`findings`] reads from the counts what is worth changing, [`compare`] what changed; [`form`] prints.

pub mod bounded;
pub mod cli;
pub mod compare;
pub mod findings;
pub mod form;
pub mod histogram;
pub mod late;
pub mod live;
mod patterns;
pub mod sample;
mod shape;
pub mod stats;
mod walk;

#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{self, Write},
    path::Path as FilePath,
};

use serde::{Deserialize, Serialize};

use crate::path::Version;
use bounded::{Bounded, Merge, Tally, merge_fields};
use stats::{
    CYCLES_MAX, Circle, EXTERNALS_MAX, External, FUNCTIONS_MAX, Form, Function, Name, SHAPES_MAX, STACKS_MAX, Shape,
    Stack,
};

/// Counts over paths. The fields' names are the keys of the JSON form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Version of the contract.
    pub fntrace: Version,
    /// Which line this is.
    #[serde(rename = "type")]
    pub kind: ProfileType,
    /// Paths.
    pub paths: u64,
    /// Of these, paths of which a part is missing.
    pub incomplete: u64,
    /// Parts that came so late that their path was counted already ([`late`]). They are counted here and nowhere else.
    pub late: u64,
    /// Paths that begin with a call that no invocation made (a timer, background work).
    pub root_calls: u64,
    /// Start of the earliest path, in µs since 1970.
    pub first: Earliest,
    /// Start of the latest path, in µs since 1970.
    pub last: Latest,
    /// Length of all paths together, in µs: what the shares of critical paths are shares of.
    pub critical_us: u64,
    /// Functions.
    pub functions: Bounded<Name, Function, FUNCTIONS_MAX>,
    /// Shapes of paths.
    pub shapes: Bounded<Form, Shape, SHAPES_MAX>,
    /// External services.
    pub externals: Bounded<Name, External, EXTERNALS_MAX>,
    /// Functions that called themselves, at once or through others. Time: the invocations within.
    pub cycles: Bounded<Circle, Tally, CYCLES_MAX>,
    /// Own time by stack of functions, in µs.
    pub stacks: Bounded<Stack, OwnTime, STACKS_MAX>,
}
merge_fields!(Profile {
    fntrace,
    kind,
    paths,
    incomplete,
    late,
    root_calls,
    first,
    last,
    critical_us,
    functions,
    shapes,
    externals,
    cycles,
    stacks,
});

/// `"type":"profile"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProfileType {
    /// The only value.
    #[default]
    #[serde(rename = "profile")]
    Profile,
}

impl Merge for Version {
    fn merge(&mut self, Self: Self) {}
}

impl Merge for ProfileType {
    fn merge(&mut self, Self::Profile: Self) {}
}

/// Time in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnTime {
    /// The time.
    pub us: u64,
}
merge_fields!(OwnTime { us });

/// The earliest of times, in µs since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earliest(pub Option<i64>);

/// The latest of times, in µs since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latest(pub Option<i64>);

impl Earliest {
    fn add(&mut self, time: i64) {
        self.0 = Some(self.0.map_or(time, |old| old.min(time)));
    }
}

impl Latest {
    fn add(&mut self, time: i64) {
        self.0 = self.0.max(Some(time));
    }
}

impl Merge for Earliest {
    fn merge(&mut self, other: Self) {
        other.0.into_iter().for_each(|time| self.add(time));
    }
}

impl Merge for Latest {
    fn merge(&mut self, other: Self) {
        self.0 = self.0.max(other.0);
    }
}

/// Writes a file so that a reader finds the old content or the new, whole: beside it first, then moved over it.
pub fn write_atomically(
    file: &FilePath,
    write: impl FnOnce(&mut io::BufWriter<fs::File>) -> io::Result<()>,
) -> io::Result<()> {
    let name = file.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file"))?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.new", std::process::id()));
    let beside = file.with_file_name(beside);
    // What an earlier process with this number left. `create_new` follows no link that somebody puts there instead.
    let _ = fs::remove_file(&beside);
    let written = fs::File::create_new(&beside).and_then(|created| {
        let mut out = io::BufWriter::new(created);
        write(&mut out)?;
        out.flush()?;
        out.get_ref().sync_data()?;
        fs::rename(&beside, file)
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}
