//! The sample functions. No line here knows of tracing: what the agent shows, it saw from outside.
//!
//! All of them are this one executable, started again under the function's name (`fntrace demo-function NAME`). A
//! function learns all else from its environment, as on a platform: `FUNCTION_NAME`, the addresses of its peers
//! (`INVENTORY_ADDR=127.0.0.1:40123`), `MAX_REQUESTS`.

use std::{
    collections::HashMap,
    env,
    io::{self, Write as _},
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt as _, net::TcpListener, net::unix::pipe, time::sleep};

use super::http::{Answer, Inbound, Peer, serve};

/// What a function prints before its address once it takes requests.
pub const READY: &str = "listening on ";
/// Holds the number of requests after which a function ends.
pub const MAX_REQUESTS: &str = "MAX_REQUESTS";
/// Ends the name of a variable that holds a peer's address.
pub const ADDRESS: &str = "_ADDR";

/// One of the shop's functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// Takes an order: asks all others.
    Checkout,
    /// Is the item there?
    Inventory,
    /// What does it cost?
    Pricing,
    /// What else might one buy?
    Recommend,
    /// Asks the bank for the money.
    Payment,
    /// Tells the customer.
    Notify,
    /// Sends the mail.
    Mailer,
}

impl Function {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Checkout, Self::Inventory, Self::Pricing, Self::Recommend, Self::Payment, Self::Notify, Self::Mailer];

    /// Its name, as in `FUNCTION_NAME`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Checkout => "checkout",
            Self::Inventory => "inventory",
            Self::Pricing => "pricing",
            Self::Recommend => "recommend",
            Self::Payment => "payment",
            Self::Notify => "notify",
            Self::Mailer => "mailer",
        }
    }

    /// The function of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|function| function.name() == name)
    }

    /// How long it loads its code and libraries before it can take the first request.
    const fn start_up(self) -> Duration {
        match self {
            // The one that is started on demand, so the one whose start a request waits for.
            Self::Mailer => Duration::from_millis(120),
            _ => Duration::ZERO,
        }
    }

    /// Where it listens: a free port of loopback; one function by IPv6, so that both families are seen.
    async fn bind(self) -> Result<TcpListener> {
        if self == Self::Recommend
            && let Ok(listener) = TcpListener::bind("[::1]:0").await
        {
            return Ok(listener);
        }
        TcpListener::bind("127.0.0.1:0").await.context("listen on loopback")
    }

    async fn serve(self) -> Result<()> {
        let peers = Arc::new(Peers::from_env()?);
        let limit = match env::var(MAX_REQUESTS) {
            Ok(limit) => Some(limit.parse().with_context(|| format!("{MAX_REQUESTS}={limit} is no number"))?),
            Err(_) => None,
        };
        sleep(self.start_up()).await;
        let listener = self.bind().await?;
        let address = listener.local_addr().context("the listener's address")?;
        match writeln!(io::stdout(), "{READY}{address}") {
            // Nobody waits for this function any more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("say that the function is ready")?,
        }
        serve(listener, limit, move |request| {
            let peers = peers.clone();
            async move {
                match self.handle(request, &peers).await {
                    Ok(answer) => answer,
                    Err(error) => Answer::failed(StatusCode::BAD_GATEWAY, format_args!("{error:#}")),
                }
            }
        })
        .await
    }

    /// One request. An error is a peer that could not be reached or broke off.
    async fn handle(self, request: Inbound, peers: &Peers) -> Result<Answer> {
        let body = &request.body;
        let segment = request.path.rsplit('/').next().unwrap_or_default();
        match (self, &request.method, request.path.as_str()) {
            (Self::Checkout, &Method::POST, "/checkout") => checkout(body, peers).await,
            (Self::Inventory, &Method::GET, path) if path.starts_with("/stock/") => {
                work(3, segment).await;
                Ok(Answer::ok(json!({ "sku": segment, "in_stock": 7 })))
            }
            (Self::Pricing, &Method::POST, "/price") => {
                work(8, "").await;
                let items = body["items"].as_array().map_or(0, Vec::len) as u64;
                Ok(Answer::ok(json!({ "cents": items * 1999 })))
            }
            (Self::Recommend, &Method::GET, path) if path.starts_with("/also-bought/") => {
                work(12, segment).await;
                Ok(Answer::ok(json!({ "also_bought": ["lamp", "mug"] })))
            }
            (Self::Payment, &Method::POST, "/pay") => pay(body, peers).await,
            (Self::Notify, &Method::POST, "/notify") => {
                work(2, "").await;
                let mail = peers.get("mailer")?.post("/send", body).await?;
                Ok(if mail.is_ok() { Answer::ok(json!({ "notified": true })) } else { upstream("mailer", &mail) })
            }
            (Self::Mailer, &Method::POST, "/send") => {
                work(5, "").await;
                Ok(Answer::ok(json!({ "sent": true })))
            }
            _ => Ok(Answer::failed(StatusCode::NOT_FOUND, format_args!("{} {}", request.method, request.path))),
        }
    }
}

