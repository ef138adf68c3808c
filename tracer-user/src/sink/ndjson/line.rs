//! Writes a line as serde would, some times as fast: the keys are written together with what stands between them, and
//! whether anything in a text has to be escaped is asked once. What few spans have goes through serde.

use std::io;

use serde::Serialize;

use super::serialize;
use crate::path::{Call, Http, Invocation, JoinedBy, Late, Line, Node, Path, SpanId, TraceId};

/// Appends the line to `out`, without its end.
pub(super) fn write(line: &Line, out: &mut Vec<u8>) -> io::Result<()> {
    let mut out = Out(out);
    match line {
        Line::Path(path) => out.path(path),
        Line::Late(late) => out.late(late),
    }
}

struct Out<'a>(&'a mut Vec<u8>);

/// Whether a byte stands for itself in JSON, and on a terminal.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

impl Out<'_> {
    #[inline(always)]
    fn raw(&mut self, json: &str) {
        self.0.extend_from_slice(json.as_bytes());
    }

    fn serde<T: Serialize>(&mut self, key: &str, value: &T) -> io::Result<()> {
        self.raw(key);
        serialize(value, self.0)
    }

    fn text(&mut self, key: &str, text: &str) -> io::Result<()> {
        // Looks at all of them, which goes by sixteen at a time.
        if text.bytes().fold(true, |plain, byte| plain & is_plain(byte)) {
            self.raw(key);
            self.raw("\"");
            self.raw(text);
            self.raw("\"");
            return Ok(());
        }
        self.serde(key, &text)
    }

    fn number(&mut self, key: &str, number: impl itoa::Integer) {
        self.raw(key);
        self.raw(itoa::Buffer::new().format(number));
    }

    fn boolean(&mut self, key: &str, boolean: bool) {
        self.raw(key);
        self.raw(if boolean { "true" } else { "false" });
    }

    fn span_id(&mut self, key: &str, id: SpanId) {
        self.raw(key);
        self.0.push(b'"');
        self.0.extend_from_slice(&id.digits());
        self.0.push(b'"');
    }

    fn trace_id(&mut self, key: &str, id: TraceId) {
        self.raw(key);
        self.0.push(b'"');
        self.0.extend_from_slice(&id.digits());
        self.0.push(b'"');
    }

    fn path(&mut self, path: &Path) -> io::Result<()> {
        self.trace_id(r#"{"fntrace":1,"type":"path","trace_id":"#, path.trace_id);
        self.serde(r#","start":"#, &path.start)?;
        self.number(r#","duration_us":"#, path.duration_us);
        self.rest(path.complete, &path.missing, &path.root)
    }

    fn late(&mut self, late: &Late) -> io::Result<()> {
        self.trace_id(r#"{"fntrace":1,"type":"late","trace_id":"#, late.trace_id);
        if let Some(id) = late.parent_span_id {
            self.span_id(r#","parent_span_id":"#, id);
        }
        self.serde(r#","start":"#, &late.start)?;
        self.rest(late.complete, &late.missing, &late.root)
    }

    /// What ends a line of either type.
    fn rest(&mut self, complete: bool, missing: &[String], root: &Node) -> io::Result<()> {
        self.boolean(r#","complete":"#, complete);
        if !missing.is_empty() {
            self.serde(r#","missing":"#, &missing)?;
        }
        self.raw(r#","root":"#);
        self.node(root)?;
        self.raw("}");
        Ok(())
    }

    fn node(&mut self, node: &Node) -> io::Result<()> {
        match node {
            Node::Invocation(invocation) => self.invocation(invocation)?,
            Node::Call(call) => self.call(call)?,
        }
        self.raw(r#","children":["#);
        for (at, child) in node.children().iter().enumerate() {
            if at > 0 {
                self.raw(",");
            }
            self.node(child)?;
        }
        self.raw("]}");
        Ok(())
    }

    fn invocation(&mut self, it: &Invocation) -> io::Result<()> {
        self.span_id(r#"{"kind":"invocation","span_id":"#, it.span_id);
        if let Some(id) = it.trace_id {
            self.trace_id(r#","trace_id":"#, id);
        }
        if let Some(id) = it.outside_parent {
            self.span_id(r#","outside_parent":"#, id);
        }
        self.text(r#","function":"#, &it.function)?;
        self.text(r#","sandbox":"#, &it.sandbox)?;
        if let Some(resource) = it.resource.as_deref() {
            self.serde(r#","resource":"#, resource)?;
        }
        self.number(r#","pid":"#, it.pid);
        self.times(it.start_us, it.duration_us, it.first_byte_us, it.ended);
        self.boolean(r#","cold":"#, it.cold);
        if let Some(start) = &it.cold_start {
            self.serde(r#","cold_start":"#, start)?;
        }
        self.http(it.http.as_ref())?;
        match it.joined_by {
            Some(JoinedBy::Tag) => self.raw(r#","joined_by":"tag""#),
            Some(JoinedBy::Wire) => self.raw(r#","joined_by":"wire""#),
            None => {}
        }
        if let Some(error) = &it.error {
            self.text(r#","error":"#, error)?;
        }
        if let Some(faas) = it.faas.as_deref() {
            self.serde(r#","faas":"#, faas)?;
        }
        Ok(())
    }

    fn call(&mut self, it: &Call) -> io::Result<()> {
        self.span_id(r#"{"kind":"call","span_id":"#, it.span_id);
        if let Some(id) = it.trace_id {
            self.trace_id(r#","trace_id":"#, id);
        }
        self.text(r#","to":"#, &it.to)?;
        self.text(r#","peer":"#, &it.peer)?;
        if let Some(host) = &it.host {
            self.text(r#","host":"#, host)?;
        }
        self.times(it.start_us, it.duration_us, it.first_byte_us, it.ended);
        self.http(it.http.as_ref())?;
        if let Some(protocol) = &it.protocol {
            self.text(r#","protocol":"#, protocol)?;
        }
        self.text(r#","tag":"#, &it.tag)?;
        self.text(r#","parent_by":"#, &it.parent_by)?;
        if let Some(probability) = &it.probability {
            self.serde(r#","probability":"#, probability)?;
        }
        self.boolean(r#","after_response":"#, it.after_response);
        if let Some(channel) = it.channel {
            self.number(r#","channel":{"rtt_us":"#, channel.rtt_us);
            self.number(r#","retransmits":"#, channel.retransmits);
            self.raw("}");
        }
        if let Some(error) = &it.error {
            self.text(r#","error":"#, error)?;
        }
        Ok(())
    }

    fn times(&mut self, start_us: i64, duration_us: Option<u64>, first_byte_us: Option<i64>, ended: bool) {
        self.number(r#","start_us":"#, start_us);
        if let Some(us) = duration_us {
            self.number(r#","duration_us":"#, us);
        }
        if let Some(us) = first_byte_us {
            self.number(r#","first_byte_us":"#, us);
        }
        if !ended {
            self.raw(r#","ended":false"#);
        }
    }

    fn http(&mut self, http: Option<&Http>) -> io::Result<()> {
        let Some(http) = http else { return Ok(()) };
        self.text(r#","http":{"method":"#, &http.method)?;
        self.text(r#","path":"#, &http.path)?;
        if let Some(query) = &http.query {
            self.text(r#","query":"#, query)?;
        }
        if let Some(status) = http.status {
            self.number(r#","status":"#, status);
        }
        self.raw("}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{option::of, prelude::*};

    use super::*;
    use crate::path::{Channel, ColdStart, Faas, LateType, PathType, Resource, Time, Version};

    /// Mostly plain, as most are.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![3 => "[ -~&&[^\"\\\\]]{0,40}", 1 => any::<String>()]
    }

    fn http() -> impl Strategy<Value = Http> {
        (text(), text(), of(text()), of(any::<u16>())).prop_map(|(method, path, query, status)| Http {
            method: method.into(),
            path: path.into(),
            query: query.map(Into::into),
            status,
        })
    }

    fn cold_start() -> impl Strategy<Value = ColdStart> {
        (any::<i64>(), of(any::<i64>()), of(any::<i64>()), of(any::<u64>())).prop_map(
            |(born_us, started_us, ready_us, waited_us)| ColdStart { born_us, started_us, ready_us, waited_us },
        )
    }

    type Times = (i64, Option<u64>, Option<i64>, bool);

    fn times() -> impl Strategy<Value = Times> {
        (any::<i64>(), of(any::<u64>()), of(any::<i64>()), any::<bool>())
    }

    fn ids() -> impl Strategy<Value = (SpanId, Option<TraceId>, Option<SpanId>)> {
        (any::<u64>(), of(any::<[u64; 2]>()), of(any::<u64>()))
            .prop_map(|(id, trace, parent)| (SpanId(id), trace.map(TraceId), parent.map(SpanId)))
    }

    fn invocation() -> impl Strategy<Value = Invocation> {
        let own = (text(), text(), of(text()), any::<u32>(), any::<bool>(), of(cold_start()));
        let joined_by = prop::sample::select(vec![None, Some(JoinedBy::Tag), Some(JoinedBy::Wire)]);
        (ids(), times(), own, of(http()), joined_by, of(text()), of(text())).prop_map(
            |(ids, times, own, http, joined_by, error, arn)| {
                let (span_id, trace_id, outside_parent) = ids;
                let (start_us, duration_us, first_byte_us, ended) = times;
                let (function, sandbox, name, pid, cold, cold_start) = own;
                let resource = |name: String| Resource { faas_name: Some(name.into()), ..Resource::default() }.into();
                let faas = |arn: String| Box::new(Faas { resource_id: Some(arn.into()), ..Faas::default() });
                Invocation {
                    span_id,
                    trace_id,
                    outside_parent,
                    function: function.into(),
                    sandbox: sandbox.into(),
                    resource: name.map(resource),
                    pid,
                    start_us,
                    duration_us,
                    first_byte_us,
                    ended,
                    cold,
                    cold_start,
                    http,
                    joined_by,
                    error: error.map(Into::into),
                    faas: arn.map(faas),
                    children: Vec::new(),
                }
            },
        )
    }

    fn call() -> impl Strategy<Value = Call> {
        let words = (text(), text(), of(text()), of(text()), text(), text());
        let channel = (any::<u32>(), any::<u8>()).prop_map(|(rtt_us, retransmits)| Channel { rtt_us, retransmits });
        (ids(), times(), words, of(http()), of(0.0..=1.0), any::<bool>(), of(channel), of(text())).prop_map(
            |(ids, times, words, http, probability, after_response, channel, error)| {
                let (span_id, trace_id, _) = ids;
                let (start_us, duration_us, first_byte_us, ended) = times;
                let (to, peer, host, protocol, tag, parent_by) = words;
                Call {
                    span_id,
                    trace_id,
                    to: to.into(),
                    peer: peer.into(),
                    host: host.map(Into::into),
                    start_us,
                    duration_us,
                    first_byte_us,
                    ended,
                    http,
                    protocol: protocol.map(Into::into),
                    tag: tag.into(),
                    parent_by: parent_by.into(),
                    probability,
                    after_response,
                    channel,
                    error: error.map(Into::into),
                    children: Vec::new(),
                }
            },
        )
    }

    /// Twice each under the one before. In boxes, because the stack of a test's thread is small.
    fn node() -> impl Strategy<Value = Node> {
        let one = prop_oneof![invocation().prop_map(Node::Invocation).boxed(), call().prop_map(Node::Call).boxed()];
        prop::collection::vec(one.boxed(), 1..4).prop_map(|nodes| {
            let put = |below: Vec<Node>, mut node: Node| {
                match &mut node {
                    Node::Invocation(invocation) => invocation.children = below,
                    Node::Call(call) => call.children = below,
                }
                vec![node.clone(), node]
            };
            nodes.into_iter().fold(Vec::new(), put).swap_remove(0)
        })
    }

    fn line() -> impl Strategy<Value = Line> {
        let missing = prop::collection::vec(text(), 0..3);
        (node().boxed(), missing, ids(), any::<i64>(), any::<u64>(), any::<[bool; 2]>()).prop_map(
            |(root, missing, ids, start, duration_us, [late, complete])| {
                let (fntrace, start, (_, trace_id, parent_span_id)) = (Version, Time(start), ids);
                let trace_id = trace_id.unwrap_or_default();
                if late {
                    let kind = LateType::Late;
                    Line::Late(Late { fntrace, kind, trace_id, parent_span_id, start, complete, missing, root })
                } else {
                    let kind = PathType::Path;
                    Line::Path(Path { fntrace, kind, trace_id, start, duration_us, complete, missing, root })
                }
            },
        )
    }

    proptest! {
        #[test]
        fn any_line_is_written_as_serde_writes_it(line in line()) {
            let (mut fast, mut plain) = (Vec::new(), Vec::new());
            write(&line, &mut fast).unwrap();
            serialize(&line, &mut plain).unwrap();
            prop_assert_eq!(String::from_utf8(fast).unwrap(), String::from_utf8(plain).unwrap());
        }
    }
}
