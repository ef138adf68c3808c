//! HTTP/1.1 for the sample functions: hyper on both sides, one kept-alive connection from a function to each peer.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{SendRequest, handshake},
    header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, watch},
};

/// A request, as a function gets it: read to its end, the body as JSON (`Null` where there is none).
#[derive(Debug)]
pub struct Inbound {
    /// The method.
    pub method: Method,
    /// The path, without the query string.
    pub path: String,
    /// The body.
    pub body: Value,
}

/// What a function answers, and what its caller gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The body.
    pub body: Value,
}

impl Answer {
    /// 200 with this body.
    pub fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body }
    }

    /// Is it a success?
    pub fn is_ok(&self) -> bool {
        self.status.is_success()
    }

    /// A failure, with one line that says why.
    pub fn failed(status: StatusCode, why: impl ToString) -> Self {
        Self { status, body: json!({ "error": why.to_string() }) }
    }
}

/// Serves requests one at a time: for ever, or, with a `limit`, until that many are answered.
///
/// One at a time because that is the normal case of FaaS: the platform's front gives a sandbox its next request when
/// the last one is answered, and starts another sandbox if it cannot wait. The lock stands for that front.
pub async fn serve<H, Fut>(listener: TcpListener, limit: Option<u64>, handler: H) -> Result<()>
where
    H: Fn(Inbound) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let turn = Arc::new(Mutex::new(()));
    let handler = Arc::new(handler);
    let taken = Arc::new(AtomicU64::new(0));
    // `true`: the last request has been taken. Each connection holds a receiver until its bytes are out.
    let (last, mut ending) = watch::channel(false);
    let last = Arc::new(last);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.context("accept a connection")?.0,
            changed = ending.changed() => { changed.context("no more connections")?; break }
        };
        // As nearly every HTTP server and client in use does.
        let _ = stream.set_nodelay(true);
        let (turn, handler, taken, last) = (turn.clone(), handler.clone(), taken.clone(), last.clone());
        let in_flight = last.subscribe();
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let (turn, handler, taken, last) = (turn.clone(), handler.clone(), taken.clone(), last.clone());
                async move {
                    let _turn = turn.lock().await;
                    let taken = taken.fetch_add(1, Ordering::Relaxed) + 1;
                    let is_last = limit.is_some_and(|limit| taken >= limit);
                    if is_last {
                        // From here on the listener is gone: who comes now is refused at once, not lost later.
                        last.send_replace(true);
                    }
                    let inbound = read(request).await?;
                    let mut response = respond(handler(inbound).await);
                    if is_last {
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, hyper::Error>(response)
                }
            });
            // A peer that goes away in the middle is its own affair.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            drop(in_flight);
        });
    }
    drop((listener, ending));
    last.closed().await;
    Ok(())
}

async fn read(request: Request<Incoming>) -> hyper::Result<Inbound> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Inbound {
        method: head.method,
        path: head.uri.path().to_owned(),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    })
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body.to_string())));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A function or a service, as its caller sees it: an address, a name for the Host header, a kept-alive connection.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    host: String,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Peer {
    /// A peer that nothing is connected to yet.
    pub fn new(address: SocketAddr, host: impl Into<String>) -> Self {
        Self { address, host: host.into(), connection: Mutex::new(None) }
    }

    /// GET without a body.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// POST of a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.call(Method::POST, path, Bytes::from(body.to_string())).await
    }

    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Answer> {
        let mut slot = self.connection.lock().await;
        let mut connection = match slot.take() {
            Some(kept) if !kept.is_closed() => kept,
            _ => self.connect().await.with_context(|| format!("connect to {} at {}", self.host, self.address))?,
        };
        connection.ready().await.with_context(|| format!("call {}", self.host))?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.host);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).context("make the request")?;
        let response = connection.send_request(request).await.with_context(|| format!("call {}", self.host))?;
        let status = response.status();
        let body = response.into_body().collect().await.with_context(|| format!("call {}", self.host))?.to_bytes();
        // Kept only after a whole answer: a connection that failed in the middle must not serve the next call.
        *slot = Some(connection);
        Ok(Answer { status, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn counting(limit: Option<u64>) -> (SocketAddr, tokio::task::JoinHandle<Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(serve(listener, limit, |inbound| async move {
            Answer::ok(json!({ "path": inbound.path, "body": inbound.body }))
        }));
        (address, served)
    }

    #[tokio::test]
    async fn a_peer_answers_over_one_connection() {
        let (address, _served) = counting(None).await;
        let peer = Peer::new(address, "echo");
        for n in 0..3 {
            let answer = peer.post("/x?q=1", &json!({ "n": n })).await.unwrap();
            assert_eq!(answer, Answer::ok(json!({ "path": "/x", "body": { "n": n } })));
        }
        assert_eq!(peer.get("/y").await.unwrap().body, json!({ "path": "/y", "body": null }));
    }

    #[tokio::test]
    async fn the_last_request_is_answered_and_the_next_one_refused() {
        let (address, served) = counting(Some(2)).await;
        let peer = Peer::new(address, "echo");
        assert!(peer.get("/1").await.is_ok());
        assert!(peer.get("/2").await.is_ok());
        served.await.unwrap().unwrap();
        assert!(peer.get("/3").await.is_err());
    }
}
