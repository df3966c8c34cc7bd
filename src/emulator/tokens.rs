//! What counts as a token: four bytes of the rendered prompt, the last token padded. A token's id is
//! those bytes as a little-endian number, so that a text and its ids are the same prompt. It must
//! never depend on anything but the request, or two engines would answer differently.
//!
//! A chat is rendered as `<|role|>content<|/>` for each message, then `<|assistant|>`: one user
//! message costs 25 bytes ([`CHAT_OVERHEAD_BYTES`]) beside its content.

use xxhash_rust::xxh3::xxh3_64;

/// Bytes of one token.
pub const BYTES_PER_TOKEN: usize = 4;

/// What the rendering adds to a chat of one `user` message.
pub const CHAT_OVERHEAD_BYTES: usize = 25;

/// Tokens of a block of the prefix cache.
pub const BLOCK_TOKENS: usize = 16;

/// A prompt as the engine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// A whole number of tokens.
    bytes: Vec<u8>,
}

impl Prompt {
    /// Of a rendered text. Even an empty one has a token: the one that begins a sequence.
    pub fn of_text(text: &str) -> Prompt {
        let length = text.len().next_multiple_of(BYTES_PER_TOKEN).max(BYTES_PER_TOKEN);
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(length, 0);
        Prompt { bytes }
    }

    /// Of token ids.
    pub fn of_ids(ids: &[u32]) -> Prompt {
        Prompt { bytes: ids.iter().flat_map(|id| id.to_le_bytes()).collect() }
    }

    /// Its length.
    pub fn tokens(&self) -> u64 {
        (self.bytes.len() / BYTES_PER_TOKEN) as u64
    }

    /// Its token ids.
    pub fn ids(&self) -> Vec<u32> {
        let (tokens, _) = self.bytes.as_chunks::<BYTES_PER_TOKEN>();
        tokens.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }

    /// The text these tokens stand for, padding aside.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim_end_matches('\0').to_owned()
    }

    /// A number that stands for the prompt: what its KV is here. Answers are made from it.
    pub fn kv(&self) -> u64 {
        xxh3_64(&self.bytes)
    }

    /// The chained hashes of its full blocks.
    pub fn chain(&self) -> Vec<u64> {
        tidegate_scheduler::cost::chain_bytes(0, &self.bytes, BLOCK_TOKENS * BYTES_PER_TOKEN)
    }
}

/// Adds one message to a rendered chat.
pub fn render_message(rendered: &mut String, role: &str, content: &str) {
    rendered.push_str("<|");
    rendered.push_str(role);
    rendered.push_str("|>");
    rendered.push_str(content);
    rendered.push_str("<|/>");
}

/// Adds what asks the assistant to speak.
pub fn render_turn(rendered: &mut String) {
    rendered.push_str("<|assistant|>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_and_its_ids_are_the_same_prompt() {
        for text in ["", "a", "four", "fünf?", &"x".repeat(1000)] {
            let prompt = Prompt::of_text(text);
            assert_eq!(Prompt::of_ids(&prompt.ids()), prompt);
            assert_eq!(prompt.text(), text);
            assert_eq!(prompt.tokens(), (text.len() as u64).div_ceil(4).max(1));
        }
    }

    #[test]
    fn one_user_message_costs_what_is_documented() {
        let mut rendered = String::new();
        render_message(&mut rendered, "user", "hello");
        render_turn(&mut rendered);
        assert_eq!(rendered.len(), CHAT_OVERHEAD_BYTES + "hello".len());
    }
}
