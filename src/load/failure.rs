//! Failure reasons of a request: a closed set, which bounds the number of counters.

use std::fmt;

/// Reason why a request did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestFailure {
    /// The connection could not be opened.
    Connect,
    /// A status other than 200.
    Status(u16),
    /// The connection broke before the end of the answer.
    Broken,
    /// An error event in the stream.
    ErrorEvent,
    /// The stream ended without `[DONE]`, or with fewer tokens than requested.
    Short,
}

impl fmt::Display for RequestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestFailure::Connect => f.write_str("no connection"),
            RequestFailure::Status(status) => write!(f, "status {status}"),
            RequestFailure::Broken => f.write_str("connection broken"),
            RequestFailure::ErrorEvent => f.write_str("error event"),
            RequestFailure::Short => f.write_str("answer too short"),
        }
    }
}
