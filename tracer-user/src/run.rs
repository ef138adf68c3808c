//! `fntrace run`: records out of the ring buffer, call paths onto standard output.

mod args;
mod naming;

use std::{
    collections::HashSet,
    fmt,
    future::Future,
    io::{self, IsTerminal as _},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tracer_ebpf::record::{self, Body};

pub use self::args::{Format, Output, RunArgs, Tagging};
use self::naming::Naming;
use crate::{
    agent::{self, Agent, Cidr, Plan, Records, TAG_TO},
    assemble::Config,
    cgroup::{self, Mount, Selection},
    discover::Discovery,
    doctor::{self, Verdict},
    forecast,
    go::{self, Found},
    governor::{self, Governor},
    host::{self, SelfTest},
    name::{self, Identity, Names},
    profile,
    recording::Recorder,
    signals::Signals,
    sink::{self, Sink, stats::Stats, tree::Look},
};

/// Why the agent does not start, for the exit status.
#[derive(Debug)]
pub enum Refusal {
    /// The command line asks for what is not there: exit status 2.
    Usage(String),
    /// This host cannot run it, or not now: exit status 3.
    Host(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(why) | Self::Host(why)) = self;
        to.write_str(why)
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    /// See [`Refusal`].
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Host(_) => ExitCode::from(3),
        }
    }
}

/// How often to look for paths that have settled.
const TICK: Duration = Duration::from_millis(50);
/// How often to compare the clocks.
const BEAT: Duration = Duration::from_secs(1);
/// The interval of `stats` lines, unless told otherwise.
const STATS: Duration = Duration::from_secs(10);
/// Records between two looks at the clock, at signals and at what has become complete.
const BATCH: usize = 1024;
/// How long Go programs may take at the start to be looked at: a tenant may make its files slow.
const LOOKING: Duration = Duration::from_secs(5);

/// Runs until a signal, or until the reader of standard output goes away.
///
/// # Errors
///
/// A [`Refusal`], or what went wrong while running.
pub async fn run(args: &RunArgs) -> Result<()> {
    let mut signals = Signals::new()?;
    trace(args, || {}, signals.wait()).await
}

/// Traces until `stop` resolves; calls `ready` once everything is attached.
///
/// # Errors
///
/// As for [`run`].
pub async fn trace(args: &RunArgs, ready: impl FnOnce(), stop: impl Future<Output = ()>) -> Result<()> {
    let report = spawn_blocking(doctor::checks).await.context("check the host")?;
    if let Some(refusal) = report.refusal() {
        return Err(Refusal::Host(refusal).into());
    }
    let mount = Mount::find().map_err(|error| Refusal::Host(format!("{error:#}")))?;
    let usage = |error: anyhow::Error| Refusal::Usage(format!("{error:#}"));
    let selection = Selection::resolve(&mount, &args.cgroups).map_err(usage)?;
    let discovery = args.cgroups.is_empty().then(|| Discovery::new(mount.clone(), &args.discover_below));
    let discovery = discovery.transpose().map_err(usage)?;
    let names = Names::new(mount.clone(), &args.names).map_err(usage)?;
    refuse_second(&mount, &selection.roots)?;
    let tagging = tagging(args.output.tag, &report.verdict());
    let verdict = matches!(report.self_test, Some(SelfTest::NeedsVerdict { .. }));
    let plan = plan(args, &selection, discovery.as_ref(), tagging, verdict)?;
    let mut agent = Agent::load(&plan)?;
    // From here on the kernel half sees sandboxes appear; those that are there already come from a walk.
    let existing = selection.existing(&mount);
    let sandboxes: Vec<u64> = existing.iter().map(|(id, _)| *id).collect();
    let mut flow = Flow::new(args, &mut agent, names, discovery)?;
    for (id, path) in existing {
        flow.naming.exists(id, path);
    }
    agent.attach(&plan, &sandboxes)?;
    if args.go_uprobes {
        flow.go = Some(go::Watch::start(mount.clone(), selection).context("start to look for Go programs")?);
        flow.probe_those_there(&mut agent).await;
    }
    let what = match flow.discover(&mut agent, &mount).await? {
        Some(found) => found,
        None => what(&args.cgroups, sandboxes.len()),
    };
    eprintln!("fntrace: tracing {what}, {}", how(&plan));
    ready();
    let outcome = flow.follow(&mut agent, stop).await;
    let outcome = match outcome {
        Ok(()) => flow.end(&mut agent).await,
        Err(error) => Err(error),
    };
    match outcome {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        outcome => outcome,
    }
}

