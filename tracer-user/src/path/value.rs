//! What the fields of a line hold: ids, times and texts, as they are written and read.

use std::{borrow::Cow, cell::RefCell, fmt, hash::BuildHasher as _, sync::Arc};

use foldhash::fast::FixedState;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tracer_ebpf::traceparent::hex_words;

/// A W3C trace id: 128 bits, high half first. 32 hex digits in the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(pub [u64; 2]);

/// A W3C span id. 16 hex digits in the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(pub u64);

/// Wall-clock time in µs since 1970. RFC 3339 with six digits and `Z` in the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time(pub i64);

/// The digits of 64 bits. Ids are a good part of what is written, and `core::fmt` takes ten times as long.
fn digits(number: u64) -> [u8; 16] {
    let [high, low] = hex_words(number).map(u64::to_le_bytes);
    let mut digits = [0; 16];
    digits[..8].copy_from_slice(&high);
    digits[8..].copy_from_slice(&low);
    digits
}

fn text(digits: &[u8]) -> &str {
    str::from_utf8(digits).unwrap_or_default()
}

impl TraceId {
    /// As in the output.
    pub(crate) fn digits(self) -> [u8; 32] {
        let [high, low] = self.0.map(digits);
        let mut digits = [0; 32];
        digits[..16].copy_from_slice(&high);
        digits[16..].copy_from_slice(&low);
        digits
    }
}

impl SpanId {
    /// As in the output.
    pub(crate) fn digits(self) -> [u8; 16] {
        digits(self.0)
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(text(&self.digits()))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(text(&self.digits()))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Years outside jiff's range (a hostile or broken clock offset) are shown as the nearest that it knows.
        let time =
            Timestamp::from_microsecond(self.0).unwrap_or(if self.0 < 0 { Timestamp::MIN } else { Timestamp::MAX });
        write!(f, "{time:.6}")
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text(&self.digits()))
    }
}

impl Serialize for SpanId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text(&self.digits()))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A string of a line, taken from it where it stands if nothing in it is escaped. (`Cow` always copies when it is read.)
#[derive(Default)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                self.visit_string(text.to_owned())
            }
            fn visit_string<E: de::Error>(self, text: String) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text)))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// The same names come over and over: those read last are kept, and shared.
pub(crate) fn shared(text: &str) -> Arc<str> {
    const KEPT: usize = 1024;
    thread_local! {
        static NAMES: RefCell<[Option<Arc<str>>; KEPT]> = const { RefCell::new([const { None }; KEPT]) };
    }
    let place = FixedState::with_seed(0).hash_one(text) as usize % KEPT;
    NAMES.with_borrow_mut(|names| match &mut names[place] {
        Some(name) if **name == *text => Arc::clone(name),
        slot => Arc::clone(slot.insert(text.into())),
    })
}

impl Text<'_> {
    /// See [`shared`].
    pub(crate) fn shared(&self) -> Arc<str> {
        shared(&self.0)
    }

    /// Without a copy if it is one of the words that nearly all lines hold.
    pub(crate) fn word(self) -> Cow<'static, str> {
        const WORDS: [&str; 20] = [
            "GET",
            "POST",
            "PUT",
            "DELETE",
            "PATCH",
            "HEAD",
            "injected",
            "kept",
            "adopted",
            "destination",
            "no_request",
            "opaque",
            "exclusive",
            "header",
            "thread",
            "lineage",
            "coroutine",
            "loop",
            "inferred",
            "none",
        ];
        let known = WORDS.iter().find(|word| **word == self.0);
        known.map_or_else(|| Cow::Owned(self.0.into_owned()), |word| Cow::Borrowed(*word))
    }
}

pub(super) fn hex64(text: &str) -> Option<u64> {
    /// What a digit stands for; above 15 what is none.
    const VALUES: [u8; 256] = {
        let (mut values, mut value) = ([0xff; 256], 0);
        while value < 16 {
            values[b"0123456789abcdef"[value as usize] as usize] = value;
            values[b"0123456789ABCDEF"[value as usize] as usize] = value;
            value += 1;
        }
        values
    };
    // `from_str_radix` would take a sign, and more time.
    let digits: &[u8; 16] = text.as_bytes().try_into().ok()?;
    let (mut number, mut all) = (0, 0);
    for &digit in digits {
        let value = VALUES[usize::from(digit)];
        all |= value;
        number = number << 4 | u64::from(value & 15);
    }
    (all < 16).then_some(number)
}

impl<'de> Deserialize<'de> for TraceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(text) = Text::deserialize(deserializer)?;
        let halves = text.split_at_checked(16).and_then(|(high, low)| Some([hex64(high)?, hex64(low)?]));
        halves.map(Self).ok_or_else(|| de::Error::custom("a trace id has 32 hex digits"))
    }
}

impl<'de> Deserialize<'de> for SpanId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(text) = Text::deserialize(deserializer)?;
        hex64(&text).map(Self).ok_or_else(|| de::Error::custom("a span id has 16 hex digits"))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(text) = Text::deserialize(deserializer)?;
        text.parse::<Timestamp>().map(|time| Self(time.as_microsecond())).map_err(de::Error::custom)
    }
}
