//! Minimum rate of a request's body, against slowloris clients, which hold a connection and the
//! received part of a body by sending single bytes.

use std::time::Duration;

/// Time that every body may take at any rate: mobile clients pause.
pub const GRACE: Duration = Duration::from_secs(10);
/// Minimum mean rate after that, in bytes a second. A modem of 1998 sent 4 KB/s.
pub const RATE_MIN: f64 = 1024.0;

/// Returns how much longer a body may wait for its next bytes, given the time since its first wait
/// and the bytes received. Zero: the body is below the minimum rate.
pub fn allowance(elapsed: Duration, bytes: usize) -> Duration {
    let earned = Duration::from_secs_f64(bytes as f64 / RATE_MIN);
    (GRACE + earned).saturating_sub(elapsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_must_keep_its_rate_after_the_grace() {
        let seconds = Duration::from_secs;
        for (elapsed, bytes, left) in
            [(0, 0, 10), (9, 0, 1), (10, 0, 0), (30, 20 << 10, 0), (30, 30 << 10, 10), (99, 5, 0)]
        {
            assert_eq!(allowance(seconds(elapsed), bytes).as_secs(), left, "{elapsed} {bytes}");
        }
    }
}
