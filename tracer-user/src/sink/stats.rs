//! The counts: as a `stats` line, and as a line for people.

use std::fmt;

use serde::{Serialize, Serializer};
use tracer_ebpf::record::{Rule, Tag};

use crate::{assemble::Totals, governor, path::Version};

/// The counts of one moment, since the start.
#[derive(Clone, Copy, Debug)]
pub struct Stats<'a> {
    /// What the assembler counted.
    pub totals: &'a Totals,
    /// What the kernel half counted: the names of `tracer_ebpf::counter::Counter` with their values.
    pub kernel: &'a [(&'a str, u64)],
    /// Calls by outcome of the tag as the kernel half counted them: the names of `Tag` with their values. They differ from
    /// the assembler's by the records that were lost.
    pub kernel_tags: &'a [(&'a str, u64)],
    /// What `--max-overhead` came to.
    pub governor: Option<&'a governor::Report>,
}

impl Serialize for Stats<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Line<'a> {
            fntrace: Version,
            r#type: &'static str,
            #[serde(flatten)]
            totals: &'a Totals,
            #[serde(serialize_with = "map")]
            kernel: &'a [(&'a str, u64)],
            #[serde(serialize_with = "map")]
            kernel_tags: &'a [(&'a str, u64)],
            #[serde(skip_serializing_if = "Option::is_none")]
            governor: Option<&'a governor::Report>,
        }
        let Self { totals, kernel, kernel_tags, governor } = *self;
        Line { fntrace: Version, r#type: "stats", totals, kernel, kernel_tags, governor }.serialize(serializer)
    }
}

fn map<S: Serializer>(counts: &[(&str, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().copied())
}

/// One line, for people: what was given out, how calls were joined and tagged, and whatever was lost or refused. Counts
/// that are 0 are left out where 0 is what one expects.
impl fmt::Display for Stats<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = self.totals;
        write!(f, "{} records, {} paths", totals.records.sum(), totals.paths)?;
        let named = |f: &mut fmt::Formatter<'_>, before: &str, counts: &[(&str, u64)]| {
            let mut before = before;
            for (name, count) in counts.iter().filter(|(_, count)| *count > 0) {
                write!(f, "{before}{count} {name}")?;
                before = ", ";
            }
            Ok(())
        };
        named(f, ", ", &[("late", totals.late), ("in flight", totals.open), ("unsampled", totals.unsampled)])?;
        let tags: Vec<_> = Tag::ALL.iter().map(|tag| tag.name()).zip(totals.tags).collect();
        named(f, "; tags: ", &tags)?;
        let rules: Vec<_> = Rule::ALL.iter().map(|rule| rule.name()).zip(totals.rules).collect();
        named(f, "; parents by: ", &rules)?;
        let joins = &totals.joins;
        named(f, "; joined by: ", &[("tag", joins.tag), ("wire", joins.wire), ("nothing (external)", joins.none)])?;
        if let Some(governor) = self.governor {
            let (overhead, bound) = (governor.overhead, governor.max_overhead);
            write!(f, "; overhead: {overhead:.2} % of the host's processor time, {bound} % allowed")?;
            named(f, ", ", &[("functions sampled", governor.shares.len() as u64)])?;
        }
        let kernel = |name| self.kernel.iter().find(|(other, _)| *other == name).map_or(0, |(_, count)| *count);
        named(
            f,
            "; TROUBLE: ",
            &[
                ("records lost", totals.lost.max(kernel("records_lost"))),
                ("incomplete paths", totals.incomplete),
                ("paths cut off", totals.evicted),
                ("calls without their invocation", totals.orphans),
                ("ends without a start", totals.ends_unknown),
                ("records not understood", totals.undecodable),
                ("tags replayed", joins.replayed),
                ("tags contradicted by the wire", joins.contradicted),
                ("tags stuck", kernel("tag_stuck")),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_every_count() {
        let totals = Totals { paths: 3, ..Totals::default() };
        let stats = Stats { totals: &totals, kernel: &[("sends", 5)], kernel_tags: &[("injected", 7)], governor: None };
        let json = serde_json::to_value(stats).unwrap();
        assert_eq!((&json["fntrace"], &json["type"]), (&1.into(), &"stats".into()));
        assert_eq!((&json["paths"], &json["records"]["call_start"]), (&3.into(), &0.into()));
        assert_eq!((&json["tags"]["no_request"], &json["rules"]["exclusive"]), (&0.into(), &0.into()));
        assert_eq!((&json["kernel"]["sends"], &json["kernel_tags"]["injected"]), (&5.into(), &7.into()));
        assert!(serde_json::to_string(&stats).unwrap().starts_with(r#"{"fntrace":1,"type":"stats","#));
    }

    #[test]
    fn people_see_trouble_only_if_there_is_any() {
        let mut totals = Totals { paths: 3, ..Totals::default() };
        totals.tags[Tag::Injected as usize] = 4;
        let stats = |totals: &Totals| {
            Stats { totals, kernel: &[("records_lost", 2)], kernel_tags: &[], governor: None }.to_string()
        };
        assert_eq!(stats(&totals), "0 records, 3 paths; tags: 4 injected; TROUBLE: 2 records lost");
    }
}
