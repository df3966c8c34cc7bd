//! Fast scanner for the top-level members of a JSON object. It skips strings by vectorised searches
//! and does not decode values. It must never accept what serde_json refuses. Where it returns
//! `None`, serde_json decides and produces the error message.

use super::Span;
use super::members::{MEMBERS_USUAL, Member};

/// Nesting limit; deeper bodies are left to serde_json.
const DEPTH_MAX: u32 = 100;

/// Returns the members of the object `json`, which is valid UTF-8; `None` if undecided.
pub(super) fn members(json: &[u8]) -> Option<Vec<Member>> {
    let mut scanner = TopLevelScanner { json, at: 0 };
    let mut members = Vec::with_capacity(MEMBERS_USUAL);
    scanner.take(b'{')?;
    if scanner.next()? != b'}' {
        scanner.at -= 1;
        loop {
            let key = scanner.span(TopLevelScanner::key)?;
            scanner.take(b':')?;
            let value = scanner.span(TopLevelScanner::value)?;
            members.push(Member::new(key.of(json), key, value));
            match scanner.next()? {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
    }
    scanner.next().is_none().then_some(members)
}

struct TopLevelScanner<'a> {
    json: &'a [u8],
    at: usize,
}

impl TopLevelScanner<'_> {
    /// Returns the span that `scanner` consumes, without leading white space.
    fn span(&mut self, scanner: impl FnOnce(&mut Self) -> Option<()>) -> Option<Span> {
        self.next()?;
        self.at -= 1;
        let start = self.at as u32;
        scanner(self)?;
        Some(Span { start, end: self.at as u32 })
    }

    /// Consumes white space and returns the byte after it.
    fn next(&mut self) -> Option<u8> {
        loop {
            let byte = *self.json.get(self.at)?;
            self.at += 1;
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
        }
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn key(&mut self) -> Option<()> {
        self.take(b'"')?;
        self.string()
    }

    /// Consumes one value without recursion: one bit per level distinguishes objects from arrays.
    fn value(&mut self) -> Option<()> {
        let (mut depth, mut objects) = (0, 0_u128);
        loop {
            // At the start of a value.
            match self.next()? {
                open @ (b'{' | b'[') => {
                    let object = open == b'{';
                    depth += 1;
                    objects = objects << 1 | u128::from(object);
                    if depth > DEPTH_MAX {
                        return None;
                    }
                    if self.next()? != if object { b'}' } else { b']' } {
                        self.at -= 1;
                        if object {
                            self.member()?;
                        }
                        continue;
                    }
                    depth -= 1;
                    objects >>= 1;
                }
                b'"' => self.string()?,
                b't' => self.word(b"rue")?,
                b'f' => self.word(b"alse")?,
                b'n' => self.word(b"ull")?,
                first => self.number(first)?,
            }
            // At the end of a value: its container continues or ends.
            loop {
                if depth == 0 {
                    return Some(());
                }
                match (self.next()?, objects & 1 == 1) {
                    (b',', true) => {
                        self.member()?;
                        break;
                    }
                    (b',', false) => break,
                    (b'}', true) | (b']', false) => {
                        depth -= 1;
                        objects >>= 1;
                    }
                    _ => return None,
                }
            }
        }
    }

    fn member(&mut self) -> Option<()> {
        self.key()?;
        self.take(b':')
    }

    fn word(&mut self, rest: &[u8]) -> Option<()> {
        let here = self.json.get(self.at..self.at + rest.len())?;
        self.at += rest.len();
        (here == rest).then_some(())
    }

    /// Consumes a number (RFC 8259, 6) whose first byte was consumed.
    fn number(&mut self, first: u8) -> Option<()> {
        let first = if first == b'-' { self.any()? } else { first };
        match first {
            b'0' => {}
            b'1'..=b'9' => self.digits(),
            _ => return None,
        }
        if self.json.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digit()?;
        }
        if matches!(self.json.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.json.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digit()?;
        }
        Some(())
    }

    fn any(&mut self) -> Option<u8> {
        let byte = *self.json.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// Consumes at least one digit.
    fn digit(&mut self) -> Option<()> {
        self.any()?.is_ascii_digit().then_some(())?;
        self.digits();
        Some(())
    }

    fn digits(&mut self) {
        while self.json.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }

    /// Consumes the rest of a string, after its opening quote.
    fn string(&mut self) -> Option<()> {
        loop {
            self.at += plain_bytes(self.json.get(self.at..)?)?;
            match self.any()? {
                b'"' => return Some(()),
                b'\\' => match self.any()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        let digits = self.json.get(self.at..self.at + 4)?;
                        digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                        self.at += 4;
                    }
                    _ => return None,
                },
                _ => return None,
            }
        }
    }
}

