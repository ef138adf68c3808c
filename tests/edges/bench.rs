//! Starts functions and agent, one runtime after the other, and scores what the agent says.

use std::{
    env, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    agent::{Agent, Finished},
    functions::Function,
    load::{self, Seen},
    runtimes::{self, Runtime, Shape, Start},
    sandbox::Slice,
    score::{self, Score},
    table,
};

/// Before anything counts: connection pools fill, compilers compile.
const WARM_UP: usize = 150;
const WARM_UP_CONCURRENCY: usize = 8;
/// One invocation at a time takes its time and shows little: it gets this part of the requests.
const ALONE: usize = 4;
/// From the last answer until all is printed: a multiple of the settle time.
const SETTLE: Duration = Duration::from_secs(1);

/// One line of the table.
#[derive(Debug)]
pub struct Row {
    pub runtime: &'static str,
    pub shape: Shape,
    pub concurrency: usize,
    pub requests: usize,
    pub score: Score,
    /// What casts doubt on it: requests that failed, records that were lost.
    pub notes: Vec<String>,
}

/// What is asked for.
#[derive(Debug)]
struct Options {
    only: Option<String>,
    shape: Option<String>,
    concurrency: Vec<usize>,
    requests: usize,
    tag: String,
    json: Option<PathBuf>,
    keep: Option<PathBuf>,
}

/// What was driven, before it is scored.
struct Driven {
    row: Row,
    name: String,
    seen: Vec<Seen>,
}

pub fn whole() {
    let options = Options::from_environment();
    let started = Instant::now();
    let mut rows = Vec::new();
    let mut not_run = Vec::new();
    table::head();
    for runtime in runtimes::ALL.iter().filter(|runtime| options.wants(runtime)) {
        let shapes: Vec<_> = runtime.shapes.iter().copied().filter(|shape| options.wants_shape(*shape)).collect();
        match measure(runtime, &shapes, &options.concurrency, options.requests, &options.tag) {
            Ok((driven, finished)) => {
                if let Some(directory) = &options.keep {
                    keep(directory, runtime, &driven, &finished);
                }
                let measured = judge(driven, &finished);
                measured.iter().for_each(table::row);
                rows.extend(measured);
            }
            Err(why) => {
                table::not_run(runtime.name, &why);
                not_run.push((runtime.name, why));
            }
        }
    }
    assert!(!rows.is_empty() || !not_run.is_empty(), "no row is as asked for: {options:?}");
    table::reliability(&rows);
    if let Some(file) = &options.json {
        let json = table::json(&rows, &not_run, &options.tag);
        fs::write(file, json.to_string() + "\n").unwrap_or_else(|error| panic!("write {}: {error}", file.display()));
    }
    eprintln!("edges: {} rows in {:.0} s", rows.len(), started.elapsed().as_secs_f64());
    assert_exact(&rows);
}

/// Every rule that says that it is exact has to be.
fn assert_exact(rows: &[Row]) {
    let wrong: Vec<_> = rows.iter().filter(|row| row.score.wrong_but_exact() > 0).collect();
    assert!(wrong.is_empty(), "wrong edges under rules that are exact ({}): {wrong:#?}", score::EXACT.join(", "));
}

impl Options {
    fn from_environment() -> Self {
        let value = |name: &str| env::var(format!("FNTRACE_EDGES_{name}")).ok().filter(|value| !value.is_empty());
        let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("not a number: {text}"));
        let concurrency = value("CONCURRENCY").unwrap_or_else(|| "1,8,64".to_owned());
        Self {
            only: value("ONLY"),
            shape: value("SHAPE"),
            concurrency: concurrency.split(',').map(number).collect(),
            requests: value("REQUESTS").map_or(1000, |requests| number(&requests)),
            tag: value("TAG").unwrap_or_else(|| "on".to_owned()),
            json: value("JSON").map(PathBuf::from),
            keep: value("KEEP").map(PathBuf::from),
        }
    }

    fn wants(&self, runtime: &Runtime) -> bool {
        self.only.as_ref().is_none_or(|only| runtime.name.to_lowercase().contains(&only.to_lowercase()))
            && runtime.shapes.iter().any(|shape| self.wants_shape(*shape))
    }

    fn wants_shape(&self, shape: Shape) -> bool {
        self.shape.as_ref().is_none_or(|name| name == shape.name())
    }
}

