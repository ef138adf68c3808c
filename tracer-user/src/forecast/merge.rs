//! Recorded paths as the stream of events that they were when they happened.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use crate::input::Trace;

use super::Event;

/// Paths that are held at a time. A path that begins before an event that was already given out, because its line came
/// more than this many lines late, has its first events given out late.
const WINDOW: usize = 1024;

/// What an event is, in the order in which events of the same moment are given out: what happened in the same
/// microsecond (in coarse data: millisecond) as a call is not known when the call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Call,
    Start,
    Answer,
    End,
}

type Due = Reverse<(i64, Kind, u64, u32)>;

/// Merges paths by time.
#[derive(Debug, Default)]
pub(super) struct Merge {
    due: BinaryHeap<Due>,
    open: HashMap<u64, Trace>,
    next: u64,
}

impl Merge {
    /// Takes in a path and gives out, through `each`, what is due before there is room for it.
    pub(super) fn push(&mut self, trace: Trace, mut each: impl FnMut(&Trace, u32, Event<'_>)) {
        while self.open.len() >= WINDOW && self.pop(&mut each) {}
        let path = self.next;
        self.next += 1;
        let mut last_us = i64::MIN;
        for (index, call) in trace.calls.iter().enumerate() {
            let index = index as u32;
            let moments =
                [(Some(call.at_us), Kind::Call), (call.started_us, Kind::Start), (call.ended_us, Kind::Answer)];
            for (at_us, kind) in moments {
                let Some(at_us) = at_us else { continue };
                // Nothing happens to a call before it is made.
                let at_us = at_us.max(call.at_us);
                last_us = last_us.max(at_us);
                self.due.push(Reverse((at_us, kind, path, index)));
            }
        }
        self.due.push(Reverse((last_us, Kind::End, path, u32::MAX)));
        self.open.insert(path, trace);
    }

    /// Gives out all that is left.
    pub(super) fn finish(&mut self, mut each: impl FnMut(&Trace, u32, Event<'_>)) {
        while self.pop(&mut each) {}
    }

    fn pop(&mut self, each: &mut impl FnMut(&Trace, u32, Event<'_>)) -> bool {
        let Some(Reverse((at_us, kind, path, index))) = self.due.pop() else { return false };
        let Some(trace) = self.open.get(&path) else { return true };
        let call = u64::from(index);
        match (kind, trace.calls.get(index as usize)) {
            (Kind::Call, Some(made)) => {
                let caller = made.caller.map(u64::from);
                each(trace, index, Event::Call { path, call, caller, callee: &made.callee, at_us });
            }
            (Kind::Start, Some(made)) => {
                each(trace, index, Event::Start { path, call, at_us, cold: made.cold == Some(true) });
            }
            (Kind::Answer, Some(_)) => each(trace, index, Event::Answer { path, call, at_us }),
            _ => {
                each(trace, index, Event::End { path, complete: true });
                self.open.remove(&path);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Call;

    #[test]
    fn events_come_in_order_of_time() {
        let trace = |base: i64| Trace {
            calls: (0..3)
                .map(|step| Call {
                    at_us: base + step * 10,
                    callee: "f".into(),
                    caller: None,
                    external: false,
                    started_us: Some(base + step * 10 + 15),
                    served_us: None,
                    ended_us: None,
                    cold: None,
                })
                .collect(),
        };
        let mut merge = Merge::default();
        let mut times = Vec::new();
        let mut ends = 0;
        let mut each = |_: &Trace, _: u32, event: Event<'_>| match event {
            Event::Call { at_us, .. } | Event::Start { at_us, .. } | Event::Answer { at_us, .. } => times.push(at_us),
            Event::End { .. } => ends += 1,
        };
        for base in (0..3000).rev() {
            merge.push(trace(base % 7), &mut each);
        }
        merge.finish(&mut each);
        assert_eq!((times.len(), ends), (18_000, 3000));
        let mut merge = Merge::default();
        let mut times = Vec::new();
        for base in [5, 0, 3] {
            merge.push(trace(base), |_, _, _| {});
        }
        merge.finish(|_, _, event| {
            if let Event::Call { at_us, .. } | Event::Start { at_us, .. } = event {
                times.push(at_us);
            }
        });
        assert!(times.is_sorted() && times.len() == 18);
    }
}
