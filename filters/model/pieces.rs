//! Long texts are tokenized in pieces, which bounds the memory: a tokenizer needs about 40 bytes
//! per byte of text (measured with fastokens 0.3: 1.4 GB for 31 MB). Pieces end where byte-level
//! tokenizers never merge tokens, so that their count stays exact. For others a split may add a
//! token: SentencePiece puts a blank before each piece.

/// Bytes per piece: 3 MB of memory. Above 64 KiB fastokens uses all cores for one text, which would
/// bypass the limit on cores for large bodies.
pub(super) const PIECE: usize = 60 << 10;
/// Bytes before a piece's limit that are searched for a safe split.
const LOOK_BACK: usize = 16 << 10;

/// Splits `text` into pieces.
pub(super) fn pieces(text: &str) -> Vec<&str> {
    let (mut rest, mut pieces) = (text, Vec::new());
    while rest.len() > PIECE {
        let (piece, more) = rest.split_at(cut(rest, PIECE));
        pieces.push(piece);
        rest = more;
    }
    pieces.push(rest);
    pieces
}

/// Returns the last safe split at or before `at`, else a character boundary.
fn cut(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    let from = at.saturating_sub(LOOK_BACK).max(1);
    let safe = (from..=at).rev().find(|at| is_safe(bytes, *at));
    let boundary = || (1..=at).rev().find(|at| text.is_char_boundary(*at));
    safe.or_else(boundary).unwrap_or(text.len())
}

/// Pre-tokenizers split before the blank of ` word` after a letter or digit, and before a letter
/// after a line end. Both sides are ASCII, so that the position is a character boundary.
fn is_safe(bytes: &[u8], at: usize) -> bool {
    let (Some(before), Some(after)) = (bytes.get(at - 1), bytes.get(at)) else { return false };
    let letter_next = bytes.get(at + 1).is_some_and(u8::is_ascii_alphabetic);
    (before.is_ascii_alphanumeric() && *after == b' ' && letter_next)
        || (*before == b'\n' && after.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pieces_end_before_a_word() {
        let text = "some words and\nlines ".repeat(60_000);
        let pieces = pieces(&text);
        assert!(pieces.len() >= 4);
        assert!(pieces[1..].iter().all(|piece| is_safe(text.as_bytes(), {
            piece.as_ptr() as usize - text.as_ptr() as usize
        })));
        assert_eq!(super::pieces("short"), ["short"]);
    }

    proptest! {
        #[test]
        fn pieces_concatenate_to_the_text(word in "[ -~\\nä日🙂]{1,9}", times in 1_usize..200_000) {
            let text = word.repeat(times.min((4 * PIECE) / word.len() + 1));
            let pieces = pieces(&text);
            prop_assert_eq!(pieces.concat(), text.as_str());
            prop_assert!(pieces.iter().all(|piece| piece.len() <= PIECE));
        }
    }
}
