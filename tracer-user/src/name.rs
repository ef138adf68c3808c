//! Names the function that a sandbox runs.
//!
//! In this order: what the operator said, the platform's environment variable in a process of the sandbox, the
//! container's name or labels, the cgroup's own name. Everything but the first comes from tenants, so it is bounded and
//! stripped of what would act on a terminal before anybody sees it.

mod container;
mod environment;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::cgroup::{Mount, Pattern};

/// Most bytes of a name.
pub const NAME_MAX: usize = 128;

/// Where a name came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// `--name CGROUP=NAME`.
    Option,
    /// This environment variable of a process in the sandbox.
    Environment(&'static str),
    /// The container's name, annotations or labels.
    Container,
    /// The cgroup's own name.
    Cgroup,
}

/// A function's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// At most [`NAME_MAX`] bytes, not empty, no control characters.
    pub text: String,
    /// Where it came from.
    pub source: Source,
    /// Whether a better name may be there later: the cgroup is made before the process starts, and the process begins as
    /// the container runtime's before it becomes the function's. Ask again at the sandbox's first record.
    pub provisional: bool,
}

/// Finds names.
#[derive(Clone, Debug)]
pub struct Names {
    mount: Mount,
    given: Vec<(Pattern, String)>,
    /// `/`, but for tests.
    root: PathBuf,
}

impl Names {
    /// Takes what the operator wrote after `--name`: `CGROUP=NAME`, the cgroup as for `--cgroup`.
    pub fn new<S: AsRef<str>>(mount: Mount, given: &[S]) -> Result<Self> {
        let parse = |text: &str| {
            let (cgroup, name) = text.rsplit_once('=').with_context(|| {
                format!("--name `{text}` has no `=`; write CGROUP=NAME, such as /fns/checkout-1=checkout")
            })?;
            let path = match mount.path_of(Path::new(cgroup)) {
                Some(path) => path,
                None => cgroup.to_owned(),
            };
            let name = clean(name.as_bytes()).with_context(|| format!("--name `{text}` gives no name"))?;
            ensure!(!cgroup.is_empty(), "--name `{text}` names no cgroup; write CGROUP=NAME");
            Ok((Pattern::new(&path).with_context(|| format!("--name `{text}`"))?, name))
        };
        let given = given.iter().map(|text| parse(text.as_ref())).collect::<Result<_>>()?;
        Ok(Self { mount, given, root: PathBuf::from("/") })
    }

    /// Names the sandbox with this path.
    ///
    /// May wait: the kernel reads a process's environment from its memory, which a hostile one can make slow to answer
    /// (userfaultfd, FUSE). So not on the thread that reads records.
    pub fn resolve(&self, path: &str) -> Name {
        if let Some(text) = self.given(path) {
            return Name { text, source: Source::Option, provisional: false };
        }
        if let Some((text, variable)) = environment::name(&self.root, &self.mount.place_of(path), path) {
            return Name { text, source: Source::Environment(variable), provisional: false };
        }
        if let Some(text) = container::name(&self.root, path) {
            return Name { text, source: Source::Container, provisional: true };
        }
        Name { text: of_cgroup(path), source: Source::Cgroup, provisional: true }
    }

    /// The path itself goes before a glob, this before an ancestor; among equals the first that was given.
    fn given(&self, path: &str) -> Option<String> {
        let find = |fits: &dyn Fn(&Pattern) -> bool| self.given.iter().find(|(pattern, _)| fits(pattern));
        find(&|pattern| pattern.as_str() == path)
            .or_else(|| find(&|pattern| pattern.matches(path)))
            .or_else(|| find(&|pattern| pattern.selects(path)))
            .map(|(_, name)| name.clone())
    }
}

/// The last segment of a path, without what systemd and container runtimes put around the name.
fn of_cgroup(path: &str) -> String {
    let last = path.rsplit('/').find(|segment| !segment.is_empty()).unwrap_or("/");
    let unit = [".scope", ".service", ".slice"].iter().find_map(|suffix| last.strip_suffix(suffix)).unwrap_or(last);
    let short = container::id(last).and_then(|id| id.get(..12));
    clean(short.map_or_else(|| unescape_unit(unit), |id| id.as_bytes().to_vec()).as_slice())
        .unwrap_or_else(|| "unnamed".to_owned())
}

/// Undoes `\x2d`, by which systemd writes a `-` in the name of a unit (systemd.unit(5)).
fn unescape_unit(unit: &str) -> Vec<u8> {
    let mut plain = Vec::with_capacity(unit.len());
    let mut parts = unit.split("\\x");
    plain.extend(parts.next().unwrap_or_default().bytes());
    for part in parts {
        match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                plain.extend(part.bytes().skip(2));
            }
            None => {
                plain.extend(b"\\x");
                plain.extend(part.bytes());
            }
        }
    }
    plain
}

/// Makes bytes of a tenant fit to be shown; `None` if nothing is left.
fn clean(bytes: &[u8]) -> Option<String> {
    // More than is kept, so that characters that are dropped do not count, but bounded.
    let bytes = bytes.get(..NAME_MAX * 8).unwrap_or(bytes);
    let mut text = String::new();
    for character in String::from_utf8_lossy(bytes).chars().filter(|character| is_visible(*character)) {
        if text.len() + character.len_utf8() > NAME_MAX {
            break;
        }
        text.push(character);
    }
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Whether a character neither acts on a terminal nor changes how the ones around it are shown.
fn is_visible(character: char) -> bool {
    !character.is_control()
        && !matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests;
