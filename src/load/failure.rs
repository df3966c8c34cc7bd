//! Failure reasons of a request: a closed set, which bounds the number of counters.

use std::fmt;

/// Reason why a request did not end as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// The connection could not be opened.
    Connect,
    /// A status other than 200.
    Status(u16),
    /// The connection broke before the end of the answer.
    Broken,
    /// An error event in the stream.
    ErrorEvent,
    /// The stream ended without `[DONE]`, or with fewer tokens than asked for.
    Short,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Connect => f.write_str("no connection"),
            Failure::Status(status) => write!(f, "status {status}"),
            Failure::Broken => f.write_str("connection broken"),
            Failure::ErrorEvent => f.write_str("error event"),
            Failure::Short => f.write_str("answer too short"),
        }
    }
}