/// Whether an error only says that the reader of the output has gone away.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn refuse_second(mount: &Mount, roots: &[PathBuf]) -> Result<()> {
    let ids = roots.iter().map(|root| cgroup::id(root)).collect::<io::Result<Vec<_>>>();
    let ids = ids.map_err(|error| Refusal::Usage(format!("look at the cgroups: {error}")))?;
    match host::second_agent(mount, &ids) {
        Ok(None) => Ok(()),
        Ok(Some(other)) => {
            Err(Refusal::Host(format!("{other}: stop it first, or choose other cgroups with --cgroup")).into())
        }
        // Only the list of links is closed to us; the doctor has said so.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error).context("look for another fntrace"),
    }
}

/// Whether to tag, which what the host can do may overrule; loudly.
fn tagging(wanted: Tagging, verdict: &Verdict) -> bool {
    match (wanted, verdict) {
        (Tagging::Off, _) => false,
        (_, Verdict::Tags) | (Tagging::On, Verdict::TagsIfTold(_)) => true,
        (_, Verdict::TagsIfTold(why) | Verdict::Observes(why) | Verdict::Cannot(why)) => {
            eprintln!("fntrace: WARNING: calls are not tagged here: {why}");
            false
        }
    }
}

fn plan(
    args: &RunArgs,
    selection: &Selection,
    discovery: Option<&Discovery>,
    tagging: bool,
    verdict: bool,
) -> Result<Plan> {
    let tag_to = if args.output.tag_to.is_empty() {
        TAG_TO.iter().map(|cidr| cidr.parse()).collect::<Result<Vec<Cidr>>>()?
    } else {
        args.output.tag_to.clone()
    };
    let chosen = selection.patterns.iter().filter(|pattern| !pattern.is_literal());
    Ok(Plan {
        roots: selection.roots.clone(),
        patterns: match discovery {
            Some(discovery) => discovery.patterns(),
            None => chosen.map(|pattern| pattern.as_str().to_owned()).collect(),
        },
        discovers: discovery.is_some(),
        tag_to: tagging.then_some(tag_to),
        tag_max_head: args.output.tag_max_head,
        verdict,
        go_uprobes: args.go_uprobes,
        infers: args.output.infer_min < 1.0,
        floor: args.floor,
        sampling: args.output.sample.is_some() || args.output.max_overhead.is_some(),
        map_entries: args.map_entries.clone(),
    })
}

fn what(cgroups: &[String], now: usize) -> String {
    let sandboxes = if now == 1 { "cgroup" } else { "cgroups" };
    format!("{} ({now} {sandboxes} now)", cgroups.join(" "))
}

fn how(plan: &Plan) -> String {
    match &plan.tag_to {
        None => "tagging nothing: calls are joined by their connections".to_owned(),
        Some(ranges) => {
            let ranges: Vec<String> = ranges.iter().map(Cidr::to_string).collect();
            format!("tagging calls to {}", ranges.join(" "))
        }
    }
}

/// The flow in user space, from the ring buffer to standard output.
struct Flow {
    records: Records,
    assembler: Recorder,
    sink: Sink<io::StdoutLock<'static>>,
    naming: Naming,
    discovery: Option<Discovery>,
    stats_every: Option<Duration>,
    log: Option<AsyncFd<agent::Log>>,
    profile: Option<profile::live::Live>,
    forecast: Option<forecast::live::Live>,
    governor: Option<Governor>,
    /// What finds Go programs, if they are to be probed.
    go: Option<go::Watch>,
    /// The wall clock less CLOCK_MONOTONIC.
    boot_to_wall_ns: i64,
}

