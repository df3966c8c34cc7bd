//! Incremental body decoder: `content-length`, chunked and until-close bodies (RFC 9112, 6 and 7).
//! It must never hold a byte back: body data that has arrived is returned by the same call.

use std::ops::Range;
use thiserror::Error;

use crate::extension::Extension;
use crate::framing::Framing;
use crate::trailer::Trailer;

/// Upper bound, in bytes, for all chunk extensions and trailers of one body.
const EXTRA_MAX: u32 = 16 << 10;
/// Upper bound for blanks after a chunk size; some servers pad the size.
const BLANKS_MAX: u32 = 64;

/// The bytes violate the body's framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BodyError {
    /// A chunk size, or the bytes around it, violates the chunked coding.
    #[error("the body's chunked coding is malformed")]
    Chunk,
    /// The chunk extensions or trailers exceed 16 KiB, or a chunk size has more than 64 blanks.
    #[error("the body's chunk extensions or trailers are too long")]
    TooLong,
    /// The connection was closed before the end of the body.
    #[error("the connection was closed in the middle of the body")]
    Truncated,
}

/// Result of one [`BodyReader::read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Range of the decoded body data within the given bytes.
    pub data: Range<usize>,
    /// Bytes that belong to this message; fewer than given only if the body ended.
    pub consumed: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyState {
    /// Remaining bytes of a `content-length` body.
    Length(u64),
    UntilClose,
    /// In a chunk size, after `digits` hex digits.
    Size {
        size: u64,
        digits: u8,
    },
    /// Blanks after a chunk size.
    SizeBlank(u64),
    /// In an extension of a chunk of this size.
    Extension(u64, Extension),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// At the start of a line after the last chunk.
    TrailerStart,
    Trailer,
    TrailerLf,
    LastLf,
    Done,
}

/// Decoder of one body.
///
/// ```
/// use tidegate_http1::{BodyReader, Framing};
///
/// let mut reader = BodyReader::new(Framing::Chunked);
/// let mut bytes = *b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
/// let piece = reader.read(&mut bytes)?;
/// assert_eq!(&bytes[piece.data], b"abcde");
/// assert!(reader.is_done());
/// # Ok::<(), tidegate_http1::BodyError>(())
/// ```
#[derive(Clone, Debug)]
pub struct BodyReader {
    state: BodyState,
    /// Bytes of extensions and trailers read.
    extra: u32,
    /// Blanks read after the current chunk's size.
    blanks: u32,
    /// State of the current trailer field.
    trailer: Trailer,
}

impl BodyReader {
    /// Creates the decoder for a body with this framing.
    pub fn new(framing: Framing) -> BodyReader {
        let state = match framing {
            Framing::Length(0) => BodyState::Done,
            Framing::Length(length) => BodyState::Length(length),
            Framing::Chunked => BodyState::Size { size: 0, digits: 0 },
            Framing::UntilClose => BodyState::UntilClose,
        };
        BodyReader { state, extra: 0, blanks: 0, trailer: Trailer::START }
    }

    /// Returns whether the end of the body was read.
    pub fn is_done(&self) -> bool {
        self.state == BodyState::Done
    }

    /// Returns the number of bytes to come; `None` for chunked and until-close bodies.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            BodyState::Length(left) => Some(left),
            BodyState::Done => Some(0),
            _ => None,
        }
    }

    /// Decodes the next bytes of the connection. Data of several chunks is moved together within
    /// `bytes`.
    ///
    /// # Errors
    /// [`BodyError`] if the bytes violate the framing; the connection is unusable afterwards.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<Piece, BodyError> {
        let (mut at, mut data) = (0, 0..0);
        while at < bytes.len() && self.state != BodyState::Done {
            let left = match self.state {
                BodyState::Length(left) | BodyState::Data(left) => left,
                BodyState::UntilClose => u64::MAX,
                _ => {
                    self.state = self.step(bytes[at])?;
                    at += 1;
                    continue;
                }
            };
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
            if data.is_empty() {
                data = at..at + here;
            } else {
                bytes.copy_within(at..at + here, data.end);
                data.end += here;
            }
            at += here;
            let left = left - here as u64;
            self.state = match self.state {
                BodyState::Length(_) if left == 0 => BodyState::Done,
                BodyState::Length(_) => BodyState::Length(left),
                BodyState::Data(_) if left == 0 => BodyState::DataCr,
                BodyState::Data(_) => BodyState::Data(left),
                other => other,
            };
        }
        Ok(Piece { data, consumed: at })
    }

    /// Reports the end of the connection.
    ///
    /// # Errors
    /// [`BodyError::Truncated`] if the body was not complete.
    pub fn close(&mut self) -> Result<(), BodyError> {
        match self.state {
            BodyState::Done | BodyState::UntilClose => {
                self.state = BodyState::Done;
                Ok(())
            }
            _ => Err(BodyError::Truncated),
        }
    }

    /// Processes one byte of the framing. Only CR LF ends a line. RFC 9112, 2.2 allows a bare LF;
    /// request smuggling exploits readers that differ on it.
    fn step(&mut self, byte: u8) -> Result<BodyState, BodyError> {
        Ok(match (self.state, byte) {
            (BodyState::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == 16 {
                    return Err(BodyError::Chunk);
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                BodyState::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (BodyState::Size { digits: 0, .. }, _) => return Err(BodyError::Chunk),
            (BodyState::Size { size, .. } | BodyState::SizeBlank(size), b'\r') => {
                BodyState::SizeLf(size)
            }
            (BodyState::Size { size, .. } | BodyState::SizeBlank(size), b';') => {
                BodyState::Extension(size, Extension::Start)
            }
            (BodyState::Size { size, .. } | BodyState::SizeBlank(size), b' ' | b'\t') => {
                self.blanks += 1;
                if self.blanks > BLANKS_MAX {
                    return Err(BodyError::TooLong);
                }
                BodyState::SizeBlank(size)
            }
            (BodyState::Extension(size, at), b'\r') if at.may_end() => BodyState::SizeLf(size),
            (BodyState::Extension(size, at), _) => {
                self.count_extra()?;
                BodyState::Extension(size, at.step(byte).ok_or(BodyError::Chunk)?)
            }
            (BodyState::SizeLf(0), b'\n') => BodyState::TrailerStart,
            (BodyState::SizeLf(size), b'\n') => BodyState::Data(size),
            (BodyState::DataCr, b'\r') => BodyState::DataLf,
            (BodyState::DataLf, b'\n') => {
                self.blanks = 0;
                BodyState::Size { size: 0, digits: 0 }
            }
            (BodyState::TrailerStart, b'\r') => BodyState::LastLf,
            (BodyState::LastLf, b'\n') => BodyState::Done,
            (BodyState::Trailer, b'\r') if self.trailer.may_end() => BodyState::TrailerLf,
            (BodyState::TrailerLf, b'\n') => BodyState::TrailerStart,
            (BodyState::TrailerStart | BodyState::Trailer, _) => {
                self.count_extra()?;
                if self.state == BodyState::TrailerStart {
                    self.trailer = Trailer::START;
                }
                match self.trailer.take(byte) {
                    true => BodyState::Trailer,
                    false => return Err(BodyError::Chunk),
                }
            }
            _ => return Err(BodyError::Chunk),
        })
    }

    fn count_extra(&mut self) -> Result<(), BodyError> {
        self.extra += 1;
        if self.extra > EXTRA_MAX { Err(BodyError::TooLong) } else { Ok(()) }
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
