//! Other agents on this host. Two on the same sandboxes would both tag, and share sockets that only one can own.

use std::{fmt, fs, io};

use crate::{
    bpf::{self, CgroupLink},
    cgroup::Mount,
};

/// The program by which an agent is known: each attaches one of this name to every root of its sandboxes.
const MARK: &[u8; 16] = b"fn_ingress\0\0\0\0\0\0";

/// An agent that traces on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The path of the cgroup that it is attached to.
    pub cgroup: String,
    /// Its process, where that can be seen.
    pub pid: Option<u32>,
}

impl fmt::Display for Agent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "another fntrace")?;
        if let Some(pid) = self.pid {
            write!(formatter, " (pid {pid})")?;
        }
        write!(formatter, " traces {}", self.cgroup)
    }
}

/// Lists the agents on this host, one entry for each cgroup that one is attached to. Asks for CAP_SYS_ADMIN.
pub fn agents(mount: &Mount) -> io::Result<Vec<Agent>> {
    let links = marked(bpf::cgroup_links()?);
    let agents = links.into_iter().filter_map(|link| {
        let place = mount.find_id(link.cgroup).ok().flatten()?;
        Some(Agent { cgroup: mount.path_of(&place)?, pid: owner(link.link) })
    });
    Ok(agents.collect())
}

fn marked(mut links: Vec<CgroupLink>) -> Vec<CgroupLink> {
    links.retain(|link| &link.program_name == MARK);
    links
}

/// An agent that is attached to one of these cgroups, above or below it; the ids are those of the roots to attach to.
///
/// An error of kind `PermissionDenied` means that links cannot be listed here, which [`crate::doctor`] warns of: go on.
/// It looks before anything is attached; two agents that start in the same moment do not see each other.
pub fn second_agent(mount: &Mount, roots: &[u64]) -> io::Result<Option<Agent>> {
    let agents = agents(mount)?;
    if agents.is_empty() {
        return Ok(None);
    }
    let ours: Vec<_> = roots.iter().filter_map(|id| mount.path_of(&mount.find_id(*id).ok()??)).collect();
    Ok(agents.into_iter().find(|agent| ours.iter().any(|root| overlap(root, &agent.cgroup))))
}

/// Whether one path is the other, or an ancestor of it.
fn overlap(a: &str, b: &str) -> bool {
    let below = |path: &str, above: &str| {
        path.strip_prefix(above.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    below(a, b) || below(b, a)
}

/// The process that holds a link, by the descriptors of all processes (`bpf_link_show_fdinfo`, kernel/bpf/syscall.c).
fn owner(link: u32) -> Option<u32> {
    let wanted = format!("link_id:\t{link}\n");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors
            // Reading the links first spares the text of every other descriptor.
            .filter(|fd| fs::read_link(fd.path()).is_ok_and(|kind| kind.as_os_str() == "anon_inode:bpf_link"))
            .filter_map(|fd| fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", fd.file_name().to_str()?)).ok())
            .any(|text| text.contains(&wanted))
    })
}

#[cfg(test)]
mod tests {
    use std::{
        os::fd::AsFd as _,
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
        time::{Duration, Instant},
    };

    use super::*;
    use crate::cgroup;

    #[test]
    fn paths_overlap_at_whole_segments() {
        for (a, b, expected) in [
            ("/fns", "/fns", true),
            ("/fns/a", "/fns", true),
            ("/fns", "/fns/a", true),
            ("/", "/fns", true),
            ("/fns", "/", true),
            ("/", "/", true),
            ("/fns", "/fns2", false),
            ("/fns/a", "/fns/b", false),
        ] {
            assert_eq!(overlap(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn only_our_programs_are_ours() {
        let link = |name: &[u8; 16]| CgroupLink { link: 1, cgroup: 2, program_name: *name };
        let found = marked(vec![link(b"fn_ingress\0\0\0\0\0\0"), link(b"fn_ingress2\0\0\0\0\0"), link(&[0; 16])]);
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn root_links_can_be_listed_while_others_are_made() {
        let mount = Mount::find().expect("this test needs cgroup v2");
        let place = mount.place_of(&format!("/fntrace-test-links-made-{}", std::process::id()));
        fs::create_dir(&place).expect("this test makes cgroups: run it as root");
        let directory = fs::File::open(&place).unwrap();
        let (listed, made) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !listed.load(Ordering::Relaxed) {
                    drop(bpf::testing::attach_ingress(*b"comes_and_goes\0\0", directory.as_fd()).unwrap());
                    made.fetch_add(1, Ordering::Relaxed);
                }
            });
            let until = Instant::now() + Duration::from_secs(10);
            let mut lists = Ok(Vec::new());
            while lists.is_ok() && made.load(Ordering::Relaxed) < 500 && Instant::now() < until {
                lists = bpf::cgroup_links();
            }
            listed.store(true, Ordering::Relaxed);
            lists.expect("a link that is being made is not there yet");
        });
        assert!(made.into_inner() > 0, "none was made meanwhile");
        fs::remove_dir(&place).unwrap();
    }

    #[test]
    fn root_an_agent_at_above_or_below_is_noticed_until_it_ends() {
        let mount = Mount::find().expect("this test needs cgroup v2");
        let path = |below: &str| format!("/fntrace-test-links-{}{below}", std::process::id());
        let all = ["", "/taken", "/taken/inner", "/free"].map(path);
        for path in &all {
            fs::create_dir(mount.place_of(path)).expect("this test makes cgroups: run it as root");
        }
        let [top, taken, inner, free] = all.clone().map(|path| cgroup::id(&mount.place_of(&path)).unwrap());
        let directory = fs::File::open(mount.place_of(&all[1])).unwrap();
        let look = |id| second_agent(&mount, &[id]).expect("listing links asks for CAP_SYS_ADMIN: run as root");

        let stranger = bpf::testing::attach_ingress(*b"other_program\0\0\0", directory.as_fd()).unwrap();
        assert_eq!(look(taken), None);
        drop(stranger);
        let link = bpf::testing::attach_ingress(*MARK, directory.as_fd()).unwrap();
        let agent = Agent { cgroup: all[1].clone(), pid: Some(std::process::id()) };
        for (id, expected) in [(top, true), (taken, true), (inner, true), (free, false)] {
            assert_eq!(look(id), expected.then(|| agent.clone()));
        }
        assert_eq!(agent.to_string(), format!("another fntrace (pid {}) traces {}", std::process::id(), all[1]));
        drop(link);
        // Who lists links holds each for a moment, and other tests do.
        let until = Instant::now() + Duration::from_secs(10);
        while look(taken).is_some() {
            assert!(Instant::now() < until, "the link is still there");
        }
        for path in all.iter().rev() {
            fs::remove_dir(mount.place_of(path)).unwrap();
        }
    }
}
