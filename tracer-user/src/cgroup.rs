//! Finds sandboxes: where cgroup v2 is mounted, which cgroups the operator chose, and a cgroup's path from its id.
//!
//! A cgroup's *path* here is what the kernel calls it, from the root of the hierarchy: `/fns/checkout-1`. Its place in
//! the file system is the mount point with the path behind it. Its *id* is the inode number of its directory, which is
//! also what `bpf_get_current_cgroup_id` and its relatives return.

use std::{
    ffi::{OsStr, OsString},
    fmt, fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, ffi::OsStringExt as _, fs::MetadataExt as _},
    },
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use tracer_ebpf::glob;

/// Where cgroup v2 is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount point.
    pub point: PathBuf,
    /// The path of the cgroup that is seen at the mount point: `/` unless only a part of the tree is mounted.
    pub root: String,
}

impl Mount {
    /// Finds the mount of this process's mount namespace that shows the most of the tree.
    pub fn find() -> Result<Self> {
        let table = fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo; is /proc mounted?")?;
        Self::parse(&table).context(
            "cgroup v2 is not mounted; mount it: mount -t cgroup2 none /sys/fs/cgroup (beside v1: any directory)",
        )
    }

    /// Reads `/proc/self/mountinfo` (the format: proc_pid_mountinfo(5)).
    fn parse(table: &[u8]) -> Option<Self> {
        let mut best: Option<Self> = None;
        for line in table.split(|&byte| byte == b'\n') {
            let mut fields = line.split(|&byte| byte == b' ');
            let (Some(root), Some(point)) = (fields.nth(3), fields.next()) else { continue };
            // Optional fields stand between the mount's own options and a lone "-".
            if fields.find(|field| *field == b"-").is_none() || fields.next() != Some(b"cgroup2") {
                continue;
            }
            let root = String::from_utf8_lossy(&unescape(root)).into_owned();
            let found = Self { point: PathBuf::from(OsString::from_vec(unescape(point))), root };
            // Of two mounts of the whole tree either will do; of two parts the one nearer to the root shows more.
            if best.as_ref().is_none_or(|best| found.root.len() < best.root.len()) {
                best = Some(found);
            }
        }
        best
    }

    /// The path of the cgroup at a place in the file system; `None` if it is not below the mount point.
    pub fn path_of(&self, place: &Path) -> Option<String> {
        let below = place.strip_prefix(&self.point).ok()?.to_string_lossy();
        let root = self.root.trim_end_matches('/');
        Some(if below.is_empty() { self.root.clone() } else { format!("{root}/{below}") })
    }

    /// The place in the file system of the cgroup with this path; the opposite of [`Mount::path_of`].
    pub fn place_of(&self, path: &str) -> PathBuf {
        let below = match self.root.as_str() {
            "/" => path,
            root => path.strip_prefix(root).unwrap_or(path),
        };
        self.point.join(below.trim_start_matches('/'))
    }

    /// The place of the cgroup with this id, if it exists and is below the mount point.
    ///
    /// A cgroup's file handle is its id (fs/kernfs/mount.c, `kernfs_fh_to_dentry`; Linux 5.5). Opening one asks for
    /// CAP_DAC_READ_SEARCH; without it the tree is searched.
    pub fn find_id(&self, id: u64) -> io::Result<Option<PathBuf>> {
        #[repr(C)]
        struct Handle {
            bytes: u32,
            kind: i32,
            id: [u8; 8],
        }
        /// FILEID_KERNFS, include/linux/exportfs.h.
        const KERNFS: i32 = 0xfe;

        let mount = fs::File::open(&self.point)?;
        let mut handle = Handle { bytes: 8, kind: KERNFS, id: id.to_ne_bytes() };
        // SAFETY: `handle` is laid out as `struct file_handle` with eight bytes behind it, as `bytes` says, and outlives
        // the call; the kernel only reads it.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_raw_fd(),
                (&raw mut handle),
                libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ESTALE) => Ok(None),
                Some(libc::EPERM) => {
                    Ok(walk(&self.point).into_iter().find_map(|(found, place)| (found == id).then_some(place)))
                }
                _ => Err(error),
            };
        }
        // SAFETY: the call above made this descriptor, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let place = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        Ok(place.starts_with(&self.point).then_some(place))
    }
}

