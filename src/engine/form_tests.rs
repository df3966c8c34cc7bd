//! Well-formed and malformed forms.

use super::*;
use proptest::prelude::*;

const KIND: &[u8] = b"multipart/form-data; boundary=X";

fn model<'a>(kind: &[u8], body: &'a [u8]) -> Option<&'a str> {
    model_in_form(kind, body).map(|span| std::str::from_utf8(span.of(body)).unwrap())
}

/// Builds a form of these parts: content disposition and value.
fn form(parts: &[(&str, &str)], line: &str, boundary: &str) -> Vec<u8> {
    let mut body = String::new();
    for (disposition, value) in parts {
        body += &format!(
            "--{boundary}{line}Content-Disposition: form-data; {disposition}{line}{line}{value}{line}"
        );
    }
    body += &format!("--{boundary}--{line}");
    body.into_bytes()
}

#[test]
fn the_model_is_found_in_every_position_and_spelling() {
    let file =
        ("name=\"file\"; filename=\"a;\\\"b.wav\"", "RIFF\r\n--Xy\r\n\r\n--X no\r\nname=\"model\"");
    for line in ["\r\n", "\n"] {
        for name in
            ["name=\"model\"", "name=model", "NAME = \"model\"", "a=\"name=x;\"; name=model"]
        {
            for parts in [vec![(name, "w")], vec![file, (name, "w")], vec![(name, "w"), file]] {
                let body = form(&parts, line, "X");
                assert_eq!(model(KIND, &body), Some("w"), "{}", String::from_utf8_lossy(&body));
            }
        }
    }
    for (kind, boundary) in [
        ("multipart/form-data; boundary=\"a b:c\"", "a b:c"),
        ("Multipart/Form-Data;charset=utf-8;BOUNDARY=----WebKit7", "----WebKit7"),
        ("multipart/form-data; boundary=X ; charset=utf-8", "X"),
        ("multipart/form-data; boundary=\"q\\\"\\\\\"", "q\"\\"),
    ] {
        let body = form(&[("name=\"model\"", "org/w-1")], "\r\n", boundary);
        assert_eq!(model(kind.as_bytes(), &body), Some("org/w-1"), "{kind}");
    }
    let preamble =
        [b"preamble\r\n--Xno\r\n".as_slice(), &form(&[("name=model", "w")], "\r\n", "X")];
    assert_eq!(model(KIND, &preamble.concat()), Some("w"));
    let padded = b"--X \t\r\ncontent-type: text/plain\r\ncontent-disposition: form-data; name=model\r\n\r\nw\r\n--X--";
    assert_eq!(model(KIND, padded), Some("w"));
}

#[test]
fn the_last_model_counts_and_malformed_parts_name_none() {
    let two = form(&[("name=model", "a"), ("name=model", "b")], "\r\n", "X");
    assert_eq!(model(KIND, &two), Some("b"));
    for parts in [
        vec![("name=\"models\"", "w")],
        vec![("name=\"model\"; filename=\"m\"", "w")],
        vec![("name=\"model\"", "")],
        vec![("filename=\"name=model\"", "w")],
        vec![],
    ] {
        assert_eq!(model(KIND, &form(&parts, "\r\n", "X")), None, "{parts:?}");
    }
    let whole = form(&[("name=model", "w")], "\r\n", "X");
    for kind in ["application/json", "multipart/form-data", "multipart/mixed; boundary=X", ""] {
        assert_eq!(model(kind.as_bytes(), &whole), None, "{kind}");
    }
    // Bytes after the closing delimiter are ignored.
    let after = [b"--X--\r\n".as_slice(), &whole].concat();
    assert_eq!(model(KIND, &after), None);
    let huge = form(&[("name=model", &"w".repeat(NAME_MAX + 1))], "\r\n", "X");
    assert_eq!(model(KIND, &huge), None);
}

proptest! {
    /// For arbitrary bytes, a found span lies within the body and ends before a delimiter.
    #[test]
    fn arbitrary_bytes_are_searched_without_error(
        kind in prop_oneof![
            Just("multipart/form-data; boundary=X".to_owned()),
            "multipart/form-data; ?(boundary=|name=|\"|\\\\|;|X){0,6}",
        ],
        pieces in prop::collection::vec(prop_oneof![
            Just("--X"), Just("--"), Just("\r\n"), Just("\n"), Just("\r"), Just("X"), Just("w"),
            Just("content-disposition: form-data; name=model"), Just("; filename=\"\\\""), Just(":"),
        ], 0..24),
    ) {
        let body = pieces.concat().into_bytes();
        if let Some(span) = model_in_form(kind.as_bytes(), &body) {
            let value = span.of(&body);
            prop_assert!(!value.is_empty());
            prop_assert!(std::str::from_utf8(value).is_ok());
            prop_assert!(!value.starts_with(b"\r\n--X\r\n"));
        }
    }

    /// A file's content neither hides the part after it nor adds one.
    #[test]
    fn file_contents_are_skipped(bytes in prop::collection::vec(any::<u8>(), 0..200), first in any::<bool>()) {
        prop_assume!(memchr::memmem::find(&bytes, b"--X").is_none());
        let part = b"--X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nw\r\n".to_vec();
        let mut file = b"--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n".to_vec();
        file.extend(&bytes);
        file.extend(b"\r\n");
        let mut body = if first { [part, file].concat() } else { [file, part].concat() };
        body.extend(b"--X--\r\n");
        prop_assert_eq!(model(KIND, &body), Some("w"));
    }
}