async fn checkout(order: &Value, peers: &Peers) -> Result<Answer> {
    work(2, "").await;
    let items: Vec<&str> = order["items"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let inventory = peers.get("inventory")?;
    for sku in &items {
        let stock = inventory.get(&format!("/stock/{sku}")).await?;
        if !stock.is_ok() {
            return Ok(upstream("inventory", &stock));
        }
    }
    let also_bought = format!("/also-bought/{}", items.first().unwrap_or(&"none"));
    let (price, recommended) =
        tokio::try_join!(peers.get("pricing")?.post("/price", order), peers.get("recommend")?.get(&also_bought))?;
    if !price.is_ok() {
        return Ok(upstream("pricing", &price));
    }
    let bill = json!({ "order": order["order"], "cents": price.body["cents"], "voucher": order["voucher"] });
    let paid = peers.get("payment")?.post("/pay", &bill).await?;
    if !paid.is_ok() {
        return Ok(upstream("payment", &paid));
    }
    let notified = peers.get("notify")?.post("/notify", &json!({ "order": order["order"] })).await?;
    Ok(Answer::ok(json!({
        "order": order["order"],
        "cents": price.body["cents"],
        "notified": notified.is_ok(),
        "also_bought": recommended.body["also_bought"],
    })))
}

async fn pay(bill: &Value, peers: &Peers) -> Result<Answer> {
    work(2, "").await;
    let (name, path) = if bill["voucher"] == true { ("vouchers", "/redeem") } else { ("bank", "/charge") };
    let charged = peers.get(name)?.post(path, bill).await?;
    work(1, "").await;
    Ok(if charged.is_ok() { Answer::ok(json!({ "paid": true })) } else { upstream(name, &charged) })
}

/// 502: a peer answered, but not with success.
fn upstream(peer: &str, answer: &Answer) -> Answer {
    Answer::failed(StatusCode::BAD_GATEWAY, format_args!("{peer} answered {}", answer.status.as_u16()))
}

/// Stands for what a function does: a little computing, then waiting for a disk or a database. `seed` varies it.
pub async fn work(wait_ms: u64, seed: &str) {
    let computing = Instant::now();
    while computing.elapsed() < Duration::from_micros(300) {
        std::hint::spin_loop();
    }
    let more = seed.bytes().map(u64::from).sum::<u64>() % 4;
    sleep(Duration::from_millis(wait_ms + more)).await;
}

/// The peers that the environment names.
#[derive(Debug)]
struct Peers(HashMap<String, Peer>);

impl Peers {
    fn from_env() -> Result<Self> {
        let mut peers = HashMap::new();
        for (key, value) in env::vars() {
            let Some(name) = key.strip_suffix(ADDRESS) else { continue };
            let address: SocketAddr = value.parse().with_context(|| format!("{key}={value} is no address"))?;
            let name = name.to_ascii_lowercase();
            let domain = if Function::from_name(&name).is_some() { "shop.internal" } else { "example" };
            let host = format!("{name}.{domain}");
            peers.insert(name, Peer::new(address, host));
        }
        Ok(Self(peers))
    }

    fn get(&self, name: &str) -> Result<&Peer> {
        self.0.get(name).with_context(|| format!("{name} has no address in the environment"))
    }
}

/// Runs one sample function: the hidden subcommand `demo-function`. Ends when its parent does.
pub async fn serve_function(name: &str) -> Result<()> {
    let function = Function::from_name(name).with_context(|| format!("the demo has no function {name:?}"))?;
    tokio::select! {
        served = function.serve() => served,
        ended = parent_ended() => ended,
    }
}

/// Waits until the other end of standard input is closed: the parent holds it, so the kernel closes it however the
/// parent ends, kill -9 included. PR_SET_PDEATHSIG would do the same only for the *thread* that started the function,
/// and threads of an async runtime come and go.
async fn parent_ended() -> Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned().context("standard input")?;
    let mut lifeline = pipe::Receiver::from_owned_fd(stdin).context("standard input is not the demo's pipe")?;
    while lifeline.read(&mut [0; 16]).await.context("read the demo's pipe")? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_found_by_its_name() {
        for function in Function::ALL {
            assert_eq!(Function::from_name(function.name()), Some(function));
        }
        assert_eq!(Function::from_name("bank"), None);
    }

    #[tokio::test]
    async fn what_a_function_does_not_know_is_not_found() {
        let peers = Peers(HashMap::new());
        let request = Inbound { method: Method::GET, path: "/checkout".to_owned(), body: Value::Null };
        assert_eq!(Function::Checkout.handle(request, &peers).await.unwrap().status, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn a_function_without_its_peers_says_which_is_missing() {
        let peers = Peers(HashMap::new());
        let request = Inbound { method: Method::POST, path: "/pay".to_owned(), body: json!({}) };
        let error = Function::Payment.handle(request, &peers).await.unwrap_err();
        assert!(error.to_string().contains("bank"), "{error:#}");
    }
}
