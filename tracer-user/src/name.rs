//! Names the function that a sandbox runs.
//!
//! In this order: what the operator said, the platform's environment variable in a process of the sandbox, the
//! container's name or labels, the cgroup's own name. Everything but the first comes from tenants, so it is bounded and
//! stripped of what would act on a terminal before anybody sees it.

mod container;
mod environment;
mod place;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use self::container::Container;
pub use self::environment::Said;
use crate::{
    cgroup::{Mount, Pattern},
    path::Resource,
};

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

impl Source {
    /// The best has the least.
    const fn rank(self) -> u8 {
        match self {
            Self::Option => 0,
            Self::Environment(_) => 1,
            Self::Container => 2,
            Self::Cgroup => 3,
        }
    }
}

/// A function's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// At most [`NAME_MAX`] bytes, not empty, no control characters.
    pub text: String,
    /// Where it came from.
    pub source: Source,
}

/// Who a sandbox is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The function that it runs.
    pub name: Name,
    /// What else is known, under OpenTelemetry's names.
    pub resource: Resource,
    /// The platform whose function it is, and by what that shows.
    pub platform: Option<Platform>,
}

/// A platform that runs functions, and what tells that it runs this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Its name.
    pub name: &'static str,
    /// A variable of its environment, a label, or a place.
    pub by: &'static str,
}

impl Identity {
    /// Takes what was found later. The runtime removes its files and a process its environment when a container ends: what
    /// is gone since stays known.
    pub fn improve(&mut self, later: Self) {
        let (old, new) = (std::mem::replace(self, later), self);
        if old.name.source.rank() < new.name.source.rank() {
            new.name = old.name;
        }
        macro_rules! keep {
            ($($field:ident)*) => { $(new.resource.$field = new.resource.$field.take().or(old.resource.$field);)* };
        }
        keep!(faas_version container_id container_name container_image_name container_runtime_name);
        keep!(k8s_namespace_name k8s_pod_name k8s_pod_uid k8s_container_name);
        new.platform = new.platform.or(old.platform);
        new.resource.faas_instance = old.resource.faas_instance.or(new.resource.faas_instance.take());
        new.resource.faas_name = (new.name.source != Source::Cgroup).then(|| new.name.text.as_str().into());
    }
}

/// What an environment, or the beginning of one, says of its function. The kernel half sends it when a program starts.
pub fn said(environment: &[u8]) -> Option<Said> {
    Said::read(environment)
}

/// The path of the innermost container that this path is, or is below.
pub fn container_of(path: &str) -> Option<&str> {
    place::container(path)
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

    /// Says who the sandbox with this path is. `heard` is what the environment of a process there said when it started: the
    /// process may be gone, or hide it.
    ///
    /// May wait: the kernel reads a process's environment from its memory, which a hostile one can make slow to answer
    /// (userfaultfd, FUSE). So not on the thread that reads records.
    pub fn resolve(&self, path: &str, heard: Option<&Said>) -> Identity {
        let found = environment::find(&self.root, &self.mount.place_of(path), path);
        let said = match (found, heard) {
            (Some(found), heard) if !heard.is_some_and(|heard| heard.is_better(Some(&found))) => Some(found),
            (_, heard) => heard.cloned(),
        };
        self.identity(path, said, Container::find(&self.root, &self.mount, path))
    }

    /// What can be said at once, without a look at any file that may be slow.
    pub fn resolve_at_once(&self, path: &str, heard: Option<&Said>) -> Identity {
        self.identity(path, heard.cloned(), Container::of_path(path))
    }

    fn identity(&self, path: &str, said: Option<Said>, container: Container) -> Identity {
        let name = |text: &String, source| Name { text: text.clone(), source };
        let name = if let Some(text) = self.given(path) {
            Name { text, source: Source::Option }
        } else if let Some(said) = &said {
            name(&said.name, Source::Environment(said.variable()))
        } else if let Some(text) = &container.function {
            name(text, Source::Container)
        } else {
            Name { text: of_cgroup(path), source: Source::Cgroup }
        };
        let claim = |said: &Said| Some(Platform { name: said.platform()?, by: said.variable() });
        let platform = said.as_ref().and_then(claim);
        let platform = platform.or_else(|| container.platform.map(|(name, by)| Platform { name, by }));
        let known = |text: Option<String>| text.map(String::into_boxed_str);
        let (version, instance) = said.map_or((None, None), |said| (said.version, said.instance));
        let resource = Resource {
            faas_name: (name.source != Source::Cgroup).then(|| name.text.as_str().into()),
            faas_version: known(version),
            faas_instance: known(instance.or_else(|| container.pod.clone()).or_else(|| container.id.clone())),
            container_id: known(container.id),
            container_name: known(container.name),
            container_image_name: known(container.image),
            container_runtime_name: container.runtime.map(Into::into),
            k8s_namespace_name: known(container.namespace),
            k8s_pod_name: known(container.pod),
            k8s_pod_uid: known(container.pod_uid),
            k8s_container_name: known(container.name_in_pod),
        };
        Identity { name, resource, platform }
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
    let short = place::id(last).and_then(|(_, id)| id.get(..12));
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
