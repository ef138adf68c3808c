//! What is worth acting on, and how it is told.

use serde::Serialize;

use crate::path::{SpanId, Time, TraceId, Version};

use super::Forecast;

/// When to act on a forecast: by what a needless warm sandbox costs against a cold start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// The price of keeping a sandbox warm for the horizon in vain, over the price of a cold start.
    pub cost_ratio: f32,
    /// How far ahead a sandbox is warmed, in ms.
    pub horizon_ms: f32,
}

impl Rule {
    /// The probability above which acting is cheaper than waiting: p · cold start > (1 − p) · needless sandbox.
    pub fn threshold(&self) -> f32 {
        let ratio = if self.cost_ratio.is_finite() { self.cost_ratio.max(0.0) } else { f32::MAX };
        ratio / (1.0 + ratio)
    }

    /// Whether to act. What is not known is not acted on.
    pub fn acts_on(&self, forecast: &Forecast) -> bool {
        forecast.known && forecast.probability > self.threshold()
    }
}

/// `"type":"forecast"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum ForecastType {
    /// The only value.
    #[default]
    #[serde(rename = "forecast")]
    Forecast,
}

/// A line of `run --forecast`: the calls of a running path that are worth preparing for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Version of the contract.
    pub fntrace: Version,
    /// Which line this is.
    #[serde(rename = "type")]
    pub kind: ForecastType,
    /// The path's trace id.
    pub trace_id: TraceId,
    /// The span after whose latest event the forecast was made.
    pub span_id: SpanId,
    /// When that event was.
    pub time: Time,
    /// How far ahead the forecast looks, in ms.
    pub horizon_ms: f32,
    /// The probability above which a call is listed.
    pub threshold: f32,
    /// The calls, likeliest first.
    pub calls: Vec<Forecast>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(probability: f32, known: bool) -> Forecast {
        Forecast {
            callee: "stock".into(),
            external: false,
            probability,
            next: 0.5,
            expected_ms: Some(12.0),
            interval_ms: Some([10.0, 15.0]),
            known,
            channel: None,
        }
    }

    #[test]
    fn acts_where_it_pays() {
        let rule = Rule { cost_ratio: 0.25, horizon_ms: 1000.0 };
        assert!((rule.threshold() - 0.2).abs() < 1e-6);
        assert!(rule.acts_on(&forecast(0.21, true)) && !rule.acts_on(&forecast(0.19, true)));
        assert!(!rule.acts_on(&forecast(0.9, false)));
        for hostile in [f32::NAN, f32::INFINITY, -1.0] {
            assert!((0.0..=1.0).contains(&Rule { cost_ratio: hostile, ..rule }.threshold()));
        }
    }

    #[test]
    fn the_line_is_as_documented() {
        let line = Line {
            fntrace: Version,
            kind: ForecastType::Forecast,
            trace_id: TraceId([1, 2]),
            span_id: SpanId(3),
            time: Time(1_000_000),
            horizon_ms: 2000.0,
            threshold: 0.25,
            calls: vec![forecast(0.5, true)],
        };
        let json = serde_json::to_string(&line).unwrap();
        assert_eq!(
            json,
            r#"{"fntrace":1,"type":"forecast","trace_id":"00000000000000010000000000000002","span_id":"0000000000000003","time":"1970-01-01T00:00:01.000000Z","horizon_ms":2000.0,"threshold":0.25,"calls":[{"callee":"stock","external":false,"probability":0.5,"next":0.5,"expected_ms":12.0,"interval_ms":[10.0,15.0],"known":true}]}"#
        );
    }
}
