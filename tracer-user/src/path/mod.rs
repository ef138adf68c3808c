//! The call path: what the assembler makes, the sinks print, and `profile` and `forecast` read back.
//!
//! The types serialise to the lines of the output contract (DESIGN.md, section 6): keys may be added, never changed,
//! and a reader passes over keys that it does not know. Strings from the wire are kept as they came (lossy UTF-8,
//! bounded); making them harmless is the sinks' work, because what is harmful depends on where they are printed.

mod fast;
mod sandbox;
mod value;

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tracer_ebpf::record::End;

pub use self::sandbox::{ColdStart, Resource};
pub use self::value::{SpanId, Time, TraceId};
pub(crate) use self::value::{Text, shared};

/// The version of the contract, in every line under `fntrace`. Only this one is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version;

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(1)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            1 => Ok(Self),
            other => Err(de::Error::custom(format_args!("version {other} of the output is not known here"))),
        }
    }
}

/// `"type":"path"`, as a type of its own so that no other line is read as a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathType {
    /// The only value.
    #[default]
    #[serde(rename = "path")]
    Path,
}

/// `"type":"late"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LateType {
    /// The only value.
    #[default]
    #[serde(rename = "late")]
    Late,
}

/// One root invocation, or root call, with everything under it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// Version of the contract.
    pub fntrace: Version,
    /// Which line this is.
    #[serde(rename = "type")]
    pub kind: PathType,
    /// The trace that the root continues or begins.
    pub trace_id: TraceId,
    /// When the root began.
    pub start: Time,
    /// How long the root took, in µs; to the last that was seen of the path, if the root's end was not.
    pub duration_us: u64,
    /// Whether all of the path is here, as far as can be known.
    pub complete: bool,
    /// What is not, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// The root.
    pub root: Node,
}

/// A part of a path that is printed apart from it: it came after the path was printed, or the path is too deep to print
/// in one line. If a node with the root's span id was printed before, this one replaces it and keeps its children.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Late {
    /// Version of the contract.
    pub fntrace: Version,
    /// Which line this is.
    #[serde(rename = "type")]
    pub kind: LateType,
    /// The trace id of the path that the part belongs to.
    pub trace_id: TraceId,
    /// The span under which the part belongs; none if it replaces the path's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_span_id: Option<SpanId>,
    /// When the part began; its offsets count from here.
    pub start: Time,
    /// As in [`Path`], for the part.
    pub complete: bool,
    /// As in [`Path`], for the part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// The part.
    pub root: Node,
}

/// What the assembler gives out and a reader gets back.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Line {
    /// A whole path.
    Path(Path),
    /// A part that came late.
    Late(Late),
}

impl Line {
    /// Reads a line of the `ndjson` format. `None` for a line of another type (`stats`, and types to come).
    pub fn parse(json: &str) -> serde_json::Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Probe<'a> {
            #[serde(rename = "type", borrow)]
            kind: Cow<'a, str>,
        }
        // Nearly every line is a path, and says so where this agent puts it: no need to look for the type first.
        if json.starts_with(r#"{"fntrace":1,"type":"path","#) {
            let path = fast::path(json).map_or_else(|| serde_json::from_str(json), Ok);
            return path.map(|path| Some(Self::Path(path)));
        }
        match &*serde_json::from_str::<Probe<'_>>(json)?.kind {
            "path" => serde_json::from_str(json).map(|path| Some(Self::Path(path))),
            "late" => serde_json::from_str(json).map(|late| Some(Self::Late(late))),
            _ => Ok(None),
        }
    }
}

/// A span of a path.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Node {
    /// An execution of a function: a server span.
    Invocation(Invocation),
    /// A request that goes out: a client span.
    Call(Call),
}

impl Node {
    /// What is under it, in order of start.
    pub fn children(&self) -> &[Node] {
        match self {
            Self::Invocation(invocation) => &invocation.children,
            Self::Call(call) => &call.children,
        }
    }

    /// Its span id.
    pub fn span_id(&self) -> SpanId {
        match self {
            Self::Invocation(invocation) => invocation.span_id,
            Self::Call(call) => call.span_id,
        }
    }

    /// When it began, in µs after the start of the line it is in. Negative only where records contradict each other.
    pub fn start_us(&self) -> i64 {
        match self {
            Self::Invocation(invocation) => invocation.start_us,
            Self::Call(call) => call.start_us,
        }
    }

    /// How long it took; `None` if it was not seen to end.
    pub fn duration_us(&self) -> Option<u64> {
        match self {
            Self::Invocation(invocation) => invocation.duration_us,
            Self::Call(call) => call.duration_us,
        }
    }
}

