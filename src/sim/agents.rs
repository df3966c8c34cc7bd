//! Generator of agent sessions. Every turn sends the whole conversation: prompts grow, and each shares
//! a prefix with the previous turn.

use tidegate_types::{Seconds, Tokens};

use crate::prefix_cache::BLOCK_TOKENS;
use crate::random::SplitMix;
use crate::trace::{Arrival, Trace};

/// Blocks of the system prompt and tool descriptions that all sessions share: 4,096 tokens.
const SHARED_BLOCKS: u64 = 8;
/// Tokens that one turn adds to the prompt.
const GROWTH: (f64, f64) = (1_000.0, 4_000.0);
/// A session ends when its prompt reaches a length drawn from this range.
const LENGTH: (f64, f64) = (20_000.0, 120_000.0);
/// Output tokens of a turn: lognormal, median 100.
const OUTPUT: (f64, f64) = (4.6, 0.6);
/// Seconds between an answer and the next turn.
const THINK: (f64, f64) = (2.0, 20.0);
/// Assumed duration of a turn in seconds: a constant and a part per output token. Arrivals are fixed in
/// advance (open loop).
const SERVICE: (f64, f64) = (1.0, 0.025);

impl Trace {
    /// Generates agent sessions that begin as a Poisson process of `sessions` per second, over
    /// `length`. Arrival times are independent of the policy (open loop). Equal seeds give equal
    /// traces.
    pub fn agents(seed: u64, length: Seconds, sessions: f64) -> Trace {
        let mut random = SplitMix(seed);
        let (mut start, mut traces, mut number) = (0.0, Vec::new(), 0);
        loop {
            start += -random.unit().ln() / sessions;
            if start >= length.get() {
                return Trace::merge(traces);
            }
            number += 1;
            traces.push(session(&mut random, number, start, length.get()));
        }
    }
}

fn session(random: &mut SplitMix, number: u64, start: f64, end: f64) -> Trace {
    let (mut at, mut prompt) = (start, (SHARED_BLOCKS * BLOCK_TOKENS) as f64);
    let longest = random.between(LENGTH.0, LENGTH.1);
    let mut arrivals = Vec::new();
    while at < end {
        prompt += random.between(GROWTH.0, GROWTH.1);
        if prompt > longest {
            break;
        }
        let output = random.lognormal(OUTPUT).clamp(1.0, 2_000.0);
        let count = (prompt as u64).div_ceil(BLOCK_TOKENS);
        let own = |index| if index < SHARED_BLOCKS { index } else { (number << 24) | index };
        arrivals.push(Arrival {
            at: Seconds(at),
            prompt: Tokens(prompt as u64),
            output: Tokens(output as u64),
            blocks: (0..count).map(own).collect(),
            ..Arrival::default()
        });
        // The answer is part of the next prompt.
        prompt += output;
        at += SERVICE.0 + SERVICE.1 * output + random.between(THINK.0, THINK.1);
    }
    Trace { arrivals }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_begins_with_the_turn_before_it() {
        let trace = Trace::agents(5, Seconds(300.0), 0.05);
        assert_eq!(trace, Trace::agents(5, Seconds(300.0), 0.05));
        let session = trace.arrivals.iter().filter_map(|a| a.blocks.get(8)).next().copied();
        let turns: Vec<&Arrival> =
            trace.arrivals.iter().filter(|a| a.blocks.get(8).copied() == session).collect();
        assert!(turns.len() > 3, "{}", turns.len());
        for pair in turns.windows(2) {
            let full = (pair[0].prompt.get() / BLOCK_TOKENS) as usize;
            assert_eq!(pair[0].blocks[..full], pair[1].blocks[..full]);
            let grown = pair[1].prompt.get() - pair[0].prompt.get();
            assert!((1_000..=6_000).contains(&grown), "{grown}");
        }
        assert!(trace.arrivals.windows(2).all(|pair| pair[0].at <= pair[1].at));
    }
}
