//! The demo's sandboxes as containers: runc makes the cgroup, name spaces for processes, mounts and host name, and a file
//! tree in which there is the function and what it is linked to. The network stays the host's.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

/// Where the function is, for itself.
const PROGRAM: &str = "/function";
/// What a program may be linked to. Read-only, and only what is there.
const LIBRARIES: [&str; 4] = ["/usr/lib", "/lib", "/usr/lib64", "/lib64"];

/// Makes containers below one cgroup.
#[derive(Debug)]
pub(super) struct Runc {
    /// The name of the slice, and its path below the mount of cgroup v2.
    slice: String,
    /// Bundles, and the file tree that all containers share: a few empty files and directories to mount upon.
    files: PathBuf,
}

/// Whether runc is there to be run; the error says what to do.
pub fn runc_answers() -> Result<()> {
    let answer = Command::new("runc").arg("--version").stdin(Stdio::null()).output();
    match answer {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!("`runc --version`: {}", output.status),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("--containers needs runc: install it (Debian: apt-get install runc), or leave --containers out")
        }
        Err(error) => Err(error).context("start runc"),
    }
}

impl Runc {
    pub fn new(slice: &str) -> Result<Self> {
        let files = PathBuf::from("/run").join(slice);
        let rootfs = files.join("rootfs");
        for directory in ["proc", "dev"] {
            let directory = rootfs.join(directory);
            fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        }
        Ok(Self { slice: slice.to_owned(), files })
    }

    /// The command that runs a function in a container, and ends with it.
    pub fn command(
        &self,
        sandbox: &str,
        launch: &[OsString],
        function: &str,
        environment: &[(String, String)],
    ) -> Result<Command> {
        let (program, arguments) = launch.split_first().context("nothing to start the function with")?;
        let program = match program.to_str() {
            // The link that is meant is this process's, not runc's.
            Some("/proc/self/exe") => std::env::current_exe().context("look for this executable")?,
            _ => PathBuf::from(program),
        };
        ensure!(program.exists(), "{} is gone: it cannot be mounted into a container", program.display());
        let texts = arguments.iter().map(|argument| argument.to_str().context("an argument is not UTF-8"));
        let arguments = [vec![PROGRAM], texts.collect::<Result<_>>()?, vec![function]].concat();
        let mut environment: Vec<String> = environment.iter().map(|(key, value)| format!("{key}={value}")).collect();
        environment.push(format!("FUNCTION_NAME={function}"));
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": arguments,
                "env": environment,
                "cwd": "/",
            },
            "root": {"path": self.files.join("rootfs"), "readonly": true},
            "hostname": sandbox,
            "mounts": mounts(&program),
            "linux": {
                "cgroupsPath": format!("/{}/{sandbox}", self.slice),
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            },
        });
        let bundle = self.files.join(sandbox);
        fs::create_dir(&bundle).with_context(|| format!("make {}", bundle.display()))?;
        fs::write(bundle.join("config.json"), config.to_string()).context("write the container's config.json")?;
        let mut command = Command::new("runc");
        command.arg("run").arg("--bundle").arg(&bundle).arg(format!("{}-{sandbox}", self.slice));
        Ok(command)
    }

    /// Removes the files, and what runc has made of the slice in hierarchies of cgroup v1.
    pub fn clear(&self) -> Result<()> {
        clear(&self.slice)
    }
}

/// Removes what the containers of a slice have left. All of them are gone.
pub(super) fn clear(slice: &str) -> Result<()> {
    for point in cgroup1() {
        // Empty of processes; where it is not there, there is nothing to do.
        remove_empty(&point.join(slice));
    }
    match fs::remove_dir_all(Path::new("/run").join(slice)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("remove the containers' files"),
        _ => Ok(()),
    }
}

fn remove_empty(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_empty(&entry.path());
    }
    let _ = fs::remove_dir(cgroup);
}

/// Where hierarchies of cgroup v1 are mounted (the format: proc_pid_mountinfo(5)).
fn cgroup1() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lines = table.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    });
    lines.collect()
}

fn mounts(program: &Path) -> Value {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}),
        json!({"destination": PROGRAM, "type": "bind", "source": program, "options": ["bind", "ro"]}),
    ];
    let there = LIBRARIES.iter().filter(|library| Path::new(library).is_dir());
    mounts.extend(
        there.map(
            |library| json!({"destination": library, "type": "bind", "source": library, "options": ["rbind", "ro"]}),
        ),
    );
    Value::from(mounts)
}
