//! One page that needs nothing else.
use super::{Look, Report};
use std::io::{self, Write};
pub(super) fn write(_: &Report<'_>, _: Look, _: &mut dyn Write) -> io::Result<()> {
    Ok(())
}
