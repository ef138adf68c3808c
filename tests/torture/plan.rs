//! What happens on one connection, made up from a seed before anything is sent.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    content::{self, Answer, Forwarded, Request},
    random::Random,
    stream::{Site, SiteKind, TAG, show},
};

/// Whether the clients' sockets are enrolled. Then the kernel refuses io_uring's zero-copy sends (include/net/sock.h,
/// sock_replace_proto, Linux 6.18), and programs send as they do where it never had them.
pub static ENROLLED: AtomicBool = AtomicBool::new(false);
/// Whether they are so with the verdict program that repairs FIONREAD: then what it breaks, and the operator has been
/// told of, is left out.
pub static REPAIRED: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// One piece of a turn, in one or more system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Write,
    Writev,
    Send,
    SendMore,
    Sendmsg,
    SendmsgMore,
    Sendmmsg,
    Sendfile,
    Splice,
    Vmsplice,
    Zerocopy,
    Nonblocking,
    Thread,
    Fork,
    Uring,
    UringZerocopy,
}

const WAYS: [Way; 14] = [
    Way::Write,
    Way::Writev,
    Way::Send,
    Way::Sendmsg,
    Way::Sendmmsg,
    Way::Sendfile,
    Way::Splice,
    Way::Vmsplice,
    Way::Zerocopy,
    Way::Nonblocking,
    Way::Thread,
    Way::Fork,
    Way::Uring,
    Way::UringZerocopy,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    Plain,
    Small,
    Readv,
    Peek,
    /// Reads as much as FIONREAD says there is, once it says so.
    Fionread,
    /// One read that waits for all, where the length is known.
    WaitAll,
    Level,
    Edge,
    Poll,
    Splice,
    Uring,
    /// Small reads with pauses.
    Slow,
}

const RECEIVES: [Receive; 11] = [
    Receive::Plain,
    Receive::Small,
    Receive::Readv,
    Receive::Peek,
    Receive::Fionread,
    Receive::WaitAll,
    Receive::Level,
    Receive::Edge,
    Receive::Poll,
    Receive::Splice,
    Receive::Uring,
];

#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub way: Way,
    pub len: usize,
}

impl Piece {
    /// Whether the kernel gets all of it at once.
    fn is_one_message(&self) -> bool {
        match self.way {
            Way::Sendmmsg | Way::Nonblocking => false,
            Way::Splice | Way::Vmsplice => self.len <= 60_000,
            _ => true,
        }
    }
}

/// One side sends, the other receives all of it.
#[derive(Clone)]
pub struct Turn {
    pub from: Side,
    pub bytes: Vec<u8>,
    pub sites: Vec<Site>,
    pub pieces: Vec<Piece>,
    pub cork: bool,
    pub receive: Receive,
    /// Whether nothing in TCP itself makes this turn wait (Nagle's algorithm with the delayed acknowledgement).
    pub prompt: bool,
    /// Whether only its length may make it wait.
    pub long: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    Mapped,
}

/// In which sandbox the server's sockets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Outside,
    Sandbox,
    Own,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    ClientCloses,
    ClientHalfCloses,
    ServerHalfCloses,
    ServerCloses,
    ClientResets,
    ServerResets,
    ClientClosesUnread,
}

const ENDS: [End; 7] = [
    End::ClientCloses,
    End::ClientHalfCloses,
    End::ServerHalfCloses,
    End::ServerCloses,
    End::ClientResets,
    End::ServerResets,
    End::ClientClosesUnread,
];