/// Reads either kind of span in one go. What serde derives for an enum with its tag inside keeps all of a span aside, with
/// all under it, until the tag is found: at each level again, which took most of the time of reading a path.
impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Kind {
            Invocation,
            Call,
        }
        // The fields of both; those without `Option` may be left out in both.
        #[derive(Deserialize)]
        struct Either<'a> {
            kind: Kind,
            span_id: SpanId,
            start_us: i64,
            trace_id: Option<TraceId>,
            outside_parent: Option<SpanId>,
            #[serde(borrow)]
            function: Option<Text<'a>>,
            #[serde(borrow)]
            sandbox: Option<Text<'a>>,
            pid: Option<u32>,
            #[serde(borrow)]
            to: Option<Text<'a>>,
            #[serde(borrow)]
            peer: Option<Text<'a>>,
            #[serde(borrow)]
            host: Option<Text<'a>>,
            duration_us: Option<u64>,
            first_byte_us: Option<i64>,
            #[serde(default = "yes")]
            ended: bool,
            #[serde(default)]
            cold: bool,
            cold_start: Option<ColdStart>,
            resource: Option<Resource>,
            http: Option<Http>,
            joined_by: Option<JoinedBy>,
            #[serde(borrow)]
            protocol: Option<Text<'a>>,
            #[serde(borrow)]
            tag: Option<Text<'a>>,
            #[serde(borrow)]
            parent_by: Option<Text<'a>>,
            #[serde(default)]
            after_response: bool,
            probability: Option<f64>,
            channel: Option<Channel>,
            #[serde(borrow)]
            error: Option<Text<'a>>,
            faas: Option<Box<Faas>>,
            #[serde(default, deserialize_with = "children")]
            children: Vec<Node>,
        }
        fn need<T, E: de::Error>(value: Option<T>, field: &'static str) -> Result<T, E> {
            value.ok_or_else(|| E::missing_field(field))
        }
        let either = Either::deserialize(deserializer)?;
        let Either { span_id, trace_id, start_us, duration_us, first_byte_us, ended, http, children, .. } = either;
        let error = either.error.map(Text::word);
        Ok(match either.kind {
            Kind::Invocation => Self::Invocation(Invocation {
                span_id,
                trace_id,
                outside_parent: either.outside_parent,
                function: need(either.function, "function")?.shared(),
                sandbox: need(either.sandbox, "sandbox")?.shared(),
                resource: either.resource.map(Arc::new),
                pid: need(either.pid, "pid")?,
                start_us,
                duration_us,
                first_byte_us,
                ended,
                cold: either.cold,
                cold_start: either.cold_start,
                http,
                joined_by: either.joined_by,
                error,
                faas: either.faas,
                children,
            }),
            Kind::Call => Self::Call(Call {
                span_id,
                trace_id,
                to: need(either.to, "to")?.shared(),
                peer: need(either.peer, "peer")?.shared(),
                host: either.host.map(|host| host.shared()),
                start_us,
                duration_us,
                first_byte_us,
                ended,
                http,
                protocol: either.protocol.map(Text::word),
                tag: need(either.tag, "tag")?.word(),
                parent_by: need(either.parent_by, "parent_by")?.word(),
                probability: either.probability,
                after_response: either.after_response,
                channel: either.channel,
                error,
                children,
            }),
        })
    }
}

/// An execution of a function in a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Invocation {
    /// The span id that the agent gave it.
    pub span_id: SpanId,
    /// Its trace id, where the application's own tracing made it differ from the path's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<TraceId>,
    /// The parent id that came in, where no call that this agent saw has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside_parent: Option<SpanId>,
    /// The function's name.
    pub function: Arc<str>,
    /// The sandbox's path below the cgroup root.
    pub sandbox: Arc<str>,
    /// Who the sandbox is, under OpenTelemetry's names.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "resource")]
    pub resource: Option<Arc<Resource>>,
    /// The process that received the request, in the host's numbering; 0 if not known.
    pub pid: u32,
    /// Start in µs after the start of the line.
    pub start_us: i64,
    /// None if it was not seen to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// When the response's first byte left, in µs after the start of the line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<i64>,
    /// Whether it was seen to end.
    #[serde(skip_serializing_if = "is_true")]
    pub ended: bool,
    /// The first request of a sandbox that was made while the agent watched.
    pub cold: bool,
    /// How that sandbox started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_start: Option<ColdStart>,
    /// Request and response; absent if the head could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// How it was joined to the call above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joined_by: Option<JoinedBy>,
    /// What went wrong below HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Cow<'static, str>>,
    /// What the platform says of it, where its runtime polled for it or could not be set up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faas: Option<Box<Faas>>,
    /// The calls that it made, in order of start.
    pub children: Vec<Node>,
}

/// A request that a sandbox sent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Call {
    /// The span id in its tag, or that its tag would have had.
    pub span_id: SpanId,
    /// Its trace id, where the application's own tracing made it differ from the path's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<TraceId>,
    /// The function that answered, if its sandbox is traced; else the same as `peer`.
    pub to: Arc<str>,
    /// Address and port of the peer, as the caller's socket sees it.
    pub peer: Arc<str>,
    /// The Host header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Arc<str>>,
    /// Start in µs after the start of the line.
    pub start_us: i64,
    /// None if it was not seen to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// When the response's first byte came, in µs after the start of the line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<i64>,
    /// Whether it was seen to end.
    #[serde(skip_serializing_if = "is_true")]
    pub ended: bool,
    /// Request and response; absent if the head could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// `opaque`: the connection does not speak HTTP/1, and the call lasts as long as the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Cow<'static, str>>,
    /// What became of the tag: a name of `tracer_ebpf::record::Tag`.
    pub tag: Cow<'static, str>,
    /// Which rule named the invocation: a name of `tracer_ebpf::record::Rule`.
    pub parent_by: Cow<'static, str>,
    /// Of an inferred call: the probability that this invocation made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// Made when the invocation had already answered.
    pub after_response: bool,
    /// The connection, once the call has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
    /// What went wrong below HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Cow<'static, str>>,
    /// The invocation that it caused, if that is known.
    pub children: Vec<Node>,
}

