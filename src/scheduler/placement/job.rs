//! Jobs: requests as placement sees them. Plain values, cheap to clone.

use tidegate_types::{BackendId, Moment, PoolId, RequestId, Targets, Tokens};

/// Most backends in [`Excluded`]. It equals the number of refusals for load that do not count as an
/// attempt of a request.
pub const EXCLUDED_MAX: usize = 16;

/// Whether a request may be disaggregated: prefill and decode on different engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disaggregation {
    /// It may, where the predicted completion is shorter than colocated.
    Allowed,
    /// It must be colocated: n > 1, echo, prompt_logprobs and similar options.
    Never,
}

/// A request that needs its first leg.
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
    /// The targets of the request.
    pub targets: Targets,
    /// TTFT deadline.
    pub ttft_deadline: Moment,
    /// Queue deadline: a request that is still queued at this time is refused.
    pub queue_deadline: Moment,
    /// Whether the request may be disaggregated.
    pub disaggregation: Disaggregation,
    /// A uniformly distributed number, which breaks ties and draws the sample.
    pub seed: u64,
    /// The backends on which the request has failed.
    pub excluded: Excluded,
}

impl PrefillRequest {
    /// Returns whether the request is batch work.
    pub fn is_batch(&self) -> bool {
        self.targets.is_batch()
    }
}

/// A prefilled request that needs a decode backend.
#[derive(Clone, Debug)]
pub struct DecodeRequest {
    /// The request.
    pub id: RequestId,
    /// The pool of its model.
    pub pool: PoolId,
    /// The backend that holds its KV cache.
    pub from: BackendId,
    /// The targets of the request.
    pub targets: Targets,
    /// KV tokens of its prompt.
    pub kv: Tokens,
    /// Expected output tokens.
    pub expected_output: Tokens,
    /// See [`PrefillRequest::seed`].
    pub seed: u64,
    /// The backends on which the request has failed.
    pub excluded: Excluded,
}

/// The last [`EXCLUDED_MAX`] backends on which a request has failed.
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
    fn a_full_list_drops_its_oldest_entry() {
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
