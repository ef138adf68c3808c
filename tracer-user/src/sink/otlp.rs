//! One ExportTraceServiceRequest a line, as OpenTelemetry's file exporter writes it and its Collector reads it: OTLP/JSON
//! (opentelemetry-proto 1.x, trace/v1/trace.proto, and the specification's "JSON Protobuf Encoding": ids in hex, 64-bit
//! integers as strings, enums as numbers). Attributes have the names of the semantic conventions; what these have no name
//! for is under `fntrace.`.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::path::{Call, Channel, Faas, Http, Invocation, Line, Node, SpanId, Time, TraceId};

/// `SpanKind`.
const SERVER: u8 = 2;
const CLIENT: u8 = 3;
/// `Status.code`.
const ERROR: u8 = 2;
/// OpenTelemetry's own name for a service that is not known (semantic conventions, `service.name`).
const UNKNOWN: &str = "unknown_service";

/// A line as it is exported.
#[derive(Debug)]
pub struct Request<'a>(pub &'a Line);

impl Serialize for Request<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Export<'a> {
            resource_spans: Vec<ResourceSpans<'a>>,
        }
        Export { resource_spans: export(self.0) }.serialize(serializer)
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    resource: Resource,
    scope_spans: [ScopeSpans; 1],
    /// Which sandbox it is of.
    #[serde(skip)]
    sandbox: &'a str,
}

#[derive(Debug, Serialize)]
struct Resource {
    attributes: Vec<Attribute>,
}

#[derive(Debug, Serialize)]
struct ScopeSpans {
    scope: Scope,
    spans: Vec<Span>,
}

#[derive(Debug, Serialize)]
struct Scope {
    name: &'static str,
    version: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    trace_id: TraceId,
    span_id: SpanId,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<SpanId>,
    name: String,
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Vec<Attribute>,
    /// The span above it, where the application's own tracing puts that into another trace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    links: Vec<Link>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    trace_id: TraceId,
    span_id: SpanId,
}

#[derive(Debug, Serialize)]
struct Status {
    code: u8,
}

#[derive(Debug, Serialize)]
struct Attribute {
    key: String,
    value: Value,
}

/// Attributes in the making.
#[derive(Debug, Default)]
struct Attributes(Vec<Attribute>);

impl Attributes {
    fn add(&mut self, key: &str, value: Value) {
        self.0.push(Attribute { key: key.to_owned(), value });
    }

    fn text(&mut self, key: &str, text: &str) {
        self.add(key, json!({ "stringValue": text }));
    }

    fn number(&mut self, key: &str, number: impl ToString) {
        self.add(key, json!({ "intValue": number.to_string() }));
    }

    fn truth(&mut self, key: &str, truth: bool) {
        self.add(key, json!({ "boolValue": truth }));
    }
}

/// The span above.
#[derive(Clone, Copy)]
struct Above<'a> {
    trace: TraceId,
    span: Option<SpanId>,
    sandbox: &'a str,
}

struct Exporter<'a> {
    /// When the line begins, µs since 1970.
    base_us: i64,
    resources: Vec<ResourceSpans<'a>>,
}

fn export(line: &Line) -> Vec<ResourceSpans<'_>> {
    let (trace, start, parent, complete, missing, root) = match line {
        Line::Path(path) => (path.trace_id, path.start, None, path.complete, &path.missing, &path.root),
        Line::Late(late) => (late.trace_id, late.start, late.parent_span_id, late.complete, &late.missing, &late.root),
    };
    let Time(base_us) = start;
    let mut exporter = Exporter { base_us, resources: Vec::new() };
    // What is told of the line as a whole is told of the span that it begins with.
    let mut more = Attributes::default();
    if !complete {
        more.truth("fntrace.complete", false);
        more.text("fntrace.missing", &missing.join("; "));
    }
    exporter.node(root, Above { trace, span: parent, sandbox: "" }, more);
    exporter.resources
}

