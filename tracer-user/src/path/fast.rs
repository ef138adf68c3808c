//! Reads a path's line as this agent writes it: keys in the order of the types, no white space.
//!
//! A million paths are some gigabytes, and most of the time of reading them went into finding out which key comes next,
//! where only one can. So what is here expects that one. It knows no errors: whatever it does not expect (a key to come,
//! an escape, another order) is `None`, and the line is read again by serde, which reads any JSON and says what is wrong.

use std::{cell::RefCell, sync::Arc};

use super::{
    Call, Channel, Http, Invocation, JoinedBy, Node, Path, PathType, Resource, SpanId, Text, Time, TraceId, Version,
    value::hex64,
};

/// Nodes within nodes: as deep as the agent writes, below the limit of serde_json.
const DEPTH_MAX: u32 = 120;

/// A line that is a path of this version; `None` for any that is not as expected.
pub(super) fn path(line: &str) -> Option<Path> {
    let mut cursor = Cursor { left: line };
    cursor.eat(r#"{"fntrace":1,"type":"path","trace_id":"#)?;
    let trace_id = cursor.trace_id()?;
    cursor.eat(r#","start":"#)?;
    let start = Time(cursor.string()?.parse::<jiff::Timestamp>().ok()?.as_microsecond());
    cursor.eat(r#","duration_us":"#)?;
    let duration_us = cursor.number()?;
    cursor.eat(r#","complete":"#)?;
    let complete = cursor.boolean()?;
    cursor.eat(r#","root":"#)?;
    let root = cursor.node(DEPTH_MAX)?;
    cursor.eat("}")?;
    let (fntrace, kind, missing) = (Version, PathType::Path, Vec::new());
    cursor.left.is_empty().then_some(Path { fntrace, kind, trace_id, start, duration_us, complete, missing, root })
}

struct Cursor<'a> {
    left: &'a str,
}

impl<'a> Cursor<'a> {
    // Inlined, since a comparison with a text that is known is a few words', not a call.
    #[inline(always)]
    fn eat(&mut self, expected: &str) -> Option<()> {
        self.left = self.left.strip_prefix(expected)?;
        Some(())
    }

    /// What `read` reads if `key` comes next; `None` inside if it does not.
    #[inline(always)]
    fn maybe<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.eat(key) {
            Some(()) => read(self).map(Some),
            None => Some(None),
        }
    }

    fn take(&mut self, length: usize) -> Option<&'a str> {
        let (taken, left) = self.left.split_at_checked(length)?;
        self.left = left;
        Some(taken)
    }

    /// A string in which nothing is escaped.
    fn string(&mut self) -> Option<&'a str> {
        self.eat("\"")?;
        let end = self.left.bytes().position(|byte| byte == b'"' || byte == b'\\' || byte < b' ')?;
        let text = self.take(end)?;
        self.eat("\"").map(|()| text)
    }

    fn text(&mut self) -> Option<Text<'a>> {
        self.string().map(|text| Text(text.into()))
    }

    fn span_id(&mut self) -> Option<SpanId> {
        self.string().and_then(hex64).map(SpanId)
    }

    fn trace_id(&mut self) -> Option<TraceId> {
        let (high, low) = self.string()?.split_at_checked(16)?;
        Some(TraceId([hex64(high)?, hex64(low)?]))
    }

    fn number<N: TryFrom<u64>>(&mut self) -> Option<N> {
        let digits = self.left.bytes().position(|byte| !byte.is_ascii_digit())?;
        // JSON has no zeros in front, and 19 digits fit for certain.
        if digits == 0 || digits > 19 || (digits > 1 && self.left.starts_with('0')) {
            return None;
        }
        let number = self.take(digits)?.bytes().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
        // What goes on as a fraction is none of ours.
        N::try_from(number).ok().filter(|_| !self.left.starts_with(['.', 'e', 'E']))
    }

    fn signed(&mut self) -> Option<i64> {
        let minus = self.eat("-").is_some();
        let number: i64 = self.number()?;
        // -0 is a fraction to serde_json.
        if minus { (number != 0).then_some(-number) } else { Some(number) }
    }

    fn fraction(&mut self) -> Option<f64> {
        let end = self.left.find([',', '}'])?;
        serde_json::from_str(self.take(end)?).ok()
    }

    fn boolean(&mut self) -> Option<bool> {
        if self.eat("true").is_some() { Some(true) } else { self.eat("false").map(|()| false) }
    }

    /// An object without others inside, as it stands.
    fn flat(&mut self) -> Option<&'a str> {
        let end = self.left.find('}')? + 1;
        self.take(end)
    }

    fn node(&mut self, depth: u32) -> Option<Node> {
        let depth = depth.checked_sub(1)?;
        if self.eat(r#"{"kind":"call","#).is_some() {
            return self.call(depth).map(Node::Call);
        }
        self.eat(r#"{"kind":"invocation","#)?;
        self.invocation(depth).map(Node::Invocation)
    }

    fn invocation(&mut self, depth: u32) -> Option<Invocation> {
        self.eat(r#""span_id":"#)?;
        let span_id = self.span_id()?;
        let trace_id = self.maybe(r#","trace_id":"#, Self::trace_id)?;
        let outside_parent = self.maybe(r#","outside_parent":"#, Self::span_id)?;
        self.eat(r#","function":"#)?;
        let function = self.text()?.shared();
        self.eat(r#","sandbox":"#)?;
        let sandbox = self.text()?.shared();
        let resource = self.maybe(r#","resource":"#, |cursor| resource(cursor.flat()?))?;
        self.eat(r#","pid":"#)?;
        let pid = self.number()?;
        self.eat(r#","start_us":"#)?;
        let start_us = self.signed()?;
        let duration_us = self.maybe(r#","duration_us":"#, Self::number)?;
        let first_byte_us = self.maybe(r#","first_byte_us":"#, Self::signed)?;
        let ended = self.maybe(r#","ended":"#, Self::boolean)?.unwrap_or(true);
        self.eat(r#","cold":"#)?;
        let cold = self.boolean()?;
        let cold_start =
            self.maybe(r#","cold_start":"#, |cursor| cursor.flat().and_then(|text| serde_json::from_str(text).ok()))?;
        let http = self.maybe(r#","http":"#, Self::http)?;
        let joined_by = self.maybe(r#","joined_by":"#, |cursor| match cursor.string()? {
            "tag" => Some(JoinedBy::Tag),
            "wire" => Some(JoinedBy::Wire),
            _ => None,
        })?;
        let error = self.maybe(r#","error":"#, Self::text)?.map(Text::word);
        let children = self.children(depth)?;
        Some(Invocation {
            span_id,
            trace_id,
            outside_parent,
            function,
            sandbox,
            resource,
            pid,
            start_us,
            duration_us,
            first_byte_us,
            ended,
            cold,
            cold_start,
            http,
            joined_by,
            error,
            faas: None,
            children,
        })
    }

    fn call(&mut self, depth: u32) -> Option<Call> {
        self.eat(r#""span_id":"#)?;
        let span_id = self.span_id()?;
        let trace_id = self.maybe(r#","trace_id":"#, Self::trace_id)?;
        self.eat(r#","to":"#)?;
        let to = self.text()?.shared();
        self.eat(r#","peer":"#)?;
        let peer = self.text()?.shared();
        let host = self.maybe(r#","host":"#, Self::text)?.map(|host| host.shared());
        self.eat(r#","start_us":"#)?;
        let start_us = self.signed()?;
        let duration_us = self.maybe(r#","duration_us":"#, Self::number)?;
        let first_byte_us = self.maybe(r#","first_byte_us":"#, Self::signed)?;
        let ended = self.maybe(r#","ended":"#, Self::boolean)?.unwrap_or(true);
        let http = self.maybe(r#","http":"#, Self::http)?;
        let protocol = self.maybe(r#","protocol":"#, Self::text)?.map(Text::word);
        self.eat(r#","tag":"#)?;
        let tag = self.text()?.word();
        self.eat(r#","parent_by":"#)?;
        let parent_by = self.text()?.word();
        let probability = self.maybe(r#","probability":"#, Self::fraction)?;
        self.eat(r#","after_response":"#)?;
        let after_response = self.boolean()?;
        let channel = self.maybe(r#","channel":"#, Self::channel)?;
        let error = self.maybe(r#","error":"#, Self::text)?.map(Text::word);
        let children = self.children(depth)?;
        Some(Call {
            span_id,
            trace_id,
            to,
            peer,
            host,
            start_us,
            duration_us,
            first_byte_us,
            ended,
            http,
            protocol,
            tag,
            parent_by,
            probability,
            after_response,
            channel,
            error,
            children,
        })
    }

    fn http(&mut self) -> Option<Http> {
        self.eat(r#"{"method":"#)?;
        let method = self.text()?.word();
        self.eat(r#","path":"#)?;
        let path = self.text()?.shared();
        let query = self.maybe(r#","query":"#, Self::string)?.map(Into::into);
        let status = self.maybe(r#","status":"#, Self::number)?;
        self.eat("}")?;
        Some(Http { method, path, query, status })
    }

    fn channel(&mut self) -> Option<Channel> {
        self.eat(r#"{"rtt_us":"#)?;
        let rtt_us = self.number()?;
        self.eat(r#","retransmits":"#)?;
        let retransmits = self.number()?;
        self.eat("}")?;
        Some(Channel { rtt_us, retransmits })
    }

    /// The last key of a node, and the node's end.
    fn children(&mut self, depth: u32) -> Option<Vec<Node>> {
        self.eat(r#","children":["#)?;
        if self.eat("]}").is_some() {
            return Some(Vec::new());
        }
        // Most spans have one below them or none.
        let mut nodes = Vec::with_capacity(1);
        loop {
            nodes.push(self.node(depth)?);
            if self.eat(",").is_none() {
                return self.eat("]}").map(|()| nodes);
            }
        }
    }
}

/// Who a sandbox is comes again with each of its invocations: those read last are kept, and shared.
fn resource(text: &str) -> Option<Arc<Resource>> {
    const KEPT: usize = 32;
    thread_local! {
        static READ: RefCell<Vec<(Box<str>, Arc<Resource>)>> = const { RefCell::new(Vec::new()) };
    }
    READ.with_borrow_mut(|read| {
        if let Some(place) = read.iter().position(|(before, _)| **before == *text) {
            return Some(Arc::clone(&read[place].1));
        }
        let resource: Arc<Resource> = Arc::new(serde_json::from_str(text).ok()?);
        if read.len() >= KEPT {
            read.remove(0);
        }
        read.push((text.into(), Arc::clone(&resource)));
        Some(resource)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::ColdStart;

    fn call(children: Vec<Node>) -> Call {
        Call {
            span_id: SpanId(7),
            trace_id: Some(TraceId([1, 2])),
            to: "stock".into(),
            peer: "[::1]:80".into(),
            host: Some("stock.shop".into()),
            start_us: -5,
            duration_us: Some(0),
            first_byte_us: Some(-1),
            ended: false,
            http: Some(Http { method: "GET".into(), path: "/ü".into(), query: Some("a=b".into()), status: Some(200) }),
            protocol: Some("opaque".into()),
            tag: "injected".into(),
            parent_by: "of tomorrow".into(),
            probability: Some(0.875),
            after_response: true,
            channel: Some(Channel { rtt_us: 28, retransmits: 255 }),
            error: Some("reset".into()),
            children,
        }
    }

    /// Every key that is written here, and then none that can be left out.
    fn full(least: bool) -> Path {
        let inner = Invocation {
            span_id: SpanId(u64::MAX),
            trace_id: Some(TraceId([3, 4])),
            outside_parent: Some(SpanId(9)),
            function: "checkout".into(),
            sandbox: "/fns/checkout-1".into(),
            resource: Some(Arc::new(Resource { faas_name: Some("check}out".into()), ..Resource::default() })),
            pid: 4242,
            start_us: 0,
            duration_us: Some(u64::from(u32::MAX)),
            first_byte_us: Some(12),
            ended: false,
            cold: true,
            cold_start: Some(ColdStart { born_us: -9, started_us: Some(-3), ready_us: None, waited_us: Some(2) }),
            http: Some(Http::default()),
            joined_by: Some(JoinedBy::Wire),
            error: Some("reset".into()),
            faas: None,
            children: vec![Node::Call(call(Vec::new())), Node::Call(call(Vec::new()))],
        };
        let root = if least {
            Node::Invocation(Invocation {
                trace_id: None,
                outside_parent: None,
                resource: None,
                duration_us: None,
                first_byte_us: None,
                ended: true,
                cold_start: None,
                http: None,
                joined_by: None,
                error: None,
                ..inner
            })
        } else {
            Node::Call(call(vec![Node::Invocation(Invocation {
                resource: Some(Arc::new(Resource { faas_name: Some("checkout".into()), ..Resource::default() })),
                ..inner
            })]))
        };
        let (fntrace, kind, missing) = (Version, PathType::Path, Vec::new());
        let (trace_id, start) = (TraceId([u64::MAX, 1]), Time(1_764_000_000_123_456));
        Path { fntrace, kind, trace_id, start, duration_us: 48_210, complete: true, missing, root }
    }

    #[test]
    fn what_is_written_is_read_as_serde_reads_it() {
        for written in [full(false), full(true)] {
            let json = serde_json::to_string(&written).unwrap();
            assert_eq!(path(&json).as_ref(), Some(&written), "{json}");
            assert_eq!(serde_json::from_str::<Path>(&json).unwrap(), written);
        }
    }

    #[test]
    fn whatever_is_cut_or_changed_is_left_to_serde_or_read_alike() {
        let json = serde_json::to_string(&full(false)).unwrap();
        for end in (0..json.len()).filter(|&end| json.is_char_boundary(end)) {
            assert_eq!(path(&json[..end]), None);
            for other in ["\"", "\\", "0", "-", "}", "]", ",", " ", "é", "1e3", "null", "\u{1}"] {
                let after = json[end..].chars().next().map_or(0, char::len_utf8);
                for changed in [
                    format!("{}{other}{}", &json[..end], &json[end..]),
                    format!("{}{other}{}", &json[..end], &json[end + after..]),
                ] {
                    if let Some(read) = path(&changed) {
                        assert_eq!(serde_json::from_str::<Path>(&changed).ok(), Some(read), "{changed}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_line_too_deep_is_left_to_serde() {
        let open = r#"{"kind":"call","#;
        assert_eq!(Cursor { left: &open.repeat(100_000) }.node(DEPTH_MAX).map(|_| ()), None);
        let mut node = Node::Call(call(Vec::new()));
        for _ in 0..DEPTH_MAX {
            node = Node::Call(call(vec![node]));
        }
        let json = serde_json::to_string(&node).unwrap();
        assert!(Cursor { left: &json }.node(DEPTH_MAX).is_none());
        assert!(Cursor { left: &json }.node(DEPTH_MAX + 1).is_some());
    }
}
