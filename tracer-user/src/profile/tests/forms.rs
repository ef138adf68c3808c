//! What the forms look like.

use super::*;
use crate::path::Channel;
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

/// A function that does much that it should not.
fn report(id: u64) -> Invocation {
    let mut children = vec![call("reporting-list-orders-of-customer", 500, 4000, vec![]).asks("GET", "/orders", 200)];
    let rows = (0..8).map(|row| {
        call("order-details", 5000 + row * 1100, 1000, vec![]).asks(
            "GET",
            &format!("/order/{}", id * 8 + row as u64),
            200,
        )
    });
    children.extend(rows);
    for at in [14_000, 16_500] {
        children.push(outside("config.internal:8500", at, 2000).asks("GET", "/v1/kv/currency", 200));
    }
    for at in [19_000, 20_000] {
        children.push(outside("legacy.example", at, 300).asks("POST", "/sync", 503));
    }
    let mut slow = call("thumbnailer", 21_000, if id.is_multiple_of(50) { 400_000 } else { 9000 }, vec![]);
    if let Some(Node::Invocation(inner)) = slow.children.first_mut() {
        inner.cold = id.is_multiple_of(50);
        inner
            .children
            .push(call("report", 22_000, 3000, vec![call("order-details", 22_500, 800, vec![]).node()]).node());
    }
    let end = 21_000 + slow.duration_us.unwrap_or(0) as i64 + 2000;
    children.push(slow.node());
    children.push(call("audit-log", end - 1500, 8000, vec![]).asks("POST", "/audit", 200));
    invocation("report", 0, end as u64, children)
}

/// Writes the shop's page, to be looked at: `cargo test -p tracer-user --lib -- --ignored a_page_to_look_at`.
#[test]
#[ignore = "writes a file for people to look at"]
fn a_page_to_look_at() {
    let mut random = numbers();
    let old = profile(3000, |_| shop(&mut random));
    let mut new = profile(3000, |_| {
        let mut root = shop(&mut random);
        root.duration_us = root.duration_us.map(|us| us + 4000);
        root
    });
    // Of everything that can be found something, in functions with names as people give them.
    (0..400).for_each(|id| new.add(&path(10_000 + id, report(id))));
    for format in FORMATS {
        let file = std::env::temp_dir().join(format!("fntrace-profile.{format:?}"));
        std::fs::write(&file, render(&new, Some(&old), format, Look::default())).unwrap();
        println!("{}", file.display());
    }
}

/// Three paths: `a` calls `b` and an external service, which fails once and is tried again.
fn small() -> Profile {
    profile(3, |id| {
        let status = if id == 2 { 503 } else { 200 };
        let mut children =
            vec![call("b", 1000, 3000, vec![]).node(), outside("10.0.0.9:80", 4500, 500).asks("GET", "/x", status)];
        if id == 2 {
            children.push(outside("10.0.0.9:80", 5500, 500).asks("GET", "/x", 200));
        }
        Invocation { cold: id == 0, ..invocation("a", 0, 8000 + id * 1000, children) }
    })
}

#[test]
fn a_table_for_people() {
    let text = render(&small(), None, Format::Table, Look::default());
    let expect = "\
3 paths, from 2026-09-21T14:13:20 to 2026-09-21T14:13:20

Functions
     invocations      p50      p90      p99      max    own  waiting  queueing  calls  errors  cold  cold costs
  a            3  9.02 ms  10.0 ms  10.0 ms  10.0 ms   59 %     41 %         ·    2.3       ·     1        0 µs
  b            3  2.98 ms  2.98 ms  2.98 ms  2.98 ms  100 %      0 %     10 µs    0.0       ·     ·           ·

Calls
                   called in  each  place  parallel  begins at      p50      p99  in callee  network  least rtt  resent  errors  retries  after answer
  a → b                100 %   1.0      1       0 %    1.00 ms  3.00 ms  3.00 ms    2.98 ms    20 µs          ·       ·       ·        ·             ·
  a ⇢ 10.0.0.9:80      100 %   1.3      2       0 %    4.50 ms   500 µs   500 µs          ·        ·          ·       ·       1        1             ·

Paths
    67 %  p50 8.03 ms  p99 9.00 ms  a(b; 10.0.0.9:80)
          critical: a 59 %, b 35 %, → 10.0.0.9:80 5.9 %, network to b 0.2 %
    33 %  p50 10.0 ms  p99 10.0 ms  a(b; 10.0.0.9:80 ×2)
          critical: a 60 %, b 30 %, → 10.0.0.9:80 10 %, network to b 0.2 %

Findings
  none
";
    assert_eq!(text, expect, "\n{text}");
    let short = render(&small(), None, Format::Table, Look { top: 1, ..Look::default() });
    assert!(short.contains("… and 1 more (--top 2)"), "{short}");
    let colour = render(&small(), None, Format::Table, Look { colour: true, ..Look::default() });
    assert!(!text.contains('\u{1b}') && colour.contains("\u{1b}[1mFunctions\u{1b}[0m"));
}

