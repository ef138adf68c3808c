//! Makes strings from the wire harmless.

use std::borrow::Cow;

/// Characters that do something other than show: controls (C0, DEL, C1), and those that turn, hide or break text, with
/// which a tenant could make a line on the operator's terminal read as another (CVE-2021-42574, "Trojan Source").
pub(crate) fn is_harmful(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text with harmful characters written as `\u{…}`, and at most `max` characters long.
pub(crate) fn harmless(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max && !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len().min(max) + 8);
    for (count, char) in text.chars().enumerate() {
        if count + 1 >= max {
            out.push('…');
            break;
        }
        if is_harmful(char) { out.extend(char.escape_unicode()) } else { out.push(char) }
    }
    Cow::Owned(out)
}