/// Measures one runtime, under an agent of its own.
fn measure(
    runtime: &Runtime,
    shapes: &[Shape],
    concurrency: &[usize],
    requests: usize,
    tag: &str,
) -> Result<(Vec<Driven>, Finished), String> {
    let slice = Slice::new();
    let callee =
        Function::start_program(&slice, "callee", Ipv4Addr::LOCALHOST.into(), |address| Ok(runtimes::callee(address)))?;
    let function = match runtime.start {
        Start::Nginx => Function::nginx(&slice, &callee),
        Start::Program(program) | Start::Probed(program) => {
            Function::start_program(&slice, "function", Ipv4Addr::LOCALHOST.into(), |address| {
                let mut command = program(address)?;
                command.env("CALLEE", callee.url());
                Ok(command)
            })?
        }
    };
    let mut arguments = vec!["--tag", tag];
    if let Start::Probed(_) = runtime.start {
        arguments.push("--go-uprobes");
    }
    let agent = Agent::start_with(&slice, &arguments);
    let mut driven = Vec::new();
    for &shape in shapes {
        let failures = load::drive(&function, &format!("w{}", shape.name()), shape, WARM_UP_CONCURRENCY, WARM_UP);
        assert!(failures.len() < WARM_UP / 2, "{} cannot do {}: {failures:#?}", runtime.name, shape.name());
        load::seen(&callee, WARM_UP * shape.calls());
        for &concurrency in concurrency {
            let requests = if concurrency == 1 { requests.div_ceil(ALONE) } else { requests };
            let name = format!("r{}", driven.len());
            let failures = load::drive(&function, &name, shape, concurrency, requests);
            let expected = requests * shape.calls();
            let seen = load::seen(&callee, expected);
            let mut notes = Vec::new();
            if let Some(first) = failures.first() {
                notes.push(format!("{} requests failed, as {first}", failures.len()));
            }
            if seen.len() != expected {
                notes.push(format!("{} calls instead of {expected}", seen.len()));
            }
            let row = Row { runtime: runtime.name, shape, concurrency, requests, score: Score::default(), notes };
            driven.push(Driven { row, name, seen });
        }
    }
    thread::sleep(SETTLE);
    Ok((driven, agent.stop()))
}

/// Writes what the agent printed and what is true, so that a row can be looked into.
fn keep(directory: &Path, runtime: &Runtime, driven: &[Driven], finished: &Finished) {
    let name = runtime.name.replace(|char: char| !char.is_ascii_alphanumeric(), "-");
    let lines: String = finished.lines.iter().map(|line| line.to_string() + "\n").collect();
    let mut truth = String::new();
    for Driven { row, seen, .. } in driven {
        for Seen { id, parent } in seen {
            truth += &format!("{id}\t{parent}\t{}\t{}\n", row.shape.name(), row.concurrency);
        }
    }
    for (file, text) in [(format!("{name}.ndjson"), lines), (format!("{name}.truth.tsv"), truth)] {
        let file = directory.join(file);
        fs::write(&file, text).unwrap_or_else(|error| panic!("write {}: {error}", file.display()));
    }
}

fn judge(driven: Vec<Driven>, finished: &Finished) -> Vec<Row> {
    let edges = score::edges(&finished.lines);
    let stats = finished.stats();
    let lost = [&stats["kernel"]["records_lost"], &stats["lost"]].map(|count| count.as_u64().unwrap_or(0));
    let mut rows = Vec::new();
    for Driven { mut row, name, seen } in driven {
        for call in &seen {
            // The callee got the name of an invocation of this row, or the harness itself is wrong.
            let of_row = call.parent.rsplit_once('-').is_some_and(|(of, _)| of == name);
            assert!(of_row, "{} was asked for by {}, which is not of {row:?}", call.id, call.parent);
            row.score.add(&call.id, &call.parent, edges.get(&call.id));
        }
        let incomplete = finished.lines.iter().filter(|line| line["complete"] == false && is_of(&name, line)).count();
        if incomplete > 0 {
            row.notes.push(format!("{incomplete} paths incomplete"));
        }
        if lost.iter().any(|count| *count > 0) {
            row.notes.push(format!("records lost: {lost:?}"));
        }
        rows.push(row);
    }
    rows
}

