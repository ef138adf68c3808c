//! Random numbers from a seed: the same seed gives the same plan, on any machine.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
    most: usize,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed, most: usize::MAX }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// A number from `from` up to and including `to`.
    pub fn between(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from + 1)
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// Mostly small, sometimes around the sizes at which buffers, pages and windows of the kernel half end.
    pub fn size(&mut self) -> usize {
        let size = self.any_size();
        size.min(self.most)
    }

    /// From now on sizes are not larger than this.
    pub fn limit(&mut self, most: usize) {
        self.most = most;
    }

    fn any_size(&mut self) -> usize {
        const EDGES: [usize; 9] = [128, 1024, 1152, 2048, 4096, 8192, 16_384, 32_768, 65_536];
        match self.below(10) {
            0..5 => self.below(600),
            5..8 => (EDGES[self.below(EDGES.len())] + 80).saturating_sub(self.below(160)),
            8 => self.between(1, 70_000),
            _ => self.between(1, 300_000),
        }
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}
