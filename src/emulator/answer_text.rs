//! Answers of an emulated engine: plain words chosen by the prompt's KV, the answer's index and the
//! token's number. They are independent of the engine, so that answers can be compared across
//! engines and a hand-off of the wrong KV changes the text.

const WORDS: [&str; 64] = [
    " the", " tide", " gate", " moves", " with", " water", " under", " moon", " and", " stone",
    " light", " over", " bridge", " wind", " from", " north", " carries", " salt", " into",
    " deep", " blue", " harbour", " where", " ships", " wait", " for", " morning", " slow",
    " river", " bends", " past", " old", " mill", " while", " birds", " turn", " above", " quiet",
    " fields", " again", " rain", " comes", " down", " along", " narrow", " road", " toward",
    " open", " sea", " lamps", " burn", " in", " every", " window", " until", " dawn", " breaks",
    " red", " behind", " far", " hills", " then", " all", " still",
];

/// Returns the text of token `number` of answer `index` to a prompt with this KV.
pub fn token(kv: u64, index: u32, number: u64) -> &'static str {
    // SplitMix64's finalizer, by Sebastiano Vigna.
    let mut z = kv ^ u64::from(index).rotate_left(32) ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    WORDS[((z ^ (z >> 31)) % WORDS.len() as u64) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_need_no_escaping_and_answers_differ() {
        assert!(WORDS.iter().all(|word| word.bytes().all(|b| b == b' ' || b.is_ascii_lowercase())));
        let text = |kv, index| (0..20).map(|i| token(kv, index, i)).collect::<String>();
        assert_eq!(text(1, 0), text(1, 0));
        assert_ne!(text(1, 0), text(2, 0));
        assert_ne!(text(1, 0), text(1, 1));
    }
}