#[derive(Clone)]
pub struct Plan {
    pub seed: u64,
    pub family: Family,
    pub place: Place,
    pub nodelay: bool,
    pub tiny_buffers: bool,
    /// The client sends with MSG_ZEROCOPY, too.
    pub zero_copy: bool,
    /// An invocation with this context is live meanwhile.
    pub forwarded: Option<String>,
    pub turns: Vec<Turn>,
    pub end: End,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let r = &mut random;
        let mut plan = Self {
            seed,
            family: [Family::V4, Family::V6, Family::Mapped][r.below(3)],
            place: [Place::Outside, Place::Sandbox, Place::Own][r.below(3)],
            nodelay: r.percent(50),
            tiny_buffers: r.percent(8),
            zero_copy: r.percent(20),
            forwarded: r.percent(20).then(|| content::context(r)),
            turns: Vec::new(),
            end: ENDS[r.below(ENDS.len())],
        };
        if plan.tiny_buffers {
            r.limit(20_000);
        }
        let forwarded = plan.forwarded.clone();
        if r.percent(15) {
            let bytes = content::stranger(r);
            plan.turn(r, Side::Client, bytes, Vec::new());
            plan.raw(r);
            return plan;
        }
        let exchanges = r.between(1, 6);
        for number in 0..exchanges {
            plan.exchange(r, number, forwarded.as_deref());
        }
        match r.below(10) {
            0 => {
                let head = b"GET /chat HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: torture\r\n";
                plan.opaque_from(r, head, Answer::Upgrade);
            }
            1 => plan.opaque_from(r, b"CONNECT example.test:443 HTTP/1.1\r\nhost: x\r\n", Answer::Connect),
            2 => {
                // Framing that two readers understand differently: what follows may be anything.
                let head: [&[u8]; 4] = [
                    b"POST / HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n",
                    b"POST / HTTP/1.1\r\ncontent-length: 4\r\ncontent-length: 5\r\n",
                    b"POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n",
                    b"POST / HTTP/1.1\r\ncontent-length: -1\r\n",
                ];
                let head = head[r.below(4)];
                let site = Site { at: head.len(), kind: SiteKind::Insert { plain: false } };
                plan.turn(r, Side::Client, [head, b"\r\n", content::LOOKALIKE].concat(), vec![site]);
                plan.raw(r);
            }
            3 => {
                let bytes = content::stranger(r);
                plan.turn(r, Side::Client, bytes, Vec::new());
                plan.raw(r);
            }
            _ => {}
        }
        plan
    }

    fn exchange(&mut self, r: &mut Random, number: usize, forwarded: Forwarded<'_>) {
        let plain = r.percent(40);
        match r.below(10) {
            0 if !plain => {
                let mut request = expecting(r, number);
                let body = request.bytes.split_off(request.body_at);
                self.turn(r, Side::Client, request.bytes, request.sites);
                self.turn(r, Side::Server, b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), Vec::new());
                self.turn(r, Side::Client, body, Vec::new());
                let bytes = content::response(r, Answer::Any);
                self.turn(r, Side::Server, bytes, Vec::new());
            }
            1..4 if !plain => self.pipelined(r, number, forwarded),
            _ => {
                let request = content::request(r, number, forwarded);
                let bytes = content::response(r, request.answer);
                self.turn(r, Side::Client, request.bytes, request.sites);
                self.turn(r, Side::Server, bytes, Vec::new());
            }
        }
    }

    /// Several requests, cut into turns anywhere; each answered once it is complete.
    fn pipelined(&mut self, r: &mut Random, number: usize, forwarded: Forwarded<'_>) {
        let (mut bytes, mut sites, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..r.between(2, 5) {
            let request = content::request(r, 100 * number + at, forwarded);
            let base = bytes.len();
            // Only the first of a message is tagged.
            let moved = request.sites.iter().map(|site| match site.kind {
                SiteKind::Insert { .. } if at > 0 => {
                    Site { at: base + site.at, kind: SiteKind::Insert { plain: false } }
                }
                kind => Site { at: base + site.at, kind },
            });
            sites.extend(moved);
            bytes.extend_from_slice(&request.bytes);
            answers.push((bytes.len(), content::response(r, request.answer)));
        }
        let cut = if r.percent(50) { bytes.len() } else { r.between(1, bytes.len()) };
        for (from, to) in [(0, cut), (cut, bytes.len())] {
            if from == to {
                continue;
            }
            let here = sites.iter().filter(|site| (from..to).contains(&site.at));
            let here = here.map(|site| Site { at: site.at - from, kind: site.kind }).collect();
            self.turn(r, Side::Client, bytes[from..to].to_vec(), here);
            let done: Vec<u8> = answers
                .iter()
                .filter(|(end, _)| (from + 1..=to).contains(end))
                .flat_map(|(_, answer)| answer.clone())
                .collect();
            if !done.is_empty() {
                self.turn(r, Side::Server, done, Vec::new());
            }
        }
    }

    fn opaque_from(&mut self, r: &mut Random, head: &[u8], answer: Answer) {
        let site = Site { at: head.len(), kind: SiteKind::Insert { plain: false } };
        self.turn(r, Side::Client, [head, b"\r\n"].concat(), vec![site]);
        let bytes = content::response(r, answer);
        self.turn(r, Side::Server, bytes, Vec::new());
        self.raw(r);
    }

    /// Bytes that are nobody's business, among them such that look like requests.
    fn raw(&mut self, r: &mut Random) {
        for _ in 0..r.between(1, 4) {
            let side = if r.percent(50) { Side::Client } else { Side::Server };
            let len = r.size().max(1);
            let mut bytes = content::content(r, len);
            if r.percent(40) {
                bytes = content::request(r, 0, None).bytes;
            }
            self.turn(r, side, bytes, Vec::new());
        }
    }

    fn turn(&mut self, r: &mut Random, from: Side, bytes: Vec<u8>, mut sites: Vec<Site>) {
        if bytes.is_empty() {
            return;
        }
        let cork = r.percent(10);
        let mut pieces = pieces(r, bytes.len(), self.tiny_buffers);
        for piece in pieces.iter_mut().filter(|_| from == Side::Client) {
            piece.way = match piece.way {
                Way::Zerocopy if !self.zero_copy => Way::Send,
                Way::UringZerocopy if ENROLLED.load(Ordering::Relaxed) => Way::Uring,
                way => way,
            };
        }
        if pieces.iter().any(|piece| piece.way == Way::UringZerocopy) {
            // The kernel refuses it beside the other (net/core/skbuff.c, msg_zerocopy_realloc).
            pieces.iter_mut().filter(|piece| piece.way == Way::Zerocopy).for_each(|piece| piece.way = Way::Send);
        }
        let mut receive = RECEIVES[r.below(RECEIVES.len())];
        if self.tiny_buffers {
            receive = [Receive::Slow, Receive::Edge, Receive::Level, Receive::Plain][r.below(4)];
        }
        let waits = bytes.len() > 16_000 || pieces.iter().any(|piece| piece.way == Way::Nonblocking);
        if receive == Receive::Fionread && waits {
            receive = Receive::Plain;
        }
        // What Nagle's algorithm holds back may be as long as the tag; then FIONREAD says early that all is there.
        let mut held = 0;
        let like_a_tag = pieces.iter().rev().any(|piece| {
            held += piece.len;
            held.is_multiple_of(TAG)
        });
        if receive == Receive::Fionread && from == Side::Client && like_a_tag {
            receive = Receive::Plain;
        }
        // What the agent warns of where it needs the repair: these may wait for bytes that are there.
        let breaks = matches!(receive, Receive::Splice | Receive::WaitAll);
        if breaks && from == Side::Server && REPAIRED.load(Ordering::Relaxed) {
            receive = Receive::Plain;
        }
        let alternates = self.turns.last().is_none_or(|turn| turn.from != from);
        let (last, but_last) = pieces.split_last().unwrap();
        let more =
            but_last.iter().all(|piece| matches!(piece.way, Way::SendMore | Way::SendmsgMore)) && last.is_one_message();
        // A segment is never longer than half of the largest window that the other side has offered (net/ipv4/tcp.c,
        // tcp_bound_to_half_wnd): on loopback that is 32,741 bytes at first, and grows to 65,483. What was cut before the
        // window grew may be short when it leaves, and then Nagle's algorithm holds the last segment back. The same
        // where a corked segment ends early, for it has room for seventeen pages, begun or whole.
        let cut = bytes.len() > 32_000;
        let at_once = alternates && (cork || more);
        let prompt = (self.nodelay || (at_once && !cut)) && !self.tiny_buffers;
        let long = at_once && cut && !self.nodelay && !self.tiny_buffers;
        // Only a head that leaves in one piece and begins one is tagged.
        let whole = pieces.len() == 1 && matches!(pieces[0].way, Way::Write | Way::Send | Way::Sendmsg);
        if !whole || self.tiny_buffers || self.zero_copy || bytes.len() > 60_000 {
            for site in &mut sites {
                if let SiteKind::Insert { plain } = &mut site.kind {
                    *plain = false;
                }
            }
        }
        self.turns.push(Turn { from, bytes, sites, pieces, cork, receive, prompt, long });
    }

    /// Where the connection stands still until the agent has come: a turn and a piece.
    pub fn pause(&self) -> (usize, usize) {
        let mut random = Random::new(self.seed ^ 0x7061_7573_6500);
        let turn = random.below(self.turns.len());
        (turn, random.below(self.turns[turn].pieces.len()))
    }
}