/// Request and response, as OpenTelemetry's `http.request.method`, `url.path`, `http.response.status_code`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Http {
    /// The method.
    #[serde(deserialize_with = "word")]
    pub method: Cow<'static, str>,
    /// The path without the query.
    #[serde(deserialize_with = "name")]
    pub path: Arc<str>,
    /// The query without `?`, only if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<Box<str>>,
    /// The status code; none if no response was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// What a runtime API says of an invocation, as OpenTelemetry's `faas.invocation_id`, `cloud.resource_id`, `error.type`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Faas {
    /// The id by which the platform knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invocation_id: Option<Box<str>>,
    /// The function's resource name (ARN).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<Box<str>>,
    /// When it has to have answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// How long the runtime took to set itself up, from the start of its process to its first poll, if this was the
    /// first invocation that it was handed: the cold start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_us: Option<u64>,
    /// What went wrong, in the runtime's own word or the platform's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_type: Option<Box<str>>,
}

/// The TCP connection of a call, as the caller's kernel sees it when the call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// The smoothed round-trip time, in µs (RFC 6298, as the kernel keeps it). It counts how long the peer puts off its
    /// acknowledgements (`tcp_send_delayed_ack`, Linux 6.18): on a kept-alive connection until the answer, or 40 ms. Seen in
    /// the demo: 28 µs at the first two calls of a connection, 12 ms after some tens, where the callee takes 11 ms. So only
    /// the least of several calls is the network's.
    pub rtt_us: u32,
    /// Segments that were sent again since the last call on the connection had ended; 255 for more.
    pub retransmits: u8,
}

impl Channel {
    /// What a record says of it; `None` if the kernel had not measured yet.
    pub fn of(end: &End) -> Option<Self> {
        (end.rtt_us != 0).then_some(Self { rtt_us: end.rtt_us, retransmits: end.retransmits })
    }
}

/// How an invocation was joined to its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinedBy {
    /// The span id that came in is the call's.
    Tag,
    /// Both ends saw the same connection and the same request on it, by its TCP sequence number.
    Wire,
}

fn word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cow<'static, str>, D::Error> {
    Text::deserialize(deserializer).map(Text::word)
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    Text::deserialize(deserializer).map(|text| text.shared())
}

/// Most spans have one below them or none. A vector that grows by itself begins with room for four, which is more than an
/// allocator gives out fast.
fn children<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Node>, D::Error> {
    struct Visitor;
    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Vec<Node>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("spans")
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Node>, A::Error> {
            let Some(first) = seq.next_element()? else { return Ok(Vec::new()) };
            let mut nodes = Vec::with_capacity(1);
            nodes.push(first);
            while let Some(node) = seq.next_element()? {
                nodes.push(node);
            }
            Ok(nodes)
        }
    }
    deserializer.deserialize_seq(Visitor)
}

fn resource<S: Serializer>(resource: &Option<Arc<Resource>>, serializer: S) -> Result<S::Ok, S::Error> {
    resource.as_deref().serialize(serializer)
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_true(value: &bool) -> bool {
    *value
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: &str = r#"{"children":[],"to":"a\nb","peer":"p","start_us":-5,"tag":"of tomorrow","parent_by":"loop",
        "span_id":"00000000000000ff","new":{"kind":[1]},"kind":"call","http":{"method":"BREW","path":"/ü"}}"#;

    #[test]
    fn keys_come_in_any_order_and_unknown_ones_are_passed_over() {
        let Node::Call(call) = serde_json::from_str(CALL).unwrap() else { panic!("not a call") };
        assert_eq!((&*call.to, call.start_us, &*call.tag, call.ended), ("a\nb", -5, "of tomorrow", true));
        assert_eq!(call.http.map(|http| http.method), Some("BREW".into()));
        // From a reader as from a string: nothing can be borrowed there.
        assert_eq!(serde_json::from_reader::<_, Node>(CALL.as_bytes()).unwrap(), serde_json::from_str(CALL).unwrap());
    }

    #[test]
    fn a_span_without_what_its_kind_needs_is_refused() {
        let error = serde_json::from_str::<Node>(&CALL.replace("\"call\"", "\"invocation\"")).unwrap_err().to_string();
        assert!(error.contains("missing field `function`"), "{error}");
        assert!(serde_json::from_str::<Node>(&CALL.replace("\"call\"", "\"cell\"")).is_err());
        assert!(serde_json::from_str::<Node>(&CALL.replace("00ff", "0+ff")).is_err());
    }
}
