//! Drives a [`Flow`] over a stream on the host. The unit tests of the parser and the fuzz targets share it.

use super::http1::{After, CARRY, Cursor, Event, Flow, Side, mode, tag_state};

/// What a stream came to: complete heads (offset behind them, tag state) and ends of messages, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Head { at: u64, tag: u8, tag_at: u32, status: u16, method: u8, head_len: u32 },
    End { at: u64 },
    Opaque,
}

/// Drives a flow as the hooks do: segment by segment, window by window, with rubbish behind each window's end.
pub fn drive(side: Side, segments: &[&[u8]], window_size: usize, request_method: u8) -> (Flow, Vec<Seen>) {
    let mut flow = Flow::NEW;
    let mut seen = Vec::new();
    let mut base = 0u64;
    for segment in segments {
        let carried = usize::from(flow.carry_len);
        let stream = [&flow.carry[..carried], segment].concat();
        let base_here = base - carried as u64;
        base += segment.len() as u64;
        flow.carry_len = 0;
        let mut at = 0usize;
        let mut steps = 0;
        'windows: while at < stream.len() {
            let end = stream.len().min(at + window_size);
            let mut window = stream[at..end].to_vec();
            window.extend_from_slice(b"\r\n\r\n\ntraceparent: rubbish\r\n\r\n");
            let mut cursor = Cursor { at: 0, end: (end - at) as u32, head_at: 0 };
            loop {
                steps += 1;
                assert!(steps < 1_000_000, "no progress");
                if flow.mode == mode::OPAQUE {
                    return (flow, seen);
                }
                if flow.mode == mode::BODY || flow.mode == mode::UNTIL_CLOSE {
                    let here = at + cursor.at as usize;
                    let (taken, event) = flow.pass_body((stream.len() - here) as u64);
                    at = here + taken as usize;
                    if event == Event::End {
                        seen.push(Seen::End { at: base_here + at as u64 });
                        flow.begin_message(&mut Cursor::default());
                    }
                    continue 'windows;
                }
                match flow.step(side, &window[..], &mut cursor) {
                    Event::Step => {}
                    Event::Drained => {
                        flow.leave_window(&mut cursor);
                        let left = &stream[at + cursor.at as usize..end];
                        at += cursor.at as usize;
                        if end == stream.len() {
                            assert!(left.len() <= CARRY);
                            flow.carry[..left.len()].copy_from_slice(left);
                            flow.carry_len = left.len() as u16;
                            break 'windows;
                        }
                        continue 'windows;
                    }
                    Event::Head => {
                        seen.push(Seen::Head {
                            at: base_here + (at + cursor.at as usize) as u64,
                            tag: if flow.is_doubtful() { tag_state::BAD } else { flow.tag },
                            tag_at: if flow.tag == tag_state::VALID { flow.tag_at } else { 0 },
                            status: flow.status,
                            method: flow.method,
                            head_len: flow.head_len,
                        });
                        match flow.begin_body(side, request_method) {
                            After::Body => {}
                            After::Nothing => {
                                seen.push(Seen::End { at: base_here + (at + cursor.at as usize) as u64 });
                                flow.begin_message(&mut cursor);
                            }
                            After::Interim => flow.begin_message(&mut cursor),
                            After::Opaque => {
                                seen.push(Seen::Opaque);
                                return (flow, seen);
                            }
                        }
                    }
                    Event::End => {
                        seen.push(Seen::End { at: base_here + (at + cursor.at as usize) as u64 });
                        flow.begin_message(&mut cursor);
                    }
                    Event::Opaque => {
                        seen.push(Seen::Opaque);
                        return (flow, seen);
                    }
                }
            }
        }
    }
    (flow, seen)
}
