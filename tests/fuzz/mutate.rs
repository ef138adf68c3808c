//! Inputs: a seed with a few edits, cut into segments.

use bolero::TypeGenerator;

use crate::seeds::WORDS;

/// Positions count modulo the length of what they are positions in, so that each number means something.
#[derive(Clone, Debug, TypeGenerator)]
enum Edit {
    Set {
        at: u16,
        byte: u8,
    },
    Insert {
        at: u16,
        byte: u8,
    },
    Word {
        at: u16,
        word: u8,
    },
    Remove {
        at: u16,
        len: u8,
    },
    /// Puts a part of the text in once more, somewhere.
    Again {
        from: u16,
        len: u8,
        at: u16,
    },
    /// Puts another seed in, whole.
    Seed {
        at: u16,
        seed: u8,
    },
}

/// A mutated seed, and where it is cut.
#[derive(Clone, Debug, TypeGenerator)]
pub struct Case {
    seed: u8,
    #[generator(bolero::produce::<Vec<Edit>>().with().len(0usize..6))]
    edits: Vec<Edit>,
    #[generator(bolero::produce::<Vec<u16>>().with().len(0usize..6))]
    cuts: Vec<u16>,
    /// For whatever else a target wants to vary.
    pub vary: u8,
}

impl Case {
    /// The text that comes of one of `seeds`.
    pub fn text(&self, seeds: &[&[u8]]) -> Vec<u8> {
        let seed = |number: u8| seeds[usize::from(number) % seeds.len()];
        let mut text = seed(self.seed).to_vec();
        for edit in &self.edits {
            match *edit {
                Edit::Set { at, byte } if !text.is_empty() => {
                    let at = usize::from(at) % text.len();
                    text[at] = byte;
                }
                Edit::Set { byte, .. } => text.push(byte),
                Edit::Insert { at, byte } => put(&mut text, at, &[byte]),
                Edit::Word { at, word } => put(&mut text, at, WORDS[usize::from(word) % WORDS.len()]),
                Edit::Remove { at, len } => drop(text.drain(part(&text, at, len))),
                Edit::Again { from, len, at } => {
                    let again = text[part(&text, from, len)].to_vec();
                    put(&mut text, at, &again);
                }
                Edit::Seed { at, seed: number } => put(&mut text, at, seed(number)),
            }
        }
        text
    }

    /// The text in pieces.
    pub fn segments<'a>(&self, text: &'a [u8]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = self.cuts.iter().map(|cut| usize::from(*cut) % (text.len() + 1)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
    }
}

fn put(text: &mut Vec<u8>, at: u16, bytes: &[u8]) {
    let at = usize::from(at) % (text.len() + 1);
    text.splice(at..at, bytes.iter().copied());
}

fn part(text: &[u8], at: u16, len: u8) -> std::ops::Range<usize> {
    let at = usize::from(at) % (text.len() + 1);
    at..text.len().min(at + usize::from(len))
}