impl<'a> Exporter<'a> {
    fn node(&mut self, node: &'a Node, above: Above<'a>, more: Attributes) {
        let (own_trace, sandbox) = match node {
            Node::Invocation(invocation) => (invocation.trace_id, &*invocation.sandbox),
            Node::Call(call) => (call.trace_id, above.sandbox),
        };
        let trace = own_trace.unwrap_or(above.trace);
        let same = trace == above.trace;
        let outside = match node {
            Node::Invocation(invocation) => invocation.outside_parent,
            Node::Call(_) => None,
        };
        let links = above.span.filter(|_| !same).map(|span_id| Link { trace_id: above.trace, span_id });
        let start_us = self.base_us.saturating_add(node.start_us());
        let end_us = start_us.saturating_add_unsigned(node.duration_us().unwrap_or(0));
        // The protocol has no times before 1970.
        let unix_nano = |us: i64| (us.max(0) as u64).saturating_mul(1000).to_string();
        let mut span = Span {
            trace_id: trace,
            span_id: node.span_id(),
            parent_span_id: above.span.filter(|_| same).or(outside),
            name: String::new(),
            kind: SERVER,
            start_time_unix_nano: unix_nano(start_us),
            end_time_unix_nano: unix_nano(end_us),
            attributes: Vec::new(),
            links: links.into_iter().collect(),
            status: None,
        };
        let mut attributes = more;
        match node {
            Node::Invocation(of) => invocation(&mut span, &mut attributes, of),
            Node::Call(of) => call(&mut span, &mut attributes, of),
        }
        span.attributes = attributes.0;
        self.spans(node, sandbox).push(span);
        let below = Above { trace, span: Some(node.span_id()), sandbox };
        for child in node.children() {
            self.node(child, below, Attributes::default());
        }
    }

    /// The spans of a sandbox, which has an entry from then on.
    fn spans(&mut self, node: &'a Node, sandbox: &'a str) -> &mut Vec<Span> {
        let known = self.resources.iter().position(|resource| resource.sandbox == sandbox);
        let at = known.unwrap_or_else(|| {
            let scope = Scope { name: "fntrace", version: env!("CARGO_PKG_VERSION") };
            let resource = Resource { attributes: resource(node) };
            self.resources.push(ResourceSpans {
                resource,
                scope_spans: [ScopeSpans { scope, spans: Vec::new() }],
                sandbox,
            });
            self.resources.len() - 1
        });
        let [scope] = &mut self.resources[at].scope_spans;
        &mut scope.spans
    }
}

/// Who a sandbox is. A call without an invocation above it does not say.
fn resource(node: &Node) -> Vec<Attribute> {
    let mut attributes = Attributes::default();
    let Node::Invocation(invocation) = node else {
        attributes.text("service.name", UNKNOWN);
        return attributes.0;
    };
    attributes.text("service.name", &invocation.function);
    attributes.text("fntrace.sandbox", &invocation.sandbox);
    // Under the names that it has in the other formats, which are OpenTelemetry's.
    if let Some(resource) = &invocation.resource
        && let Ok(Value::Object(fields)) = serde_json::to_value(&**resource)
    {
        let fields: Map<String, Value> = fields;
        for (key, value) in fields {
            if let Value::String(text) = value {
                attributes.text(&key, &text);
            }
        }
    }
    attributes.0
}

fn invocation(span: &mut Span, attributes: &mut Attributes, of: &Invocation) {
    span.name = of.http.as_ref().map_or_else(|| of.function.to_string(), |http| http.method.to_string());
    http(attributes, of.http.as_ref());
    let failed = status(of.http.as_ref()).is_some_and(|status| status >= 500);
    attributes.truth("faas.coldstart", of.cold);
    if of.pid != 0 {
        attributes.number("process.pid", of.pid);
    }
    if let Some(joined_by) = of.joined_by {
        attributes.add("fntrace.joined_by", json!({ "stringValue": joined_by }));
    }
    if let Some(start) = &of.cold_start
        && let Some(waited_us) = start.waited_us
    {
        attributes.number("fntrace.cold_start.waited_us", waited_us);
    }
    if let Some(faas) = &of.faas {
        polled(attributes, faas);
    }
    ends(span, attributes, of.ended, of.error.as_deref(), failed);
}

