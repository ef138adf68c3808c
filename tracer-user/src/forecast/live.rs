//! Forecasts beside `run`: records in, as they come out of the kernel; lines out, before anything else is done.
//!
//! A path that runs is not a path yet, so this does not wait for the assembler to give it out: it asks where a span
//! stands ([`Assembler::standing`]) as soon as its record was taken in. When a call is made nobody knows yet which
//! function will answer; but who answered at that address before is known, and is taken to answer again.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader},
    path::PathBuf,
    sync::Arc,
};

use tracer_ebpf::record::{Body, Record, START_UNSAMPLED, Wire};

use super::{Event, Forecast, ForecastType, Forecaster, Line, Rule, cli, table::name_hash};
use crate::{
    assemble::{Assembler, Standing, What, peer_name},
    path::{self, Channel, SpanId, Time, TraceId, Version},
    profile::write_atomically,
};

/// Addresses whose functions are remembered, external services whose channel is, and calls that wait until it is known
/// whom they reach. Beyond so many all are forgotten, and learned anew.
const KNOWN: usize = 4096;

/// What `run` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Print forecasts: when a running path will probably call a function or service soon, a line says so, ahead of it.
    #[arg(long)]
    pub forecast: bool,
    /// How far ahead to forecast.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = cli::positive, requires = "forecast")]
    pub horizon: f32,
    /// The price of a sandbox kept warm for the horizon in vain, over the price of a cold start: a call is forecast if it
    /// is likelier than RATIO / (1 + RATIO).
    #[arg(long, value_name = "RATIO", default_value_t = 0.25, value_parser = cli::positive, requires = "forecast")]
    pub cost_ratio: f32,
    /// Begin with what an earlier run has learned, and keep in this file what this one has when it ends.
    #[arg(long, value_name = "FILE", requires = "forecast")]
    pub forecast_model: Option<PathBuf>,
}

/// An end of a connection as a caller sees it: address, port, network namespace, and a hash of the Host header.
type Peer = ([u8; 16], u16, u64, u64);

/// Who answers at a [`Peer`].
#[derive(Debug)]
enum Who {
    One(Arc<str>),
    /// A gateway, say: only the answer tells.
    Several,
}

/// What has happened to a span.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// A request has reached a sandbox.
    Entered,
    /// A request, or bytes of another protocol than HTTP/1, leave a sandbox.
    Called { opaque: bool },
    /// The response is there, and so the connection's quality is known.
    Answered(Option<Channel>),
    /// The response has left the sandbox.
    Left,
}

/// A span to which something has happened.
#[derive(Clone, Copy, Debug)]
struct Due {
    span: SpanId,
    /// CLOCK_MONOTONIC, ns.
    at_ns: u64,
    moment: Moment,
}

/// A path in which something was seen to happen.
struct Seen {
    trace_id: TraceId,
    path: u64,
    at_us: i64,
}

/// Forecasts beside `run`.
#[derive(Debug)]
pub struct Live {
    forecaster: Forecaster,
    /// Where it is kept.
    file: Option<PathBuf>,
    rule: Rule,
    due: Vec<Due>,
    known: HashMap<Peer, Who>,
    /// By span id, calls of which nobody knows yet whom they reach, and when they were made, in µs since 1970.
    unknown: HashMap<SpanId, i64>,
    /// By name, the quality of the last connection to an external service.
    channels: HashMap<Arc<str>, Channel>,
}

