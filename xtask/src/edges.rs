//! `cargo xtask edges`: the truth bench of `tests/edges`.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    command::{cargo, run_loud},
    functions, setup,
};

/// Which rows, and how.
#[derive(Debug, Args)]
pub struct Options {
    /// Only runtimes whose name has this in it
    #[arg(long, value_name = "RUNTIME")]
    only: Option<String>,
    /// Only this shape: seq, par, errgroup, timer, pool, after, retry, stream, fresh or proxy
    #[arg(long)]
    shape: Option<String>,
    /// How many requests at once; several are separated by commas
    #[arg(long, value_name = "N", default_value = "1,8,64", value_delimiter = ',')]
    concurrency: Vec<usize>,
    /// Requests a row; a quarter of it where there is one at once
    #[arg(long, value_name = "N", default_value_t = 1000)]
    requests: usize,
    /// Whether the agent tags
    #[arg(long, default_value = "on", value_parser = ["on", "off"])]
    tag: String,
    /// Write the table as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write each runtime's paths, and its true edges (call, invocation, shape, requests at once), into this directory
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Prepares all that is traced, and runs the bench with the agent as users build it.
pub fn all(root: &Path, options: &Options) -> Result<()> {
    setup::prepare()?;
    functions::prepare(root)?;
    functions::prepare_edges(root)?;
    let mut test = cargo(root);
    test.args(["test", "--quiet", "--release", "--package", "tracer-user", "--test", "edges"]);
    test.args(["--", "--ignored", "--exact", "whole", "--nocapture"]);
    let concurrency: Vec<_> = options.concurrency.iter().map(usize::to_string).collect();
    test.env("FNTRACE_EDGES_CONCURRENCY", concurrency.join(","));
    test.env("FNTRACE_EDGES_REQUESTS", options.requests.to_string());
    test.env("FNTRACE_EDGES_TAG", &options.tag);
    for (name, value) in [("FNTRACE_EDGES_ONLY", &options.only), ("FNTRACE_EDGES_SHAPE", &options.shape)] {
        if let Some(value) = value {
            test.env(name, value);
        }
    }
    // The test runs in its package's directory.
    let here = env::current_dir().context("find the current directory")?;
    for (name, path) in [("FNTRACE_EDGES_JSON", &options.json), ("FNTRACE_EDGES_KEEP", &options.keep)] {
        if let Some(path) = path {
            test.env(name, here.join(path));
        }
    }
    run_loud(&mut test)
}
