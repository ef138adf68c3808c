//! The command line, without attaching anything: help, exit statuses, one clear line for bad input.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

fn fntrace(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fntrace")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_shows_each_command_and_the_exit_statuses() {
    let output = fntrace(&["--help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    for word in ["run", "demo", "doctor", "Exit status", "Examples:"] {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
    assert!(!help.contains("demo-function"), "{help}");
}

#[test]
fn every_flag_of_run_is_explained() {
    let help = text(&fntrace(&["run", "--help"]).stdout);
    for flag in [
        "--cgroup",
        "--name",
        "--format",
        "--tag",
        "--tag-to",
        "--settle",
        "--stats-every",
        "--query",
        "--verbose",
        "--profile",
        "--forecast",
        "--horizon",
        "--cost-ratio",
        "--forecast-model",
    ] {
        assert!(help.contains(flag), "{flag} is missing:\n{help}");
    }
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for arguments in [
        &["run", "--cgroup"][..],
        &["run", "--cgroup", "/x", "--tag-to", "10.0.0.0/40"],
        &["run", "--cgroup", "/x", "--settle", "soon"],
        &["run", "--cgroup", "/x", "--stats-every", "1ms"],
        &["run", "--cgroup", "/x", "--format", "xml"],
        &["run", "--cgroup", "/x", "--cost-ratio", "0.5"],
        &["run", "--cgroup", "/x", "--forecast", "--horizon", "0"],
        &["unknown"],
    ] {
        let output = fntrace(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn doctor_gives_a_document_that_says_what_it_found() {
    let output = fntrace(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["fntrace"], 1);
    assert_eq!(report["type"], "doctor");
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() > 10, "{report}");
    let cannot = report["verdict"] == "cannot";
    assert_eq!(output.status.code(), Some(if cannot { 3 } else { 0 }));
}

#[test]
fn the_commands_that_read_paths_bear_nothing_and_rubbish() {
    let directory = std::env::temp_dir().join(format!("fntrace-test-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("paths");
    for content in ["", "not json\n", "{\"fntrace\":1,\"type\":\"unknown\"}\n"] {
        std::fs::write(&file, content).unwrap();
        let path = file.to_str().unwrap();
        for arguments in [
            &["profile", path][..],
            &["forecast", "eval", path],
            &["replay", "--input", "call-trees", "--score", path],
            &["replay", path],
        ] {
            let output = fntrace(arguments);
            let code = output.status.code();
            assert!(matches!(code, Some(0 | 1)), "{arguments:?} of {content:?}: {code:?} {}", text(&output.stderr));
        }
    }
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn profile_reads_each_input_plain_or_packed() {
    let chain = r#"{"calls":[{"t":1000,"fn":"a","wait":5,"init":40},{"t":1100,"fn":"b","wait":7,"init":0}]}"#;
    let spans = r#"{"spans":[{"id":"1","service":"a","op":"/","kind":"server","start_us":0,"duration_us":90},
        {"id":"2","parent":"1","service":"a","op":"/b","kind":"client","start_us":10,"duration_us":50},
        {"id":"3","parent":"2","service":"b","op":"/b","kind":"server","start_us":20,"duration_us":30}]}"#;
    let directory = std::env::temp_dir().join(format!("fntrace-test-inputs-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("input");
    for (format, line) in [("faas-chains", chain.to_owned()), ("call-trees", spans.replace('\n', ""))] {
        let lines = format!("{line}\nbroken\n{line}\n");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(lines.as_bytes()).unwrap();
        for content in [lines.into_bytes(), packed.finish().unwrap()] {
            std::fs::write(&file, content).unwrap();
            let output = fntrace(&["profile", "--format", "json", "--input", format, file.to_str().unwrap()]);
            let profile: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!((&profile["paths"], profile["functions"]["kept"].as_array().unwrap().len()), (&2.into(), 2));
            assert!(text(&output.stderr).contains("line 2 passed over"), "{}", text(&output.stderr));
        }
    }
    std::fs::remove_dir_all(directory).unwrap();
}

/// A path of one invocation, as version `version` of the output has it.
fn path_line(version: u32, id: u32, key: &str) -> String {
    format!(
        r#"{{"fntrace":{version},"type":"path","trace_id":"{id:032x}","start":"2026-11-25T09:00:{:02}.000000Z","duration_us":900,"complete":true,{key}"root":{{"kind":"invocation","span_id":"{id:016x}","function":"f","sandbox":"/f","pid":1,"start_us":0,"duration_us":900,"cold":false,"children":[]}}}}"#,
        id % 60
    )
}

/// Runs the command on `input`, whole on its standard input; nobody reads its output if `closed`.
fn on_stdin(arguments: &[&str], input: &[u8], closed: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fntrace"));
    let mut child =
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if closed {
        drop(child.stdout.take());
    }
    let mut stdin = child.stdin.take().unwrap();
    // It may end before all is read.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap()
}

const READERS: [&[&str]; 2] = [&["profile", "--format", "json", "-"], &["forecast", "eval", "--json", "-"]];

#[test]
fn a_broken_line_is_told_with_its_number_and_passed_over() {
    let lines = [&path_line(1, 1, ""), "{\"fntrace\":1,\"type\":\"path\",", "", &path_line(1, 2, ""), "\u{1b}[31m", ""];
    for arguments in READERS {
        let output = on_stdin(arguments, lines.join("\n").as_bytes(), false);
        let errors = text(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        assert!(errors.contains("line 2 passed over") && errors.contains("line 5 passed over"), "{errors}");
        assert_eq!(errors.lines().count(), 2, "{errors}");
        assert!(!errors.contains('\u{1b}'));
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let read = if arguments[0] == "profile" {
            result["paths"].as_u64().unwrap()
        } else {
            result["train"].as_u64().unwrap() + result["test"].as_u64().unwrap()
        };
        assert_eq!(read, 2, "{arguments:?}: {result}");
    }
}

#[test]
fn a_stream_of_a_newer_version_is_read_as_far_as_it_is_understood() {
    let new = path_line(2, 1, r#""mood":{"of":["the",1,null]},"#);
    let lines = [new.as_str(), r#"{"fntrace":2,"type":"dream","of":"sheep"}"#, &path_line(1, 2, ""), ""];
    let output = on_stdin(READERS[0], lines.join("\n").as_bytes(), false);
    assert_eq!(text(&output.stderr), "");
    let profile: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&profile["paths"], &profile["functions"]["kept"][0]["invocations"]), (&2.into(), &2.into()));
}

#[test]
fn nothing_gives_an_empty_profile_in_every_form() {
    for format in ["table", "json", "dot", "folded", "html"] {
        let output = on_stdin(&["profile", "--format", format], b"", false);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{format}");
        match format {
            "json" => {
                let profile: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                assert_eq!((&profile["type"], &profile["paths"]), (&"profile".into(), &0.into()));
            }
            "folded" => assert!(output.stdout.is_empty()),
            _ => assert!(!output.stdout.is_empty(), "{format}"),
        }
    }
    let output = on_stdin(READERS[1], b"", false);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["test"]), (Some(0), &0.into()));
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    // More functions than a pipe holds: it cannot be done writing before the reader has gone.
    let lines: Vec<String> =
        (0..400).map(|id| path_line(1, id, "").replace(r#""f""#, &format!("\"{}{id}\"", "f".repeat(180)))).collect();
    for format in ["table", "json", "dot", "folded", "html"] {
        let output = on_stdin(&["profile", "--format", format, "--top", "400"], lines.join("\n").as_bytes(), true);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{format}");
    }
    let output = on_stdin(READERS[1], lines.join("\n").as_bytes(), true);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}
