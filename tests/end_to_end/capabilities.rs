//! With which privileges the agent runs: not root, and none but those that `fntrace doctor` asks for.

use std::{fs, os::unix::fs::PermissionsExt as _, os::unix::process::CommandExt as _, process::Command};

use rustix::{
    process::{Gid, Uid},
    thread::{
        CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, set_capabilities, set_keep_capabilities,
        set_thread_gid, set_thread_uid,
    },
};

use crate::{
    agent::{Agent, fntrace_ends, run},
    shop::{JoinedBy, Shop},
};

/// All that it takes, under the names by which it is refused without.
const NEEDED: [(&str, CapabilitySet); 3] = [
    ("CAP_BPF", CapabilitySet::BPF),
    ("CAP_PERFMON", CapabilitySet::PERFMON),
    ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
];

const NOBODY: u32 = 65534;

/// `fntrace run`, by a user who is not root and has these capabilities alone.
fn run_with(shop: &Shop, capabilities: CapabilitySet) -> Command {
    // Where such a user can reach it.
    let copy = shop.slice.files().join("fntrace");
    let run = run(&shop.slice.argument(), &[]);
    if !copy.exists() {
        fs::copy(run.get_program(), &copy).unwrap();
        for path in [shop.slice.files(), &copy] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    let mut command = Command::new(copy);
    command.args(run.get_args()).current_dir("/");
    let become_one = move || {
        set_keep_capabilities(true)?;
        set_thread_gid(Gid::from_raw(NOBODY))?;
        set_thread_uid(Uid::from_raw(NOBODY))?;
        let sets = CapabilitySets { effective: capabilities, permitted: capabilities, inheritable: capabilities };
        set_capabilities(None, sets)?;
        for one in capabilities {
            configure_capability_in_ambient_set(one, true)?;
        }
        Ok(())
    };
    // SAFETY: runs between fork and exec and makes a few system calls; nothing in it allocates.
    unsafe { command.pre_exec(become_one) };
    command
}

/// An agent with those that are needed does all that one of root's does.
pub fn the_needed_ones_suffice() {
    let mut shop = Shop::open();
    let all = NEEDED.into_iter().fold(CapabilitySet::empty(), |all, (_, one)| all | one);
    let agent = Agent::start_command(run_with(&shop, all));
    shop.work(JoinedBy::Tag);
    shop.work(JoinedBy::Tag);
    shop.assert_traced(agent, 2, JoinedBy::Tag);
}

/// Without any one of them it is refused, and says which it is.
pub fn each_is_missed_by_its_name() {
    let shop = Shop::open();
    for (missing, _) in NEEDED {
        let rest = NEEDED.into_iter().filter(|(name, _)| *name != missing);
        let rest = rest.fold(CapabilitySet::empty(), |rest, (_, one)| rest | one);
        let output = fntrace_ends(&mut run_with(&shop, rest));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "without {missing}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for (name, _) in NEEDED {
            assert_eq!(stderr.contains(name), name == missing, "without {missing}: {stderr}");
        }
    }
}

#[test]
fn three_capabilities_suffice() {
    the_needed_ones_suffice();
}

#[test]
fn a_capability_that_is_missing_is_named() {
    each_is_missed_by_its_name();
}
