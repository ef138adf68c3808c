//! One JSON object in one line: the fields of [`Profile`](crate::profile::Profile), which are documented there and in
//! [`stats`](crate::profile::stats), then `findings` ([`Finding`]) and, if it was compared, `changes` ([`Change`]).
//! Keys may be added, never changed.

use std::io::{self, Write};

use serde::Serialize;

use super::Report;
use crate::{
    profile::{Profile, compare::Change, findings::Finding},
    sink::ndjson::Ndjson,
};

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    profile: &'a Profile,
    findings: &'a [Finding],
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<&'a [Change]>,
}

pub(super) fn write(report: &Report<'_>, out: &mut dyn Write) -> io::Result<()> {
    let &Report { profile, findings, changes } = report;
    Ndjson::new(out).object(&Document { profile, findings, changes })
}
