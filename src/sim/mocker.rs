//! Step durations of NVIDIA Dynamo's mocker: docs/spec/engine-model.md#dynamo-mocker.

use tidegate_types::{Seconds, Tokens};

/// Fixed cost of a prefill pass.
pub(crate) const PREFILL_BASE: Seconds = Seconds(16.50142e-3);
/// Linear cost of a prefill pass, per new token.
pub(crate) const PREFILL_PER_TOKEN: Seconds = Seconds(1.518344e-5);
/// Quadratic cost of a prefill pass: `n²` new tokens are `n²/2` pairs of the cost model.
pub(crate) const PREFILL_PER_ATTENTION: Seconds = Seconds(2.0 * PREFILL_SQUARE);
/// 16,384 blocks of 64 tokens.
pub(crate) const KV_CAPACITY: Tokens = Tokens(16_384 * 64);
/// Line through the decode curve: its value at an empty memory. Least squares over utilisations
/// from 0 to .4555, where a step takes 25 ms; the largest error is 0.9 ms.
pub(crate) const DECODE_BASE: Seconds = Seconds(6.63e-3);
/// The line's slope: 42.29 ms at full memory.
pub(crate) const DECODE_PER_KV_TOKEN: Seconds = Seconds(42.29e-3 / (16_384.0 * 64.0));

/// Seconds per squared new token of a prefill pass.
const PREFILL_SQUARE: f64 = 4.209989e-10;
/// Shortest decode pass.
const DECODE_MIN: Seconds = Seconds(1e-3);

/// Tokens of a block that its stream does not fill yet, on average. The mocker counts whole blocks.
const UNFILLED: f64 = 31.5;

/// Returns the duration of a pass with `new` prefill tokens and the decode of one token by each of
/// `streams`, with `kv` tokens in total. A mixed pass takes the sum.
pub(crate) fn step(new: f64, streams: usize, kv: f64, capacity: Tokens) -> Seconds {
    let held = kv + UNFILLED * streams as f64;
    let used = (streams > 0).then(|| held / capacity.as_f64());
    let prefill = match new > 0.0 {
        true => PREFILL_BASE + PREFILL_PER_TOKEN * new + Seconds(PREFILL_SQUARE * new * new),
        false => Seconds::ZERO,
    };
    prefill + used.map_or(Seconds::ZERO, decode)
}

/// Returns the duration of a decode pass, which is independent of the number of streams.
fn decode(used: f64) -> Seconds {
    let u = used.min(1.0);
    Seconds((-25.74 * u * u + 54.01 * u + 5.74) * 1e-3).max(DECODE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: Seconds, millis: f64) {
        assert!((a.as_millis() - millis).abs() < 1e-3, "{a:?} is not {millis} ms");
    }

    #[test]
    fn a_mixed_pass_takes_the_sum() {
        let step = |new, streams, kv| step(new, streams, kv, Tokens(100_000));
        near(step(0.0, 0, 0.0), 0.0);
        near(step(1000.0, 0, 0.0), 16.50142 + 15.18344 + 0.42100);
        near(step(0.0, 2, 50_000.0 - 63.0), 26.310);
        near(step(0.0, 2, 200_000.0), 34.010);
        near(step(1000.0, 2, 50_000.0 - 63.0), 32.10586 + 26.310);
    }

    #[test]
    fn the_line_is_within_a_millisecond_of_the_curve_up_to_25_ms() {
        for permille in 0..=455 {
            let used = f64::from(permille) / 1000.0;
            let line = DECODE_BASE + DECODE_PER_KV_TOKEN * (used * KV_CAPACITY.as_f64());
            assert!((line - decode(used)).as_millis().abs() < 1.0, "{used}");
        }
    }
}
