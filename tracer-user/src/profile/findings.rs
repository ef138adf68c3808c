//! What is worth changing, read from the counts of a profile. Each kind has a bar below which it stays silent: a finding
//! that is wrong costs a developer more than one that is missing.

use std::cmp::Reverse;

use serde::Serialize;

use super::{
    Profile,
    bounded::{Evidence, Tally},
    patterns::LOOP_MIN,
    stats::{Both, Callee, Edge, Function, Name, Order, Pair},
};

/// What a finding says. In JSON, `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Calls that need nothing of each other are made one after the other.
    SerialCalls,
    /// The same read is made again in one invocation.
    RepeatedCall,
    /// One call for each element of a list.
    NPlusOne,
    /// Retries none of which ever succeeded.
    VainRetries,
    /// The answer leaves before the response comes.
    UnusedResult,
    /// A function calls itself, at once or through others.
    Cycle,
    /// A callee's cold starts make its caller's p99.
    ColdStarts,
    /// Much of all critical paths is one external service.
    HotExternal,
    /// A caller gives up before the callee's p99.
    ShortTimeout,
}

/// How sure it is. Nothing is told that is less than likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// The records show it.
    Certain,
    /// The records agree with it; what bodies and queries hold is not in them.
    Likely,
}

/// What a change would save.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Saves {
    /// Time until the answer.
    Latency,
    /// The p99 of that time.
    P99,
    /// Work of the callee, not the caller's time.
    Work,
}

/// Something worth changing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it says.
    pub kind: Kind,
    /// How sure it is.
    pub confidence: Confidence,
    /// The function to change; none where it is all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Whom it calls.
    pub callees: Vec<String>,
    /// What was seen, in a sentence.
    pub seen: String,
    /// What to do, in a sentence.
    pub advice: &'static str,
    /// In how many invocations (or paths, where `function` is none) it was seen.
    pub times: u64,
    /// What a change would save there.
    pub saves: Saves,
    /// How much at most on average, in µs; with `p99`, the difference.
    pub saves_us: u64,
    /// How much in all that was seen, in µs.
    pub total_us: u64,
    /// The traces where it cost the most.
    pub evidence: Vec<Evidence>,
}

/// Fewer sightings than these are chance.
const TIMES_MIN: u64 = 3;
/// The share of an edge's invocations in which a pattern must be.
const SHARE_MIN: f64 = 0.05;
/// The same for a response that comes too late: a slow one now and then is not a habit.
const UNUSED_MIN: f64 = 0.10;
/// Neighbours seen fewer times show no order.
const PAIRS_MIN: u64 = 20;
/// Below this share of the other order, or of overlap, it is chance or another branch of the code.
const DISORDER_MIN: f64 = 0.05;
/// A p99 of fewer invocations is one or two of them.
const P99_MIN: u64 = 100;
/// Without cold starts the p99 must be below this share of what it is.
const COLD_SHARE: f64 = 0.7;
/// The share of all critical paths from which an external service is hot.
const HOT_MIN: f64 = 0.30;
/// Paths from which on a share of them means something.
const HOT_PATHS_MIN: u64 = 20;
/// Calls given up by a timer end after nearly the same time: p90 over p10 at most.
const TIMER_SPREAD: f64 = 1.2;

fn often(tally: &Tally, of: u64, share: f64) -> bool {
    tally.times >= TIMES_MIN && tally.times as f64 >= of as f64 * share
}

