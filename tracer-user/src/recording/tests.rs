//! What is recorded replays to the same bytes, and a file that ends too early says so.

use std::io;

use proptest::prelude::*;
use tracer_ebpf::record::decode;

use super::{Recorder, replay};
use crate::{
    assemble::{
        Config, SandboxInfo, Totals,
        trees::{World, want},
    },
    path::Resource,
    sink::ndjson::Ndjson,
};

/// The lines that come out while it is recorded, what was counted, and the recording.
fn recorded(world: &World, every: usize) -> (Vec<u8>, Totals, Vec<u8>) {
    let config = Config { settle_ns: 1_000_000, ..Config::default() };
    let mut recorder = Recorder::to(config, Some(Vec::new())).unwrap();
    let mut sink = Ndjson::new(Vec::new());
    let resource = Some(Resource { faas_name: Some("shop".into()), ..Resource::default() }.into());
    recorder.sandbox(1, SandboxInfo { function: "shop".into(), path: "/fns/shop".into(), resource });
    recorder.clock(1_700_000_000_000_000_000);
    recorder.record(b"not a record", None);
    let mut now = 0;
    for (index, event) in world.events.iter().enumerate() {
        recorder.record(&event.bytes, decode(&event.bytes).as_ref());
        now = now.max(event.at_ns);
        if index % every == every - 1 {
            recorder.lost(index as u64 / 7);
            recorder.advance(now);
            while let Some(line) = recorder.take() {
                sink.object(&line).unwrap();
            }
        }
    }
    recorder.finish();
    while let Some(line) = recorder.take() {
        sink.object(&line).unwrap();
    }
    recorder.flush().unwrap();
    (sink.into_inner(), recorder.totals().clone(), recorder.into_file().unwrap())
}

fn replayed(file: &[u8]) -> (Vec<u8>, anyhow::Result<super::Replayed>) {
    let mut sink = Ndjson::new(Vec::new());
    let replayed = replay(file, |line| sink.object(line));
    (sink.into_inner(), replayed)
}

proptest! {
    #[test]
    fn the_same_bytes_come_out(wants in prop::collection::vec(want(), 1..5), one_netns: bool, every in 1..9usize) {
        let (lines, totals, file) = recorded(&World::new(&wants, one_netns), every);
        prop_assert!(!lines.is_empty());
        let (again, replayed) = replayed(&file);
        let replayed = replayed.unwrap();
        prop_assert_eq!(again, lines);
        prop_assert_eq!((replayed.totals, replayed.is_cut), (totals, false));
    }

    #[test]
    fn wherever_the_file_ends_what_it_holds_is_given_out(wants in prop::collection::vec(want(), 1..3), part in 0.0..1.0f64) {
        let (_, totals, file) = recorded(&World::new(&wants, true), 4);
        let first = file.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let (_, replayed) = replayed(&file[..first + ((file.len() - first) as f64 * part) as usize]);
        let replayed = replayed.unwrap();
        prop_assert!(replayed.is_cut);
        prop_assert!(replayed.totals.records.sum() <= totals.records.sum());
        prop_assert_eq!(replayed.totals.open, 0);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
        let (_, _, mut file) = recorded(&World::new(&[], true), 4);
        file.extend(bytes);
        let _ = replayed(&file);
    }
}

#[test]
fn what_is_no_recording_is_refused_in_one_line() {
    let said = |file: &[u8]| format!("{:#}", replayed(file).1.unwrap_err());
    let (_, _, file) = recorded(&World::new(&[], true), 4);
    let text = String::from_utf8_lossy(&file[..file.iter().position(|byte| *byte == b'\n').unwrap() + 1]).into_owned();
    assert!(said(b"").contains("--record"), "{}", said(b""));
    assert!(said(b"{\"fntrace\":1}\n").contains("--record"));
    let newer = text.replace("\"fntrace_recording\":1", "\"fntrace_recording\":2");
    assert!(said(newer.as_bytes()).contains("another version"), "{}", said(newer.as_bytes()));
    let other = text.replace("\"little\"", "\"big\"");
    assert!(said(other.as_bytes()).contains("byte order"));
    let unknown = [text.as_bytes(), b"?\0\0\0\0"].concat();
    assert!(said(&unknown).contains("entry 1"), "{}", said(&unknown));
    let endless = [text.as_bytes(), b"r\xff\xff\xff\xff"].concat();
    assert!(said(&endless).contains("4294967295 bytes"), "{}", said(&endless));
}

/// A disk without room.
struct Full(usize);

impl io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told_and_the_paths_go_on() {
    let mut recorder = Recorder::to(Config::default(), Some(Full(1000))).unwrap();
    for number in 0..100 {
        recorder.record(b"not a record", None);
        recorder.advance(number);
    }
    assert_eq!(recorder.flush().unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert!(recorder.flush().is_ok(), "told once");
    assert_eq!(recorder.totals().undecodable, 100);
}