impl Live {
    /// One that knows nothing, or what the file says if there is one. `None` if no forecast is asked for.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn start(args: &Args) -> io::Result<Option<Self>> {
        if !args.forecast {
            return Ok(None);
        }
        let file = args.forecast_model.clone();
        let forecaster = match file.as_deref().map(File::open) {
            Some(Ok(file)) => Forecaster::load(BufReader::new(file))?,
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => Forecaster::default(),
        };
        Ok(Some(Self {
            forecaster,
            file,
            rule: Rule { cost_ratio: args.cost_ratio, horizon_ms: args.horizon * 1000.0 },
            due: Vec::new(),
            known: HashMap::new(),
            unknown: HashMap::new(),
            channels: HashMap::new(),
        }))
    }

    /// Keeps what was learned, if a file is there for it.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn end(self) -> io::Result<()> {
        self.file.map_or(Ok(()), |file| write_atomically(&file, |out| self.forecaster.save(out)))
    }

    /// Notes what a record says has happened. What comes of it is for [`Self::forecast`], when the assembler has taken the
    /// record in and its sandbox has a name.
    pub fn note(&mut self, record: &Record<'_>) {
        let (span, moment) = match &record.body {
            Body::InvocationStart(start, _) | Body::CallStart(start, _) | Body::OpaqueStart(start)
                if start.flags & START_UNSAMPLED != 0 =>
            {
                return;
            }
            Body::InvocationStart(start, _) => (start.context.span_id, Moment::Entered),
            Body::CallStart(start, _) => (start.context.span_id, Moment::Called { opaque: false }),
            Body::OpaqueStart(start) => (start.context.span_id, Moment::Called { opaque: true }),
            Body::CallEnd(end) | Body::OpaqueEnd(end) => (end.span, Moment::Answered(Channel::of(end))),
            Body::InvocationEnd(end) => (end.span, Moment::Left),
            Body::SandboxBorn(_)
            | Body::SandboxGone
            | Body::SandboxExec(_)
            | Body::SandboxListens(_)
            | Body::UnitSought(..)
            | Body::Answered(_)
            | Body::HandBack(_)
            | Body::RuntimeReport(..) => return,
        };
        self.due.push(Due { span: SpanId(span), at_ns: record.header.at_ns, moment });
    }

    /// Takes in what was noted, and hands out what is worth acting on. `boot_to_wall_ns` is the wall clock less
    /// CLOCK_MONOTONIC.
    pub fn forecast<E>(
        &mut self,
        assembler: &Assembler,
        boot_to_wall_ns: i64,
        mut line: impl FnMut(&Line) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut due = std::mem::take(&mut self.due);
        for Due { span, at_ns, moment } in due.drain(..) {
            let at_us = (at_ns as i64).saturating_add(boot_to_wall_ns).div_euclid(1000);
            let Some(seen) = self.observe(assembler, span, moment, at_us) else { continue };
            let mut calls = self.forecaster.decide(seen.path, seen.at_us, self.rule);
            if calls.is_empty() {
                continue;
            }
            for Forecast { callee, channel, .. } in calls.iter_mut().filter(|call| call.external) {
                *channel = self.channels.get(callee).copied();
            }
            line(&Line {
                fntrace: Version,
                kind: ForecastType::Forecast,
                trace_id: seen.trace_id,
                span_id: span,
                time: Time(seen.at_us),
                horizon_ms: self.rule.horizon_ms,
                threshold: self.rule.threshold(),
                calls,
            })?;
        }
        // Keeps the room for the next batch.
        self.due = due;
        Ok(())
    }

    /// Learns that a path has ended: it was given out.
    pub fn ended(&mut self, line: &path::Line) {
        if let path::Line::Path(path) = line {
            self.forecaster.observe(Event::End { path: path.root.span_id().0, complete: path.complete });
        }
    }

    fn observe(&mut self, assembler: &Assembler, span: SpanId, moment: Moment, at_us: i64) -> Option<Seen> {
        let what = if matches!(moment, Moment::Entered | Moment::Left) { What::Invocation } else { What::Call };
        let standing = assembler.standing(what, span)?;
        let seen = Seen { trace_id: standing.trace_id, path: standing.root.0, at_us };
        let (path, call) = (seen.path, span.0);
        match moment {
            Moment::Entered => {
                let function = standing.function.as_ref()?;
                let call = match standing.above {
                    None => {
                        self.forecaster.observe(Event::Call { path, call, caller: None, callee: function, at_us });
                        call
                    }
                    Some(above) => {
                        self.reached(&assembler.standing(What::Call, above)?, above, function);
                        above.0
                    }
                };
                self.forecaster.observe(Event::Start { path, call, at_us, cold: standing.cold });
            }
            Moment::Called { opaque } => match self.who(&standing, opaque) {
                Some(callee) => self.called(&standing, span, &callee, at_us),
                None => {
                    make_room(&mut self.unknown);
                    self.unknown.insert(span, at_us);
                    return None;
                }
            },
            Moment::Answered(channel) => {
                if standing.function.is_none() {
                    let name = external(&standing);
                    self.reached(&standing, span, &name);
                    if let Some(channel) = channel {
                        make_room(&mut self.channels);
                        self.channels.insert(name, channel);
                    }
                }
                self.forecaster.observe(Event::Answer { path, call, at_us });
            }
            Moment::Left if standing.above.is_none() => self.forecaster.observe(Event::Answer { path, call, at_us }),
            // The answer is on its way to the caller: that it has come is what counts.
            Moment::Left => return None,
        }
        Some(seen)
    }

    /// Whom a call reaches, as far as that is known when it is made.
    fn who(&self, standing: &Standing<'_>, opaque: bool) -> Option<Arc<str>> {
        if opaque {
            return Some(external(standing));
        }
        // The invocation's record may be in the same batch.
        standing.function.clone().or_else(|| match self.known.get(&peer(standing))? {
            Who::One(name) => Some(Arc::clone(name)),
            Who::Several => None,
        })
    }

    fn called(&mut self, standing: &Standing<'_>, span: SpanId, callee: &str, at_us: i64) {
        let (path, caller) = (standing.root.0, standing.caller.map(|caller| caller.0));
        self.forecaster.observe(Event::Call { path, call: span.0, caller, callee, at_us });
    }

    /// A call has turned out to reach `name`.
    fn reached(&mut self, call: &Standing<'_>, span: SpanId, name: &Arc<str>) {
        if let Some(at_us) = self.unknown.remove(&span) {
            self.called(call, span, name, at_us);
        }
        make_room(&mut self.known);
        let who = self.known.entry(peer(call)).or_insert_with(|| Who::One(Arc::clone(name)));
        if matches!(who, Who::One(before) if before != name) {
            *who = Who::Several;
        }
    }
}

