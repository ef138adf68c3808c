//! A plain HTTP client and a plain listener, both in the test's own process and so outside of every sandbox.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How long an answer may take before the test fails.
const TIMEOUT: Duration = Duration::from_secs(30);

type Headers = Vec<(String, String)>;

/// One connection at a time, kept alive over requests and opened anew when the server closed it in between.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
    connects: usize,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    headers: Headers,
    pub body: Vec<u8>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, connection: None, connects: 0 }
    }

    /// How many connections were opened so far.
    pub fn connects(&self) -> usize {
        self.connects
    }

    /// Closes the connection, so that the next request comes on a fresh one.
    pub fn close(&mut self) {
        self.connection = None;
    }

    /// Has a function carry out a plan; the answer, with what nginx noted if it came through one.
    pub fn run(&mut self, id: &str, plan: &Value) -> Value {
        self.run_with(id, plan, &[])
    }

    pub fn run_with(&mut self, id: &str, plan: &Value, headers: &[(&str, &str)]) -> Value {
        self.try_run(id, plan, headers).unwrap_or_else(|error| panic!("POST {}/{id}: {error}", self.address))
    }

    pub fn try_run(&mut self, id: &str, plan: &Value, headers: &[(&str, &str)]) -> io::Result<Value> {
        let mut all = vec![("content-type", "application/json")];
        all.extend(headers);
        self.request("POST", &format!("/{id}"), &all, plan.to_string().as_bytes())?.answer()
    }

    /// Sends a body that is no plan; `chunk` bytes a chunk if given, else with a Content-Length.
    pub fn send(&mut self, id: &str, body: &[u8], chunk: Option<usize>) -> Value {
        let path = format!("/{id}");
        let kind = ("content-type", "application/octet-stream");
        let response = match chunk {
            None => self.request("POST", &path, &[kind], body),
            Some(size) => {
                let mut coded = Vec::new();
                for piece in body.chunks(size) {
                    write!(coded, "{:x}\r\n", piece.len()).unwrap();
                    coded.extend_from_slice(piece);
                    coded.extend_from_slice(b"\r\n");
                }
                coded.extend_from_slice(b"0\r\n\r\n");
                self.exchange("POST", &path, &[kind, ("transfer-encoding", "chunked")], &coded)
            }
        };
        response.and_then(|response| response.answer()).unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// Like [`Client::run`], for a function that may not listen yet: tries until somebody accepts the connection.
    pub fn run_once_up(&mut self, id: &str, plan: &Value) -> Value {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match self.try_run(id, plan, &[]) {
                Ok(answer) => return answer,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(error) => panic!("POST {}/{id}: {error}", self.address),
            }
        }
    }

    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Response> {
        let length = body.len().to_string();
        let mut all = headers.to_vec();
        all.push(("content-length", &length));
        self.exchange(method, path, &all, body)
    }

    fn exchange(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Response> {
        let mut connection = match self.connection.take() {
            Some(connection) if !hung_up(connection.get_ref()) => connection,
            _ => {
                let stream = TcpStream::connect(self.address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                self.connects += 1;
                BufReader::new(stream)
            }
        };
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        connection.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        let response = Response::read(&mut connection)?;
        if !response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            self.connection = Some(connection);
        }
        Ok(response)
    }
}

/// Whether the server has closed a connection that waits for its next request.
fn hung_up(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let waits = peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    !waits || stream.set_nonblocking(false).is_err()
}

impl Response {
    fn read(connection: &mut BufReader<TcpStream>) -> io::Result<Self> {
        let (start, headers) = read_head(connection)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status =
            start.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let mut response = Self { status, headers, body: Vec::new() };
        if start.starts_with("HTTP/1.0 ") && response.header("content-length").is_none() {
            connection.read_to_end(&mut response.body)?;
            response.headers.push(("connection".to_owned(), "close".to_owned()));
        } else {
            response.body = read_body(connection, &response.headers)?;
        }
        Ok(response)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    fn answer(self) -> io::Result<Value> {
        let mut answer: Value = serde_json::from_slice(&self.body).map_err(|error| {
            let text = String::from_utf8_lossy(&self.body);
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{error} in the answer (status {}): {text}", self.status),
            )
        })?;
        if self.status != 200 {
            return Err(io::Error::other(format!("status {}: {answer}", self.status)));
        }
        if let Some(function) = self.header("x-via") {
            answer["via"] = json!({"function": function, "traceparent": self.header("x-via-traceparent")});
        }
        Ok(answer)
    }
}

/// A server that is in no sandbox. It answers every request as the functions would and remembers what it got.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<Headers>>>,
}

impl Listener {
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        // Lives as long as the test's process; an idle thread costs nothing.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                thread::spawn(move || serve(BufReader::new(stream), &seen));
            }
        });
        Self { address, heads }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The values of a header in each request so far.
    pub fn headers(&self, name: &str) -> Vec<Option<String>> {
        self.heads.lock().unwrap().iter().map(|head| header(head, name).map(str::to_owned)).collect()
    }
}

fn serve(mut connection: BufReader<TcpStream>, seen: &Mutex<Vec<Headers>>) -> Option<()> {
    while let Some((_, headers)) = read_head(&mut connection).ok()? {
        read_body(&mut connection, &headers).ok()?;
        let body = json!({"listener": true, "traceparent": header(&headers, "traceparent")}).to_string();
        seen.lock().unwrap().push(headers);
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        connection.get_mut().write_all((head + &body).as_bytes()).ok()?;
    }
    Some(())
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The start line and the headers; nothing at the end of the connection.
fn read_head(connection: &mut BufReader<TcpStream>) -> io::Result<Option<(String, Headers)>> {
    let mut start = String::new();
    if connection.read_line(&mut start)? == 0 {
        return Ok(None);
    }
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => return Ok(Some((start, headers))),
        }
    }
}

fn read_body(connection: &mut BufReader<TcpStream>, headers: &[(String, String)]) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if header(headers, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        loop {
            let mut line = String::new();
            connection.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(|_| io::ErrorKind::InvalidData)?;
            let old = body.len();
            body.resize(old + size, 0);
            connection.read_exact(&mut body[old..])?;
            connection.read_line(&mut String::new())?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length = header(headers, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    body.resize(length, 0);
    connection.read_exact(&mut body)?;
    Ok(body)
}
