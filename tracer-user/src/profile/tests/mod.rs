//! Builders of paths, and tests of the whole.

mod add;
mod findings;
mod forms;
mod merge;
mod speed;

use std::{borrow::Cow, sync::Arc};

use super::Profile;
use crate::path::{Call, Http, Invocation, JoinedBy, Node, Path, PathType, SpanId, Time, TraceId, Version};

/// An invocation from `start` µs on for `us` µs.
pub fn invocation(function: &str, start: i64, us: u64, children: Vec<Node>) -> Invocation {
    Invocation {
        span_id: SpanId(1),
        trace_id: None,
        outside_parent: None,
        function: function.into(),
        sandbox: "/fns/x".into(),
        pid: 1,
        start_us: start,
        duration_us: Some(us),
        first_byte_us: None,
        ended: true,
        cold: false,
        cold_start: None,
        resource: None,
        http: Some(http("POST", &format!("/{function}"), 200)),
        joined_by: Some(JoinedBy::Tag),
        error: None,
        faas: None,
        children,
    }
}

pub fn http(method: &str, path: &str, status: u16) -> Http {
    Http { method: Cow::Owned(method.to_owned()), path: path.into(), query: None, status: Some(status) }
}

/// A call to an external service.
pub fn outside(to: &str, start: i64, us: u64) -> Call {
    let to: Arc<str> = to.into();
    Call {
        span_id: SpanId(2),
        trace_id: None,
        to: Arc::clone(&to),
        peer: to,
        host: None,
        start_us: start,
        duration_us: Some(us),
        first_byte_us: None,
        ended: true,
        http: Some(http("POST", "/", 200)),
        protocol: None,
        tag: "injected".into(),
        parent_by: "exclusive".into(),
        probability: None,
        after_response: false,
        channel: None,
        error: None,
        children: Vec::new(),
    }
}

/// A call that causes an invocation, which begins 10 µs later and ends 10 µs earlier.
pub fn call(to: &str, start: i64, us: u64, children: Vec<Node>) -> Call {
    let inner = invocation(to, start + 10, us.saturating_sub(20), children);
    Call {
        to: to.into(),
        peer: "10.0.0.1:80".into(),
        children: vec![Node::Invocation(inner)],
        ..outside(to, start, us)
    }
}

pub trait With: Sized {
    fn asks(self, method: &str, path: &str, status: u16) -> Node;
    fn node(self) -> Node;
}

impl With for Call {
    fn asks(mut self, method: &str, path: &str, status: u16) -> Node {
        self.http = Some(http(method, path, status));
        Node::Call(self)
    }
    fn node(self) -> Node {
        Node::Call(self)
    }
}

pub fn path(id: u64, root: Invocation) -> Path {
    Path {
        fntrace: Version,
        kind: PathType::Path,
        trace_id: TraceId([0xf00d, id]),
        start: Time(1_790_000_000_000_000 + id as i64 * 1000),
        duration_us: root.duration_us.unwrap_or(0),
        complete: true,
        missing: Vec::new(),
        root: Node::Invocation(root),
    }
}

/// The profile of `count` paths.
pub fn profile(count: u64, mut make: impl FnMut(u64) -> Invocation) -> Profile {
    let mut profile = Profile::default();
    (0..count).for_each(|id| profile.add(&path(id, make(id))));
    profile
}

/// Numbers as good as random, always the same.
pub fn numbers() -> impl FnMut(u64) -> u64 {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

/// A shop: `checkout` calls `inventory` and `pricing` at once, then an external payment service, then `mail` after the
/// answer. Of everything a little: errors, cold starts, retries.
pub fn shop(random: &mut impl FnMut(u64) -> u64) -> Invocation {
    let spread = |random: &mut dyn FnMut(u64) -> u64, least: u64| least + random(least) * random(100) / 100;
    let stock = spread(random, 4000);
    let database = Call { host: None, ..outside("10.0.0.9:5432", 1100, stock / 2) };
    let mut inventory =
        call("inventory", 1000, stock, vec![Call { protocol: Some("opaque".into()), http: None, ..database }.node()]);
    if random(50) == 0
        && let Some(Node::Invocation(inner)) = inventory.children.first_mut()
    {
        inner.cold = true;
    }
    let item = format!("/stock/{}", random(1000));
    let pricing = call("pricing", 1050, spread(random, 2500), Vec::new()).asks("GET", "/price", 200);
    let mut at = 1200 + stock as i64;
    let mut children = vec![inventory.asks("GET", &item, 200), pricing];
    if random(3) > 0 {
        let failed = random(40) == 0;
        let pay = spread(random, 12_000);
        let payment = |at, us, status| {
            Call { host: Some("pay.example".into()), ..outside("203.0.113.7:443", at, us) }
                .asks("POST", "/charge", status)
        };
        children.push(payment(at, pay, if failed { 503 } else { 201 }));
        at += pay as i64 + 100;
        if failed {
            children.push(payment(at, 9000, 201));
            at += 9100;
        }
    }
    let mut mail = call("mail", at + 600, spread(random, 3000), Vec::new());
    mail.after_response = true;
    children.push(mail.node());
    let mut root = invocation("checkout", 0, at as u64 + 500, children);
    root.cold = random(200) == 0;
    if random(100) == 0 {
        root.http = Some(http("POST", "/checkout", 500));
    }
    root
}
