//! The signals that end the agent in good order: SIGINT, SIGTERM and SIGHUP.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens from the moment it is made: what comes before somebody waits is not lost.
#[derive(Debug)]
pub struct Signals([Signal; 3]);

impl Signals {
    /// # Errors
    ///
    /// If the runtime cannot listen to signals.
    pub fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listen to signals");
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    /// Resolves with the next of them.
    pub async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
