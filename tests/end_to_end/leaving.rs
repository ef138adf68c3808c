//! Connections that are made in the very moment in which an agent goes, whose sockets must behave like any other for as
//! long as they are open.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{agent::Agent, sandbox::Slice};

const PORT: &str = "FNTRACE_TEST_LEAVING_PORT";
const GREETING: &[u8] = b"hello";

/// Not a test: what the sandbox runs. Connects again and again, and asks how much of the greeting there is to read.
#[test]
#[ignore = "runs inside of a test's sandbox"]
fn helper() {
    let Ok(port) = std::env::var(PORT) else { return };
    let port: u16 = port.parse().unwrap();
    loop {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        // So that it leaves no port in TIME_WAIT behind: they would soon all be used.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let length = size_of::<libc::linger>() as libc::socklen_t;
        let (fd, option) = (stream.as_raw_fd(), (&raw const linger).cast());
        // SAFETY: a pointer to a live value, with its length.
        assert_eq!(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, option, length) }, 0);
        let until = Instant::now() + Duration::from_secs(2);
        let mut queued: libc::c_int = 0;
        while queued as usize != GREETING.len() {
            assert!(Instant::now() < until, "FIONREAD answers {queued} where {} bytes wait", GREETING.len());
            // SAFETY: FIONREAD writes an int.
            assert_eq!(unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut queued) }, 0);
        }
        let mut greeting = [0; GREETING.len()];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, GREETING);
    }
}

#[test]
fn a_connection_that_is_made_while_the_agent_goes_is_like_any_other() {
    let slice = Slice::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.write_all(GREETING);
            let _ = stream.read(&mut [0]);
        }
    });
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "leaving::helper", "--ignored", "--nocapture"]).env(PORT, port.to_string());
    let mut helper = slice.sandbox("connects").spawn(command.stdout(Stdio::null()));
    for signal in [Signal::INT, Signal::KILL, Signal::INT] {
        let mut agent = Agent::start(&slice);
        thread::sleep(Duration::from_millis(100));
        agent.signal(signal);
        let finished = agent.finish();
        if signal == Signal::INT {
            let enrolled = finished.stats()["kernel"]["enrolled"].as_u64();
            assert!(enrolled > Some(0), "no connection was made while it ran: {}", finished.stats());
        }
        // Longer than the helper waits.
        thread::sleep(Duration::from_millis(2500));
        assert!(helper.try_wait().unwrap().is_none(), "a connection made when the agent went by {signal:?}");
    }
    helper.kill().unwrap();
    helper.wait().unwrap();
}
