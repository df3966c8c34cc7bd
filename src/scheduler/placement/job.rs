//! What has to be placed. Plain values, cheap to clone.

use tidegate_types::{BackendId, Moment, PoolId, RequestId, Tokens};

/// Failed backends a job remembers: as many as refuse for load at no cost of an attempt.
pub const EXCLUDED_MAX: usize = 16;

/// May a request's prefill and decode run on different engines?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Yes, if it pays.
    May,
    /// No: n > 1, echo, prompt_logprobs and the like.
    Never,
}

/// One request that needs a place.
#[derive(Clone, Debug)]
pub struct Job {
    /// Whose it is.
    pub id: RequestId,
    /// Where it may go.
    pub pool: PoolId,
    /// Prompt tokens, cached or not.
    pub prompt: Tokens,
    /// Tokens it will probably emit.
    pub expected_output: Tokens,
    /// When it came.
    pub arrived: Moment,
    /// When its first token is due.
    pub ttft_deadline: Moment,
    /// When it is refused if it still waits.
    pub queue_deadline: Moment,
    /// May it be split?
    pub split: Split,
    /// Any well-spread number: breaks ties and draws the sample.
    pub seed: u64,
    /// Where it has failed before.
    pub excluded: Excluded,
}

/// One prefilled request that needs a decode backend.
#[derive(Clone, Debug)]
pub struct Handover {
    /// Whose it is.
    pub id: RequestId,
    /// Where it may go.
    pub pool: PoolId,
    /// Where its KV is.
    pub from: BackendId,
    /// Tokens of KV it has.
    pub kv: Tokens,
    /// Tokens it will probably emit.
    pub expected_output: Tokens,
    /// When its first token is due.
    pub ttft_deadline: Moment,
    /// See [`Job::seed`].
    pub seed: u64,
    /// Where it has failed before.
    pub excluded: Excluded,
}

/// The last few backends that a request failed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Excluded {
    backends: [BackendId; EXCLUDED_MAX],
    len: u8,
}

impl Excluded {
    /// Remember one more; the oldest is forgotten for it when the list is full.
    pub fn insert(&mut self, backend: BackendId) {
        if self.contains(backend) {
            return;
        }
        if usize::from(self.len) == EXCLUDED_MAX {
            self.backends.rotate_left(1);
            self.len -= 1;
        }
        self.backends[usize::from(self.len)] = backend;
        self.len += 1;
    }

    /// Is it one of them?
    pub fn contains(&self, backend: BackendId) -> bool {
        self.backends[..usize::from(self.len)].contains(&backend)
    }

    /// Is there none?
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failures_are_remembered() {
        let mut excluded = Excluded::default();
        assert!(excluded.is_empty() && !excluded.contains(BackendId(0)));
        let all = EXCLUDED_MAX as u16 + 1;
        for n in (1..all).chain([all - 1, all]) {
            excluded.insert(BackendId(n));
        }
        let known: Vec<u16> = (0..30).filter(|n| excluded.contains(BackendId(*n))).collect();
        assert_eq!(known, (2..=all).collect::<Vec<_>>());
    }
}
