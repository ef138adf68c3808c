//! The function of `cargo xtask edges` in Rust; ../../README.md has the protocol.

use std::{env, pin::Pin, sync::LazyLock, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, Query},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures_util::stream;
use reqwest::Client;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

type Outcome = Result<(), String>;
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

static CALLEE: LazyLock<String> = LazyLock::new(|| env::var("CALLEE").expect("CALLEE is set"));
static CLIENT: LazyLock<Client> = LazyLock::new(client);
static POOL: LazyLock<Vec<mpsc::UnboundedSender<Work>>> = LazyLock::new(|| (0..8).map(|_| worker()).collect());

fn client() -> Client {
    Client::builder().no_proxy().build().expect("a client without options can be built")
}

/// A task of the pool: it does what is handed to it.
fn worker() -> mpsc::UnboundedSender<Work> {
    let (sender, mut work) = mpsc::unbounded_channel::<Work>();
    tokio::spawn(async move {
        while let Some(work) = work.recv().await {
            work.await;
        }
    });
    sender
}

#[derive(Deserialize)]
struct Ask {
    #[serde(default)]
    shape: String,
}

async fn request(client: Client, id: String, fail: bool) -> Outcome {
    let mut request = client.get(format!("{}/{:016x}", *CALLEE, rand::random::<u64>())).header("x-true-parent", id);
    if fail {
        request = request.header("x-fail", "1");
    }
    let response = request.send().await.map_err(|error| error.to_string())?;
    let status = response.status();
    response.bytes().await.map_err(|error| error.to_string())?;
    if status == StatusCode::OK { Ok(()) } else { Err(status.to_string()) }
}

async fn call(id: &str) -> Outcome {
    request(CLIENT.clone(), id.to_owned(), false).await
}

async fn pooled(id: &str) -> Outcome {
    let (done, outcome) = oneshot::channel();
    let id = id.to_owned();
    let work = Box::pin(async move {
        let _ = done.send(call(&id).await);
    });
    POOL[rand::random_range(0..POOL.len())].send(work).map_err(|error| error.to_string())?;
    outcome.await.map_err(|error| error.to_string())?
}

/// Three calls, and a chunk before each.
fn chunks(id: String) -> Body {
    Body::from_stream(stream::unfold(0, move |at| {
        let id = id.clone();
        async move {
            if at > 0 {
                call(&id).await.ok()?;
            }
            (at < 3).then_some((Ok::<_, String>("a chunk\n"), at + 1))
        }
    }))
}

async fn carry_out(id: &str, shape: &str) -> Outcome {
    match shape {
        "seq" => {
            for _ in 0..3 {
                call(id).await?;
            }
        }
        "par" => {
            let (a, b, c, d) = tokio::join!(call(id), call(id), call(id), call(id));
            a.and(b).and(c).and(d)?;
        }
        "timer" => {
            for _ in 0..2 {
                tokio::time::sleep(Duration::from_micros(rand::random_range(1_000..10_000))).await;
                call(id).await?;
            }
        }
        "pool" => {
            for _ in 0..2 {
                pooled(id).await?;
            }
        }
        "after" => {
            call(id).await?;
            let id = id.to_owned();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                if let Err(error) = call(&id).await {
                    eprintln!("{id}: {error}");
                }
            });
        }
        "retry" => {
            if request(CLIENT.clone(), id.to_owned(), true).await.is_err() {
                call(id).await?;
            }
        }
        "fresh" => {
            for _ in 0..2 {
                request(client(), id.to_owned(), false).await?;
            }
        }
        _ => return Err(format!("no such shape: {shape}")),
    }
    Ok(())
}

async fn handle(Path(id): Path<String>, Query(ask): Query<Ask>) -> Response {
    if id == "ready" {
        return "ready".into_response();
    }
    if ask.shape == "stream" {
        return chunks(id).into_response();
    }
    match carry_out(&id, &ask.shape).await {
        Ok(()) => "done\n".into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, error).into_response(),
    }
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = format!("{}:{}", env::var("HOST").unwrap_or_default(), env::var("PORT").unwrap_or_default());
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, Router::new().route("/{id}", get(handle))).await
}
