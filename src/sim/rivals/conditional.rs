//! `conditional:K`: Dynamo's conditional disaggregation. K engines prefill, the others decode. The
//! candidate decode engine prefills a request itself if few of its tokens are uncached or if the
//! prefill engines are busy.

use tidegate_types::Tokens;

use crate::rivals::dispatch::{Rival, RivalFleet, Route};
use crate::rivals::least;

/// Uncached tokens below which a prompt may be prefilled on the decode engine.
const LOCAL_BELOW: Tokens = Tokens(2_048);
/// Uncached share of a short prompt, 0..1, above which it is handed off.
const UNCACHED_SHARE: f64 = 0.7;
/// Prompts per prefill engine above which the prefill pool is busy.
const BUSY_PROMPTS: u32 = 2;

/// A fixed split with local prefill; the number of prefill engines.
pub(crate) struct Conditional(pub(crate) usize);

impl Conditional {
    fn prefills_locally(&self, fleet: RivalFleet<'_, '_>, request: usize, decode: usize) -> bool {
        let prompt = fleet.cluster.trace().arrivals[request].prompt;
        let uncached = prompt - fleet.cluster.cached(request, decode);
        let little = uncached < LOCAL_BELOW && uncached.as_f64() < UNCACHED_SHARE * prompt.as_f64();
        let busy = |engine: usize| fleet.loads.engines[engine].prompts >= BUSY_PROMPTS;
        little || (0..self.0).all(busy)
    }
}

impl Rival for Conditional {
    fn place(&mut self, fleet: RivalFleet<'_, '_>, request: usize) -> Route {
        let decode = self.decode_engine(fleet, request, 0);
        if self.prefills_locally(fleet, request, decode) {
            return Route::Colocated(decode);
        }
        let wait = |engine| fleet.predicted_prefill(request, engine).get();
        Route::Prefill(least(0..self.0, wait).unwrap_or(0))
    }

    /// Selects the decode engine with the longest cached prefix; ties select the fewest streams.
    fn decode_engine(&mut self, fleet: RivalFleet<'_, '_>, request: usize, _from: usize) -> usize {
        let cost = |engine: usize| {
            let cached = fleet.cluster.cached(request, engine).as_f64();
            fleet.streams(engine) - cached / LOCAL_BELOW.as_f64()
        };
        least(self.0..fleet.engines(), cost).unwrap_or(0)
    }
}