/// As seen on a kept-alive connection: the handshake is answered at once, each later request with its response.
#[test]
fn the_round_trip_is_that_of_the_network_not_of_the_callee() {
    let profile = profile(100, |id| {
        let rtt_us = if id == 0 { 28 } else { 2000 + id as u32 };
        let call = Call { channel: Some(Channel { rtt_us, retransmits: 0 }), ..call("b", 1000, 3000, Vec::new()) };
        invocation("a", 0, 8000, vec![call.node()])
    });
    for (format, before, after) in
        [(Format::Table, "  20 µs      ", "  "), (Format::Html, "<td>20 µs</td><td>", "</td>")]
    {
        let text = render(&profile, None, format, Look::default());
        assert!(text.contains(&format!("{before}28 µs{after}")), "{text}");
    }
}

#[test]
fn dot_and_folded() {
    assert_eq!(
        render(&small(), None, Format::Folded, Look::default()),
        "a 16000\na;10.0.0.9:80 2000\na;[network to b] 60\na;b 8940\n"
    );
    let dot = render(&small(), None, Format::Dot, Look::default());
    assert!(dot.contains("\"function: a\" -> \"external: 10.0.0.9:80\" [label=\"100 % × 1.3, p50 500 µs, 25 % fail\", penwidth=2.5, color=red];"), "{dot}");
}

#[test]
fn json_holds_findings_and_reads_back() {
    let profile = profile(50, |_| invocation("f", 0, 1000, vec![outside("x", 100, 600).node()]));
    let json = render(&profile, Some(&profile), Format::Json, Look::default());
    assert_eq!(json.lines().count(), 1);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&value["fntrace"], &value["type"], &value["paths"]), (&1.into(), &"profile".into(), &50.into()));
    assert_eq!(value["findings"][0]["kind"], "hot_external");
    assert_eq!(value["findings"][0]["evidence"][0]["trace_id"], "000000000000f00d0000000000000031");
    assert_eq!(value["functions"]["kept"][0]["name"], "f");
    assert_eq!(value["functions"]["kept"][0]["latency"]["p99"], 1000);
    assert_eq!(value["changes"], serde_json::json!([]));
    assert!(serde_json::from_str::<Profile>(&json).unwrap() == profile);
}

#[test]
fn nothing_gives_an_empty_profile_in_every_form() {
    let empty = Profile::default();
    for format in FORMATS {
        let text = render(&empty, Some(&empty), format, Look::default());
        assert!(format == Format::Folded || !text.is_empty(), "{format:?}");
    }
    let one = profile(1, |_| Invocation { duration_us: None, ..invocation("a", 0, 0, vec![]) });
    FORMATS.into_iter().for_each(|format| drop(render(&one, None, format, Look { top: 0, ..Look::default() })));
}

