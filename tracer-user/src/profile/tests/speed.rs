//! How fast, and how much memory.

use std::time::{Duration, Instant};

use super::*;
use crate::{input::Format, profile::cli::read_lines};

/// Lines of paths without end, made as they are read: a file of them would be 2 GB.
struct Lines<F> {
    make: F,
    left: u64,
    line: Vec<u8>,
    at: usize,
}

impl<F: FnMut(u64) -> Vec<u8>> std::io::Read for Lines<F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.line.len() && self.left > 0 {
            self.left -= 1;
            self.line = (self.make)(self.left);
            self.at = 0;
        }
        let length = buffer.len().min(self.line.len() - self.at);
        buffer[..length].copy_from_slice(&self.line[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// Time of this thread on a processor: other work on the machine does not count.
fn busy() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

/// `cargo test --release -p tracer-user --lib -- --ignored --nocapture a_million_paths`
#[test]
#[ignore = "takes long, and means something only in a release build on a quiet machine"]
fn a_million_paths() {
    let mut random = numbers();
    // A thousand different lines, over and over: making them costs nothing then.
    let lines: Vec<Vec<u8>> = (0..1000)
        .map(|id| {
            let mut line = serde_json::to_vec(&path(id, shop(&mut random))).unwrap();
            line.push(b'\n');
            line
        })
        .collect();
    let bytes = lines.iter().map(Vec::len).sum::<usize>() / lines.len();
    let run = |count: u64| {
        let make = |id: u64| lines[id as usize % lines.len()].clone();
        let reader = std::io::BufReader::with_capacity(1 << 16, Lines { make, left: count, line: Vec::new(), at: 0 });
        let mut profile = Profile::default();
        let (begin, begin_busy) = (Instant::now(), busy());
        read_lines(&mut profile, reader, Format::Paths, "lines", &mut std::io::stderr());
        assert_eq!(profile.paths, count);
        (busy() - begin_busy, begin.elapsed())
    };
    run(10_000);
    let small = resident_kib();
    let (time, wall) = run(1_000_000);
    let large = resident_kib();
    println!(
        "1,000,000 paths of {bytes} bytes in {time:.2?} of processor time, {wall:.2?} of wall time; resident {small} KiB after 10,000, {large} KiB after all"
    );

    let paths: Vec<Path> = (0..1000).map(|id| path(id, shop(&mut random))).collect();
    let mut profile = Profile::default();
    let begin = busy();
    (0..200).for_each(|_| paths.iter().for_each(|path| profile.add(path)));
    println!("Profile::add alone: {:.2?} a path", (busy() - begin) / 200_000);
    assert!(large < small + 4096, "memory grew with the number of paths");
    assert!(time.as_secs_f64() <= 10.0, "{time:?}");
}
