//! What is not HTTP/1: real clients of other protocols in a sandbox. Nothing of theirs is touched, and each connection
//! is a call to `host:port` for as long as it lasts.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{agent::Agent, functions::free_address, sandbox::Slice, truth};

/// A server outside of every sandbox, killed at the end.
#[derive(Debug)]
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts a program that `make` builds for an address, and waits until it listens.
    fn start(slice: &Slice, make: impl FnOnce(SocketAddr) -> Command) -> Self {
        let address = free_address(Ipv4Addr::LOCALHOST.into());
        let log = slice.files().join("server.log");
        let mut command = make(address);
        let file = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}: `cargo xtask functions`"));
        let mut server = Self { child, address };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            let log = || fs::read_to_string(&log).unwrap_or_default();
            assert!(server.child.try_wait().unwrap().is_none(), "{command:?} ended at its start\n{}", log());
            assert!(Instant::now() < deadline, "{command:?} does not listen\n{}", log());
            thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn port(&self) -> String {
        self.address.port().to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a client in a sandbox, without the agent and with it: what it prints must be the same. Answers with the calls to
/// the server that the agent reports.
fn same_with_the_agent(slice: &Slice, server: &Server, make: impl Fn() -> Command) -> Vec<Value> {
    let run = || {
        let mut command = make();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = slice.sandbox("client").spawn(&mut command).wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
        output.stdout
    };
    let untraced = run();
    let agent = Agent::start(slice);
    let traced = run();
    assert!(!untraced.is_empty());
    assert_eq!(String::from_utf8_lossy(&traced), String::from_utf8_lossy(&untraced));
    let to = server.address.to_string();
    agent.wait_for("call to the server", |lines| {
        truth::paths(lines)
            .any(|path| path["root"]["kind"] == "call" && path["root"]["to"] == to.as_str())
            .then_some(())
    });
    let finished = agent.stop();
    assert!(finished.stats()["kernel"]["opaque"].as_u64() > Some(0), "{}", finished.stats());
    assert_eq!(finished.stats()["kernel_tags"]["injected"], 0, "{}", finished.stats());
    truth::calls(&finished.lines).into_iter().filter(|call| call["to"] == to.as_str()).cloned().collect()
}

fn assert_one_opaque_call(calls: &[Value], at_least: Duration) {
    let [call] = calls else { panic!("one connection, one call: {calls:#?}") };
    assert_eq!(call["tag"], "no_request", "{call}");
    assert!(call["http"].is_null(), "{call}");
    assert!(call["duration_us"].as_u64() >= Some(at_least.as_micros() as u64), "{call}");
}

#[test]
fn redis_is_a_call_as_long_as_its_connection() {
    let slice = Slice::new();
    let server = Server::start(&slice, |address| {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", "", "--dir"]);
        command.arg(slice.files());
        command
    });
    let calls = same_with_the_agent(&slice, &server, || {
        let mut command = Command::new("redis-cli");
        // Three times, 50 ms apart, on one connection.
        command.args(["-p", &server.port(), "-r", "3", "-i", "0.05", "ECHO", "GET / HTTP/1.1\r\nhost: x\r\n\r\n"]);
        command
    });
    assert_one_opaque_call(&calls, Duration::from_millis(100));
}

#[test]
fn postgresql_is_a_call_as_long_as_its_connection() {
    let slice = Slice::new();
    let programs = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let programs = programs.max().expect("PostgreSQL is missing: `cargo xtask functions`").join("bin");
    // It refuses to run as root.
    const NOBODY: u32 = 65534;
    let as_nobody = |program: &str| {
        let mut command = Command::new(programs.join(program));
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command
    };
    let data = slice.files().join("data");
    fs::create_dir(&data).unwrap();
    for directory in [slice.files(), &data] {
        std::os::unix::fs::chown(directory, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let made =
        as_nobody("initdb").args(["--no-sync", "--auth", "trust", "--username", "test", "-D"]).arg(&data).output();
    let made = made.expect("run initdb");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let server = Server::start(&slice, |address| {
        let mut command = as_nobody("postgres");
        command.arg("-D").arg(&data).args(["-F", "-h", "127.0.0.1", "-p", &address.port().to_string(), "-k"]);
        command.arg(slice.files());
        command
    });
    let url = format!("postgresql://test@{}/postgres?sslmode=disable", server.address);
    let calls = same_with_the_agent(&slice, &server, || {
        let mut command = Command::new("psql");
        command.args([&url, "-A", "-t", "-c", "SELECT pg_sleep(0.1), repeat('GET / HTTP/1.1 ', 5000)"]);
        command
    });
    assert_one_opaque_call(&calls, Duration::from_millis(100));
}

/// nginx that serves a file by TLS and, in clear text, by HTTP/2 alone.
fn nginx(slice: &Slice, listen: &str) -> Server {
    let files = slice.files().to_owned();
    let key = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"])
        .args(["-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(&files)
        .output()
        .expect("run openssl");
    assert!(key.status.success(), "{}", String::from_utf8_lossy(&key.stderr));
    let line = |at: usize| format!("{at}: GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    fs::write(files.join("file"), (0..20_000).map(line).collect::<String>()).unwrap();
    Server::start(slice, |address| {
        let directory = files.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {directory}/{name};"))
            .join("\n");
        let config = format!(
            "daemon off; master_process off; pid {directory}/pid; error_log stderr error; events {{}} http {{ \
             access_log off; {temporary} server {{ listen {address} {listen}; ssl_certificate {directory}/cert.pem; \
             ssl_certificate_key {directory}/key.pem; root {directory}; }} }}"
        );
        let file = files.join("nginx.conf");
        fs::write(&file, config).unwrap();
        let program = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
        let mut command = Command::new(program);
        command.args(["-e", "stderr", "-p"]).arg(&files).arg("-c").arg(file);
        command
    })
}

fn curl(url: &str, option: &'static str) -> impl Fn() -> Command {
    let url = url.to_owned();
    move || {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--insecure", option, &url]);
        command
    }
}

#[test]
fn tls_is_a_call_as_long_as_its_connection() {
    let slice = Slice::new();
    let server = nginx(&slice, "ssl");
    let calls = same_with_the_agent(&slice, &server, curl(&format!("https://{}/file", server.address), "--http1.1"));
    assert_one_opaque_call(&calls, Duration::ZERO);
}

#[test]
fn http2_in_clear_text_is_a_call_as_long_as_its_connection() {
    let slice = Slice::new();
    let server = nginx(&slice, "http2");
    let url = format!("http://{}/file", server.address);
    let calls = same_with_the_agent(&slice, &server, curl(&url, "--http2-prior-knowledge"));
    assert_one_opaque_call(&calls, Duration::ZERO);
}
