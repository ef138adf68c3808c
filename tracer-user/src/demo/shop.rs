//! The shop: who calls whom, what is outside, and the load.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    front::Front,
    function::{ADDRESS, Function},
    http::{Answer, Inbound, Peer, serve},
    slice::{Launcher, Owner, Slice},
};

/// The running shop. Dropping it ends all its processes and removes its cgroups.
#[derive(Debug)]
pub struct Shop {
    slice: Owner,
    checkout: Peer,
    mailer: Arc<Front>,
    /// Not read; ends with the shop.
    _outside: Outside,
}

/// What is no sandbox: the bank, the platform's front of `mailer`, and a port at which nobody answers.
#[derive(Debug, Default)]
struct Outside {
    tasks: Vec<JoinHandle<()>>,
    /// Bound but not listening: it refuses every connection, and nobody else can take the port meanwhile.
    dead: Option<TcpSocket>,
}

impl Drop for Outside {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What the load found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Orders that were taken.
    pub taken: u64,
    /// Orders that were turned down, as some are meant to be.
    pub refused: u64,
}

impl Shop {
    /// Starts the shop below the mount point of cgroup v2; returns when every function takes requests.
    pub async fn start(cgroup_mount: &Path) -> Result<Self> {
        Self::start_with(cgroup_mount, Launcher::default()).await
    }

    /// The same, the functions being started otherwise than by `fntrace demo-function`.
    pub async fn start_with(cgroup_mount: &Path, launcher: Launcher) -> Result<Self> {
        Self::start_as(cgroup_mount, launcher, false).await
    }

    /// The same, each function in a container if so wanted.
    pub async fn start_as(cgroup_mount: &Path, launcher: Launcher, containers: bool) -> Result<Self> {
        let slice = Slice::create(cgroup_mount, launcher, containers)?;
        let mut outside = Outside::default();

        let bank = TcpListener::bind("127.0.0.1:0").await.context("listen on loopback")?;
        let bank_address = bank.local_addr().context("the bank's address")?;
        outside.tasks.push(tokio::spawn(async move {
            if let Err(error) = serve(bank, None, charge).await {
                eprintln!("fntrace demo: bank: {error:#}");
            }
        }));
        let (vouchers, dead) = nobody().context("reserve a port at which nobody answers")?;
        outside.dead = Some(dead);
        // Not started yet: the first order's mail does that.
        let front = Front::new(slice.share(), Function::Mailer);
        let (mailer, task) = Arc::clone(&front).listen().await?;
        outside.tasks.push(task);

        let start = async |function: Function, peers: &[(&str, SocketAddr)]| -> Result<SocketAddr> {
            let peers: Vec<_> = peers
                .iter()
                .map(|(name, address)| (format!("{}{ADDRESS}", name.to_ascii_uppercase()), address.to_string()))
                .collect();
            let name = function.name();
            let address = slice.start(&format!("{name}-1"), name, &peers).await?;
            address.parse().with_context(|| format!("{name} says it listens on {address:?}"))
        };
        // Called before caller.
        let inventory = start(Function::Inventory, &[]).await?;
        let pricing = start(Function::Pricing, &[]).await?;
        let recommend = start(Function::Recommend, &[]).await?;
        let payment = start(Function::Payment, &[("bank", bank_address), ("vouchers", vouchers)]).await?;
        let notify = start(Function::Notify, &[("mailer", mailer)]).await?;
        let peers = [
            ("inventory", inventory),
            ("pricing", pricing),
            ("recommend", recommend),
            ("payment", payment),
            ("notify", notify),
        ];
        let checkout = start(Function::Checkout, &peers).await?;
        Ok(Self { slice, checkout: Peer::new(checkout, "shop.example"), mailer: front, _outside: outside })
    }

    /// The cgroup that holds every sandbox of the shop: what the agent is to trace.
    pub fn slice(&self) -> &Path {
        self.slice.path()
    }

    /// Sends `requests` orders, or orders without end, `rate` of them in a second, or each when the last is answered.
    ///
    /// One order at a time, whatever the rate: this is the platform's front, and each function has one sandbox.
    pub async fn load(&self, requests: Option<u64>, rate: Option<f64>) -> Result<Load> {
        let mut pace = rate.map(|rate| {
            let mut pace = interval(Duration::from_secs_f64(1.0 / rate));
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pace
        });
        let mut load = Load::default();
        let mut n = 0;
        while requests.is_none_or(|requests| n < requests) {
            if let Some(pace) = &mut pace {
                pace.tick().await;
            }
            n += 1;
            if self.order(n).await?.is_ok() { load.taken += 1 } else { load.refused += 1 }
        }
        Ok(load)
    }

    /// Sends the order of that number. Every order that ends in 4 is one that the bank turns down; every one that ends
    /// in 9 is paid with a voucher, and nobody is there to take it.
    pub async fn order(&self, n: u64) -> Result<Answer> {
        self.checkout.post("/checkout", &order(n)).await
    }

    /// Starts a sandbox of the function of that name ahead of its next call, if it is one that is started on demand and
    /// none is there. Returns when it takes requests, and whether it was started.
    pub async fn warm(&self, function: &str) -> Result<bool> {
        if function == Function::Mailer.name() { self.mailer.warm().await } else { Ok(false) }
    }

    /// Ends all functions and removes their sandboxes.
    pub fn stop(self) -> Result<()> {
        self.slice.close()
    }
}

fn order(n: u64) -> Value {
    const ITEMS: [&str; 4] = ["42", "7", "1001", "13"];
    let items: Vec<_> = ITEMS.iter().cycle().skip((n % 4) as usize).take(1 + (n % 3) as usize).collect();
    json!({ "order": n, "items": items, "voucher": n % 10 == 9 })
}

/// The bank's answer.
async fn charge(request: Inbound) -> Answer {
    sleep(Duration::from_millis(9)).await;
    if request.body["order"].as_u64().is_some_and(|order| order % 10 == 4) {
        return Answer::failed(StatusCode::SERVICE_UNAVAILABLE, "the bank is busy");
    }
    Answer::ok(json!({ "charged": request.body["cents"] }))
}

fn nobody() -> io::Result<(SocketAddr, TcpSocket)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    Ok((socket.local_addr()?, socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_of_one_to_three_items() {
        for n in 1..=12 {
            let order = order(n);
            assert_eq!(order["items"].as_array().unwrap().len() as u64, 1 + n % 3, "{order}");
        }
        assert_eq!(order(9)["voucher"], true);
        assert_eq!(order(4)["voucher"], false);
    }

    #[tokio::test]
    async fn nobody_refuses() {
        let (address, _held) = nobody().unwrap();
        let error = tokio::net::TcpStream::connect(address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
