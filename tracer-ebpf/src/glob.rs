//! Patterns over cgroup paths: `*` stands for any number of bytes, `?` for one, neither for `/`.
//!
//! The kernel half matches a pattern in the very system call that makes a cgroup, so that nothing can run in it before
//! it is a sandbox; user space matches the cgroups that were there already. Both run [`Matcher::step`].

/// Most bytes of a pattern.
pub const PATTERN_MAX: usize = 248;

/// A pattern as it lies in the kernel's map.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Pattern {
    /// How many of [`Pattern::bytes`] are in use.
    pub len: u32,
    #[doc(hidden)]
    pub pad: u32,
    /// An absolute path below the cgroup v2 root.
    pub bytes: [u8; PATTERN_MAX],
}

impl Pattern {
    /// `None` if `pattern` is too long.
    pub fn new(pattern: &[u8]) -> Option<Self> {
        let mut bytes = [0; PATTERN_MAX];
        bytes.get_mut(..pattern.len())?.copy_from_slice(pattern);
        Some(Self { len: pattern.len() as u32, pad: 0, bytes })
    }
}

/// Most steps that a match may take; what takes more does not match.
pub const STEPS: u32 = 8192;

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Step again.
    More,
    /// The pattern matches the whole path.
    Match,
    /// It does not.
    Differ,
}

/// A match under way.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Matcher {
    pattern_at: u32,
    path_at: u32,
    /// Behind the last `*`, and where in the path it stops standing for anything; 0 if there was none.
    star: u32,
    star_path: u32,
}

impl Matcher {
    /// Compares one byte. `pattern(i)` and `path(i)` are only asked for bytes below the lengths.
    #[inline(always)]
    pub fn step(
        &mut self,
        pattern_len: u32,
        path_len: u32,
        pattern: impl Fn(u32) -> u8,
        path: impl Fn(u32) -> u8,
    ) -> Step {
        let wanted = if self.pattern_at < pattern_len { pattern(self.pattern_at) } else { 0 };
        if wanted == b'*' {
            self.pattern_at += 1;
            self.star = self.pattern_at;
            self.star_path = self.path_at;
            return Step::More;
        }
        if self.path_at >= path_len {
            return if self.pattern_at >= pattern_len { Step::Match } else { Step::Differ };
        }
        let byte = path(self.path_at);
        if self.pattern_at < pattern_len && (wanted == byte || (wanted == b'?' && byte != b'/')) {
            self.pattern_at += 1;
            self.path_at += 1;
            return Step::More;
        }
        // Let the last star stand for one byte more, unless that would be a slash.
        if self.star == 0 || self.star_path >= path_len || path(self.star_path) == b'/' {
            return Step::Differ;
        }
        self.star_path += 1;
        self.path_at = self.star_path;
        self.pattern_at = self.star;
        Step::More
    }
}

/// Whether `pattern` matches all of `path`.
pub fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let mut matcher = Matcher::default();
    let at = |bytes: &[u8], i: u32| bytes.get(i as usize).copied().unwrap_or(0);
    for _ in 0..STEPS {
        match matcher.step(pattern.len() as u32, path.len() as u32, |i| at(pattern, i), |i| at(path, i)) {
            Step::More => {}
            Step::Match => return true,
            Step::Differ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The textbook definition.
    fn reference(pattern: &[u8], path: &[u8]) -> bool {
        match (pattern, path) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => {
                reference(rest, path)
                    || matches!(path, [first, more @ ..] if *first != b'/' && reference(pattern, more))
            }
            ([b'?', rest @ ..], [byte, more @ ..]) => *byte != b'/' && reference(rest, more),
            ([wanted, rest @ ..], [byte, more @ ..]) => wanted == byte && reference(rest, more),
            _ => false,
        }
    }

    #[test]
    fn stars_stay_within_a_segment() {
        for (pattern, path, expected) in [
            ("/fns/*", "/fns/a", true),
            ("/fns/*", "/fns/a/b", false),
            ("/fns/*", "/fns", false),
            ("/*/x", "/a/x", true),
            ("/fns/?-1", "/fns/a-1", true),
            ("/fns/a*c*", "/fns/abcbd", true),
            ("/fns/*a*b", "/fns/aab", true),
            ("/k/*/pod*/c", "/k/q/pod1/c", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} {path}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab/*?]{0,8}", path in "[ab/]{0,10}") {
            prop_assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), reference(pattern.as_bytes(), path.as_bytes()));
        }
    }
}
