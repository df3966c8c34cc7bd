//! Fast reader of common messages: objects with a role and a text only, found by searching for
//! quotes. The input must be valid JSON. Other messages (further members, content parts, null) are
//! left to serde.

use memchr::memchr2;
use std::borrow::Cow;

/// A message's role and content.
pub(super) type Plain<'a> = (Cow<'a, str>, Cow<'a, str>);

/// Returns all messages of a valid JSON list, if each has a role and a text and nothing else.
pub(super) fn read(json: &str) -> Option<Vec<Plain<'_>>> {
    let mut reader = PlainReader { json, at: 0 };
    let mut messages = Vec::new();
    reader.take(b'[')?;
    loop {
        messages.push(reader.message()?);
        match reader.next()? {
            b',' => {}
            b']' => return Some(messages),
            _ => return None,
        }
    }
}

struct PlainReader<'a> {
    json: &'a str,
    at: usize,
}

impl<'a> PlainReader<'a> {
    fn message(&mut self) -> Option<Plain<'a>> {
        let (mut role, mut content) = (None, None);
        self.take(b'{')?;
        loop {
            let key = self.string()?;
            self.take(b':')?;
            let member = match &*key {
                "role" => &mut role,
                "content" => &mut content,
                _ => return None,
            };
            if member.replace(self.string()?).is_some() {
                return None;
            }
            match self.next()? {
                b',' => {}
                b'}' => return role.zip(content),
                _ => return None,
            }
        }
    }

    /// Returns the next byte that is not white space.
    fn next(&mut self) -> Option<u8> {
        loop {
            let byte = *self.json.as_bytes().get(self.at)?;
            self.at += 1;
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
        }
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        self.take(b'"')?;
        let (start, bytes) = (self.at, self.json.as_bytes());
        let mut escaped = false;
        loop {
            self.at += memchr2(b'"', b'\\', bytes.get(self.at..)?)?;
            if bytes[self.at] == b'"' {
                break;
            }
            escaped = true;
            self.at += 2;
        }
        self.at += 1;
        if escaped {
            let quoted = self.json.get(start - 1..self.at)?;
            return serde_json::from_str(quoted).ok().map(Cow::Owned);
        }
        self.json.get(start..self.at - 1).map(Cow::Borrowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn only_messages_with_a_role_and_a_text_are_accepted() {
        for (json, expected) in [
            (r#" [ { "role" : "user" , "content" : "hi" } ] "#, Some(("user", "hi"))),
            (r#"[{"content":"a\"b\\","role":"\u0075ser"}]"#, Some(("user", "a\"b\\"))),
            (r#"[{"\u0072ole":"user","content":"潮"}]"#, Some(("user", "潮"))),
            ("[]", None),
            (r#"[{}]"#, None),
            (r#"["x"]"#, None),
            (r#"[{"role":"user"}]"#, None),
            (r#"[{"role":"user","content":null}]"#, None),
            (r#"[{"role":"user","content":["x"]}]"#, None),
            (r#"[{"role":"user","content":"x","name":"n"}]"#, None),
            (r#"[{"role":"user","content":"x","content":"y"}]"#, None),
            (r#"[{"role":"user","content":"\ud800"}]"#, None),
        ] {
            let read = read(json);
            let one = read.as_ref().map(|all| (&*all[0].0, &*all[0].1));
            assert_eq!(one, expected, "{json}");
        }
    }

    proptest! {
        #[test]
        fn written_messages_are_read_back(messages in prop::collection::vec(("[a-z]{1,4}", any::<String>()), 1..6)) {
            let of = |(role, content): &(String, String)| json!({"role": role, "content": content});
            let all: Vec<_> = messages.iter().map(of).collect();
            for json in [json!(all).to_string(), serde_json::to_string_pretty(&all).unwrap()] {
                let read: Vec<_> = read(&json)
                    .unwrap()
                    .into_iter()
                    .map(|(role, content)| (role.into_owned(), content.into_owned()))
                    .collect();
                prop_assert_eq!(&read, &messages);
            }
        }

        #[test]
        fn arbitrary_text_does_not_panic(json in "[\\[\\]{}:,\" \\\\a-z\u{6f6e}]{0,40}") {
            read(&json);
        }
    }
}