fn is_of(name: &str, line: &Value) -> bool {
    let path = line["root"]["http"]["path"].as_str().unwrap_or_default();
    path.trim_start_matches('/').rsplit_once('-').is_some_and(|(of, _)| of == name)
}

/// Four runtimes, alone and eight at once: nothing may be wrong under an exact rule, and alone all must be right.
pub fn bounded() {
    let mut rows = Vec::new();
    for runtime in runtimes::ALL.iter().filter(|runtime| runtimes::BOUNDED.contains(&runtime.name)) {
        let shapes: Vec<_> =
            [Shape::Seq, Shape::Par, Shape::Retry].into_iter().filter(|shape| runtime.shapes.contains(shape)).collect();
        let (driven, finished) = measure(runtime, &shapes, &[1, 8], 200, "on").unwrap_or_else(|why| panic!("{why}"));
        rows.extend(judge(driven, &finished));
    }
    table::head();
    rows.iter().for_each(table::row);
    assert_exact(&rows);
    for row in rows.iter() {
        assert!(row.notes.is_empty(), "{row:#?}");
        assert_eq!(row.score.missing, 0, "{row:#?}");
        if row.concurrency == 1 {
            assert_eq!(row.score.right(), row.requests * row.shape.calls(), "{row:#?}");
        }
    }
}

/// Go with its goroutines followed: every edge is right, also where they hand each other work, and after the answer.
pub fn probed() {
    let runtime = runtimes::ALL.iter().find(|runtime| matches!(runtime.start, Start::Probed(_))).unwrap();
    let shapes = [Shape::Par, Shape::Pool, Shape::After];
    let (driven, finished) = measure(runtime, &shapes, &[8], 200, "on").unwrap_or_else(|why| panic!("{why}"));
    let rows = judge(driven, &finished);
    table::head();
    rows.iter().for_each(table::row);
    for row in &rows {
        assert!(row.notes.is_empty(), "{row:#?}");
        let all = row.requests * row.shape.calls();
        assert_eq!(row.score.rules.get("coroutine"), Some(&(all, 0)), "{row:#?}");
    }
}

/// Python's asyncio, eight at once: the task that sends tells whose a call is, also behind a timer. The first row is not
/// counted: it is what the place is learned by where a task shows.
pub fn asyncio() {
    let runtime = runtimes::ALL.iter().find(|runtime| runtime.name == "Python aiohttp").unwrap();
    let shapes = [Shape::Retry, Shape::Seq, Shape::Timer];
    let (driven, finished) = measure(runtime, &shapes, &[8], 200, "on").unwrap_or_else(|why| panic!("{why}"));
    let rows = judge(driven, &finished);
    table::head();
    rows.iter().for_each(table::row);
    assert_exact(&rows);
    for row in &rows[1..] {
        let (all, right, wrong) = (row.score.edges(), row.score.right(), row.score.wrong());
        assert!(row.notes.is_empty() && row.score.missing == 0, "{row:#?}");
        assert!(20 * right >= 18 * all && 100 * wrong <= all, "{right} right, {wrong} wrong of {all}: {row:#?}");
    }
}

/// Python's ThreadPoolExecutor, eight at once: whom a worker wakes when it has the answer tells whose a call was. What the
/// row begins with shows that this process hands results back.
pub fn pool() {
    let runtime = &runtimes::ALL[0];
    let (driven, finished) =
        measure(runtime, &[Shape::Retry, Shape::Pool], &[8], 200, "on").unwrap_or_else(|why| panic!("{why}"));
    let rows = judge(driven, &finished);
    table::head();
    rows.iter().for_each(table::row);
    assert_exact(&rows);
    let row = &rows[1];
    let (all, right, wrong) = (row.score.edges(), row.score.right(), row.score.wrong());
    assert!(row.notes.is_empty() && row.score.missing == 0, "{row:#?}");
    assert!(100 * right >= 95 * all && 100 * wrong <= all, "{right} right, {wrong} wrong of {all}: {row:#?}");
}
