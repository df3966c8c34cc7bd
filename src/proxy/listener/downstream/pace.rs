//! How slowly a request's body may come. A client that sends a byte now and then would hold a
//! connection, and what has come of its body, for as long as it likes (slowloris).

use std::time::Duration;

/// Every body may take so long, however slow: mobile clients pause.
pub const GRACE: Duration = Duration::from_secs(10);
/// And then must have come at this mean rate, in bytes a second. A modem of 1998 sent 4 KB/s.
pub const RATE_MIN: f64 = 1024.0;

/// For how much longer a body, `elapsed` after its first wait, may wait for its next bytes when
/// `bytes` of it are here. Zero: it has been too slow.
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
