//! A body as it comes off the wire: chunks without their frames, or so many bytes, or all
//! there is. It must never hold a byte back: data that is here can go on.

use std::ops::Range;
use thiserror::Error;

use crate::extension::Extension;
use crate::framing::Framing;
use crate::trailer::Trailer;

/// Longer chunk extensions or trailers are an attack, or not HTTP.
const EXTRA_MAX: u32 = 16 << 10;
/// Some servers pad a chunk's length.
const BLANKS_MAX: u32 = 64;

/// The body is not what its framing says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BodyError {
    /// A chunk's length, or what surrounds it, is not chunked coding.
    #[error("the body's chunks are malformed")]
    Chunk,
    /// The chunk extensions or trailers never end.
    #[error("the body's chunk extensions or trailers are too long")]
    TooLong,
    /// The connection ended before the body did.
    #[error("the connection was closed in the middle of the body")]
    Truncated,
}

/// What some bytes from the wire were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in those bytes the body's data lies now.
    pub data: Range<usize>,
    /// How many of the bytes belonged to this message: all of them, unless it ended.
    pub consumed: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyState {
    /// So many bytes of data are left.
    Length(u64),
    UntilClose,
    /// In a chunk's length; `digits` were read.
    Size {
        size: u64,
        digits: u8,
    },
    /// Blanks after a length, before an extension or the line's end.
    SizeBlank(u64),
    /// In an extension of a chunk of this length.
    Extension(u64, Extension),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// At the beginning of a line after the last chunk.
    TrailerStart,
    Trailer,
    TrailerLf,
    LastLf,
    Done,
}

/// Reads one body.
#[derive(Clone, Debug)]
pub struct BodyReader {
    state: BodyState,
    /// Bytes of extensions and trailers so far.
    extra: u32,
    /// Blanks after this chunk's length.
    blanks: u32,
    /// The trailer field that is being read.
    trailer: Trailer,
}

impl BodyReader {
    /// For a body that is framed so.
    pub fn new(framing: Framing) -> BodyReader {
        let state = match framing {
            Framing::Length(0) => BodyState::Done,
            Framing::Length(length) => BodyState::Length(length),
            Framing::Chunked => BodyState::Size { size: 0, digits: 0 },
            Framing::UntilClose => BodyState::UntilClose,
        };
        BodyReader { state, extra: 0, blanks: 0, trailer: Trailer::START }
    }

    /// Has all of it been read?
    pub fn is_done(&self) -> bool {
        self.state == BodyState::Done
    }

    /// How many bytes are still to come, if that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            BodyState::Length(left) => Some(left),
            BodyState::Done => Some(0),
            _ => None,
        }
    }

    /// The next bytes. The data of several chunks is put together within `bytes`.
    ///
    /// # Errors
    /// [`BodyError`] if they are not chunked coding; the rest of the connection means nothing then.
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

    /// The connection has ended.
    ///
    /// # Errors
    /// [`BodyError::Truncated`] if the body had not.
    pub fn close(&mut self) -> Result<(), BodyError> {
        match self.state {
            BodyState::Done | BodyState::UntilClose => {
                self.state = BodyState::Done;
                Ok(())
            }
            _ => Err(BodyError::Truncated),
        }
    }

    /// A byte that is not data. Line ends are CR LF and nothing else (RFC 9112, 2.2 lets a reader
    /// take a bare LF, and readers that do not agree on that have been made to disagree).
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
