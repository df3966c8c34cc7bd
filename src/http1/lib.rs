//! HTTP/1.1 as bytes, for the legs to engines: a request's head is written, an answer's head and
//! body are read. RFC 9112 throughout. It must never touch a socket, keep what it has read, or
//! guess: what two readers could take for two things is refused.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod answer;
mod body;
mod hop;
mod request;

pub use answer::{AnswerHead, HEAD_MAX, HeadError, read_answer};
pub use body::{BodyError, BodyReader, Framing, Piece};
pub use hop::{is_hop_by_hop, is_listed};
pub use request::RequestHead;
