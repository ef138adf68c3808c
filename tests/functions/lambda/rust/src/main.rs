//! The tests' function as a Lambda handler; ../README.md has the events.

use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Duration, sleep},
};

async fn post(url: &str) -> Result<Value, Error> {
    let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or("no URL")?;
    let mut stream = TcpStream::connect(host).await?;
    let request = format!(
        "POST /{path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\
         connection: close\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("no body")?;
    Ok(serde_json::from_str(body)?)
}

async fn handle(event: LambdaEvent<Value>) -> Result<Value, Error> {
    let (event, context) = event.into_parts();
    if let Some(seconds) = event["sleep"].as_f64() {
        sleep(Duration::from_secs_f64(seconds)).await;
    }
    let mut children = Vec::new();
    for url in event["calls"].as_array().into_iter().flatten() {
        children.push(post(url.as_str().ok_or("no text")?).await?);
    }
    if event["fail"] == true {
        return Err("as the event asked".into());
    }
    if event["exit"] == true {
        std::process::exit(3);
    }
    Ok(json!({"invocation_id": context.request_id, "pid": std::process::id(), "children": children}))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    lambda_runtime::run(service_fn(handle)).await
}
