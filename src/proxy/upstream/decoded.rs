//! Removes the content coding of an engine's body. Legs request none (`accept-encoding: identity`);
//! an answer that is encoded nevertheless is decoded, because hand-off members in an unread answer
//! would reach the client.

use bytes::{Bytes, BytesMut};
use flate2::write::{MultiGzDecoder, ZlibDecoder};
use http::header::{CONTENT_ENCODING, HeaderMap};
use std::future::poll_fn;
use std::io::{self, Write};
use std::task::{Context, Poll, ready};

use crate::upstream::failure::LegProblem;
use crate::upstream::{BrokenOff, ExchangeError, UpstreamBody};

/// Bytes decoded per step. Deflate expands at most about 1000:1, so that a step yields at most about 1 MB.
const STEP: usize = 1 << 10;

/// A body without its content coding.
pub struct EngineBody {
    wire: UpstreamBody,
    /// Boxed: few answers are coded.
    coding: Option<Box<Coding>>,
}

struct Coding {
    decoder: Decoder,
    /// Received bytes that are not decoded yet.
    rest: Bytes,
}

enum Decoder {
    Gzip(MultiGzDecoder<Vec<u8>>),
    Zlib(ZlibDecoder<Vec<u8>>),
}

/// Content coding in the head of an answer.
pub enum ContentCoding {
    Plain,
    /// A supported coding.
    Known(KnownCoding),
    /// An unsupported coding, or several.
    Other(String),
}

/// Supported content codings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownCoding {
    Gzip,
    /// RFC 1950, called `deflate` by HTTP.
    Zlib,
}

/// Returns the content coding of an answer.
pub fn coding_of(headers: &HeaderMap) -> ContentCoding {
    let fields = headers.get_all(CONTENT_ENCODING).iter();
    let texts = fields.map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase());
    let text = texts.collect::<Vec<_>>().join(",");
    let mut codings =
        text.split(',').map(str::trim).filter(|coding| !matches!(*coding, "" | "identity"));
    match (codings.next(), codings.next()) {
        (None, _) => ContentCoding::Plain,
        (Some("gzip" | "x-gzip"), None) => ContentCoding::Known(KnownCoding::Gzip),
        (Some("deflate"), None) => ContentCoding::Known(KnownCoding::Zlib),
        _ => ContentCoding::Other(text),
    }
}

impl From<UpstreamBody> for EngineBody {
    fn from(wire: UpstreamBody) -> EngineBody {
        EngineBody::plain(wire)
    }
}

impl EngineBody {
    /// A body without a content coding.
    pub fn plain(wire: UpstreamBody) -> EngineBody {
        EngineBody { wire, coding: None }
    }

    /// A body that is decoded while it is read.
    pub fn decoding(wire: UpstreamBody, coding: KnownCoding) -> EngineBody {
        let decoder = match coding {
            KnownCoding::Gzip => Decoder::Gzip(MultiGzDecoder::new(Vec::new())),
            KnownCoding::Zlib => Decoder::Zlib(ZlibDecoder::new(Vec::new())),
        };
        EngineBody { wire, coding: Some(Box::new(Coding { decoder, rest: Bytes::new() })) }
    }

    /// The next data; `None` at the end.
    pub fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        let Some(coding) = &mut self.coding else { return self.wire.poll_data(context) };
        loop {
            while !coding.rest.is_empty() {
                let step = coding.rest.split_to(STEP.min(coding.rest.len()));
                match coding.decoder.step(&step) {
                    Ok(data) if data.is_empty() => {}
                    done => return Poll::Ready(Some(done.map(Bytes::from).map_err(Into::into))),
                }
            }
            match ready!(self.wire.poll_data(context)) {
                Some(Ok(data)) => coding.rest = data,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let end = coding.decoder.end();
                    self.coding = None;
                    return Poll::Ready(end.err().map(|error| Err(error.into())));
                }
            }
        }
    }

    /// Async form of [`EngineBody::poll_data`].
    pub async fn data(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        poll_fn(|context| self.poll_data(context)).await
    }

    /// Number of bytes still to read, if known.
    pub fn remaining(&self) -> Option<u64> {
        self.coding.is_none().then(|| self.wire.remaining())?
    }
}

