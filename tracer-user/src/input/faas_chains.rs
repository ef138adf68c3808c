//! Function compositions on OpenWhisk: a chain of activations without parents.

use serde::Deserialize;

use super::{Call, Trace};
use crate::path::Text;

#[derive(Deserialize)]
struct Chain<'a> {
    #[serde(borrow)]
    calls: Vec<Activation<'a>>,
}

#[derive(Deserialize)]
struct Activation<'a> {
    /// When the platform took the request in, in ms since 1970.
    t: f64,
    #[serde(rename = "fn", borrow)]
    function: Text<'a>,
    /// From there until a sandbox had it, in ms.
    #[serde(default)]
    wait: f64,
    /// How long the sandbox took to initialise, in ms; 0 if it was warm.
    #[serde(default)]
    init: f64,
}

/// The function began to work `wait` + `init` after `t`; not before then are these two known to anyone. The data bear
/// this out: a successor's `t` follows that moment by the function's own run time, give or take some ms.
pub(super) fn trace(text: &str) -> Result<Trace, String> {
    let chain: Chain<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let us = |ms: f64| (ms * 1000.0) as i64;
    let calls = chain.calls.into_iter().map(|activation| Call {
        at_us: us(activation.t),
        callee: activation.function.shared(),
        caller: None,
        external: false,
        started_us: Some(us(activation.t + activation.wait.max(0.0) + activation.init.max(0.0))),
        served_us: None,
        ended_us: None,
        cold: Some(activation.init > 0.0),
    });
    Ok(Trace::sorted(calls.collect()))
}
