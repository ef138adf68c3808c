//! The platform's front of one function: starts a sandbox when a call comes and none is there. A cold start.
//!
//! It stands outside of every sandbox and passes bytes on without reading them, as a platform's activator or load
//! balancer does. So the caller's connection is not the function's: only the tag, which travels in the bytes, tells
//! which call caused which invocation.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::{JoinHandle, JoinSet},
};

use super::{
    function::{Function, MAX_REQUESTS},
    slice::Slice,
};

/// After this many requests a sandbox ends, as platforms end theirs after a time, so that cold starts come back.
const REQUESTS_PER_SANDBOX: u64 = 15;

/// The front of one function.
#[derive(Debug)]
pub struct Front {
    slice: Arc<Slice>,
    function: Function,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    /// How many sandboxes have been started.
    started: u32,
    /// The one that takes requests now.
    address: Option<String>,
}

impl Front {
    /// A front that has started nothing yet.
    pub fn new(slice: Arc<Slice>, function: Function) -> Arc<Self> {
        Arc::new(Self { slice, function, current: Mutex::default() })
    }

    /// Starts a sandbox if none takes requests, as a platform may that expects one. Says whether it did.
    pub async fn warm(&self) -> Result<bool> {
        let before = self.current.lock().await.started;
        drop(self.connect().await?);
        Ok(self.current.lock().await.started > before)
    }

    /// Listens, and returns where; serves until the returned task is aborted.
    pub async fn listen(self: Arc<Self>) -> Result<(SocketAddr, JoinHandle<()>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen on loopback")?;
        let address = listener.local_addr().context("the front's address")?;
        let task = tokio::spawn(async move {
            // Ended together with this task.
            let mut connections = JoinSet::new();
            while let Ok((caller, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let front = self.clone();
                connections.spawn(async move {
                    if let Err(error) = front.pass_on(caller).await
                        && !front.slice.is_closed()
                    {
                        eprintln!("fntrace demo: {}: {error:#}", front.function.name());
                    }
                });
            }
        });
        Ok((address, task))
    }

    async fn pass_on(&self, mut caller: TcpStream) -> Result<()> {
        let mut sandbox = self.connect().await?;
        caller.set_nodelay(true)?;
        sandbox.set_nodelay(true)?;
        // Either side may break off, as at the demo's end: their affair.
        let _ = copy_bidirectional(&mut caller, &mut sandbox).await;
        Ok(())
    }

    /// A connection to the sandbox that takes requests; to a new one if there is none.
    async fn connect(&self) -> Result<TcpStream> {
        let mut current = self.current.lock().await;
        if let Some(address) = &current.address
            && let Ok(stream) = TcpStream::connect(address).await
        {
            return Ok(stream);
        }
        let name = |n| format!("{}-{n}", self.function.name());
        current.address = None;
        current.started += 1;
        let limit = [(MAX_REQUESTS.to_owned(), REQUESTS_PER_SANDBOX.to_string())];
        let address = self.slice.start(&name(current.started), self.function.name(), &limit).await?;
        let stream = TcpStream::connect(&address).await.with_context(|| format!("connect to {address}"))?;
        current.address = Some(address);
        if let Some(before) = current.started.checked_sub(1).filter(|n| *n > 0) {
            // It takes no more requests, but its last answer may still be on the way: the slice's end removes it then.
            let before = name(before);
            if !self.slice.is_alive(&before) {
                self.slice.retire(&before)?;
            }
        }
        Ok(stream)
    }
}