#[test]
fn hostile_names_are_only_names() {
    const EVIL: &str =
        "x\u{1b}[2J\";\n</title></style><script>alert(1)</script>\\\" -> \"y&#39;' onload=x \u{202e}\u{7}";
    let profile = profile(30, |_| {
        let mut inside = call(EVIL, 10, 500, vec![]);
        inside.http = Some(http(EVIL, EVIL, 500));
        inside.error = Some(EVIL.into());
        let outside = Call { host: Some(EVIL.into()), ..outside(EVIL, 600, 390) };
        let mut root = invocation(EVIL, 0, 1000, vec![inside.node(), outside.node()]);
        root.http = Some(http(EVIL, EVIL, 200));
        root
    });
    assert!(!findings(&profile).is_empty());
    for format in FORMATS {
        let text = render(&profile, Some(&Profile::default()), format, Look::default());
        let harmful: Vec<char> = text.chars().filter(|&char| char != '\n' && crate::text::is_harmful(char)).collect();
        assert!(harmful.is_empty(), "{format:?}: {harmful:?}");
        match format {
            Format::Html => {
                assert!(!text.contains("<script") && text.contains("&lt;script&gt;"), "{text}");
                assert_eq!(text.matches("</title>").count(), text.matches("<title>").count());
                assert_eq!((text.matches("</style>").count(), text.matches(" onload=x").count() > 0), (1, true));
                // No attribute holds it: those are closed by the quote that it tries.
                assert!(!text.contains("y&#39;\""));
            }
            Format::Dot => {
                for line in text.lines() {
                    // What is left outside of quoted strings is ours.
                    let line = line.replace("\\\\", "").replace("\\\"", "");
                    assert_eq!(line.matches('"').count() % 2, 0, "{line}");
                    let bare: String = line.split('"').step_by(2).collect();
                    assert!(!bare.contains("script") && bare.matches("->").count() <= 1, "{line}");
                }
            }
            Format::Folded => {
                for line in text.lines() {
                    let (stack, us) = line.rsplit_once(' ').unwrap();
                    assert!(us.parse::<u64>().is_ok() && stack.split(';').count() <= 2, "{line}");
                }
            }
            Format::Table | Format::Json => {}
        }
    }
}

#[test]
fn the_page_stands_alone() {
    let mut random = numbers();
    let page = render(&profile(200, |_| shop(&mut random)), None, Format::Html, Look::default());
    for outside in ["http://", "https://", "src=", "url(http", "@import", "<link", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
    // Every element is closed, in order; the void ones of the head aside.
    let mut open = Vec::new();
    for tag in page.split('<').skip(2).filter_map(|rest| rest.split(['>', ' ']).next()) {
        match tag.strip_prefix('/') {
            Some(tag) => assert_eq!(open.pop(), Some(tag)),
            None if tag == "meta" => {}
            None => open.push(tag),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn what_appeared_and_what_vanished_is_told_and_chance_is_not() {
    let mut random = numbers();
    let old = profile(400, |_| shop(&mut random));
    let same = profile(400, |_| shop(&mut random));
    assert_eq!(compare(&old, &same), []);
    let new = profile(400, |_| {
        let mut root = shop(&mut random);
        // `pricing` gives way to `tax`, and `inventory` is slower by a half.
        if let Node::Call(call) = &mut root.children[1] {
            call.to = "tax".into();
            if let Some(Node::Invocation(inner)) = call.children.first_mut() {
                inner.function = "tax".into();
            }
        }
        if let Node::Call(call) = &mut root.children[0] {
            call.duration_us = call.duration_us.map(|us| us * 3 / 2);
        }
        root
    });
    let changes = compare(&old, &new);
    let mut told: Vec<_> = changes
        .iter()
        .map(|change| (&*change.function, change.callee.as_deref().unwrap_or(""), format!("{:?}", change.what)))
        .collect();
    told.sort_unstable();
    let expect = [
        ("checkout", "inventory", "Latency"),
        ("checkout", "inventory", "Tail"),
        ("checkout", "pricing", "Vanished"),
        ("checkout", "tax", "Appeared"),
        ("pricing", "", "Vanished"),
        ("tax", "", "Appeared"),
    ];
    assert_eq!(told, expect.map(|(function, callee, what)| (function, callee, what.to_owned())));
    assert!(changes.iter().all(|change| change.q <= 0.05));
}
