//! `interval:SECONDS[:RESTART]`: a periodic controller. Every SECONDS it divides the engines in
//! proportion to the prefill and decode work of the last interval, with exact knowledge of that
//! interval, answer lengths included. Requests are dispatched on arrival by least predicted load, as
//! with a fixed split. An engine that changes role accepts no work for RESTART seconds; its running
//! work continues, which favours this policy over a real restart.

use tidegate_types::{Moment, Seconds, Tokens};

use crate::cluster::{Cluster, Router};
use crate::engine::Work;
use crate::static_policy::predicted;

pub(crate) struct PeriodicRouter {
    every: Seconds,
    restart: Seconds,
    tpot: Seconds,
    engines: Vec<EngineView>,
    /// Index of the first arrival after the last window.
    next_arrival: usize,
    planned_at: Moment,
    flips: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Prefill,
    Decode,
}

/// State of an engine, as the controller reads it.
#[derive(Clone, Copy, Debug)]
struct EngineView {
    side: Side,
    /// Time before which it accepts no work.
    available_at: Moment,
    /// Predicted prefill work in nanoseconds.
    prefill: u64,
    streams: u64,
}

impl PeriodicRouter {
    pub(crate) fn new(
        every: Seconds,
        restart: Seconds,
        tpot: Seconds,
        engines: usize,
    ) -> PeriodicRouter {
        let view = |engine| EngineView {
            side: if engine < engines / 2 { Side::Prefill } else { Side::Decode },
            available_at: Moment::START,
            prefill: 0,
            streams: 0,
        };
        let engines = (0..engines).map(view).collect();
        let planned_at = Moment::START;
        PeriodicRouter { every, restart, tpot, engines, next_arrival: 0, planned_at, flips: 0 }
    }

    /// Returns the least loaded engine of `side` that accepts work, or a restarting one if there is
    /// no other.
    fn least(&self, side: Side, now: Moment, load: impl Fn(&EngineView) -> u64) -> usize {
        let of_side = (0..self.engines.len()).filter(|engine| self.engines[*engine].side == side);
        let key = |engine: &usize| {
            let view = &self.engines[*engine];
            (now < view.available_at, load(view))
        };
        of_side.min_by_key(key).unwrap_or(0)
    }

    fn plan(&mut self, cluster: &Cluster<'_>) {
        let now = cluster.now();
        let (mut prefill, mut decode) = (0.0, 0.0);
        // The profile of the first engine stands for all.
        let profile = cluster.profile(0);
        while let Some(arrival) = cluster.trace().arrivals.get(self.next_arrival) {
            if Moment::from_start(arrival.at) >= now {
                break;
            }
            self.next_arrival += 1;
            prefill += profile.prefill_model().predict(arrival.prompt, Tokens::ZERO).get();
            // Decode work: the engine time of a stream at the stream capacity of the TPOT target.
            let streams_within = profile.decode_model().streams_within(self.tpot, arrival.prompt);
            let capacity = streams_within.min(f64::from(profile.max_num_seqs)).max(1.0);
            decode += arrival.output.as_f64() * self.tpot.get() / capacity;
        }
        if prefill + decode > 0.0 {
            let count = self.engines.len();
            let wanted = (count as f64 * prefill / (prefill + decode)).round() as usize;
            self.resize(wanted.clamp(1, count - 1), now);
        }
    }

    fn resize(&mut self, wanted: usize, now: Moment) {
        loop {
            let prefills = self.engines.iter().filter(|view| view.side == Side::Prefill).count();
            let (from, to) = match prefills.cmp(&wanted) {
                std::cmp::Ordering::Less => (Side::Decode, Side::Prefill),
                std::cmp::Ordering::Greater => (Side::Prefill, Side::Decode),
                std::cmp::Ordering::Equal => return,
            };
            let engine = self.least(from, now, |view| view.prefill + view.streams);
            self.engines[engine].side = to;
            self.engines[engine].available_at = now + self.restart;
            self.flips += 1;
        }
    }
}

impl Router for PeriodicRouter {
    fn arrived(&mut self, cluster: &mut Cluster<'_>, request: usize) {
        if request == 0 {
            cluster.wake_at(cluster.now() + self.every);
        }
        let engine = self.least(Side::Prefill, cluster.now(), |view| view.prefill);
        self.engines[engine].prefill += predicted(cluster, request, engine);
        cluster.admit(request, engine, Work::PrefillOnly);
    }

    fn prefilled(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.engines[engine].prefill -= predicted(cluster, request, engine);
        let to = self.least(Side::Decode, cluster.now(), |view| view.streams);
        self.engines[to].streams += 1;
        cluster.hand_off(request, engine, to);
    }

    fn began(&mut self, _cluster: &mut Cluster<'_>, _request: usize, _engine: usize) {}

    fn ended(&mut self, _cluster: &mut Cluster<'_>, _request: usize, engine: usize) {
        self.engines[engine].streams -= 1;
    }

    fn woken(&mut self, cluster: &mut Cluster<'_>) {
        if cluster.now() >= self.planned_at + self.every {
            self.planned_at = cluster.now();
            self.plan(cluster);
            cluster.wake_at(cluster.now() + self.every);
        }
    }
    fn flips(&self) -> u64 {
        self.flips
    }
}