impl Flow {
    fn new(args: &RunArgs, agent: &mut Agent, names: Names, discovery: Option<Discovery>) -> Result<Self> {
        let output = &args.output;
        let format = form(output.format);
        if format == sink::Format::OtlpJson && output.forecast.forecast {
            let remedy = "OpenTelemetry has no form for forecasts: --forecast takes --format ndjson or tree";
            return Err(Refusal::Usage(remedy.to_owned()).into());
        }
        let config = Config {
            settle_ns: output.settle.as_nanos() as u64,
            query: output.query,
            since_ns: monotonic_ns(),
            infer_min: output.infer_min,
            infer_by_timing: output.infer_by_timing,
            ..Config::default()
        };
        let records = agent.records()?;
        if let Some(share) = output.sample {
            agent.sampling()?.set_share(0, share)?;
        }
        let governor = output.max_overhead.map(|percent| Governor::start(percent, agent)).transpose();
        let governor = governor.map_err(|error| Refusal::Host(format!("--max-overhead: {error:#}")))?;
        let forecast = forecast::live::Live::start(&output.forecast);
        let forecast = forecast.map_err(|error| Refusal::Usage(format!("--forecast-model: {error}")))?;
        let profile = output.profile.clone().map(|file| {
            let unusable = |error| Refusal::Usage(format!("--profile {}: {error}", file.display()));
            profile::live::Live::start(file.clone()).map_err(unusable)
        });
        let profile = profile.transpose()?;
        let assembler = Recorder::new(config, output.record.as_deref()).map_err(|error| {
            let file = output.record.as_deref().unwrap_or_else(|| Path::new("")).display();
            Refusal::Usage(format!("--record {file}: {error}"))
        })?;
        let log = if output.verbose { agent.log().map(watch).transpose().context("watch the log")? } else { None };
        Ok(Self {
            records,
            assembler,
            sink: Sink::new(format, io::stdout().lock()),
            naming: Naming::new(names),
            discovery,
            stats_every: output.stats_every.or((format == sink::Format::Ndjson).then_some(STATS)),
            log,
            profile,
            forecast,
            governor,
            go: None,
            boot_to_wall_ns: boot_to_wall_ns(),
        })
    }

    /// Finds the functions that are there, where none were named, and says what was found.
    async fn discover(&mut self, agent: &mut Agent, mount: &Mount) -> Result<Option<String>> {
        let Some(discovery) = &self.discovery else { return Ok(None) };
        let candidates = discovery.existing();
        for (id, path) in &candidates {
            // First of all, so that no program starts unseen between the look and the watch.
            agent.watch(*id)?;
            self.naming.exists(*id, path.clone());
            self.naming.ask(*id, false);
        }
        let Self { naming, assembler, discovery: Some(discovery), .. } = self else { return Ok(None) };
        naming.find(assembler, |_, path, identity| discovery.judge(path, identity)).await;
        refuse_second(mount, &discovery.due().collect::<Vec<_>>())?;
        discovery.take(agent);
        agent.take_in_existing()?;
        let others: HashSet<_> = candidates.iter().filter_map(|(_, path)| name::container_of(path)).collect();
        let (found, others) = (discovery.len(), others.len().saturating_sub(discovery.len()));
        Ok(Some(format!(
            "the functions of known platforms ({found} containers now and those to come; {others} other containers are \
             left alone)"
        )))
    }