/// All findings, those first that would save the most.
pub fn findings(profile: &Profile) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, function) in profile.functions.iter() {
        for (both, pair) in function.pairs.iter() {
            found.extend(serial(name, function, both, pair));
        }
        for (callee, edge) in function.edges.iter() {
            of_edge(&mut found, profile, (name, function), (callee, edge));
        }
    }
    for (circle, tally) in profile.cycles.iter() {
        found.push(Finding {
            kind: Kind::Cycle,
            confidence: Confidence::Certain,
            function: circle.cycle.split(" → ").next().map(str::to_owned),
            callees: Vec::new(),
            seen: format!("{} within one path", circle.cycle),
            advice: "Make sure that it ends for every input; call code instead of the function where the caller can.",
            times: tally.times,
            saves: Saves::Latency,
            saves_us: tally.mean_us(),
            total_us: tally.us,
            evidence: tally.evidence.clone(),
        });
    }
    for (name, external) in profile.externals.iter() {
        let share = external.critical.us as f64 / profile.critical_us.max(1) as f64;
        if profile.paths >= HOT_PATHS_MIN && share >= HOT_MIN {
            found.push(Finding {
                kind: Kind::HotExternal,
                confidence: Confidence::Certain,
                function: None,
                callees: vec![name.name.to_string()],
                seen: format!("{:.0} % of the time on critical paths is spent waiting for it", share * 100.0),
                advice: "Cache its answers, ask for less, start asking earlier, or move nearer to it.",
                times: external.critical.times,
                saves: Saves::Latency,
                saves_us: external.critical.mean_us(),
                total_us: external.critical.us,
                evidence: external.critical.evidence.clone(),
            });
        }
    }
    found.sort_by(|a, b| {
        let rank = |finding: &Finding| (Reverse(finding.total_us), finding.kind, finding.function.clone());
        rank(a).cmp(&rank(b)).then_with(|| a.callees.cmp(&b.callees))
    });
    found
}

fn of_edge(found: &mut Vec<Finding>, profile: &Profile, caller: (&Name, &Function), edge: (&Callee, &Edge)) {
    let ((name, function), (callee, edge)) = (caller, edge);
    let finding = |kind, confidence, tally: &Tally, saves, seen, advice| Finding {
        kind,
        confidence,
        function: Some(name.name.to_string()),
        callees: vec![callee.name.to_string()],
        seen,
        advice,
        times: tally.times,
        saves,
        saves_us: tally.mean_us(),
        total_us: tally.us,
        evidence: tally.evidence.clone(),
    };
    let of = edge.invocations;
    if often(&edge.repeated, of, SHARE_MIN) {
        found.push(finding(
            Kind::RepeatedCall,
            Confidence::Likely,
            &edge.repeated,
            Saves::Latency,
            format!("the same read is made again in {} of {of} invocations", edge.repeated.times),
            "Keep the first answer for the rest of the invocation. If queries or bodies differ, ask for all at once.",
        ));
    }
    if often(&edge.one_by_one, of, SHARE_MIN) {
        found.push(finding(
            Kind::NPlusOne,
            Confidence::Certain,
            &edge.one_by_one,
            Saves::Latency,
            format!(
                "{LOOP_MIN} and more calls one after the other that differ in one part of the path, up to {} calls, in {} of \
                 {of} invocations",
                edge.calls_max.0, edge.one_by_one.times
            ),
            "Ask for all elements in one call, or at least at the same time.",
        ));
    }
    if edge.retries >= TIMES_MIN && edge.retries_ok == 0 && edge.vain_retries.times > 0 {
        found.push(finding(
            Kind::VainRetries,
            Confidence::Certain,
            &edge.vain_retries,
            Saves::Latency,
            format!("none of {} retries succeeded", edge.retries),
            "Do not retry what cannot succeed: give up at once, or stop calling while it fails (circuit breaker).",
        ));
    }
    if often(&edge.unused, of, UNUSED_MIN) {
        found.push(finding(
            Kind::UnusedResult,
            Confidence::Certain,
            &edge.unused,
            Saves::Work,
            format!("in {} of {of} invocations the answer had left before the response came", edge.unused.times),
            "Drop the call if it only reads. If it must be made, hand it to a queue: a sandbox may be frozen once it has \
             answered.",
        ));
    }
    let p99 = function.latency.quantile(0.99);
    if function.latency.count() >= P99_MIN && edge.cold_tally.times >= TIMES_MIN {
        let without = function.latency.without(&edge.latency_with_cold).quantile(0.99);
        let most = edge.latency_with_cold.from(p99) * 2 > function.latency.from(p99);
        if most && (without as f64) <= p99 as f64 * COLD_SHARE {
            found.push(Finding {
                saves_us: p99 - without,
                total_us: (p99 - without).saturating_mul(edge.latency_with_cold.from(p99)),
                ..finding(
                    Kind::ColdStarts,
                    Confidence::Certain,
                    &edge.cold_tally,
                    Saves::P99,
                    format!(
                        "{} of {} invocations waited for a cold start; they are most of the slowest hundredth",
                        edge.cold_tally.times, function.invocations
                    ),
                    "Keep a sandbox of the callee warm, warm it when the caller starts (fntrace run --forecast), or make it \
                     start faster.",
                )
            });
        }
    }
    let inner = profile.functions.get(Name { name: callee.name.clone() }).filter(|_| !callee.external);
    if let Some(inner) = inner.filter(|inner| inner.latency.count() >= PAIRS_MIN) {
        let after = &edge.gave_up_after;
        let timer = after.quantile(0.9) as f64 <= after.quantile(0.1) as f64 * TIMER_SPREAD;
        if edge.gave_up.times >= TIMES_MIN && timer && after.quantile(0.5) < inner.latency.quantile(0.99) {
            found.push(finding(
                Kind::ShortTimeout,
                Confidence::Certain,
                &edge.gave_up,
                Saves::Latency,
                format!(
                    "{} calls were given up after about {}, and the callee's p99 is {}",
                    after.count(),
                    super::form::duration(after.quantile(0.5)),
                    super::form::duration(inner.latency.quantile(0.99))
                ),
                "Wait longer than the callee's p99, or make the callee faster; work that nobody waits for is done all the \
                 same.",
            ));
        }
    }
}

