//! Hand-off members quoted in an error's text. Engines quote the refused request as JSON inside a
//! string or as a Python dictionary. The value is replaced by `null`; other text is kept.

use memchr::memmem;
use std::borrow::Cow;

use super::redact_answer;
use crate::handoff_members::IN_ANSWERS;

/// Redacts an error body, inside its strings too; borrowed if nothing is redacted.
pub fn redact_error(answer: &[u8]) -> Cow<'_, [u8]> {
    let mut stripped = redact_answer(answer);
    for name in IN_ANSWERS {
        if let Some(quoted) = unquoted(&stripped, name.as_bytes()) {
            stripped = Cow::Owned(quoted);
        }
    }
    stripped
}

/// Returns `None` if the text has no value of `name`.
fn unquoted(text: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut out: Option<Vec<u8>> = None;
    // In JSON the name is inside a string, whose end ends the value; in plain text a quote starts a
    // string.
    let plain = !matches!(text.trim_ascii_start().first(), Some(b'{' | b'[' | b'"'));
    let mut kept = 0;
    let mut from = 0;
    while let Some(found) = memmem::find(&text[from..], name) {
        let after = from + found + name.len();
        from = after;
        let Some(value) = value_at(text, after) else { continue };
        let end = value + length(&text[value..], plain);
        if &text[value..end] == b"null" || end == value {
            continue;
        }
        let out = out.get_or_insert_default();
        out.extend_from_slice(&text[kept..value]);
        out.extend_from_slice(b"null");
        (kept, from) = (end, end);
    }
    let mut out = out?;
    out.extend_from_slice(&text[kept..]);
    Some(out)
}

/// Returns the start of the value of the name that ends at `after`: after quotes and a colon, or an
/// equals sign as in Python's object representation.
fn value_at(text: &[u8], after: usize) -> Option<usize> {
    let rest = &text[after..];
    let quotes = rest.iter().take_while(|byte| matches!(byte, b'\\' | b'"' | b'\'')).count();
    let gap = rest[quotes..].iter().take_while(|byte| **byte == b' ').count();
    let sign = quotes + gap;
    matches!(rest.get(sign), Some(b':' | b'=')).then_some(())?;
    let spaces = rest[sign + 1..].iter().take_while(|byte| **byte == b' ').count();
    Some(after + sign + 1 + spaces)
}

/// Returns the length of the value that starts here: up to its closing bracket, the delimiter of a
/// scalar, or the end of the surrounding string. `plain`: there is no surrounding string.
fn length(value: &[u8], plain: bool) -> usize {
    let mut depth = 0_u32;
    let mut escaped = false;
    let mut within = false;
    for (at, byte) in value.iter().enumerate() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match byte {
            b'\\' => escaped = true,
            b'"' if plain => within = !within,
            b'"' => return at,
            _ if within => {}
            b'{' | b'[' | b'(' => depth += 1,
            b'}' | b']' | b')' if depth == 0 => return at,
            b'}' | b']' | b')' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            b',' | b'\n' if depth == 0 => return at,
            _ => {}
        }
    }
    value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_offs_quoted_in_an_error_are_redacted() {
        for (error, left) in [
            (
                r#"{"error":{"message":"bad: {\"kv_transfer_params\": {\"remote_host\": \"h\", \"ids\": [[1]]}, \"n\": 0}"}}"#,
                r#"{"error":{"message":"bad: {\"kv_transfer_params\": null, \"n\": 0}"}}"#,
            ),
            (
                r#"{"error":{"message":"input: {'kv_transfer_params': {'remote_host': 'h'}, 'n': 0}"}}"#,
                r#"{"error":{"message":"input: {'kv_transfer_params': null, 'n': 0}"}}"#,
            ),
            (
                r#"{"detail":"Request(bootstrap_host='10.0.0.1', bootstrap_room=7)"}"#,
                r#"{"detail":"Request(bootstrap_host=null, bootstrap_room=null)"}"#,
            ),
            (
                r#"{"error":{"message":"x"},"kv_transfer_params":{"a":1}}"#,
                r#"{"error":{"message":"x"},"kv_transfer_params":null}"#,
            ),
            (
                r#"{"detail":"cut: {\"kv_transfer_params\": {\"a"}"#,
                r#"{"detail":"cut: {\"kv_transfer_params\": null"}"#,
            ),
            (
                r#"Internal: kv_transfer_params={"remote_host": "h}", "ids": [[1]]}, n=0"#,
                "Internal: kv_transfer_params=null, n=0",
            ),
            (
                r#"Request(bootstrap_host="10.0.0.1", n=0), {"bootstrap_room": 7}"#,
                r#"Request(bootstrap_host=null, n=0), {"bootstrap_room": null}"#,
            ),
        ] {
            assert_eq!(String::from_utf8_lossy(&redact_error(error.as_bytes())), left);
        }
    }

    #[test]
    fn an_error_that_only_mentions_a_member_is_kept() {
        for error in [
            r#"{"error":{"message":"kv_transfer_params is not supported"}}"#,
            r#"{"error":{"message":"unknown field kv_transfer_params","kv_transfer_params":null}}"#,
            "no JSON",
            "",
        ] {
            assert!(matches!(redact_error(error.as_bytes()), Cow::Borrowed(_)), "{error}");
        }
    }
}
