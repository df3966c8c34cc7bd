//! HTTP/1.1 codec (RFC 9112): parses and writes message heads, and decodes bodies. It does no I/O
//! and keeps no input. Messages that two readers could interpret differently are refused (request
//! smuggling).
#![warn(missing_docs)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod body;
mod extension;
mod framing;
mod hop;
mod request_in;
mod request_out;
mod response_in;
mod response_out;
mod retry_after;
mod trailer;

pub use body::{BodyError, BodyReader, Piece};
pub use framing::{Framing, HEAD_MAX, HeadError};
pub use hop::{is_hop_by_hop, is_listed};
pub use request_in::{RequestHead, read_request};
pub use request_out::RequestHeadWriter;
pub use response_in::{ResponseHead, read_response, read_upgrade};
pub use response_out::{CONTINUE, ChunkFrame, Date, LAST_CHUNK, ResponseFraming, write_response};
pub use retry_after::RetryAfter;