fn call(span: &mut Span, attributes: &mut Attributes, of: &Call) {
    span.kind = CLIENT;
    span.name = of.http.as_ref().map_or_else(|| of.to.to_string(), |http| http.method.to_string());
    http(attributes, of.http.as_ref());
    let failed = status(of.http.as_ref()).is_some_and(|status| status >= 400);
    let (address, port) = split(&of.peer);
    let (name, named_port) = of.host.as_deref().map_or((address, port), split);
    attributes.text("server.address", name);
    if let Some(port) = named_port.or(port) {
        attributes.number("server.port", port);
    }
    attributes.text("network.peer.address", address);
    if let Some(port) = port {
        attributes.number("network.peer.port", port);
    }
    if *of.to != *of.peer {
        attributes.text("peer.service", &of.to);
    }
    attributes.text("fntrace.tag", &of.tag);
    attributes.text("fntrace.parent_by", &of.parent_by);
    if let Some(probability) = of.probability {
        attributes.add("fntrace.probability", json!({ "doubleValue": probability }));
    }
    if of.after_response {
        attributes.truth("fntrace.after_response", true);
    }
    if let Some(protocol) = &of.protocol {
        attributes.text("fntrace.protocol", protocol);
    }
    if let Some(Channel { rtt_us, retransmits }) = of.channel {
        attributes.number("fntrace.rtt_us", rtt_us);
        attributes.number("fntrace.retransmits", retransmits);
    }
    ends(span, attributes, of.ended, of.error.as_deref(), failed);
}

fn http(attributes: &mut Attributes, http: Option<&Http>) {
    let Some(http) = http else { return };
    attributes.text("http.request.method", &http.method);
    attributes.text("url.path", &http.path);
    if let Some(query) = &http.query {
        attributes.text("url.query", query);
    }
    if let Some(status) = http.status {
        attributes.number("http.response.status_code", status);
    }
}

fn polled(attributes: &mut Attributes, faas: &Faas) {
    if let Some(id) = &faas.invocation_id {
        attributes.text("faas.invocation_id", id);
    }
    if let Some(id) = &faas.resource_id {
        attributes.text("cloud.resource_id", id);
    }
}

/// How a span ended: whether it was seen to, and whether that was a failure (for a server from 500 on, for a client from 400
/// on, as the conventions for HTTP have it).
fn ends(span: &mut Span, attributes: &mut Attributes, ended: bool, error: Option<&str>, failed: bool) {
    if !ended {
        attributes.truth("fntrace.ended", false);
    }
    let code = attributes.0.iter().find(|attribute| attribute.key == "http.response.status_code");
    let code = code.and_then(|code| code.value["intValue"].as_str()).map(str::to_owned);
    if let Some(kind) = error.map(str::to_owned).or(code.filter(|_| failed)) {
        attributes.text("error.type", &kind);
        span.status = Some(Status { code: ERROR });
    }
}

fn status(http: Option<&Http>) -> Option<u16> {
    http?.status
}

