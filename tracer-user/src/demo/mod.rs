//! `fntrace demo`: a small shop of functions, each in a sandbox of its own, under load, traced live.
//!
//! ```text
//! POST /checkout ─ checkout ─┬─ inventory             GET /stock/…, once for each item, one after the other
//!                            ├─ pricing, recommend    at the same time; recommend by IPv6
//!                            ├─ payment ─ bank        outside of every sandbox; sometimes busy, sometimes not there
//!                            └─ notify ─ mailer       a chain; mailer is started when it is called: a cold start
//! ```

mod container;
mod front;
mod function;
mod http;
mod shop;
mod slice;

use std::{
    future::Future,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::{sync::oneshot, time::sleep};

use crate::signals::Signals;

pub use container::runc_answers;
pub use function::serve_function;
pub use http::Answer;
pub use shop::{Load, Shop};
pub use slice::Launcher;

/// Orders a second while a person looks on: slow enough to read along.
const WATCHED: f64 = 4.0;
/// What the agent may still have in hand when the last answer is out: longer than its own settle time.
const SETTLE: Duration = Duration::from_millis(600);

/// What `fntrace demo` takes besides the options of `run`.
#[derive(Args, Clone, Debug, Default)]
pub struct DemoArgs {
    /// End after this many requests [default: go on until Ctrl-C]
    #[arg(long, value_name = "N")]
    pub requests: Option<u64>,
    /// Requests in a second [default: 4; with --requests and output not to a terminal, as fast as they are answered]
    #[arg(long, value_name = "R", value_parser = positive)]
    pub rate: Option<f64>,
    /// Run each function in a container of its own, by runc
    #[arg(long)]
    pub containers: bool,
}

impl DemoArgs {
    fn rate(&self) -> Option<f64> {
        let unwatched = self.requests.is_some() && !io::stdout().is_terminal();
        self.rate.or((!unwatched).then_some(WATCHED))
    }
}

fn positive(rate: &str) -> Result<f64, String> {
    match rate.parse() {
        Ok(rate) if (0.001..=1_000_000.0).contains(&rate) => Ok(rate),
        _ => Err("a number between 0.001 and 1000000 is needed".to_owned()),
    }
}

/// What the agent gets from the demo, to trace it.
#[derive(Debug)]
pub struct Tracing {
    /// The cgroup to trace, with everything below it.
    pub slice: PathBuf,
    /// To be sent when everything is attached: the load begins then.
    pub ready: oneshot::Sender<()>,
    /// Resolves, to whatever, when the agent is to print what it has and end.
    pub stop: oneshot::Receiver<()>,
}

/// Starts the shop, has `trace` trace it, sends the load, stops the tracing, clears all away; returns what `trace`
/// returned.
///
/// `trace` is the agent, as in `fntrace run --cgroup SLICE`. It may end by itself (a reader that went away): the demo
/// ends with it. SIGINT, SIGTERM and SIGHUP end the load; should `trace` listen to them too, nothing is lost.
pub async fn demo<T, F, Fut>(args: &DemoArgs, cgroup_mount: &Path, trace: F) -> Result<T>
where
    F: FnOnce(Tracing) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    demo_with(args, cgroup_mount, Launcher::default(), trace).await
}

/// The same, the functions being started otherwise than by `fntrace demo-function`.
pub async fn demo_with<T, F, Fut>(args: &DemoArgs, cgroup_mount: &Path, launcher: Launcher, trace: F) -> Result<T>
where
    F: FnOnce(Tracing) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut interrupt = Signals::new()?;
    let shop = tokio::select! {
        started = Shop::start_as(cgroup_mount, launcher, args.containers) => started.context("start the demo's functions")?,
        // The half-started shop goes away with its future.
        () = interrupt.wait() => anyhow::bail!("interrupted before the functions were started"),
    };
    introduce(&shop, args);
    let (ready, is_ready) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    let mut tracing = pin!(trace(Tracing { slice: shop.slice().to_owned(), ready, stop: stopped }));
    let load = async {
        if is_ready.await.is_err() {
            // The agent is about to end, and to say why: wait for that.
            std::future::pending::<()>().await;
        }
        let load = shop.load(args.requests, args.rate()).await;
        sleep(SETTLE).await;
        load
    };
    let load = tokio::select! {
        // In this order, so that an agent that has failed is heard before a load that failed with it.
        biased;
        traced = &mut tracing => {
            let stopped = shop.stop();
            return traced.and_then(|traced| stopped.map(|()| traced));
        }
        () = interrupt.wait() => Ok(Load::default()),
        load = load => load,
    };
    // The agent first: it is to end with its last figures while the functions still stand.
    let _ = stop.send(());
    let traced = tokio::select! {
        traced = tracing => traced,
        // The agent does not end, or not soon enough for who asks twice. The shop goes away all the same.
        () = interrupt.wait() => anyhow::bail!("interrupted before the agent had ended"),
    };
    let stopped = shop.stop();
    let traced = traced?;
    load.context("send the load")?;
    stopped.context("clear the demo away")?;
    Ok(traced)
}

/// Says on standard error what is to be seen.
fn introduce(shop: &Shop, args: &DemoArgs) {
    let sandbox = if args.containers { "container" } else { "sandbox" };
    eprintln!("A shop of functions, each in a {sandbox} of its own below {}:", shop.slice().display());
    eprintln!("  POST /checkout ─ checkout ─┬─ inventory           once for each item");
    eprintln!("                             ├─ pricing, recommend  at the same time");
    eprintln!("                             ├─ payment ─ bank      outside, not traced; fails now and then");
    eprintln!("                             └─ notify ─ mailer     started when it is called: a cold start");
    let end = if args.requests.is_some() { "" } else { " Ctrl-C ends the demo." };
    eprintln!("None of them knows of tracing.{end}");
}