fn expecting(r: &mut Random, number: usize) -> Request {
    let len = r.size().max(1);
    let body = content::content(r, len);
    let head = format!("POST /{number} HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: {len}\r\n");
    let sites = vec![Site { at: head.len(), kind: SiteKind::Insert { plain: true } }];
    let body_at = head.len() + 2;
    Request { bytes: [head.as_bytes(), b"\r\n", &body].concat(), sites, body_at, answer: Answer::Any }
}

fn pieces(r: &mut Random, len: usize, tiny: bool) -> Vec<Piece> {
    let count = match r.below(20) {
        0..11 => 1,
        11..15 => 2,
        15..19 => r.between(2, 8),
        _ if len < 700 => len,
        _ => r.between(8, 40),
    };
    let mut cuts: Vec<usize> = (1..count.min(len)).map(|_| r.between(1, len)).collect();
    if count == len {
        cuts = (1..=len).collect();
    }
    cuts.push(len);
    cuts.sort_unstable();
    cuts.dedup();
    let same = r.percent(50).then(|| WAYS[r.below(WAYS.len())]);
    let more = r.percent(15);
    let mut from = 0;
    let mut pieces: Vec<Piece> = Vec::new();
    for cut in &cuts {
        let mut way = same.unwrap_or_else(|| WAYS[r.below(WAYS.len())]);
        if count > 8 && matches!(way, Way::Fork | Way::Thread | Way::Uring | Way::UringZerocopy) {
            way = Way::Write;
        }
        if more && *cut < len {
            way = if r.percent(50) { Way::SendMore } else { Way::SendmsgMore };
        }
        if tiny {
            way = if r.percent(70) { Way::Nonblocking } else { Way::Write };
        }
        pieces.push(Piece { way, len: cut - from });
        from = *cut;
    }
    pieces
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, family, place, nodelay, tiny_buffers, zero_copy, forwarded, turns, end } = self;
        writeln!(
            f,
            "plan {seed}: {family:?}, server {place:?}, nodelay {nodelay}, tiny buffers {tiny_buffers}, zero copy {zero_copy}, end {end:?}, \
             forwarded {forwarded:?}, pause at {:?}",
            self.pause()
        )?;
        for (at, turn) in turns.iter().enumerate() {
            let Turn { from, bytes, sites, pieces, cork, receive, prompt, long } = turn;
            let shown: Vec<String> =
                pieces.iter().take(12).map(|piece| format!("{:?} {}", piece.way, piece.len)).collect();
            writeln!(
                f,
                "  {at} {from:?} {} bytes, cork {cork}, prompt {prompt}, long {long}, {} pieces {shown:?}, read {receive:?}, \
                 sites {:?}: {}",
                bytes.len(),
                pieces.len(),
                sites.iter().map(|site| site.at).collect::<Vec<_>>(),
                show(bytes)
            )?;
        }
        Ok(())
    }
}