impl Decoder {
    fn step(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Decoder::Gzip(decoder) => {
                decoder.write_all(bytes)?;
                decoder.flush()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Decoder::Zlib(decoder) => {
                decoder.write_all(bytes)?;
                decoder.flush()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
        }
    }

    /// Returns whether the coded stream is complete.
    fn end(&mut self) -> io::Result<()> {
        match self {
            Decoder::Gzip(decoder) => decoder.try_finish(),
            Decoder::Zlib(decoder) => decoder.try_finish(),
        }
    }
}

/// Collects the pieces of a body; a single piece is not copied.
#[derive(Default)]
pub struct Gathered {
    first: Bytes,
    all: BytesMut,
}

impl Gathered {
    pub fn push(&mut self, data: Bytes) {
        if self.len() == 0 {
            self.first = data;
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.all.extend_from_slice(&data);
    }

    pub fn len(&self) -> usize {
        self.first.len() + self.all.len()
    }

    /// The first piece, or all collected bytes.
    pub fn begin(&self) -> &[u8] {
        if self.all.is_empty() { &self.first } else { &self.all }
    }

    pub fn into_bytes(self) -> Bytes {
        if self.all.is_empty() { self.first } else { self.all.freeze() }
    }
}

/// Reads a whole body.
///
/// # Errors
/// The body broke off, or is larger than `max`.
pub async fn read_all(body: impl Into<EngineBody>, max: usize) -> Result<Bytes, LegProblem> {
    let mut body = body.into();
    let mut read = Gathered::default();
    while let Some(data) = body.data().await {
        read.push(data.map_err(LegProblem::BrokeOff)?);
        if read.len() > max {
            return Err(ExchangeError::TooLarge(max).into());
        }
    }
    Ok(read.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};
    use http::HeaderValue;

    fn decoded(mut decoder: Decoder, bytes: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        for bytes in bytes.chunks(step) {
            all.extend(decoder.step(bytes)?);
        }
        decoder.end()?;
        Ok(all)
    }

    #[test]
    fn coded_bodies_are_decoded_for_every_split() {
        let text = b"data: {\"choices\":[]}\n\n".repeat(200);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&text).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&text).unwrap();
        let zlib = zlib.finish().unwrap();
        for step in [1, 7, 1000, 5000] {
            let new = || Decoder::Gzip(MultiGzDecoder::new(Vec::new()));
            assert_eq!(decoded(new(), &gzip, step).unwrap(), text, "{step}");
            assert!(
                decoded(new(), &gzip[..gzip.len() - 9], step).is_err(),
                "a truncated body is an error"
            );
            let zlib_decoder = Decoder::Zlib(ZlibDecoder::new(Vec::new()));
            assert_eq!(decoded(zlib_decoder, &zlib, step).unwrap(), text, "{step}");
        }
    }

    #[test]
    fn each_flushed_piece_is_decoded_at_once() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        let mut decoder = Decoder::Gzip(MultiGzDecoder::new(Vec::new()));
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            encoder.write_all(event.as_bytes()).unwrap();
            encoder.flush().unwrap();
            let piece = std::mem::take(encoder.get_mut());
            assert_eq!(decoder.step(&piece).unwrap(), event.as_bytes());
        }
    }

    #[test]
    fn the_head_names_the_coding() {
        for (value, known) in [
            ("gzip", Some(KnownCoding::Gzip)),
            ("X-GZIP", Some(KnownCoding::Gzip)),
            ("identity, gzip", Some(KnownCoding::Gzip)),
            ("deflate", Some(KnownCoding::Zlib)),
            ("br", None),
            ("gzip, br", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(value));
            match (coding_of(&headers), known) {
                (ContentCoding::Known(found), Some(known)) => assert_eq!(found, known, "{value}"),
                (ContentCoding::Other(_), None) => {}
                _ => panic!("{value}"),
            }
        }
        assert!(matches!(coding_of(&HeaderMap::new()), ContentCoding::Plain));
    }
}