/// Two callees of which the records show that neither needs the other's answer.
fn serial(name: &Name, function: &Function, both: &Both, pair: &Pair) -> Option<Finding> {
    let serial = pair.ab.times + pair.ba.times;
    if serial < PAIRS_MIN || pair.serial.us == 0 {
        return None;
    }
    let all = (serial + pair.overlap) as f64;
    let disorder = pair.ab.times.min(pair.ba.times) + pair.overlap;
    let (confidence, why) = if disorder as f64 >= all * DISORDER_MIN && disorder >= TIMES_MIN {
        (Confidence::Certain, "they were also seen in the other order or at the same time")
    } else {
        let (order, first, second) =
            if pair.ab.times >= pair.ba.times { (&pair.ab, &both.a, &both.b) } else { (&pair.ba, &both.b, &both.a) };
        let edge = |name: &std::sync::Arc<str>| {
            let key = |external| Callee { name: name.clone(), external };
            function.edges.get(key(false)).or_else(|| function.edges.get(key(true)))
        };
        let (first, second) = (edge(first)?, edge(second)?);
        // Whoever stops after a failure needs the answer, if only to know that it may go on.
        if first.stopped_by_failure > 0 {
            return None;
        }
        (Confidence::Likely, needs_nothing(order, second)?)
    };
    Some(Finding {
        kind: Kind::SerialCalls,
        confidence,
        function: Some(name.name.to_string()),
        callees: vec![both.a.to_string(), both.b.to_string()],
        seen: format!("made one after the other {serial} times; {why}"),
        advice: "Make both calls at the same time and wait for both.",
        times: pair.serial.times,
        saves: Saves::Latency,
        saves_us: pair.serial.mean_us(),
        total_us: pair.serial.us,
        evidence: pair.serial.evidence.clone(),
    })
}

fn needs_nothing(order: &Order, second: &Edge) -> Option<&'static str> {
    if order.in_spite >= TIMES_MIN {
        Some("the second is made even where the first fails")
    } else if order.reads == order.times && (second.same_path() || order.known == order.times) {
        Some("both read, and all that the second asks for is known from the start")
    } else {
        None
    }
}