    async fn follow(&mut self, agent: &mut Agent, stop: impl Future<Output = ()>) -> Result<()> {
        let mut stop = std::pin::pin!(stop);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut govern = interval(governor::TICK);
        govern.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stats_every = self.stats_every.unwrap_or(Duration::from_secs(u64::from(u32::MAX)));
        let mut stats = tokio::time::interval_at(Instant::now() + stats_every, stats_every);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                _ = beat.tick() => {
                    self.boot_to_wall_ns = boot_to_wall_ns();
                    self.assembler.clock(self.boot_to_wall_ns);
                }
                _ = stats.tick() => self.stats(agent)?,
                _ = govern.tick(), if self.governor.is_some() => {
                    if let Some(governor) = &mut self.governor {
                        governor.tick(agent)?;
                    }
                }
                _ = tick.tick() => self.batch(agent).await?,
                due = self.records.wait() => {
                    due.context("wait for records")?;
                    self.batch(agent).await?;
                }
                () = log_ready(&mut self.log) => {}
                found = next_go(&mut self.go) => probe(agent, found),
            }
        }
    }

    /// Waits until the Go programs that run already are probed, or one is too slow to say what it is.
    async fn probe_those_there(&mut self, agent: &mut Agent) {
        let _ = timeout(LOOKING, async {
            loop {
                match next_go(&mut self.go).await {
                    Found::Looked => return,
                    found => probe(agent, found),
                }
            }
        })
        .await;
    }

    /// Takes what the ring buffer holds, and gives out what has become complete.
    async fn batch(&mut self, agent: &mut Agent) -> Result<()> {
        let mut found = self.drain(BATCH);
        if found == 0 {
            self.records.sleep()?;
            found = self.drain(BATCH);
        }
        if found == BATCH {
            self.records.go_on();
        } else if found > 0 {
            self.records.nap().context("set a timer")?;
        }
        self.find_names().await?;
        if let Some(discovery) = &mut self.discovery {
            discovery.take(agent);
        }
        self.forecast()?;
        self.assembler.lost(agent.lost()?);
        for (pid, places) in self.assembler.unit_places() {
            agent.note_unit_places(pid, places)?;
        }
        self.assembler.advance(monotonic_ns());
        self.assembler.flush().context("write the recording")?;
        self.give_out()
    }

    /// Takes in so many records at most, and says how many there were.
    fn drain(&mut self, most: usize) -> usize {
        let mut found = 0;
        let Self { records, assembler, naming, forecast, discovery, go, governor, .. } = self;
        while found < most
            && let Some(item) = records.take()
        {
            found += 1;
            let Some(record) = record::decode(&item) else {
                assembler.record(&item, None);
                continue;
            };
            naming.note(&record, assembler);
            if let (Some(governor), Body::SandboxGone) = (&mut *governor, record.body) {
                governor.gone(record.header.sandbox);
            }
            assembler.record(&item, Some(&record));
            if let (Some(discovery), Body::SandboxGone) = (&mut *discovery, record.body) {
                discovery.gone(record.header.sandbox);
            }
            if let (Some(go), Body::SandboxExec(..)) = (&*go, record.body) {
                go.look();
            }
            if let Some(forecast) = forecast {
                forecast.note(&record);
            }
        }
        found
    }

    async fn find_names(&mut self) -> Result<()> {
        let Self { naming, assembler, discovery, governor, .. } = self;
        let mut placed = Ok(());
        let hear = |sandbox: u64, path: &str, identity: &Identity| {
            if let Some(discovery) = discovery {
                discovery.judge(path, identity);
            }
            if let Some(governor) = governor
                && let Err(error) = governor.named(sandbox, &identity.name.text)
            {
                placed = Err(error);
            }
        };
        naming.find(assembler, hear).await;
        placed
    }

    /// Tells what the records of this batch let expect, before all else: every moment counts.
    fn forecast(&mut self) -> Result<()> {
        let Self { assembler, sink, forecast: Some(forecast), .. } = self else { return Ok(()) };
        let mut any = false;
        forecast.forecast(assembler, self.boot_to_wall_ns, |line| {
            any = true;
            sink.forecast(line)
        })?;
        if any {
            sink.flush()?;
        }
        Ok(())
    }

    fn give_out(&mut self) -> Result<()> {
        let mut any = false;
        while let Some(line) = self.assembler.take() {
            self.sink.line(&line)?;
            if let Some(forecast) = &mut self.forecast {
                forecast.ended(&line);
            }
            if let Some(profile) = &self.profile {
                profile.line(line);
            }
            any = true;
        }
        if any {
            self.sink.flush()?;
        }
        Ok(())
    }

    fn stats(&mut self, agent: &Agent) -> Result<()> {
        let (kernel, kernel_tags) = (agent.counters()?, agent.tags()?);
        let governor = self.governor.as_ref().map(Governor::report);
        let totals = self.assembler.totals();
        let stats = Stats { totals, kernel: &kernel, kernel_tags: &kernel_tags, governor: governor.as_ref() };
        self.sink.stats(&stats)?;
        self.sink.flush()?;
        Ok(())
    }

    /// The last lines: what is still open, and the final counts.
    async fn end(mut self, agent: &mut Agent) -> Result<()> {
        // First, so that nothing is recorded that nobody reads.
        agent.detach()?;
        self.drain(usize::MAX);
        self.find_names().await?;
        self.assembler.lost(agent.lost()?);
        self.assembler.advance(monotonic_ns());
        self.assembler.finish();
        let recorded = self.assembler.flush().context("write the recording");
        self.give_out()?;
        self.stats(agent)?;
        recorded?;
        self.forecast.map_or(Ok(()), forecast::live::Live::end).context("write the forecast's model")?;
        self.profile.map_or(Ok(()), profile::live::Live::end).context("write the profile")
    }
}