/// Undoes the octal escapes that the kernel writes for blanks, tabs, line feeds and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        let octal = |digit: u8| matches!(digit, b'0'..=b'7').then(|| u32::from(digit - b'0'));
        if first == b'\\'
            && let [a, b, c, tail @ ..] = tail
            && let (Some(a), Some(b), Some(c)) = (octal(*a), octal(*b), octal(*c))
            && let Ok(byte) = u8::try_from(a * 64 + b * 8 + c)
        {
            plain.push(byte);
            rest = tail;
        } else {
            plain.push(first);
        }
    }
    plain
}

/// The id of the cgroup at a place in the file system.
pub fn id(place: &Path) -> io::Result<u64> {
    fs::symlink_metadata(place).map(|metadata| metadata.ino())
}

/// Lists the cgroup at `root` and every cgroup below it, parents before children. One that goes away meanwhile is left
/// out.
pub fn walk(root: &Path) -> Vec<(u64, PathBuf)> {
    let mut found = Vec::new();
    if let Ok(id) = id(root) {
        found.push((id, root.to_path_buf()));
    }
    let mut next = 0;
    while let Some((_, place)) = found.get(next) {
        let entries = fs::read_dir(place).into_iter().flatten().flatten();
        let children: Vec<_> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| Some((entry.metadata().ok()?.ino(), entry.path())))
            .collect();
        found.extend(children);
        next += 1;
    }
    found
}

/// A path in which `*` stands for any characters and `?` for any one, neither ever for a `/`.
///
/// A pattern selects a cgroup if it matches its path or that of one of its ancestors. The kernel half decides the same
/// when a cgroup is made; [`Pattern::selects`] is what it has to agree with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// Takes a path from the root of the hierarchy, in its plainest form: a leading `/`, none at the end, no empty
    /// segment, no `.` or `..`.
    pub fn new(text: &str) -> Result<Self> {
        let mut plain = String::with_capacity(text.len() + 1);
        for segment in text.split('/').filter(|segment| !matches!(*segment, "" | ".")) {
            ensure!(segment != "..", "`{text}` contains `..`; write the path out");
            ensure!(!segment.contains('\0'), "a path cannot contain a NUL byte");
            plain.push('/');
            plain.push_str(segment);
        }
        if plain.is_empty() {
            plain.push('/');
        }
        Ok(Self(plain))
    }

    /// The text, as the kernel half gets it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to expand.
    pub fn is_literal(&self) -> bool {
        !self.0.contains(['*', '?'])
    }

    /// The longest part before the first segment with something to expand.
    fn literal_ancestor(&self) -> &str {
        match self.0.find(['*', '?']) {
            None => &self.0,
            Some(at) => match self.0[..at].rfind('/') {
                None | Some(0) => "/",
                Some(slash) => &self.0[..slash],
            },
        }
    }

    /// Whether this is the path itself.
    pub fn matches(&self, path: &str) -> bool {
        glob::matches(self.0.as_bytes(), path.as_bytes())
    }

    /// Whether this is the path itself or one of its ancestors.
    pub fn selects(&self, path: &str) -> bool {
        self.0 == "/" || self.matches(path) || path.match_indices('/').any(|(end, _)| self.matches(&path[..end]))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The sandboxes that the operator chose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// What selects a cgroup: any one of these.
    pub patterns: Vec<Pattern>,
    /// The directories to attach to, none below another: everything that can ever be selected is below one of them.
    pub roots: Vec<PathBuf>,
}

