//! Drives a function at a given concurrency, in a closed loop: a worker's next request follows its last one's answer.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{client::Client, functions::Function, runtimes::Shape};

/// For the calls that come after the answers, and a machine that is busy.
const CALLS: Duration = Duration::from_secs(20);

/// A call as the callee saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its path without the slash.
    pub id: String,
    /// The id of the invocation that made it.
    pub parent: String,
}

/// Sends `count` requests, `concurrency` at once, each with an id that begins with `name`. Gives what went wrong.
pub fn drive(function: &Function, name: &str, shape: Shape, concurrency: usize, count: usize) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut client = function.client();
        let mut failures = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return failures;
            }
            let id = format!("{name}-{number}");
            let path = format!("/{id}?shape={}", shape.name());
            // Only nginx passes it on; it is the truth there, because a proxy's call has the path of its request.
            let headers = [("x-true-parent", id.as_str())];
            match client.request("GET", &path, if shape == Shape::Proxy { &headers } else { &[] }, b"") {
                Ok(response) if response.status == 200 => {}
                Ok(response) => {
                    failures.push(format!("{id}: {} {}", response.status, String::from_utf8_lossy(&response.body)));
                }
                Err(error) => failures.push(format!("{id}: {error}")),
            }
            if shape == Shape::Fresh {
                client.close();
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..concurrency.min(count)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

/// Waits until the callee has seen `expected` calls, and gives what it saw.
pub fn seen(callee: &Function, expected: usize) -> Vec<Seen> {
    let mut client = Client::new(callee.address());
    let mut seen = Vec::new();
    let deadline = Instant::now() + CALLS;
    loop {
        let response = client.request("GET", "/log", &[], b"").expect("the callee does not answer");
        for line in String::from_utf8(response.body).unwrap().lines() {
            let (id, parent) = line.split_once(' ').unwrap_or_else(|| panic!("the callee says {line:?}"));
            seen.push(Seen { id: id.to_owned(), parent: parent.to_owned() });
        }
        if seen.len() >= expected || Instant::now() >= deadline {
            return seen;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
