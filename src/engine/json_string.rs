//! End of a JSON string, found without decoding it. Shared by all scanners that skip strings.

/// Returns the position of the closing quote of the JSON string whose content starts at `at`;
/// `None` if the string does not end in `json`.
///
/// ```
/// use tidegate_engine::json_string::string_end;
///
/// let json = br#"{"a\"b":1}"#;
/// assert_eq!(string_end(json, 2), Some(6));
/// assert_eq!(string_end(b"\"abc", 1), None);
/// ```
pub fn string_end(json: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr::memchr2(b'"', b'\\', json.get(at..)?)?;
        if json[at] == b'"' {
            return Some(at);
        }
        // An escape has at least one more byte, which may be a quote.
        at += 2;
    }
}
