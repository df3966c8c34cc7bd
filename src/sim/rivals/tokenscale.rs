//! `tokenscale`: TokenScale on a fleet of fixed size. Each second it compares the arriving tokens
//! with the prefill and decode capacity of an engine (token velocity) and divides the engines
//! accordingly. Two convertible decode engines accept prefills while the prefill pool is behind.

use std::collections::VecDeque;
use tidegate_types::{Moment, Seconds, Slo, Tokens};

use crate::cluster::Cluster;
use crate::rivals::dispatch::{Rival, RivalFleet, Route};
use crate::rivals::least;
use crate::rivals::loads::EngineLoads;

/// Planning interval.
const EVERY: Seconds = Seconds(1.0);
/// Length of the arrival window from which demand is estimated: TokenScale's leading signal.
const WINDOW: Seconds = Seconds(5.0);
/// Number of decode engines that may accept prefills in a burst.
const CONVERTIBLE: usize = 2;
/// Expected output tokens before the first answer has ended.
const OUTPUT_PRIOR: f64 = 256.0;
/// Weight of one answer in the mean output length.
const OUTPUT_WEIGHT: f64 = 0.02;

/// Policy that divides engines by token velocity. Engines with an index below `prefills` prefill.
pub(crate) struct TokenScale {
    slo: Slo,
    prefills: usize,
    /// Arrivals in the window: time and prompt tokens.
    arrived: VecDeque<(Moment, Tokens)>,
    mean_output: f64,
    flips: u64,
}

impl TokenScale {
    pub(crate) fn new(slo: Slo, engines: usize) -> TokenScale {
        TokenScale {
            slo,
            prefills: (engines / 2).max(1),
            arrived: VecDeque::new(),
            mean_output: OUTPUT_PRIOR,
            flips: 0,
        }
    }

    /// Computes the engines required by each pool for the window's tokens. Surplus engines decode;
    /// a fleet that is too small is divided in proportion.
    fn divide(&mut self, cluster: &Cluster<'_>, count: usize) {
        let now = cluster.now();
        while self.arrived.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            self.arrived.pop_front();
        }
        let requests = self.arrived.len() as f64;
        if requests == 0.0 {
            return;
        }
        let profile = cluster.profile(0);
        let prefill = profile.prefill_model();
        let work: Seconds =
            self.arrived.iter().map(|(_, prompt)| prefill.predict(*prompt, Tokens::ZERO)).sum();
        let prompts: f64 = self.arrived.iter().map(|(_, prompt)| prompt.as_f64()).sum();
        let context = Tokens((prompts / requests + self.mean_output / 2.0) as u64);
        let streams = profile.decode_model().streams_within(self.slo.tpot, context);
        let places = streams.min(f64::from(profile.max_num_seqs)).max(1.0);
        let need_prefill = work / WINDOW;
        let seconds = self.slo.tpot * self.mean_output;
        let need_decode = requests / WINDOW.get() * seconds.get() / places;
        let wanted = if need_prefill.ceil() + need_decode.ceil() <= count as f64 {
            need_prefill.ceil()
        } else {
            (count as f64 * need_prefill / (need_prefill + need_decode)).round()
        };
        let wanted = (wanted as usize).clamp(1, count - 1);
        self.flips += wanted.abs_diff(self.prefills) as u64;
        self.prefills = wanted;
    }
}

impl Rival for TokenScale {
    fn every(&self) -> Option<Seconds> {
        Some(EVERY)
    }

    fn place(&mut self, fleet: RivalFleet<'_, '_>, request: usize) -> Route {
        let prompt = fleet.cluster.trace().arrivals[request].prompt;
        self.arrived.push_back((fleet.cluster.now(), prompt));
        let wait = |engine: usize| fleet.predicted_prefill(request, engine);
        let engine = least(0..self.prefills, |engine| wait(engine).get()).unwrap_or(0);
        if wait(engine) > self.slo.ttft {
            let until = (self.prefills + CONVERTIBLE).min(fleet.engines());
            let decoder = least(self.prefills..until, |engine| wait(engine).get());
            if let Some(decoder) = decoder.filter(|decoder| wait(*decoder) < wait(engine)) {
                return Route::Colocated(decoder);
            }
        }
        Route::Prefill(engine)
    }

    fn decode_engine(&mut self, fleet: RivalFleet<'_, '_>, _request: usize, from: usize) -> usize {
        // The last engines in this order are converted last.
        let decodes = (self.prefills..fleet.engines()).rev();
        least(decodes, |engine| fleet.streams(engine)).unwrap_or(from)
    }

    fn ended(&mut self, fleet: RivalFleet<'_, '_>, request: usize, _engine: usize) {
        let output = fleet.cluster.trace().arrivals[request].output.as_f64();
        self.mean_output += OUTPUT_WEIGHT * (output - self.mean_output);
    }

    fn plan(&mut self, cluster: &mut Cluster<'_>, loads: &mut EngineLoads) {
        self.divide(cluster, loads.engines.len());
    }

    fn flips(&self) -> u64 {
        self.flips
    }
}