fn make_room<K, V>(map: &mut HashMap<K, V>) {
    if map.len() >= KNOWN {
        map.clear();
    }
}

fn peer(call: &Standing<'_>) -> Peer {
    let Wire { remote, remote_port, netns, .. } = call.wire;
    (remote, remote_port, netns, call.host.map_or(0, name_hash))
}

/// The name of an external service, as the profile has it: its Host header, or else its address.
fn external(call: &Standing<'_>) -> Arc<str> {
    call.host.map_or_else(|| peer_name(&call.wire).into(), Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::{Config, SandboxInfo};
    use tracer_ebpf::{
        record::{End, Header, Rule as By, START_INBOUND, Start, Tag},
        traceparent::Context,
    };

    const MS: u64 = 1_000_000;

    /// A worker host: its records go to the assembler and to the forecasts.
    struct Host {
        assembler: Assembler,
        live: Live,
        lines: Vec<Line>,
    }

    impl Host {
        fn new() -> Self {
            let mut assembler = Assembler::new(Config::default());
            for (id, name) in [(1, "front"), (2, "stock"), (3, "price")] {
                assembler.sandbox(id, SandboxInfo { function: name.into(), path: name.into(), resource: None });
            }
            let args = Args { forecast: true, horizon: 2.0, cost_ratio: 0.25, forecast_model: None };
            Self { assembler, live: Live::start(&args).unwrap().unwrap(), lines: Vec::new() }
        }

        fn record(&mut self, at_ms: u64, sandbox: u64, body: Body<'_>) {
            let header = Header { at_ns: at_ms * MS, sandbox, kind: 0, tail_len: 0, pid: 1 };
            let record = Record { header, body };
            self.assembler.record(&record);
            self.live.note(&record);
            let lines = &mut self.lines;
            let taken = self.live.forecast(&self.assembler, 0, |line| {
                lines.push(line.clone());
                Ok::<(), std::convert::Infallible>(())
            });
            taken.unwrap();
        }

        fn ended(&mut self, at_ms: u64) {
            self.assembler.advance(at_ms * MS);
            while let Some(line) = self.assembler.take() {
                self.live.ended(&line);
            }
        }

        fn forecast(&self, trace: u64) -> Vec<&Forecast> {
            self.lines.iter().filter(|line| line.trace_id.0[1] == trace).flat_map(|line| &line.calls).collect()
        }
    }

    fn start(trace: u64, id: u64, parent: u64, port: u16) -> Start {
        let context = Context { trace_id: [0, trace], span_id: id, flags: 1, pad: [0; 7] };
        let wire = Wire { local: [1; 16], remote: [2; 16], netns: 1, local_port: id as u16, remote_port: port, pad: 0 };
        let (flags, rule, tag) = (START_INBOUND, By::Exclusive as u8, Tag::Injected as u8);
        Start {
            conn: id,
            context,
            parent,
            wire,
            sequence: 0,
            flags,
            rule,
            tag,
            live: 1,
            trust: 0,
            pad: [0; 3],
            tid: 0,
            unit: [0; 2],
        }
    }

    fn end(id: u64) -> End {
        End {
            conn: id,
            span: id,
            first_byte_ns: 0,
            sequence: 0,
            status: 200,
            reason: 0,
            retransmits: 3,
            errno: 0,
            rtt_us: 90,
        }
    }

    /// `front` calls what listens at port 80, which is the sandbox `at_80`, then an external service at port 443.
    fn path(host: &mut Host, trace: u64, at_80: u64) {
        let (t, id) = (trace * 1000, trace * 10);
        host.record(t, 1, Body::InvocationStart(Start { flags: 0, ..start(trace, id, 0, 9) }, b""));
        host.record(t + 5, 1, Body::CallStart(start(trace, id + 1, id, 80), b""));
        host.record(t + 6, at_80, Body::InvocationStart(start(trace, id + 2, id + 1, 9), b""));
        host.record(t + 16, at_80, Body::InvocationEnd(end(id + 2)));
        host.record(t + 17, 1, Body::CallEnd(end(id + 1)));
        host.record(t + 20, 1, Body::CallStart(start(trace, id + 3, id, 443), b""));
        host.record(t + 50, 1, Body::CallEnd(end(id + 3)));
        host.record(t + 51, 1, Body::InvocationEnd(end(id)));
        host.ended(t + 52);
    }

    #[test]
    fn what_was_learned_is_forecast_with_the_channel_where_it_leaves_the_host() {
        let mut host = Host::new();
        (1..20).for_each(|trace| path(&mut host, trace, 2));
        assert!(host.forecast(1).is_empty(), "nothing is known yet");
        let calls = host.forecast(19);
        let external = format!("[{}]:443", std::net::Ipv6Addr::from([2; 16]));
        let channel = Some(Channel { rtt_us: 90, retransmits: 3 });
        assert_eq!(calls.len(), 2, "each once: {calls:?}");
        for (name, external, channel) in [("stock", false, None), (&external, true, channel)] {
            let call = calls.iter().find(|call| &*call.callee == name).unwrap();
            assert_eq!((call.external, call.channel, call.known), (external, channel, true));
        }
        assert!(host.live.unknown.is_empty());
    }

    #[test]
    fn what_was_kept_is_known_at_once() {
        let mut host = Host::new();
        (1..20).for_each(|trace| path(&mut host, trace, 2));
        let mut kept = Vec::new();
        host.live.forecaster.save(&mut kept).unwrap();
        let mut again = Host::new();
        again.live.forecaster = Forecaster::load(kept.as_slice()).unwrap();
        for host in [&mut host, &mut again] {
            path(host, 20, 2);
            assert_eq!(host.forecast(20).len(), 2);
        }
        // It goes on as if nothing had been between.
        let mut both = [Vec::new(), Vec::new()];
        host.live.forecaster.save(&mut both[0]).unwrap();
        again.live.forecaster.save(&mut both[1]).unwrap();
        assert!(both[0] == both[1]);
        assert!(Forecaster::load(&kept[..kept.len() / 2]).is_err());
        assert!(Forecaster::load(&b"{}"[..]).is_err());
    }

    #[test]
    fn behind_one_address_may_be_several() {
        let mut host = Host::new();
        (1..40).for_each(|trace| path(&mut host, trace, 2 + trace % 2));
        // Even so each call is learned as what it turned out to be: both are as likely as not.
        let calls = host.forecast(39);
        for name in ["stock", "price"] {
            let call = calls.iter().find(|call| &*call.callee == name).unwrap();
            assert!((0.3..0.7).contains(&call.probability), "{call:?}");
        }
    }

    #[test]
    fn whoever_is_not_sampled_is_not_forecast() {
        let mut host = Host::new();
        let unsampled = Start { flags: START_UNSAMPLED, ..start(1, 10, 0, 9) };
        host.record(1, 1, Body::InvocationStart(unsampled, b""));
        assert_eq!(host.live.forecaster.live(), 0);
    }
}
