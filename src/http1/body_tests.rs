//! Body decoding for every framing and every split of the input.

use super::*;
use proptest::prelude::*;

/// Reads `wire` in pieces of `step` bytes; returns the data and the surplus bytes.
fn read(framing: Framing, wire: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>), BodyError> {
    let mut reader = BodyReader::new(framing);
    let mut data = Vec::new();
    let mut at = 0;
    for piece in wire.chunks(step.max(1)) {
        let mut piece = piece.to_vec();
        let read = reader.read(&mut piece)?;
        data.extend_from_slice(&piece[read.data]);
        at += read.consumed;
        if reader.is_done() {
            return Ok((data, wire[at..].to_vec()));
        }
    }
    reader.close()?;
    Ok((data, Vec::new()))
}

#[test]
fn a_content_length_body_ends_after_its_length() {
    assert_eq!(read(Framing::Length(3), b"abcdef", 2), Ok((b"abc".to_vec(), b"def".to_vec())));
    assert_eq!(read(Framing::Length(7), b"abcdef", 2), Err(BodyError::Truncated));
    assert!(BodyReader::new(Framing::Length(0)).is_done());
}

#[test]
fn an_until_close_body_ends_with_the_connection() {
    assert_eq!(read(Framing::UntilClose, b"abc", 2), Ok((b"abc".to_vec(), Vec::new())));
}

#[test]
fn chunked_data_is_returned_without_framing() {
    let wire = b"3\r\nabc\r\n0A;x=\"y\"\r\n0123456789\r\n1 \r\n!\r\n0\r\nx-trailer: 1\r\n\r\nnext";
    for step in 1..=wire.len() {
        let (data, rest) = read(Framing::Chunked, wire, step).unwrap();
        assert_eq!(data, b"abc0123456789!");
        assert_eq!(rest, b"next");
    }
}

#[test]
fn malformed_chunks_are_refused() {
    for wire in [
        "\r\n",
        "g\r\n",
        "-1\r\n",
        "3\nabc",
        "3\r\nabcd\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "11111111111111111\r\n",
        "3;x\nabc\r\n",
        "0\r\n\n",
        "0\r\nx\n",
        " 3\r\nabc",
        "3 3\r\n",
    ] {
        assert_eq!(read(Framing::Chunked, wire.as_bytes(), 1), Err(BodyError::Chunk), "{wire:?}");
    }
    for wire in ["", "3", "3\r\nab", "3\r\nabc\r\n", "0\r\n", "0\r\n\r"] {
        assert_eq!(read(Framing::Chunked, wire.as_bytes(), 9), Err(BodyError::Truncated), "{wire}");
    }
}

#[test]
fn extensions_and_trailers_must_match_the_grammar() {
    for line in ["1;a", "1;a=b", "1 ; a = b", "1;a=\"x;y\\\"\"", "1;a;b=c ", "1;a=\"\""] {
        let wire = format!("{line}\r\n!\r\n0\r\n\r\n");
        assert!(read(Framing::Chunked, wire.as_bytes(), 1).is_ok(), "{line:?}");
    }
    for line in [
        "1;",
        "1;;a",
        "1;=b",
        "1;a=",
        "1;a=\"x",
        "1;a b",
        "1;a=\"x\"y",
        "1;a\u{1}",
        "1;a=\"\u{1}\"",
        "1;a\0",
    ] {
        let wire = format!("{line}\r\n!\r\n0\r\n\r\n");
        assert_eq!(read(Framing::Chunked, wire.as_bytes(), 1), Err(BodyError::Chunk), "{line:?}");
    }
    for trailer in ["x-checksum: 1", "x:", "server-timing: a;dur=1\r\nx: y"] {
        let wire = format!("0\r\n{trailer}\r\n\r\n");
        assert!(read(Framing::Chunked, wire.as_bytes(), 1).is_ok(), "{trailer:?}");
    }
    for trailer in [
        "x",
        ": y",
        "x : y",
        " x: y",
        "x: y\0",
        "x: y\r\n z",
        "Content-Length: 5",
        "transfer-encoding: chunked",
        "host: h",
        "proxy-authorization: b",
    ] {
        let wire = format!("0\r\n{trailer}\r\n\r\n");
        assert_eq!(
            read(Framing::Chunked, wire.as_bytes(), 1),
            Err(BodyError::Chunk),
            "{trailer:?}"
        );
    }
}

#[test]
fn endless_extensions_and_trailers_are_refused() {
    let long = "x".repeat(EXTRA_MAX as usize + 1);
    for wire in [format!("1;{long}"), format!("0\r\nx:{long}"), format!("1{}", " ".repeat(20_000))]
    {
        assert_eq!(read(Framing::Chunked, wire.as_bytes(), 4096), Err(BodyError::TooLong));
    }
    let padded = format!("{}0\r\n\r\n", "1     \r\nx\r\n".repeat(10_000));
    assert_eq!(read(Framing::Chunked, padded.as_bytes(), 4096).unwrap().0.len(), 10_000);
}

proptest! {
    /// Decoded data does not depend on chunk sizes or on the split of the input.
    #[test]
    fn chunked_data_is_independent_of_chunk_sizes_and_splits(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..12),
        step in 1usize..64,
        rest in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut wire = Vec::new();
        for chunk in &chunks {
            wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        wire.extend_from_slice(&rest);
        prop_assert_eq!(read(Framing::Chunked, &wire, step), Ok((chunks.concat(), rest)));
    }

    /// For arbitrary bytes, the result does not depend on the split of the input.
    #[test]
    fn arbitrary_bytes_decode_the_same_for_every_split(
        wire in proptest::collection::vec(
            prop_oneof![
                Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'2'), Just(b';'), any::<u8>()
            ],
            0..60,
        ),
        step in 1usize..8,
    ) {
        prop_assert_eq!(
            read(Framing::Chunked, &wire, step),
            read(Framing::Chunked, &wire, wire.len())
        );
    }
}
