//! A fleet of plain values for the tests of placement, with the costs of
//! docs/spec/engine-model.md#constants.

use crate::cost::{DecodeModel, Matches, PrefillModel};
use crate::placement::{
    BackendLoad, DecodeRequest, Disaggregation, Excluded, FleetLoads, PrefillRequest, RouteDecision,
};
use std::cell::{Cell, RefCell};
use tidegate_types::{BackendId, Moment, PoolId, RequestId, Role, Seconds, Targets, Tokens};

/// `llama70b-h100x4`, with the chunk's share of the fixed step cost included in `per_token`.
pub(crate) const PREFILL: PrefillModel = PrefillModel {
    base: Seconds(0.002),
    per_token: Seconds(72e-6),
    per_attention: Seconds(1.33e-9),
};
pub(crate) const DECODE: DecodeModel = DecodeModel {
    base: Seconds(0.0151),
    per_stream: Seconds(40e-6),
    free_streams: 0,
    per_kv_token: Seconds(30.6e-9),
};

/// An idle engine.
pub(crate) fn idle(role: Role) -> BackendLoad {
    BackendLoad {
        streams_max: 256,
        kv_capacity: Tokens(430_000),
        slack: Seconds(3600.0),
        prefill_model: PREFILL,
        decode_model: DECODE,
        ..BackendLoad::idle(role)
    }
}

/// An engine with this many streams of 1000 tokens and this slack.
pub(crate) fn streaming(role: Role, streams: u32, slack: f64) -> BackendLoad {
    let kv = Tokens(u64::from(streams) * 1000);
    BackendLoad { streams, kv, slack: Seconds(slack), ..idle(role) }
}

/// An engine with this prefill work in flight.
pub(crate) fn prefilling(role: Role, prefill: f64) -> BackendLoad {
    let tokens = (prefill / PREFILL.per_token.get()).round() as u64;
    BackendLoad { prefill: Seconds(prefill), prefill_tokens: Tokens(tokens), ..idle(role) }
}

/// A request of `prompt` tokens that arrived at the start, with a TTFT of one second.
pub(crate) fn job(id: u64, prompt: u64) -> PrefillRequest {
    PrefillRequest {
        id: RequestId(id),
        pool: PoolId(0),
        prompt: Tokens(prompt),
        expected_output: Tokens(100),
        arrived: Moment::START,
        targets: Targets::default(),
        ttft_deadline: Moment::START + Seconds(1.0),
        queue_deadline: Moment::START + Seconds(30.0),
        disaggregation: Disaggregation::Allowed,
        seed: RequestId(id).spread(),
        excluded: Excluded::default(),
    }
}

/// A prefilled request of 1000 tokens.
pub(crate) fn decode_request(from: u16) -> DecodeRequest {
    DecodeRequest {
        id: RequestId(1),
        pool: PoolId(0),
        from: BackendId(from),
        targets: Targets::default(),
        kv: Tokens(1000),
        expected_output: Tokens(100),
        seed: 7,
        excluded: Excluded::default(),
    }
}

impl BackendLoad {
    /// Adds an outstanding prompt.
    fn joined(&mut self, work: Seconds, tokens: Tokens) {
        let idle = self.prefill <= Seconds::ZERO;
        self.prefill += if idle { self.prefill_model.batch(work) } else { work };
        self.prefill_tokens += tokens;
    }
}

/// Engines by slot, all in one pool.
pub(crate) struct Engines {
    pool: Vec<BackendId>,
    loads: RefCell<Vec<BackendLoad>>,
    matches: Matches,
    asked: Cell<u64>,
}

impl Engines {
    pub(crate) fn new(loads: Vec<BackendLoad>) -> Engines {
        let pool = (0..loads.len()).map(|slot| BackendId(slot as u16)).collect();
        Engines {
            pool,
            loads: RefCell::new(loads),
            matches: Matches::default(),
            asked: Cell::new(0),
        }
    }

    /// The first tokens of every prompt are cached on this backend.
    pub(crate) fn caching(mut self, tokens: &[(u16, u32)]) -> Engines {
        self.matches = Matches::of(tokens.iter().map(|(slot, count)| (BackendId(*slot), *count)));
        self
    }

    /// Reserves the capacity of a choice.
    pub(crate) fn reserve(&self, choice: RouteDecision, kv: Tokens) {
        let mut loads = self.loads.borrow_mut();
        match choice {
            RouteDecision::Prefill { on, predicted, cached } => {
                loads[on.index()].joined(predicted, kv - cached);
            }
            RouteDecision::Colocated { on, predicted, cached } => {
                let load = &mut loads[on.index()];
                load.joined(predicted, kv - cached);
                load.streams += 1;
                load.kv += kv;
            }
            RouteDecision::Wait(_) | RouteDecision::Unroutable(_) => panic!("nothing to reserve"),
        }
    }

    /// Number of loads read so far.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.get()
    }

    pub(crate) fn change(&self, slot: usize, change: impl FnOnce(&mut BackendLoad)) {
        change(&mut self.loads.borrow_mut()[slot]);
    }
}

impl FleetLoads for Engines {
    fn pool(&self, _: PoolId) -> &[BackendId] {
        &self.pool
    }

    fn load(&self, backend: BackendId) -> BackendLoad {
        self.asked.set(self.asked.get() + 1);
        self.loads.borrow()[backend.index()]
    }

    fn cached(&self, job: &PrefillRequest, backend: BackendId) -> Tokens {
        Tokens(u64::from(self.matches.blocks_on(backend))).min(job.prompt - Tokens(1))
    }

    fn holders(&self, _: &PrefillRequest) -> Matches {
        self.matches
    }
}
