//! `retry-after` (RFC 9110, 10.2.3): a number of seconds, which some servers send with a fraction,
//! or a date.

use std::time::{SystemTime, UNIX_EPOCH};

/// A parsed `retry-after` value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RetryAfter {
    /// Seconds from now; finite and not negative.
    In(f64),
    /// A time, in seconds since 1970.
    At(f64),
}

impl RetryAfter {
    /// Parses the header's value; `None` if it is malformed.
    pub fn read(value: &[u8]) -> Option<RetryAfter> {
        let text = std::str::from_utf8(value).ok()?.trim();
        if let Ok(seconds) = text.parse::<f64>() {
            let valid = seconds.is_finite() && seconds >= 0.0;
            return valid.then_some(RetryAfter::In(seconds));
        }
        let time: SystemTime = httpdate::parse_http_date(text).ok()?;
        Some(RetryAfter::At(time.duration_since(UNIX_EPOCH).ok()?.as_secs_f64()))
    }

    /// Returns the seconds from `now` (since 1970) until then; `None` if that time has passed.
    pub fn seconds_from(self, now: f64) -> Option<f64> {
        let span = match self {
            RetryAfter::In(span) => span,
            RetryAfter::At(time) => time - now,
        };
        (span > 0.0).then_some(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_seconds_or_a_date_and_others_are_ignored() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (value, now, expected) in [
            ("30", 0.0, Some(30.0)),
            (" 2 ", 0.0, Some(2.0)),
            ("0.5", 0.0, Some(0.5)),
            ("0", 0.0, None),
            ("-1", 0.0, None),
            ("NaN", 0.0, None),
            ("1e999", 0.0, None),
            ("soon", 0.0, None),
            (date, 784_111_770.0, Some(7.0)),
            (date, 784_111_780.0, None),
            ("Wed, 31 Dec 1969 23:59:59 GMT", 0.0, None),
        ] {
            let read = RetryAfter::read(value.as_bytes());
            assert_eq!(read.and_then(|after| after.seconds_from(now)), expected, "{value}");
        }
    }
}
