use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;

use super::*;

fn read(text: &[u8], format: Format) -> (Vec<Trace>, Vec<u64>) {
    let (mut all, mut broken) = (Vec::new(), Vec::new());
    traces(text, format, |_, trace| all.push(trace), |number, _| broken.push(number));
    (all, broken)
}

const PATH: &str = r#"{"fntrace":1,"type":"path","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","start":"2026-11-23T09:00:00.000000Z","duration_us":900,"complete":true,"root":{"kind":"invocation","span_id":"00f067aa0ba902b7","function":"checkout","sandbox":"/a","pid":1,"start_us":0,"duration_us":900,"cold":true,"children":[{"kind":"call","span_id":"b7ad6b7169203331","to":"10.0.0.1:80","peer":"10.0.0.1:80","start_us":300,"duration_us":50,"tag":"injected","parent_by":"exclusive"},{"kind":"call","span_id":"b7ad6b7169203332","to":"stock","peer":"127.0.0.1:80","start_us":100,"duration_us":100,"tag":"injected","parent_by":"exclusive","children":[{"kind":"invocation","span_id":"b7ad6b7169203333","function":"stock","sandbox":"/b","pid":2,"start_us":120,"duration_us":70,"cold":false}]}]}}"#;

#[test]
fn a_path_becomes_its_calls_in_order() {
    let (all, broken) = read(PATH.as_bytes(), Format::Paths);
    assert!(broken.is_empty());
    let calls = &all[0].calls;
    let names: Vec<&str> = calls.iter().map(|call| &*call.callee).collect();
    assert_eq!(names, ["checkout", "stock", "10.0.0.1:80"]);
    let start = calls[0].at_us;
    assert_eq!(calls[1].at_us, start + 100);
    assert_eq!(calls[1].started_us, Some(start + 120));
    assert_eq!(calls[1].ended_us, Some(start + 200));
    assert_eq!(calls.iter().map(|call| call.caller).collect::<Vec<_>>(), [None, Some(0), Some(0)]);
    assert_eq!(calls.iter().map(|call| call.external).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(calls.iter().map(|call| call.cold).collect::<Vec<_>>(), [Some(true), Some(false), None]);
}

#[test]
fn broken_lines_are_numbered_and_the_rest_is_read() {
    let text = format!("{PATH}\n{{oops\n\n{{\"fntrace\":1,\"type\":\"stats\"}}\n{PATH}\n\u{fe}\n");
    let (all, broken) = read(text.as_bytes(), Format::Paths);
    assert_eq!((all.len(), broken), (2, vec![2, 6]));
}

#[test]
fn newer_versions_are_read_as_far_as_understood() {
    let newer = PATH.replace("\"fntrace\":1", "\"fntrace\":7,\"novel\":[1]");
    let other = r#"{"fntrace":7,"type":"dream","of":{}}"#;
    let (all, broken) = read(format!("{newer}\n{other}\n").as_bytes(), Format::Paths);
    assert_eq!((all.len(), broken.len()), (1, 0));
    assert_eq!(all, read(PATH.as_bytes(), Format::Paths).0);
}

#[test]
fn empty_input_is_empty() {
    for format in [Format::Paths, Format::CallTrees, Format::FaasChains] {
        assert_eq!(read(b"", format), (vec![], vec![]));
    }
}

#[test]
fn gzip_is_told_by_its_magic_and_a_truncated_stream_keeps_what_came() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    for _ in 0..3 {
        writeln!(encoder, "{PATH}").unwrap();
    }
    let packed = encoder.finish().unwrap();
    let open = |bytes: &[u8]| decompress(BufReader::new(Box::new(io::Cursor::new(bytes.to_vec())))).unwrap();
    let mut count = 0;
    traces(open(&packed), Format::Paths, |_, _| count += 1, |_, _| panic!());
    assert_eq!(count, 3);
    let (mut count, mut ends) = (0, 0);
    traces(open(&packed[..packed.len() - 12]), Format::Paths, |_, _| count += 1, |_, _| ends += 1);
    assert!(count <= 3 && ends == 1);
}

#[test]
fn a_chain_starts_after_wait_and_init() {
    let text =
        br#"{"app":"x","calls":[{"t":1000.0,"fn":"a","wait":5,"init":0},{"t":1022.5,"fn":"b","wait":200,"init":30}]}"#;
    let (all, _) = read(text, Format::FaasChains);
    let calls = &all[0].calls;
    assert_eq!((calls[0].started_us, calls[0].cold), (Some(1_005_000), Some(false)));
    assert_eq!((calls[1].at_us, calls[1].started_us, calls[1].cold), (1_022_500, Some(1_252_500), Some(true)));
}