/// Returns the number of literal bytes at the start of the rest of a string; `None` if there is a
/// control character among them.
fn plain_bytes(rest: &[u8]) -> Option<usize> {
    let plain = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
    // Without early exit the loop is vectorised.
    let control = rest[..plain].iter().fold(0, |any, byte| any | u8::from(*byte < 0x20));
    (control == 0).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::super::members::Members;
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Checks that serde_json finds the same members; returns whether the scanner accepted.
    fn agrees(json: &[u8]) -> Result<bool, TestCaseError> {
        let Some(quick) = std::str::from_utf8(json).ok().and_then(|_| members(json)) else {
            return Ok(false);
        };
        let thorough = Members::by_serde(json);
        prop_assert!(thorough.is_ok(), "{} is not JSON", String::from_utf8_lossy(json));
        let thorough = thorough.unwrap();
        let quick: Vec<_> = quick.iter().map(Member::written).collect();
        prop_assert_eq!(quick, thorough.iter().map(Member::written).collect::<Vec<_>>());
        Ok(true)
    }

    #[test]
    fn common_bodies_are_accepted() {
        let long = "x".repeat(100);
        for body in [
            json!({}),
            json!({"model": "m", "messages": [{"role": "user", "content": "a\"\\\n\u{1}潮"}]}),
            json!({"a": [], "b": {}, "c": [[], {}, [1, {"d": null}]], "e": {"f": {"g": [true, false]}}}),
            json!({"n": [0, -0.5, 1e9, 12, -3, 1.25e-3], "long": long, "key \u{2}": "\u{7f}"}),
        ] {
            let pretty = format!(" {}\r\n\t", serde_json::to_string_pretty(&body).unwrap());
            for json in [body.to_string(), pretty] {
                assert!(agrees(json.as_bytes()).unwrap(), "{json}");
            }
        }
        assert!(agrees(br#"{"a":1,"a":2,"\u0061":"\ud800\/"}"#).unwrap());
    }

    #[test]
    fn invalid_json_is_not_accepted() {
        for json in [
            "",
            "{",
            "[]",
            "1",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{,}"#,
            r#"{"a":1}x"#,
            r#"{"a":[1,]}"#,
            r#"{"a":[1}"#,
            r#"{"a":{"b":1]}"#,
            r#"{"a":01}"#,
            r#"{"a":-}"#,
            r#"{"a":1.}"#,
            r#"{"a":.5}"#,
            r#"{"a":1e}"#,
            r#"{"a":+1}"#,
            r#"{"a":tru}"#,
            r#"{"a":nul"#,
            r#"{"a":"\x"}"#,
            r#"{"a":"\u12g4"}"#,
            "{\"a\":\"\n\"}",
            r#"{"a":"b}"#,
            r#"{a:1}"#,
            r#"{"a":1 "b":2}"#,
            r#"{"a":[1 2]}"#,
            r#"{"a":[,1]}"#,
        ] {
            assert!(members(json.as_bytes()).is_none(), "{json}");
        }
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(101), "]".repeat(101));
        assert!(members(deep.as_bytes()).is_none(), "left to serde_json");
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<Option<bool>>().prop_map(|flag| flag.map_or(Value::Null, Value::from)),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[ -~\u{0}-\u{1f}潮\\\\\"]{0,40}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c\\\\\"]{0,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn serde_json_agrees_on_any_json(body in value(), pretty: bool) {
            let json = if pretty { serde_json::to_string_pretty(&body).unwrap() } else { body.to_string() };
            prop_assert_eq!(agrees(json.as_bytes())?, body.is_object());
        }

        #[test]
        fn serde_json_agrees_on_damaged_json(
            body in value(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"{}[]:,\"\\ 01e.-tu\n\x01x".to_vec()), 0_u8..3), 1..4),
        ) {
            let mut json = json!({"a": body, "b": [1.5e3, "x"]}).to_string().into_bytes();
            for (at, byte, how) in edits {
                let at = at.index(json.len());
                match how {
                    0 => json[at] = byte,
                    1 => json.insert(at, byte),
                    _ => { json.remove(at); }
                }
            }
            agrees(&json)?;
        }
    }
}
