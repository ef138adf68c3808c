//! What the forms look like.

use super::*;
use crate::profile::{
    compare::compare,
    findings::findings,
    form::{Format, Look, Report},
};

fn render(profile: &Profile, against: Option<&Profile>, format: Format, look: Look) -> String {
    let found = findings(profile);
    let changes = against.map(|old| compare(old, profile));
    let report = Report { profile, findings: &found, changes: changes.as_deref() };
    let mut out = Vec::new();
    report.write(format, look, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

const FORMATS: [Format; 5] = [Format::Table, Format::Json, Format::Dot, Format::Folded, Format::Html];

/// Writes the shop's page, to be looked at: `cargo test -p tracer-user --lib -- --ignored a_page_to_look_at`.
#[test]
#[ignore = "writes a file for people to look at"]
fn a_page_to_look_at() {
    let mut random = numbers();
    let old = profile(3000, |_| shop(&mut random));
    let new = profile(3000, |_| {
        let mut root = shop(&mut random);
        root.duration_us = root.duration_us.map(|us| us + 4000);
        root
    });
    for format in FORMATS {
        let file = std::env::temp_dir().join(format!("fntrace-profile.{format:?}"));
        std::fs::write(&file, render(&new, Some(&old), format, Look::default())).unwrap();
        println!("{}", file.display());
    }
}