/// Host and port, be the host an IPv6 address in brackets.
fn split(address: &str) -> (&str, Option<u16>) {
    let Some((host, port)) = address.rsplit_once(':') else { return (address, None) };
    match port.parse() {
        Ok(port) if !host.contains(':') || host.ends_with(']') => {
            (host.trim_start_matches('[').trim_end_matches(']'), Some(port))
        }
        _ => (address, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"fntrace":1,"type":"path","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736",
        "start":"2026-11-23T09:00:00.123456Z","duration_us":48210,"complete":false,"missing":["records lost","more"],
        "root":{"kind":"invocation","span_id":"00f067aa0ba902b7","outside_parent":"00000000000000aa","function":"checkout",
        "sandbox":"/fns/checkout-1","resource":{"container.id":"c0ffee"},"pid":4242,"start_us":0,"duration_us":48210,
        "cold":true,"http":{"method":"POST","path":"/checkout","status":200},"children":[
        {"kind":"call","span_id":"b7ad6b7169203331","to":"inventory","peer":"127.0.0.1:8081","host":"inventory.internal",
        "start_us":950,"duration_us":6100,"http":{"method":"GET","path":"/stock/42","status":404},"tag":"injected",
        "parent_by":"inferred","probability":0.75,"after_response":false,"channel":{"rtt_us":28,"retransmits":0},"children":[
        {"kind":"invocation","span_id":"00000000000000bb","function":"inventory","sandbox":"/fns/inventory-1","pid":7,
        "start_us":980,"ended":false,"cold":false,"joined_by":"tag","children":[]}]},
        {"kind":"call","span_id":"00000000000000cc","trace_id":"000000000000000000000000000000ff","to":"[::1]:443",
        "peer":"[::1]:443","start_us":-5,"tag":"off","parent_by":"exclusive","after_response":true,"protocol":"opaque",
        "error":"connection refused","children":[]}]}}"#;

    fn exported() -> Value {
        serde_json::to_value(Request(&Line::parse(&LINE.replace("\n        ", "")).unwrap().unwrap())).unwrap()
    }

    fn attribute<'a>(of: &'a Value, key: &str) -> &'a Value {
        let found = of["attributes"].as_array().unwrap().iter().find(|attribute| attribute["key"] == key);
        &found.unwrap_or_else(|| panic!("no {key} in {of:#}"))["value"]
    }

    #[test]
    fn every_sandbox_is_a_resource_with_its_spans() {
        let all = exported();
        let resources = all["resourceSpans"].as_array().unwrap();
        assert_eq!(resources.len(), 2);
        let [caller, callee] = [&resources[0], &resources[1]];
        assert_eq!(attribute(&caller["resource"], "service.name")["stringValue"], "checkout");
        assert_eq!(attribute(&caller["resource"], "container.id")["stringValue"], "c0ffee");
        assert_eq!(attribute(&callee["resource"], "service.name")["stringValue"], "inventory");
        assert_eq!(caller["scopeSpans"][0]["scope"]["name"], "fntrace");
        assert_eq!(
            caller["scopeSpans"][0]["spans"].as_array().unwrap().len(),
            3,
            "its invocation and both of its calls"
        );
        assert_eq!(callee["scopeSpans"][0]["spans"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn spans_are_as_the_protocol_has_them() {
        let all = exported();
        let spans = &all["resourceSpans"][0]["scopeSpans"][0]["spans"];
        let [root, call, opaque] = [&spans[0], &spans[1], &spans[2]];
        assert_eq!(
            (&root["traceId"], &root["spanId"], &root["parentSpanId"], &root["kind"], &root["name"]),
            (
                &"4bf92f3577b34da6a3ce929d0e0e4736".into(),
                &"00f067aa0ba902b7".into(),
                &"00000000000000aa".into(),
                &2.into(),
                &"POST".into()
            )
        );
        // 2026-11-23T09:00:00.123456Z.
        assert_eq!(root["startTimeUnixNano"], "1795424400123456000");
        assert_eq!(root["endTimeUnixNano"], "1795424400171666000");
        assert_eq!(attribute(root, "faas.coldstart")["boolValue"], true);
        assert_eq!(attribute(root, "fntrace.missing")["stringValue"], "records lost; more");
        assert!(root.get("status").is_none(), "{root:#}");
        assert_eq!((&call["parentSpanId"], &call["kind"]), (&"00f067aa0ba902b7".into(), &3.into()));
        assert_eq!(attribute(call, "server.address")["stringValue"], "inventory.internal");
        assert_eq!(attribute(call, "server.port")["intValue"], "8081");
        assert_eq!(attribute(call, "fntrace.probability")["doubleValue"], 0.75);
        assert_eq!(
            (&call["status"]["code"], attribute(call, "error.type")),
            (&2.into(), &json!({"stringValue": "404"}))
        );
        // Another trace: a parent there would be none, so it is linked.
        assert_eq!(opaque["traceId"], "000000000000000000000000000000ff");
        assert!(opaque.get("parentSpanId").is_none(), "{opaque:#}");
        assert_eq!(opaque["links"][0]["spanId"], "00f067aa0ba902b7");
        assert_eq!(attribute(opaque, "network.peer.address")["stringValue"], "::1");
        assert_eq!(attribute(opaque, "error.type")["stringValue"], "connection refused");
        let callee = &all["resourceSpans"][1]["scopeSpans"][0]["spans"][0];
        assert_eq!(callee["startTimeUnixNano"], callee["endTimeUnixNano"], "it was not seen to end");
        assert_eq!(attribute(callee, "fntrace.ended")["boolValue"], false);
    }
}
