//! `fntrace forecast eval`.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::Args;

use crate::input::{Broken, Format};

use super::{
    eval::{self, Settings},
    show,
};

/// Scores forecasts on recorded paths: learns from the first lines of each file, forecasts the rest.
#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    /// Files to score, each by itself, plain or gzip; `-` is standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// What a line of the files holds.
    #[arg(long, value_enum, default_value_t = Format::Paths)]
    input: Format,
    /// How far ahead to forecast.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = positive)]
    horizon: f32,
    /// How long a sandbox takes to get warm.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5, value_parser = positive)]
    warm_up: f32,
    /// The price of a sandbox kept warm for the horizon in vain, over the price of a cold start.
    #[arg(long, value_name = "RATIO", default_value_t = 0.25, value_parser = positive)]
    cost_ratio: f32,
    /// How long the keep-alive baseline keeps a sandbox after its use.
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0, value_parser = positive)]
    keep_alive: f32,
    /// The share of lines to learn from before scoring.
    #[arg(long, value_name = "SHARE", default_value_t = 0.8, value_parser = share)]
    train: f32,
    /// Go on learning while scoring, each path after it was scored.
    #[arg(long)]
    online: bool,
    /// Shuffle the lines first, by this number, instead of scoring the last ones: as published evaluations do. Kinder,
    /// since what comes later is learned from too. Warming is scored on times that are made up.
    #[arg(long, value_name = "SEED")]
    shuffle: Option<u64>,
    /// Print one JSON object for each file.
    #[arg(long)]
    json: bool,
}

pub(super) fn positive(text: &str) -> Result<f32, String> {
    let number: f32 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("must be above 0".to_owned()) }
}

fn share(text: &str) -> Result<f32, String> {
    positive(text).and_then(|share| if share < 1.0 { Ok(share) } else { Err("must be below 1".to_owned()) })
}

/// Runs it. Lines that cannot be read are told to standard error. A reader of `out` that goes away has seen enough.
pub fn run(args: &EvalArgs, out: &mut impl Write) -> anyhow::Result<()> {
    match score(args, out) {
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        result => result,
    }
}

fn score(args: &EvalArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let settings = Settings {
        format: args.input,
        horizon: args.horizon,
        warm_up: args.warm_up,
        cost_ratio: args.cost_ratio,
        keep_alive: args.keep_alive,
        train: args.train,
        online: args.online,
        shuffle: args.shuffle,
    };
    let mut reports = Vec::new();
    for path in &args.files {
        let name = if path.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() };
        let (mut broken, mut errors) = (Broken::of(&name), io::stderr());
        let told = |number: u64, reason: &str| broken.line(&mut errors, number, reason);
        let report = eval::file(path, &settings, told).with_context(|| format!("cannot read {name}"))?;
        broken.end(&mut errors);
        if args.json {
            writeln!(out, "{}", serde_json::to_string(&report)?)?;
        } else {
            show::report(out, &report)?;
            reports.push(report);
        }
        out.flush()?;
    }
    if reports.len() > 1 {
        show::summary(out, &reports)?;
    }
    Ok(out.flush()?)
}
