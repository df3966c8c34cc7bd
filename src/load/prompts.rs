//! Prompts of a given number of tokens. A token is four bytes, as in the emulator; a real tokenizer
//! yields about the same number for words of this kind.

use tidegate_sim::Arrival;

/// Bytes per token.
const TOKEN_BYTES: usize = 4;
/// Bytes that the emulator's rendering adds to a chat of one message.
const CHAT_BYTES: usize = 25;
/// Tokens per block of a trace's `hash_ids`.
const BLOCK_TOKENS: u64 = 512;
/// Size of the pool in bytes; large enough that two prompts rarely share a prefix by chance.
const POOL_BYTES: usize = 1 << 20;

/// Text pool from which prompts are cut.
pub struct Prompts {
    pool: String,
}

impl Default for Prompts {
    fn default() -> Prompts {
        Prompts::new()
    }
}

impl Prompts {
    /// Creates the pool; its content is the same in every run.
    pub fn new() -> Prompts {
        let mut pool = String::with_capacity(POOL_BYTES + 16);
        let mut state = 1_u64;
        while pool.len() < POOL_BYTES {
            state = mix(state);
            let length = 2 + (state >> 8) % 6;
            for letter in 0..length {
                pool.push(char::from(b'a' + ((state >> (letter * 7 + 11)) % 26) as u8));
            }
            pool.push(' ');
        }
        pool.truncate(POOL_BYTES);
        Prompts { pool }
    }

    /// Returns the prompt of the `index`th arrival: unique, or with the prefix shared by its
    /// blocks. In a `chat` it is shortened by the bytes that the rendering adds.
    pub fn text(&self, index: usize, arrival: &Arrival, chat: bool) -> String {
        let added = if chat { CHAT_BYTES } else { 0 };
        let length = (arrival.prompt.get() as usize * TOKEN_BYTES).saturating_sub(added).max(1);
        let mut text = String::with_capacity(length);
        for block in &arrival.blocks {
            self.cut(&mut text, mix(block ^ 0xB10C), BLOCK_TOKENS as usize * TOKEN_BYTES);
        }
        text.truncate(length);
        let own = length - text.len();
        self.cut(&mut text, mix(index as u64 ^ 0x0E01), own);
        text
    }

    fn cut(&self, to: &mut String, seed: u64, length: usize) {
        let (mut left, mut at) = (length, seed as usize % self.pool.len());
        while left > 0 {
            let piece = left.min(self.pool.len() - at);
            to.push_str(&self.pool[at..at + piece]);
            left -= piece;
            at = 0;
        }
    }
}

fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_types::{Seconds, Tokens};

    fn arrival(prompt: u64, blocks: &[u64]) -> Arrival {
        Arrival {
            at: Seconds::ZERO,
            prompt: Tokens(prompt),
            output: Tokens(1),
            blocks: blocks.to_vec(),
            ..Arrival::default()
        }
    }

    #[test]
    fn prompts_have_their_length_and_share_the_traces_prefixes() {
        let prompts = Prompts::new();
        let (a, b) = (arrival(1200, &[7, 8, 9]), arrival(1100, &[7, 8, 10]));
        let (a, b) = (prompts.text(0, &a, false), prompts.text(1, &b, true));
        assert_eq!((a.len(), b.len()), (4800, 4375));
        assert_eq!(a[..4096], b[..4096], "two blocks are shared");
        assert_ne!(a[4096..4375], b[4096..]);
        let alone = prompts.text(2, &arrival(100, &[]), true);
        assert_ne!(alone, prompts.text(3, &arrival(100, &[]), true));
        assert!(alone.is_ascii() && !alone.contains(['"', '\\']), "JSON needs no escapes");
    }
}