#[test]
fn a_tree_joins_client_and_server_spans() {
    let text = br#"{"spans":[
        {"id":"4","parent":"3","service":"search","op":"/geo","kind":"client","start_us":30,"duration_us":5},
        {"id":"1","parent":null,"service":"front","op":"GET /","kind":"server","start_us":0,"duration_us":90},
        {"id":"2","parent":"1","service":"front","op":"/search","kind":"client","start_us":10,"duration_us":50},
        {"id":"3","parent":"2","service":"search","op":"/search","kind":"server","start_us":20,"duration_us":30},
        {"id":"5","parent":"3","service":"rate","op":"/rate","kind":"server","start_us":36,"duration_us":2},
        {"id":"6","parent":"6","service":"x","op":"loop","kind":"server","start_us":70,"duration_us":2}]}"#;
    let one_line: String = std::str::from_utf8(text).unwrap().lines().collect();
    let (all, broken) = read(one_line.as_bytes(), Format::CallTrees);
    assert!(broken.is_empty());
    let seen: Vec<(&str, Option<u32>, Option<i64>)> =
        all[0].calls.iter().map(|call| (&*call.callee, call.caller, call.started_us)).collect();
    assert_eq!(
        seen,
        [
            ("front", None, Some(0)),
            ("search", Some(0), Some(20)),
            ("/geo", Some(1), None),
            ("rate", Some(1), Some(36)),
            ("x", None, Some(70)),
        ]
    );
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for format in [Format::Paths, Format::CallTrees, Format::FaasChains] {
            read(&bytes, format);
        }
    }

    #[test]
    fn callers_lie_before_their_calls(
        spans in proptest::collection::vec((0_u8..12, 0_u8..12, any::<bool>(), any::<i64>()), 0..12),
    ) {
        let spans: Vec<String> = spans.iter().map(|(id, parent, server, start)| format!(
            r#"{{"id":"{id}","parent":"{parent}","service":"s{id}","op":"o","kind":"{}","start_us":{start}}}"#,
            if *server { "server" } else { "client" },
        )).collect();
        let (all, broken) = read(format!("{{\"spans\":[{}]}}", spans.join(",")).as_bytes(), Format::CallTrees);
        prop_assert!(broken.is_empty());
        for trace in all {
            prop_assert!(trace.calls.is_sorted_by_key(|call| call.at_us));
            for (index, call) in trace.calls.iter().enumerate() {
                prop_assert!(call.caller.is_none_or(|caller| (caller as usize) < index));
            }
        }
    }
}

#[test]
fn what_has_no_tree_of_its_own_becomes_one_for_the_profile() {
    let chain = br#"{"calls":[{"t":1000,"fn":"a","wait":5,"init":0},{"t":1022.5,"fn":"b","wait":200,"init":30}]}"#;
    let Ok(Some(Line::Path(path))) = line(std::str::from_utf8(chain).unwrap(), 7, Format::FaasChains) else { panic!() };
    assert_eq!((path.start.0, path.trace_id.0[1]), (1_000_000, 7));
    // It is what the sequence was made of.
    let back = Trace::from_path(path.start.0, &path.root);
    let seen: Vec<_> = back.calls.iter().map(|call| (&*call.callee, call.at_us, call.started_us, call.cold)).collect();
    assert_eq!(seen[1], ("b", 1_022_500, Some(1_252_500), Some(true)));
    assert_eq!(back.calls.len(), 2);
}

#[test]
fn a_deep_tree_is_made_flat_where_it_is_too_deep() {
    let spans: Vec<String> = (0..20_000)
        .map(|id: u32| {
            let parent = id.checked_sub(1).map_or("null".to_owned(), |parent| format!("\"{parent}\""));
            format!(r#"{{"id":"{id}","parent":{parent},"service":"s","op":"o","kind":"server","start_us":{id}}}"#)
        })
        .collect();
    let text = format!("{{\"spans\":[{}]}}", spans.join(","));
    let Ok(Some(Line::Path(path))) = line(&text, 1, Format::CallTrees) else { panic!() };
    assert_eq!(Trace::from_path(0, &path.root).calls.len(), 20_000);
}
