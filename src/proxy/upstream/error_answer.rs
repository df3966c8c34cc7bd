//! An engine's error answer: status, message, and `Retry-After`.

use http::StatusCode;
use http::header::RETRY_AFTER;
use std::fmt;
use std::time::Duration;
use tidegate_engine::{EngineError, ErrorForm};
use tidegate_http1::RetryAfter;
use tidegate_types::Seconds;

use crate::upstream::{Head, UpstreamBody};

/// Largest part of an error's body that is read; messages may quote the prompt.
const BODY_MAX: usize = 64 << 10;
/// Time-out of that read, which delays a retry.
const BODY_TIME_MAX: Duration = Duration::from_secs(1);
/// Status of an error event without a code.
const STATUS_UNKNOWN: u16 = 502;

/// An engine's error answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorAnswer {
    /// Status of the answer, or code of the error event.
    pub status: Option<u16>,
    pub error: EngineError,
    pub retry_after: Option<RetryAfter>,
    /// Whether it is an error event in a stream with a success status.
    in_band: bool,
}

impl ErrorAnswer {
    /// Reads an answer with an error status.
    pub(crate) async fn read(head: Head, mut body: UpstreamBody) -> ErrorAnswer {
        let mut read = Vec::new();
        let reading = async {
            while let Some(Ok(data)) = body.data().await {
                let left = BODY_MAX - read.len();
                read.extend_from_slice(&data[..data.len().min(left)]);
                if read.len() == BODY_MAX {
                    break;
                }
            }
        };
        // After a time-out or an incomplete body, the received part is used.
        tokio::time::timeout(BODY_TIME_MAX, reading).await.ok();
        let retry_after = head.headers.get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| RetryAfter::read(value.as_bytes()));
        let status = Some(head.status.as_u16());
        ErrorAnswer { status, error: EngineError::of_body(&read), retry_after, in_band: false }
    }

    /// Reads the error event with which a stream began.
    pub(crate) fn in_band(begun: &[u8]) -> ErrorAnswer {
        let error = EngineError::of_events(begun).unwrap_or_default();
        ErrorAnswer { status: error.code, error, retry_after: None, in_band: true }
    }

    /// Status for the client.
    pub fn http_status(&self) -> StatusCode {
        let status = self.status.unwrap_or(STATUS_UNKNOWN);
        StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY)
    }

    /// The error in the format of the client's API.
    pub fn body(&self, form: ErrorForm) -> bytes::Bytes {
        self.error.body(form, self.http_status().as_u16())
    }

    /// Requested delay before a retry, at the wall time `now`.
    pub fn retry_delay(&self, now: f64) -> Option<Seconds> {
        self.retry_after.and_then(|after| after.seconds_from(now)).map(Seconds)
    }
}

impl fmt::Display for ErrorAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Longest message in a log line, in characters.
        const SHOWN: usize = 200;
        match (self.in_band, self.status) {
            (false, status) => write!(f, "answered {}", status.unwrap_or(STATUS_UNKNOWN))?,
            (true, Some(code)) => write!(f, "stream began with an error {code}")?,
            (true, None) => write!(f, "stream began with an error")?,
        }
        let shown: String = self.error.message.chars().take(SHOWN).collect();
        if shown.is_empty() { Ok(()) } else { write!(f, ": {shown:?}") }
    }
}
