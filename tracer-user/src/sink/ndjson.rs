//! One JSON object a line.

mod line;

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use crate::{path::Line, text::is_harmful};

/// Writes objects a line each. Each is handed to the writer in one piece, so a reader never sees half a line of ours
/// in front of a pause.
#[derive(Debug)]
pub struct Ndjson<W> {
    writer: W,
    buffer: Vec<u8>,
}

impl<W: Write> Ndjson<W> {
    /// A sink onto `writer`.
    pub fn new(writer: W) -> Self {
        Self { writer, buffer: Vec::new() }
    }

    /// Writes one object.
    pub fn object<T: Serialize>(&mut self, object: &T) -> io::Result<()> {
        self.buffer.clear();
        serialize(object, &mut self.buffer)?;
        self.end()
    }

    /// Writes a path or a part.
    pub fn line(&mut self, line: &Line) -> io::Result<()> {
        self.buffer.clear();
        line::write(line, &mut self.buffer)?;
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.buffer.push(b'\n');
        self.writer.write_all(&self.buffer)
    }

    /// The writer.
    pub fn into_inner(self) -> W {
        self.writer
    }

    /// Flushes the writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

fn serialize<T: Serialize + ?Sized>(object: &T, out: &mut Vec<u8>) -> io::Result<()> {
    object.serialize(&mut Serializer::with_formatter(out, Escaping)).map_err(io::Error::from)
}

/// Escapes what JSON allows but a terminal obeys: `fntrace run | cat` is a terminal, too.
struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        // ASCII but DEL, which is nearly everything.
        if fragment.is_ascii() && !fragment.as_bytes().contains(&0x7f) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some(at) = rest.find(is_harmful) {
            let (clean, from) = rest.split_at(at);
            writer.write_all(clean.as_bytes())?;
            let mut chars = from.chars();
            if let Some(char) = chars.next() {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(text: &str) -> String {
        let mut sink = Ndjson::new(Vec::new());
        sink.object(&text).unwrap();
        String::from_utf8(sink.writer).unwrap()
    }

    #[test]
    fn harmful_characters_are_escaped() {
        assert_eq!(
            json("a\u{1b}[2J\u{7f}\u{9b}\u{202e}ü\u{e0041}"),
            "\"a\\u001b[2J\\u007f\\u009b\\u202eü\\udb40\\udc41\"\n"
        );
    }

    proptest! {
        #[test]
        fn reads_back_the_same_and_shows_nothing_harmful(text: String) {
            let json = json(&text);
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
            prop_assert!(!json.trim_end_matches('\n').contains(is_harmful));
        }
    }
}
