//! An engine's error in place of an answer: its status, its words, and when it may be asked again.

use http::StatusCode;
use http::header::{HeaderValue, RETRY_AFTER};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tidegate_engine::{EngineError, ErrorForm};
use tidegate_types::Seconds;

use crate::upstream::{Head, UpstreamBody};

/// An error's body is read up to this size: a message with some of the prompt in it.
const BODY_MAX: usize = 64 << 10;
/// And for so long: the request waits to go elsewhere.
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

/// The value of a `retry-after`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RetryAfter {
    /// In so many seconds.
    In(Seconds),
    /// At this time, in seconds since 1970.
    At(f64),
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
        let retry_after = head.headers.get(RETRY_AFTER).and_then(RetryAfter::of);
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
        let span = match self.retry_after? {
            RetryAfter::In(span) => span,
            RetryAfter::At(time) => Seconds(time - now),
        };
        (span > Seconds::ZERO).then_some(span)
    }
}

impl RetryAfter {
    fn of(value: &HeaderValue) -> Option<RetryAfter> {
        let text = value.to_str().ok()?.trim();
        if let Ok(seconds) = text.parse::<f64>() {
            let valid = seconds.is_finite() && seconds >= 0.0;
            return valid.then_some(RetryAfter::In(Seconds(seconds)));
        }
        let time: SystemTime = httpdate::parse_http_date(text).ok()?;
        Some(RetryAfter::At(time.duration_since(UNIX_EPOCH).ok()?.as_secs_f64()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_after_is_seconds_or_a_date_and_never_nonsense() {
        let asks = |value: &str, now: f64| {
            let retry_after = RetryAfter::of(&HeaderValue::from_str(value).unwrap());
            let error = EngineError::default();
            Verdict { status: Some(429), error, retry_after, in_band: false }.asks_for(now)
        };
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (value, now, expected) in [
            ("30", 0.0, Some(30.0)),
            (" 2 ", 0.0, Some(2.0)),
            ("0.5", 0.0, Some(0.5)),
            ("0", 0.0, None),
            ("-1", 0.0, None),
            ("NaN", 0.0, None),
            ("soon", 0.0, None),
            (date, 784_111_770.0, Some(7.0)),
            (date, 784_111_780.0, None),
        ] {
            assert_eq!(asks(value, now), expected.map(Seconds), "{value}");
        }
    }
}
