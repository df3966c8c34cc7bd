//! Observations of requests and engines, from which the models are fitted.

use crate::cost::ByteFeatures;
use crate::inflight::ConcurrentStreams;
use tidegate_types::{BackendId, Moment, Seconds, Tokens};

/// One prefill: a sample for the cost regression.
#[derive(Clone, Copy, Debug)]
pub struct PrefillSample {
    /// Backend that prefilled the prompt.
    pub backend: BackendId,
    /// Prompt tokens.
    pub prompt: Tokens,
    /// Tokens that the prefix index predicted to be cached.
    pub predicted_hit: Tokens,
    /// Tokens that the engine reported as cached, if it does.
    pub reported_hit: Option<Tokens>,
    /// Time at which the leg was sent.
    pub sent: Moment,
    /// Arrival of the first token or of the prefill leg's answer; for a non-streamed answer, arrival of
    /// the whole answer.
    pub ended: Moment,
    /// Decode streams on the backend at placement.
    pub beside: ConcurrentStreams,
}

/// One hand-off: a sample for the cost regression of the group.
#[derive(Clone, Copy, Debug)]
pub struct HandOffSample {
    /// Backend that fetched the KV.
    pub backend: BackendId,
    /// Tokens whose KV was transferred: those of the prompt that the backend did not hold.
    pub tokens: Tokens,
    /// From sending the decode leg to its first token.
    pub took: Seconds,
    /// Streams on the backend when the leg was sent, the request's own included.
    pub streams: u32,
    /// Their KV tokens.
    pub kv: Tokens,
    /// Whether the backend had prefill work when the leg was sent.
    pub prefilling: bool,
}

/// One observation.
#[derive(Clone, Copy, Debug)]
pub enum Sample {
    /// A prefill has ended.
    Prefill(PrefillSample),
    /// A colocated request with a non-streamed answer: prefill and decode took the observed time
    /// together.
    Colocated {
        /// The prefill; `ended` is the arrival of the whole answer.
        prefill: PrefillSample,
        /// Its output tokens.
        output: Tokens,
    },
    /// The decode leg of a disaggregated request has sent its first token.
    HandOff(HandOffSample),
    /// An engine's report of cached prompt tokens.
    Hit {
        /// Backend that reported.
        backend: BackendId,
        /// Tokens that the prefix index predicted to be cached.
        predicted_hit: Tokens,
        /// Tokens that were cached.
        cached: Tokens,
    },
    /// An engine's counter of cached prompt tokens since its start.
    Counted {
        /// Backend that reported.
        backend: BackendId,
        /// The counter's value.
        hits: f64,
    },
    /// A successful request.
    Finished {
        /// Its `max_tokens`.
        max_tokens: Option<Tokens>,
        /// Prompt tokens as counted or estimated by tidegate.
        counted: Tokens,
        /// Its output tokens.
        output: Tokens,
        /// The engine's count of its prompt tokens.
        prompt: Option<Tokens>,
        /// Byte features from which the prompt was estimated; `None` if it was tokenized.
        features: Option<ByteFeatures>,
    },
}
