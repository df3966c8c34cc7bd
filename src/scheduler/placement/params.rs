//! Parameters of placement. The defaults suit the constants of docs/spec/engine-model.md.

use tidegate_types::{Seconds, Slo, Tokens};

/// Parameters of [`place`](crate::placement::place), [`place_decode`](crate::placement::place_decode) and
/// [`EdfQueue`](crate::placement::EdfQueue).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// The TTFT and TPOT targets.
    pub slo: Slo,
    /// Prefill backlog bound of a backend. Greater than 0, default 50 ms. It covers the time
    /// between the end of a prefill and the arrival of the next one, so that the engine stays busy
    /// and the requests wait in the EDF queue. Work counts until it is done, so less than one chunk
    /// suffices. Larger values weaken the EDF order in bursts: the azure code trace at twice its
    /// rate loses a point of attainment at 0.15 s. Short prompts are also admitted while all
    /// outstanding tokens fit into one step: see [`joins_step_of`](Params::joins_step_of).
    pub room: Seconds,
    /// Prompts with fewer uncached tokens are never split: the hand-off costs more than it saves.
    /// Default 64.
    pub whole_below: Tokens,
    /// The engines' `max_num_batched_tokens`: the prompt tokens that one mixed step computes.
    /// Default 2,048. If unknown, choose a larger value.
    pub chunk: Tokens,
    /// Longest stall that one prefill may cause on a decode backend, whatever its slack: streams
    /// that are handed over meanwhile have no slack yet. Default 1 s. A negative value stops spill:
    /// decode backends take no prompts while the pool has prefill backends.
    pub stall_max: Seconds,
    /// Weight of a stall within the slack of the streams, in seconds of the request's own
    /// completion time per second of stall. At 0 slack is free; large values save it for bursts.
    /// Default 1.
    pub stall_weight: f64,
    /// Weight, in seconds of the stream's own completion time per second, of the prefill work ahead
    /// of a handed-over stream on its decode backend, and of the TPOT slack that the stream removes
    /// from that backend. A new stream has no slack and a backend absorbs prefills only up to the
    /// smallest slack of its streams, so new streams are packed onto one backend and the others
    /// keep their slack (bin packing). At least 1, default 3.
    pub slack_weight: f64,
    /// Upper bound of the time saving that a prefix cache hit counts for in the choice of a
    /// backend, so that one long shared prefix does not attract all load to one backend. Default
    /// 0.5 s.
    pub locality_max: Seconds,
    /// Share of the TPOT target, above the fixed cost of a step, up to which new requests are
    /// admitted to decode. The rest is headroom for prefills in flight. Default 0.95.
    pub admission: f64,
    /// Share of the KV memory that placement assigns; the rest is headroom for streams that grow.
    /// Default 0.9.
    pub kv_share: f64,
    /// Share of the placed prefill work that goes to the late class (waiting requests that can no
    /// longer meet their TTFT) while feasible requests wait too. 0 to 1, default 0.02. Each 0.01
    /// costs the feasible requests about 0.005 of attainment while the queue is long; the rest of
    /// the late class is served when the queue is short.
    pub late_class_share: f64,
    /// Duration of the trunk reservation, as a share of a request's queue deadline: until then, a
    /// request that can no longer meet its TTFT leaves one prefill backend idle for requests that
    /// can. Most late requests have long prompts, and one of them occupies an engine as long as
    /// several short ones. Default 0.5.
    pub trunk_reservation_share: f64,
    /// Most requests that wait in a [`EdfQueue`](crate::placement::EdfQueue). Default
    /// 10,000.
    pub queue_max: usize,
    /// Number of requests behind the first waiting one that are tried when it does not fit: a
    /// shorter one may. Default 32.
    pub look_ahead: usize,
    /// Pools of up to this many backends are examined completely. In larger pools this many are
    /// sampled by the job's seed, and further ones are examined only while none has capacity.
    /// Default 64.
    pub sample: usize,
}

/// Prompts with fewer uncached tokens are short. 32 of them fill a step of vLLM's default chunk of
/// 2,048 tokens, and one is less than the work that overlaps reading the weights once (185 tokens
/// for Llama-70B in docs/spec/engine-model.md).
const SHORT: Tokens = Tokens(64);

impl Params {
    /// Returns the bound of outstanding prefill tokens, the prompt's own included, up to which a
    /// prompt of `uncached` tokens may start beyond the backlog bound: one step for a short prompt,
    /// 0 otherwise.
    pub fn joins_step_of(&self, uncached: Tokens) -> Tokens {
        if uncached < SHORT { self.chunk } else { Tokens::ZERO }
    }
}

impl Default for Params {
    fn default() -> Params {
        Params {
            slo: Slo::default(),
            room: Seconds(0.050),
            whole_below: Tokens(64),
            chunk: Tokens(2048),
            stall_max: Seconds(1.0),
            stall_weight: 1.0,
            slack_weight: 3.0,
            locality_max: Seconds(0.5),
            admission: 0.95,
            kv_share: 0.9,
            late_class_share: 0.02,
            trunk_reservation_share: 0.5,
            queue_max: 10_000,
            look_ahead: 32,
            sample: 64,
        }
    }
}
