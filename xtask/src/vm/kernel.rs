//! Debian's kernels, from the mirrors that this machine's own apt uses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::run;

/// The package that depends on the newest kernel of a suite.
const NEWEST: &str = "linux-image-cloud-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel that Debian maintains.
#[derive(Debug)]
pub struct Kernel {
    /// The series; what was got says itself which release it is.
    pub version: &'static str,
    /// The suite that has it.
    pub suite: &'static str,
    /// Whether it is below the agent's floor.
    pub refused: bool,
}

/// All of them, the oldest first.
pub const KERNELS: [Kernel; 4] = [
    Kernel { version: "5.10", suite: "bullseye-security", refused: true },
    Kernel { version: "6.1", suite: "bookworm-security", refused: false },
    Kernel { version: "6.12", suite: "trixie", refused: false },
    Kernel { version: "of the newest series", suite: "trixie-backports", refused: false },
];

impl Kernel {
    /// The kernel's image, below `cache`; what was got once is not asked for again. Remove the folder for a newer one.
    ///
    /// # Errors
    ///
    /// Where apt or the suite is not to be had.
    pub fn fetch(&self, cache: &Path) -> Result<PathBuf> {
        let cache = cache.join(self.suite);
        let image = cache.join("vmlinuz");
        if image.exists() {
            return Ok(image);
        }
        let apt = Apt::new(&cache, self.suite)?;
        let package = apt.newest()?;
        eprintln!("xtask: {package}, from {}", self.suite);
        let unpacked = cache.join("unpacked");
        // From 6.17 on the image is in a package of its own, which this one depends on.
        for package in [package.clone(), package.replacen("linux-image", "linux-binary", 1)] {
            apt.unpack(&package, &unpacked)?;
            if let Some(found) = find_image(&unpacked) {
                fs::rename(&found, &image).with_context(|| format!("move {}", found.display()))?;
                fs::remove_dir_all(&unpacked).with_context(|| format!("remove {}", unpacked.display()))?;
                return Ok(image);
            }
        }
        bail!("{package} has no kernel in it")
    }
}

fn find_image(unpacked: &Path) -> Option<PathBuf> {
    let modules = fs::read_dir(unpacked.join("usr/lib/modules")).into_iter().flatten().flatten();
    let places = modules.map(|entry| entry.path()).chain([unpacked.join("boot")]);
    let files = places.flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    files.map(|file| file.path()).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")) && path.is_file()
    })
}

/// An apt that knows one suite and nothing of what is installed: it changes nothing on this machine.
struct Apt {
    directory: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(directory: &Path, suite: &str) -> Result<Self> {
        let source = directory.join("sources.list");
        let parts = directory.join("parts");
        for place in [&parts, &directory.join("lists/partial"), &directory.join("archives/partial")] {
            fs::create_dir_all(place).with_context(|| format!("make {}", place.display()))?;
        }
        let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        fs::write(&source, format!("deb {signed}{} {suite} main\n", mirror(suite)?))
            .with_context(|| format!("write {}", source.display()))?;
        let settings = [
            ("Etc::sourcelist", source),
            ("Etc::sourceparts", parts),
            ("State::lists", directory.join("lists")),
            ("State::status", PathBuf::from("/dev/null")),
            ("Cache", directory.to_owned()),
            ("Cache::archives", directory.join("archives")),
        ];
        let mut options = vec!["-o=APT::Sandbox::User=root".to_owned()];
        options.extend(settings.map(|(name, value)| format!("-o=Dir::{name}={}", value.display())));
        let apt = Self { directory: directory.to_owned(), options };
        run(apt.command("apt-get").args(["update", "-qq"])).context("update the list of packages")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).current_dir(&self.directory);
        command
    }

    /// The package with the suite's newest kernel.
    fn newest(&self) -> Result<String> {
        let output = self.command("apt-cache").args(["depends", NEWEST]).output().context("run apt-cache")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let names = said.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let found = names.into_iter().find(|name| name.starts_with("linux-image-"));
        found.map(str::to_owned).with_context(|| format!("{NEWEST} is not there"))
    }

    fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        run(self.command("apt-get").args(["download", "-qq", package])).with_context(|| format!("get {package}"))?;
        let entries = fs::read_dir(&self.directory).context("list what was got")?.flatten();
        let file = entries.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "deb"));
        let file = file.with_context(|| format!("apt got no {package}"))?;
        run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(into))?;
        fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))
    }
}

/// The mirror that this machine uses for a suite of that kind: Debian serves those with security fixes from another place.
fn mirror(suite: &str) -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages", "Origin: Debian"])
        .output()
        .context("run apt-get: Debian's kernels are got by it")?;
    ensure!(output.status.success(), "apt-get indextargets: {}", String::from_utf8_lossy(&output.stderr));
    let security = suite.ends_with("-security");
    let said = String::from_utf8_lossy(&output.stdout);
    let mut mirrors = said.lines().filter_map(|line| line.split_once(' '));
    let found = mirrors.find(|(_, codename)| codename.ends_with("-security") == security);
    found.map(|(mirror, _)| mirror.to_owned()).context("this machine's apt has no mirror of Debian's")
}