impl Selection {
    /// Resolves what the operator wrote after `--cgroup`.
    pub fn resolve<S: AsRef<OsStr>>(mount: &Mount, chosen: &[S]) -> Result<Self> {
        let mut selection = Self::default();
        for chosen in chosen {
            let (pattern, root) = resolve_one(mount, chosen.as_ref())?;
            if !selection.patterns.contains(&pattern) {
                selection.patterns.push(pattern);
            }
            selection.roots.push(root);
        }
        // A program that is attached to a cgroup and to one above it would see each packet twice.
        selection.roots.sort();
        selection.roots.dedup_by(|root, above| root.starts_with(above));
        Ok(selection)
    }

    /// Whether the cgroup with this path is selected.
    pub fn selects(&self, path: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.selects(path))
    }

    /// The selected cgroups that exist now, with id and path.
    pub fn existing(&self, mount: &Mount) -> Vec<(u64, String)> {
        let all = self.roots.iter().flat_map(|root| walk(root));
        all.filter_map(|(id, place)| Some((id, mount.path_of(&place)?)))
            .filter(|(_, path)| self.selects(path))
            .collect()
    }
}

fn resolve_one(mount: &Mount, chosen: &OsStr) -> Result<(Pattern, PathBuf)> {
    let shown = chosen.to_string_lossy();
    let text = chosen.to_str().with_context(|| format!("--cgroup `{shown}` is not UTF-8"))?;
    ensure!(!text.is_empty(), "--cgroup is empty; name a cgroup, such as /fns");
    let place = plain(Path::new(text));
    let inside = if place.starts_with(&mount.point) { mount.path_of(&place) } else { None };
    let is_place = inside.is_some();
    // A part of the tree that is mounted alone is named from its own root, like a whole tree.
    let path = match inside {
        Some(path) => path,
        None => format!("{}/{text}", mount.root.trim_end_matches('/')),
    };
    let pattern = Pattern::new(&path).with_context(|| format!("--cgroup `{shown}`"))?;
    let ancestor = pattern.literal_ancestor();
    if ancestor == "/" {
        if text == "/" {
            return Ok((pattern, mount.point.clone()));
        }
        ensure!(
            !pattern.is_literal(),
            "--cgroup `{shown}` is the root cgroup; write `--cgroup /` if every process of the host is meant"
        );
        bail!(
            "--cgroup `{shown}` would attach to the root cgroup; put the sandboxes below a cgroup of their own \
             (`--cgroup '/fns/*'`), or write `--cgroup /` if every process of the host is meant"
        );
    }
    let root = mount.place_of(ancestor);
    let metadata = match fs::metadata(&root) {
        Ok(metadata) => metadata,
        Err(_) if !is_place && text.starts_with('/') && place.exists() => bail!(
            "--cgroup `{shown}` is not in the cgroup v2 hierarchy, which is mounted at {}; see `find {0} -type d`",
            mount.point.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let of = if pattern.is_literal() { String::new() } else { format!(" for `{shown}`") };
            bail!(
                "no such cgroup: {}{of}; make it first (mkdir), or see `find {} -type d` for those there are",
                root.display(),
                mount.point.display()
            )
        }
        Err(error) => bail!("--cgroup `{shown}`: {}: {error}", root.display()),
    };
    ensure!(
        metadata.is_dir(),
        "--cgroup `{shown}`: {} is not a directory; name the cgroup that contains it",
        root.display()
    );
    ensure!(
        is_cgroup2(&root).with_context(|| format!("--cgroup `{shown}`"))?,
        "--cgroup `{shown}`: {} is not cgroup v2, which is mounted at {}",
        root.display(),
        mount.point.display()
    );
    Ok((pattern, root))
}

/// Drops `.` and doubled slashes; `..` stays and is refused later.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

/// Whether the file system at a place is cgroup v2.
pub fn is_cgroup2(place: &Path) -> io::Result<bool> {
    let name = std::ffi::CString::new(place.as_os_str().as_bytes())?;
    let mut found = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `name` is a C string and `found` has room for the answer; both outlive the call.
    if unsafe { libc::statfs(name.as_ptr(), found.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it has filled the structure in.
    let found = unsafe { found.assume_init() };
    Ok(found.f_type == libc::CGROUP2_SUPER_MAGIC)
}

#[cfg(test)]
mod tests;
