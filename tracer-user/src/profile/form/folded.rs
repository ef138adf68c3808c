//! Own time by stack, a line each: `checkout;inventory 1234`. Functions are put above one another as they call; time is
//! in µs and summed over all paths. Calls that were open at once are summed, too, so widths are work, not waiting.

use std::io::{self, Write};

use super::Report;
use crate::text::harmless;

pub(super) fn write(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let mut lines: Vec<_> =
        report.profile.stacks.iter().map(|(key, time)| (harmless(&key.stack, usize::MAX), time.us)).collect();
    lines.sort_unstable();
    for (stack, us) in lines {
        writeln!(out, "{stack} {us}")?;
    }
    match report.profile.stacks.other() {
        Some(other) => writeln!(out, "[other] {}", other.us),
        None => Ok(()),
    }
}
