//! Token definition: four bytes of the rendered prompt, the last token padded. A token's id is
//! those bytes as a little-endian number, so a text and its ids are the same prompt. Tokens depend
//! only on the request, so that all engines answer alike.
//!
//! A chat is rendered as `<|role|>content<|/>` for each message, then `<|assistant|>`: one user
//! message costs 25 bytes ([`CHAT_OVERHEAD_BYTES`]) in addition to its content.

use xxhash_rust::xxh3::xxh3_64;

/// Bytes per token.
pub const BYTES_PER_TOKEN: usize = 4;

/// Bytes that the rendering adds to a chat of one `user` message.
pub const CHAT_OVERHEAD_BYTES: usize = 25;

/// Tokens per block of the prefix cache.
pub const BLOCK_TOKENS: usize = 16;

/// Tokenized prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedPrompt {
    /// Length is a multiple of [`BYTES_PER_TOKEN`].
    bytes: Vec<u8>,
}

impl TokenizedPrompt {
    /// Tokenizes a rendered text. An empty text has one token, the start of the sequence.
    pub fn of_text(text: &str) -> TokenizedPrompt {
        let length = text.len().next_multiple_of(BYTES_PER_TOKEN).max(BYTES_PER_TOKEN);
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(length, 0);
        TokenizedPrompt { bytes }
    }

    /// Creates a prompt from token ids.
    pub fn of_ids(ids: &[u32]) -> TokenizedPrompt {
        TokenizedPrompt { bytes: ids.iter().flat_map(|id| id.to_le_bytes()).collect() }
    }

    /// Returns the length in tokens.
    pub fn tokens(&self) -> u64 {
        (self.bytes.len() / BYTES_PER_TOKEN) as u64
    }

    /// Returns the token ids.
    pub fn ids(&self) -> Vec<u32> {
        let (tokens, _) = self.bytes.as_chunks::<BYTES_PER_TOKEN>();
        tokens.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }

    /// Returns the text of the tokens, without padding.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim_end_matches('\0').to_owned()
    }

    /// Returns a hash of the prompt that represents its KV. Answers are derived from it.
    pub fn kv(&self) -> u64 {
        xxh3_64(&self.bytes)
    }

    /// Returns the chained hashes of the full blocks.
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

/// Adds the header of the assistant's turn.
pub fn render_turn(rendered: &mut String) {
    rendered.push_str("<|assistant|>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_and_its_ids_are_the_same_prompt() {
        for text in ["", "a", "four", "fünf?", &"x".repeat(1000)] {
            let prompt = TokenizedPrompt::of_text(text);
            assert_eq!(TokenizedPrompt::of_ids(&prompt.ids()), prompt);
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
