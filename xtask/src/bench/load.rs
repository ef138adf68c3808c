//! wrk, and what it says.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

pub struct Load {
    pub requests: u64,
    /// A second.
    pub throughput: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Loads `url` over 16 connections for so many seconds, from the processors that `cpus` names.
///
/// # Errors
///
/// If a request failed: what is measured then is something else.
pub fn load(url: &str, seconds: u32, cpus: &str) -> Result<Load> {
    let output = Command::new("taskset")
        .args(["-c", cpus, "wrk", "--latency", "--threads", "1", "--connections", "16", "--duration"])
        .arg(format!("{seconds}s"))
        .arg(url)
        .output()
        .context("run wrk")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "requests failed under load:\n{said}");
    parse(&said).with_context(|| format!("not what wrk says:\n{said}"))
}

fn parse(said: &str) -> Option<Load> {
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    let after = |first: &str| lines.iter().find(|words| words.first() == Some(&first))?.get(1).copied();
    let requests = lines.iter().find(|words| words.get(1) == Some(&"requests"))?.first()?.parse().ok()?;
    Some(Load {
        requests,
        throughput: after("Requests/sec:")?.parse().ok()?,
        p50_us: micros(after("50%")?)?,
        p99_us: micros(after("99%")?)?,
    })
}

fn micros(text: &str) -> Option<f64> {
    let unit = text.find(|char: char| char.is_ascii_alphabetic())?;
    let factor = match &text[unit..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(text[..unit].parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read() {
        let said = "Running 2s test @ http://127.0.0.1:1/\n  1 threads and 16 connections\n  Latency Distribution\n     \
                    50%  512.00us\n     75%    0.60ms\n     90%    0.70ms\n     99%    1.25ms\n  59999 requests in \
                    2.00s, 10.5MB read\nRequests/sec:  29998.50\nTransfer/sec:      5.00MB\n";
        let load = parse(said).expect("figures");
        assert_eq!((load.requests, load.throughput), (59_999, 29_998.5));
        assert_eq!((load.p50_us, load.p99_us), (512.0, 1250.0));
        assert!(parse("unable to connect").is_none());
    }
}
