//! A platform that acts on forecasts: it starts a function's sandbox when `fntrace run --forecast` says that a running
//! path will probably call it.
//!
//! The shop of `fntrace demo` takes orders; its `mailer` is started on demand and ends after 15 requests. Rounds in which
//! forecasts are acted on alternate with rounds in which they are not, in one shop, under one agent. As root:
//!
//! ```text
//! cargo build --release && cargo run --release --example warm
//! ```

use std::{
    env,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use fntrace::{
    cgroup::Mount,
    demo::{Launcher, Shop},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
};

/// Orders from which the agent learns first.
const LEARN: u64 = 60;
/// Rounds of each kind, and orders in each.
const ROUNDS: u64 = 10;
const ORDERS: u64 = 57;
/// Between an answer and the next order.
const PAUSE: Duration = Duration::from_millis(30);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let fntrace = fntrace()?;
    let launcher = Launcher(vec![fntrace.clone().into(), "demo-function".into()]);
    let shop = Shop::start_with(&Mount::find()?.point, launcher).await?;
    let (mut agent, forecasts) = agent(&fntrace, &shop).await?;

    let (acting, warmed) = (AtomicBool::new(false), AtomicU64::new(0));
    let results = tokio::select! {
        failed = act(&shop, forecasts, &acting, &warmed) => failed.and(Err(anyhow::anyhow!("the agent has ended"))),
        results = load(&shop, &acting) => results,
    };
    // It ends when its reader has gone.
    agent.kill().await.context("end the agent")?;
    shop.stop()?;

    let [plain, ahead] = results?;
    println!("orders      p50        p90        p99        max        (ms, answer to a POST /checkout that was taken)");
    print("as called", plain);
    print("forecast", ahead);
    println!("sandboxes started on a forecast: {}", warmed.load(Ordering::Relaxed));
    Ok(())
}

/// The program, as cargo builds it beside the examples.
fn fntrace() -> Result<PathBuf> {
    let example = env::current_exe().context("the path of this example")?;
    let path = example.ancestors().nth(2).context("not where cargo builds examples")?.join("fntrace");
    ensure!(path.exists(), "{} is missing: build it first", path.display());
    Ok(path)
}

async fn agent(fntrace: &PathBuf, shop: &Shop) -> Result<(Child, Lines<BufReader<ChildStdout>>)> {
    let mut agent = Command::new(fntrace)
        .args(["run", "--forecast", "--format", "ndjson", "--tag", "on", "--cgroup"])
        .arg(shop.slice())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start the agent")?;
    let mut said: Lines<BufReader<ChildStderr>> = BufReader::new(agent.stderr.take().context("no stderr")?).lines();
    while let Some(line) = said.next_line().await? {
        eprintln!("{line}");
        if line.starts_with("fntrace: tracing") {
            tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
            let stdout = agent.stdout.take().context("no stdout")?;
            return Ok((agent, BufReader::new(stdout).lines()));
        }
    }
    anyhow::bail!("the agent did not start")
}

/// All that acting takes: for each call that a line foretells, have a sandbox ready.
async fn act(
    shop: &Shop,
    mut lines: Lines<BufReader<ChildStdout>>,
    acting: &AtomicBool,
    warmed: &AtomicU64,
) -> Result<()> {
    while let Some(line) = lines.next_line().await? {
        let line: Value = serde_json::from_str(&line)?;
        if line["type"] != "forecast" || !acting.load(Ordering::Relaxed) {
            continue;
        }
        for callee in line["calls"].as_array().into_iter().flatten().filter_map(|call| call["callee"].as_str()) {
            warmed.fetch_add(u64::from(shop.warm(callee).await?), Ordering::Relaxed);
        }
    }
    Ok(())
}

/// How long the orders of both kinds of rounds took that were taken.
async fn load(shop: &Shop, acting: &AtomicBool) -> Result<[Vec<Duration>; 2]> {
    let mut results = [Vec::new(), Vec::new()];
    let mut n = 0;
    for round in 0..=2 * ROUNDS {
        let kind = usize::from(round % 2 == 0);
        acting.store(round > 0 && kind == 1, Ordering::Relaxed);
        for _ in 0..if round == 0 { LEARN } else { ORDERS } {
            n += 1;
            let begin = Instant::now();
            let answer = shop.order(n).await?;
            if round > 0 && answer.is_ok() {
                results[kind].push(begin.elapsed());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(results)
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times.get(((times.len() - 1) as f64 * share).round() as usize).copied().unwrap_or_default();
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|share| at(share).as_secs_f64() * 1e3);
    println!("{what:10}  {p50:<9.1}  {p90:<9.1}  {p99:<9.1}  {max:<9.1}  {} orders", times.len());
}
