//! Requests to place. Plain values, cheap to clone.

use tidegate_types::{BackendId, Moment, PoolId, RequestId, Tokens};

/// Most failed backends that a job remembers. It equals the number of refusals for load that a
/// request may collect without using up an attempt.
pub const EXCLUDED_MAX: usize = 16;

/// Whether prefill and decode of a request may run on different engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disaggregation {
    /// They may, if predicted completion is shorter.
    Allowed,
    /// They may not: n > 1, echo, prompt_logprobs and similar options.
    Never,
}

/// One request to place.
#[derive(Clone, Debug)]
pub struct PrefillRequest {
    /// The request.
    pub id: RequestId,
    /// The pool of its model.
    pub pool: PoolId,
    /// Prompt tokens, cached or not.
    pub prompt: Tokens,
    /// Expected output tokens.
    pub expected_output: Tokens,
    /// Time of arrival at the proxy.
    pub arrived: Moment,
    /// TTFT deadline.
    pub ttft_deadline: Moment,
    /// Queue deadline: a request that still waits then is refused.
    pub queue_deadline: Moment,
    /// Whether the request may be split.
    pub disaggregation: Disaggregation,
    /// Any evenly distributed number: breaks ties and draws the sample.
    pub seed: u64,
    /// The backends on which the request has failed.
    pub excluded: Excluded,
}

/// One prefilled request that needs a decode backend.
#[derive(Clone, Debug)]
pub struct DecodeRequest {
    /// The request.
    pub id: RequestId,
    /// The pool of its model.
    pub pool: PoolId,
    /// The backend that holds its KV cache.
    pub from: BackendId,
    /// Its KV tokens.
    pub kv: Tokens,
    /// Expected output tokens.
    pub expected_output: Tokens,
    /// See [`PrefillRequest::seed`].
    pub seed: u64,
    /// The backends on which the request has failed.
    pub excluded: Excluded,
}

/// The last few backends that a request failed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Excluded {
    backends: [BackendId; EXCLUDED_MAX],
    len: u8,
}

impl Excluded {
    /// Adds a backend; if the list is full, the oldest entry is dropped.
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

    /// Returns whether the backend is in the list.
    pub fn contains(&self, backend: BackendId) -> bool {
        self.backends[..usize::from(self.len)].contains(&backend)
    }

    /// Returns whether the list is empty.
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
