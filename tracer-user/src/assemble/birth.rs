//! How a sandbox started, from its birth to its first request.

use crate::path::ColdStart;

/// Most listening sockets that are remembered of a sandbox; the kernel half tells no more.
const LISTENS_MAX: usize = 16;

/// A sandbox whose birth was seen. Times are CLOCK_MONOTONIC, ns.
#[derive(Debug)]
pub(super) struct Birth {
    born_ns: u64,
    started_ns: Option<u64>,
    listens: Vec<(u16, u64)>,
}

/// What of it concerns a request: when its port was ready.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    born_ns: u64,
    started_ns: Option<u64>,
    ready_ns: Option<u64>,
}

impl Birth {
    pub fn new(born_ns: u64) -> Self {
        Self { born_ns, started_ns: None, listens: Vec::new() }
    }

    /// A program was run in it.
    pub fn executes(&mut self, at_ns: u64) {
        self.started_ns.get_or_insert(at_ns);
    }

    /// A socket began to listen. Of several on one port (a worker each, SO_REUSEPORT) the first is what counts.
    pub fn listens(&mut self, at_ns: u64, port: u16) {
        if self.listens.len() < LISTENS_MAX && !self.listens.iter().any(|(known, _)| *known == port) {
            self.listens.push((port, at_ns));
        }
    }

    /// The start, for a request to this port.
    pub fn until(&self, port: u16) -> Begun {
        let ready_ns = self.listens.iter().find(|(known, _)| *known == port).map(|(_, at_ns)| *at_ns);
        Begun { born_ns: self.born_ns, started_ns: self.started_ns, ready_ns }
    }
}

impl Begun {
    /// The start of a process, in a sandbox that is older or whose birth was not seen.
    pub fn of_process(began_ns: u64) -> Self {
        Self { born_ns: began_ns, started_ns: Some(began_ns), ready_ns: None }
    }

    /// Notes when it was ready, of who listens nowhere but says so itself.
    pub fn is_ready(&mut self, at_ns: u64) {
        self.ready_ns = Some(at_ns);
    }

    /// As the output has it: `offset` makes a time one of the line's. `called_ns` is when the call was made.
    pub fn cold_start(&self, called_ns: Option<u64>, offset: impl Fn(u64) -> i64) -> ColdStart {
        let waited = |called: u64, ready: u64| ready.saturating_sub(called.max(self.born_ns)) / 1000;
        ColdStart {
            born_us: offset(self.born_ns),
            started_us: self.started_ns.map(&offset),
            ready_us: self.ready_ns.map(&offset),
            waited_us: called_ns.zip(self.ready_ns).map(|(called, ready)| waited(called, ready)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_waited_for_is_the_part_that_the_call_saw() {
        let mut birth = Birth::new(10_000_000);
        birth.executes(40_000_000);
        birth.executes(50_000_000);
        birth.listens(60_000_000, 9090);
        birth.listens(90_000_000, 80);
        birth.listens(95_000_000, 80);
        let begun = birth.until(80);
        let at = |called: Option<u64>| begun.cold_start(called, |ns| (ns as i64 - 100_000_000) / 1000);
        let known = ColdStart { born_us: -90_000, started_us: Some(-60_000), ready_us: Some(-10_000), waited_us: None };
        assert_eq!(at(None), known, "nobody called");
        // The call came before the birth, while it started, and when it was warm.
        for (called, waited) in [(5_000_000, 80_000), (70_000_000, 20_000), (99_000_000, 0)] {
            assert_eq!(at(Some(called)), ColdStart { waited_us: Some(waited), ..known });
        }
        let unknown = birth.until(81).cold_start(Some(1), |_| 0);
        assert_eq!((unknown.ready_us, unknown.waited_us), (None, None));
    }

    #[test]
    fn a_tenant_that_listens_on_all_ports_is_not_remembered_whole() {
        let mut birth = Birth::new(0);
        (0..u16::MAX).for_each(|port| birth.listens(1, port));
        assert_eq!(birth.listens.len(), LISTENS_MAX);
    }
}
