//! The platform's environment variable in a process of the sandbox.

use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
};

use super::clean;

/// What platforms set, the likeliest to be exact first. One that stands earlier wins, whichever process has it. Beside it
/// the platform, where nobody else sets that variable.
const VARIABLES: [(&str, Option<&str>); 11] = [
    ("AWS_LAMBDA_FUNCTION_NAME", Some("AWS Lambda")),
    ("K_SERVICE", Some("Knative")),
    ("FUNCTION_NAME", None),
    ("FUNCTION_TARGET", Some("Functions Framework")),
    ("OPENFAAS_FUNCTION_NAME", Some("OpenFaaS")),
    ("FN_FN_NAME", Some("Fn")),
    ("NUCLIO_FUNCTION_NAME", Some("Nuclio")),
    ("FC_FUNCTION_NAME", Some("Alibaba Function Compute")),
    ("SCF_FUNCTIONNAME", Some("Tencent SCF")),
    ("__OW_ACTION_NAME", Some("OpenWhisk")),
    // Also of web applications that are no functions.
    ("WEBSITE_SITE_NAME", None),
];

/// Most processes of a sandbox that are looked at. The function's server is among the first.
const PROCESSES: usize = 16;
/// Most bytes of an environment that are read.
const ENVIRONMENT: u64 = 1 << 20;

/// Where a platform writes the function's version, and its own name of the sandbox.
const VERSIONS: [&str; 2] = ["K_REVISION", "AWS_LAMBDA_FUNCTION_VERSION"];
const INSTANCES: [&str; 1] = ["AWS_LAMBDA_LOG_STREAM_NAME"];

/// What an environment says of its function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The variable's place in the list of those that name functions.
    rank: usize,
    pub(super) name: String,
    pub(super) version: Option<String>,
    pub(super) instance: Option<String>,
}

impl Said {
    /// The variable that held the name.
    pub(super) fn variable(&self) -> &'static str {
        VARIABLES.get(self.rank).map_or("", |(variable, _)| variable)
    }

    /// The platform that it tells of.
    pub(super) fn platform(&self) -> Option<&'static str> {
        VARIABLES.get(self.rank)?.1
    }

    /// Whether its variable is likelier to be exact than the other's.
    pub fn is_better(&self, than: Option<&Self>) -> bool {
        than.is_none_or(|than| self.rank < than.rank)
    }

    /// Reads an environment, as `/proc/PID/environ` has it.
    pub(super) fn read(environment: &[u8]) -> Option<Self> {
        let (rank, name) = first(environment)?;
        let value = |names: &[&str]| {
            environment.split(|byte| *byte == 0).find_map(|entry| {
                let equals = entry.iter().position(|byte| *byte == b'=')?;
                let known = names.iter().any(|name| name.as_bytes() == &entry[..equals]);
                if known { clean(&entry[equals + 1..]) } else { None }
            })
        };
        Some(Self { rank, name, version: value(&VERSIONS), instance: value(&INSTANCES) })
    }
}

/// What the processes of a sandbox say. `place` is the cgroup's directory, `path` what the kernel calls it.
pub(super) fn find(root: &Path, place: &Path, path: &str) -> Option<Said> {
    let list = fs::read_to_string(place.join("cgroup.procs")).ok()?;
    // A process of another pid namespace is listed as 0.
    let mut processes: Vec<u32> = list.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect();
    processes.sort_unstable();
    let mut best: Option<Said> = None;
    for pid in processes.into_iter().take(PROCESSES) {
        let process = root.join("proc").join(pid.to_string());
        let mut environment = Vec::new();
        let read =
            File::open(process.join("environ")).and_then(|file| file.take(ENVIRONMENT).read_to_end(&mut environment));
        if read.is_err() {
            continue;
        }
        let Some(said) = Said::read(&environment) else { continue };
        // The number may have gone to a process outside since the list was read.
        if said.is_better(best.as_ref()) && is_in(&process, path) {
            best = Some(said);
        }
    }
    best
}

/// The first of the variables that is there and names something, with its place in the list.
fn first(environment: &[u8]) -> Option<(usize, String)> {
    let entries = environment.split(|byte| *byte == 0);
    entries
        .filter_map(|entry| {
            let equals = entry.iter().position(|byte| *byte == b'=')?;
            let (variable, value) = (entry.get(..equals)?, entry.get(equals + 1..)?);
            let rank = VARIABLES.iter().position(|(known, _)| known.as_bytes() == variable)?;
            // OpenWhisk writes /namespace/package/action.
            let value =
                if variable == b"__OW_ACTION_NAME" { value.rsplit(|byte| *byte == b'/').next()? } else { value };
            Some((rank, clean(value)?))
        })
        .min_by_key(|(rank, _)| *rank)
}

/// Whether a process is in this cgroup (the line of cgroup v2 in `/proc/PID/cgroup`, cgroups(7)).
fn is_in(process: &Path, path: &str) -> bool {
    let text = fs::read(process.join("cgroup")).unwrap_or_default();
    text.split(|byte| *byte == b'\n').any(|line| line.strip_prefix(b"0::") == Some(path.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_exact_variable_wins() {
        let first = |text: &str| first(text.as_bytes());
        assert_eq!(first("PATH=/bin\0FUNCTION_TARGET=handler\0K_SERVICE=checkout\0"), Some((1, "checkout".into())));
        assert_eq!(first("K_SERVICE=\0FUNCTION_TARGET=handler"), Some((3, "handler".into())), "an empty one is none");
        assert_eq!(first("XK_SERVICE=no\0K_SERVICE\0=\0"), None);
        assert_eq!(first("__OW_ACTION_NAME=/guest/shop/cart"), Some((9, "cart".into())));
        assert_eq!(first("K_SERVICE=a=b"), Some((1, "a=b".into())));
    }
}
