//! What one end has to receive, byte for byte, and where a tag is allowed in it.

/// `traceparent: 00-<32>-<16>-<2>\r\n`.
pub const TAG: usize = 70;
const NAME: &[u8] = b"traceparent: ";

/// A place in a stream where the agent may change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    pub at: usize,
    pub kind: SiteKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// Directly before the empty line of a request head that has no `traceparent`. `plain`: nothing there keeps an
    /// agent that was attached before the connection from writing a tag.
    Insert { plain: bool },
    /// The sixteen digits of the parent id in a context that a proxy passes on.
    Rewrite,
}

/// Compares what arrives with what was sent.
#[derive(Debug, Default)]
pub struct Stream {
    sent: Vec<u8>,
    sites: Vec<Site>,
    next_site: usize,
    at: usize,
    target: usize,
    /// Received bytes that may turn out to be a tag.
    tag: Vec<u8>,
    /// Digits of a parent id still to come, and whether one of them differed so far.
    loose: usize,
    changed: bool,
    pub tags: usize,
    pub rewrites: usize,
    pub plain: usize,
    pub plain_tagged: usize,
}

impl Stream {
    /// More is going to be sent.
    pub fn extend(&mut self, bytes: &[u8], sites: &[Site]) {
        let base = self.sent.len();
        self.sites.extend(sites.iter().map(|site| Site { at: base + site.at, kind: site.kind }));
        self.sent.extend_from_slice(bytes);
        self.target = self.sent.len();
    }

    /// Sent bytes that have not arrived.
    pub fn missing(&self) -> usize {
        self.target - self.at
    }

    pub fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            if !self.tag.is_empty() {
                self.tag.push(byte);
                rest = &rest[1..];
                if self.tag.len() == TAG {
                    self.tag_ends()?;
                }
                continue;
            }
            if self.loose > 0 {
                rest = self.take_loose(rest)?;
                continue;
            }
            let site = self.sites.get(self.next_site).copied();
            if let Some(site) = site.filter(|site| site.at == self.at) {
                self.next_site += 1;
                let plain = site.kind == SiteKind::Insert { plain: true };
                self.plain += usize::from(plain);
                if site.kind == SiteKind::Rewrite {
                    self.loose = 16;
                } else if byte == NAME[0] && self.sent.get(self.at) != Some(&byte) {
                    self.tag.push(byte);
                    self.plain_tagged += usize::from(plain);
                    rest = &rest[1..];
                }
                continue;
            }
            // Up to the next site in one comparison.
            let until = site.map_or(self.target, |site| site.at.min(self.target));
            let len = rest.len().min(until - self.at);
            if len == 0 {
                return Err(format!("{} bytes more than were sent: {:?}", rest.len(), show(rest)));
            }
            let expected = &self.sent[self.at..self.at + len];
            if let Some(wrong) = rest[..len].iter().zip(expected).position(|(got, sent)| got != sent) {
                let from = wrong.saturating_sub(40);
                return Err(format!(
                    "changed at byte {}: sent {:?}, got {:?}",
                    self.at + wrong,
                    show(&expected[from..]),
                    show(&rest[from..])
                ));
            }
            self.at += len;
            rest = &rest[len..];
        }
        Ok(())
    }

    fn tag_ends(&mut self) -> Result<(), String> {
        let tag = std::mem::take(&mut self.tag);
        let value = &tag[NAME.len()..];
        let form = value.iter().enumerate().all(|(at, byte)| match at {
            2 | 35 | 52 => *byte == b'-',
            55 => *byte == b'\r',
            56 => *byte == b'\n',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(byte),
        });
        if !tag.starts_with(NAME) || !form {
            return Err(format!("no tag where only a tag may be, byte {}: {:?}", self.at, show(&tag)));
        }
        self.tags += 1;
        Ok(())
    }

    /// Digits of a parent id, each of which may differ.
    fn take_loose<'a>(&mut self, rest: &'a [u8]) -> Result<&'a [u8], String> {
        let len = rest.len().min(self.loose).min(self.missing());
        let (got, left) = rest.split_at(len);
        if len == 0 || !got.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte)) {
            return Err(format!("no parent id at byte {}: {:?}", self.at, show(rest)));
        }
        self.changed |= got != &self.sent[self.at..self.at + len];
        self.at += len;
        self.loose -= len;
        if self.loose == 0 {
            self.rewrites += usize::from(std::mem::take(&mut self.changed));
        }
        Ok(left)
    }

    /// Whether what arrived ends inside a tag.
    pub fn in_tag(&self) -> bool {
        !self.tag.is_empty()
    }
}

/// The beginning of some bytes, readable.
pub fn show(bytes: &[u8]) -> String {
    let shown = bytes.len().min(160);
    let dots = if shown < bytes.len() { "…" } else { "" };
    format!("{}{dots}", bytes[..shown].escape_ascii())
}
