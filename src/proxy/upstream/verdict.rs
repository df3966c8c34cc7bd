//! An engine's error in place of an answer: its status, its words, and when it may be asked again.

use http::StatusCode;
use http::header::RETRY_AFTER;
use std::fmt;
use std::time::Duration;
use tidegate_engine::{EngineError, ErrorForm};
use tidegate_http1::RetryAfter;
use tidegate_types::Seconds;

use crate::upstream::{Head, UpstreamBody};

/// An error's body is read up to this size: a message with some of the prompt in it.
const BODY_MAX: usize = 64 << 10;
/// Time limit of that read: a retry waits for it.
const BODY_TIME_MAX: Duration = Duration::from_secs(1);
/// The status of an error event that names none.
const STATUS_UNKNOWN: u16 = 502;

/// What an engine said.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Its status, or the code of its error event.
    pub status: Option<u16>,
    /// What it said.
    pub error: EngineError,
    /// When it may be asked again.
    pub retry_after: Option<RetryAfter>,
    /// It came as an event, behind a head that promised an answer.
    in_band: bool,
}

impl Verdict {
    /// Of an answer with an error's status.
    pub(crate) async fn read(head: Head, mut body: UpstreamBody) -> Verdict {
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
        // A body that does not end in time, or breaks off, leaves the words that came.
        tokio::time::timeout(BODY_TIME_MAX, reading).await.ok();
        let retry_after = head.headers.get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| RetryAfter::read(value.as_bytes()));
        let status = Some(head.status.as_u16());
        Verdict { status, error: EngineError::of_body(&read), retry_after, in_band: false }
    }

    /// Of a stream that began with an error.
    pub(crate) fn in_band(begun: &[u8]) -> Verdict {
        let error = EngineError::of_events(begun).unwrap_or_default();
        Verdict { status: error.code, error, retry_after: None, in_band: true }
    }

    /// The status that the client gets.
    pub fn http_status(&self) -> StatusCode {
        let status = self.status.unwrap_or(STATUS_UNKNOWN);
        StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY)
    }

    /// The error as the client's API has it.
    pub fn body(&self, form: ErrorForm) -> bytes::Bytes {
        self.error.body(form, self.http_status().as_u16())
    }

    /// How long the engine asks to be left alone, at the wall time `now`.
    pub fn asks_for(&self, now: f64) -> Option<Seconds> {
        self.retry_after.and_then(|after| after.seconds_from(now)).map(Seconds)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Longer words do not belong into a line of the log.
        const SHOWN: usize = 200;
        match (self.in_band, self.status) {
            (false, status) => write!(f, "it answered {}", status.unwrap_or(STATUS_UNKNOWN))?,
            (true, Some(code)) => write!(f, "its stream began with an error {code}")?,
            (true, None) => write!(f, "its stream began with an error")?,
        }
        let shown: String = self.error.message.chars().take(SHOWN).collect();
        if shown.is_empty() { Ok(()) } else { write!(f, ": {shown:?}") }
    }
}