/// Waits for something that the kernel half writes to.
fn watch<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: aya's readers own their descriptor and give the same one as long as they live; `AsyncFd` owns the reader.
    unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }.map_err(io::Error::from)
}

/// The next thing to know of Go programs, if they are looked for.
async fn next_go(go: &mut Option<go::Watch>) -> Found {
    let next = match go {
        Some(go) => go.next().await,
        None => None,
    };
    match next {
        Some(found) => found,
        None => std::future::pending().await,
    }
}

/// Puts breakpoints into a Go program. What goes wrong with it concerns nobody else.
fn probe(agent: &mut Agent, found: Found) {
    match found {
        Found::Program { program, file, sandbox } => match agent.probe_go(&program, &file) {
            Ok(()) => eprintln!("fntrace: the Go program in {sandbox} is probed ({})", program.version),
            Err(error) => eprintln!("fntrace: the Go program in {sandbox} is not probed: {error:#}"),
        },
        Found::Gone(id) => agent.leave_go(id),
        Found::LeftAlone(why) => eprintln!("fntrace: {why}"),
        Found::Looked => {}
    }
}

/// Prints what the kernel half logged, when there is something.
async fn log_ready(log: &mut Option<AsyncFd<agent::Log>>) {
    let Some(log) = log else { return std::future::pending().await };
    if let Ok(mut ready) = log.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}

fn clock_ns(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the answer; the clocks asked for exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// CLOCK_MONOTONIC in ns: the clock of the records.
fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC) as u64
}

fn boot_to_wall_ns() -> i64 {
    clock_ns(libc::CLOCK_REALTIME) - clock_ns(libc::CLOCK_MONOTONIC)
}

/// The form of output that was asked for, or what suits who reads it.
pub(crate) fn form(asked: Option<Format>) -> sink::Format {
    let terminal = io::stdout().is_terminal();
    match asked.unwrap_or(if terminal { Format::Tree } else { Format::Ndjson }) {
        Format::Tree => {
            let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            sink::Format::Tree(Look { width: width(), colour })
        }
        Format::Ndjson => sink::Format::Ndjson,
        Format::OtlpJson => sink::Format::OtlpJson,
    }
}

/// Columns of the terminal; 100 where there is none.
fn width() -> u16 {
    terminal_size::terminal_size().map_or(100, |(width, _)| width.0)
}
