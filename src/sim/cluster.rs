//! Engines and the requests of a trace in virtual time. The cluster advances time; a [`Router`]
//! routes the requests. Simultaneous events have a fixed order, so that equal inputs give equal runs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use tidegate_types::{Moment, Seconds, Tokens};

use crate::disturbance::{Disturbance, Jitter};
use crate::engine::{Engine, Event, SeqId, Sequence, Work};
use crate::gaps::{GapHistogram, StepDurations};
use crate::prefix_cache::{CacheChange, PrefixCache};
use crate::profile::Profile;
use crate::report::Outcome;
use crate::simulate::SimConfig;
use crate::trace::{Arrival, Trace};

/// Routing policy: receives events and sends requests to engines.
pub(crate) trait Router {
    /// A request arrived.
    fn arrived(&mut self, cluster: &mut Cluster<'_>, request: usize);
    /// A request's prefill leg ended on `engine`, which keeps the KV.
    fn prefilled(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize);
    /// A request's first token was emitted.
    fn began(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize);
    /// A stream was migrated and continues on `to`.
    fn migrated(&mut self, _cluster: &mut Cluster<'_>, _request: usize, _to: usize) {}
    /// A request's last token was emitted.
    fn ended(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize);
    /// An engine's step ended, after the router received its events.
    fn stepped(&mut self, _cluster: &mut Cluster<'_>, _engine: usize) {}
    /// A time requested with [`Cluster::wake_at`] was reached.
    fn woken(&mut self, _cluster: &mut Cluster<'_>) {}
    /// Role changes so far.
    fn flips(&self) -> u64 {
        0
    }
}

/// The variant order is the processing order of simultaneous events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SimEvent {
    StepEnds { engine: usize },
    HandOffEnds { request: usize, to: usize },
    Migrated { request: usize, from: usize, to: usize },
    Arrives { request: usize },
    Wakes,
}

/// Progress of one request.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    first: Option<Moment>,
    last: Option<Moment>,
    /// Engine step after which its gaps are not yet part of `gap_max`.
    gaps_from: u64,
    /// Largest gap between two tokens up to `gaps_from`.
    gap_max: Seconds,
    /// Time of its last token before a migration or preemption, until the next token.
    paused_at: Option<Moment>,
    /// Whether the request was refused.
    refused: bool,
    /// Source engine while the KV is in transfer.
    from: usize,
    /// Prompt tokens found in the prefix cache of the engine that prefilled.
    cached: Tokens,
    /// Prompt tokens whose blocks are pinned in the prefix cache of the engine that computes it.
    pinned: Tokens,
}

pub(crate) struct Cluster<'a> {
    trace: &'a Trace,
    engines: Vec<Engine>,
    /// Engine profiles that the policies assume.
    assumed: Vec<Profile>,
    disturbance: Disturbance,
    jitter: Vec<Jitter>,
    /// Duration of each engine's current step.
    took: Vec<Seconds>,
    durations: Vec<StepDurations>,
    gaps: GapHistogram,
    preemptions: u64,
    /// Prefix cache of each engine; empty without prefix caching.
    caches: Vec<PrefixCache>,
    /// Time at which the shared link has completed its queued transfers.
    link_free_at: Moment,
    busy: Vec<bool>,
    /// Engines that may be able to begin a step after the current event.
    touched: Vec<usize>,
    requests: Vec<Progress>,
    /// Number of requests that neither ended nor were refused.
    open: usize,
    due: BinaryHeap<Reverse<(Moment, SimEvent)>>,
    now: Moment,
}

impl<'a> Cluster<'a> {
    pub(crate) fn new(trace: &'a Trace, config: &SimConfig) -> Cluster<'a> {
        let (fleet, disturbance) = (config.fleet(), config.disturbance);
        let engines = fleet.len();
        let count = trace.arrivals.len();
        let engine = |(index, profile)| disturbance.engine(profile, index);
        let mut cluster = Cluster {
            trace,
            engines: fleet.iter().enumerate().map(engine).collect(),
            assumed: config.assumed_fleet(),
            disturbance,
            jitter: (0..engines).map(Jitter::new).collect(),
            took: vec![Seconds::ZERO; engines],
            durations: vec![StepDurations::default(); engines],
            gaps: GapHistogram::default(),
            preemptions: 0,
            caches: match (config.prefix_caching, config.tidegate.kv_events) {
                (true, true) => vec![PrefixCache::with_events(); engines],
                (true, false) => vec![PrefixCache::default(); engines],
                (false, _) => Vec::new(),
            },
            link_free_at: Moment::START,
            busy: vec![false; engines],
            touched: Vec::with_capacity(engines),
            requests: vec![Progress::default(); count],
            open: count,
            due: BinaryHeap::new(),
            now: Moment::START,
        };
        cluster.expect_arrival(0);
        cluster
    }

    /// Runs until every request has ended or been refused, or until `deadline`.
    pub(crate) fn run(&mut self, router: &mut impl Router, deadline: Moment) {
        let mut events = Vec::new();
        while self.open > 0 {
            let Some(Reverse((at, event))) = self.due.pop() else { return };
            if at > deadline {
                return;
            }
            self.now = at;
            match event {
                SimEvent::Arrives { request } => {
                    self.expect_arrival(request + 1);
                    router.arrived(self, request);
                }
                SimEvent::StepEnds { engine } => {
                    self.busy[engine] = false;
                    self.touched.push(engine);
                    let continuing = self.engines[engine].continuing();
                    self.engines[engine].end_step_quietly(&mut events);
                    self.count_gaps(engine, continuing);
                    for event in events.drain(..) {
                        self.deliver(router, engine, event);
                    }
                    router.stepped(self, engine);
                }
                SimEvent::HandOffEnds { request, to } => {
                    let from = self.requests[request].from;
                    self.engines[from].release(SeqId(request as u64));
                    self.unpin(request, from);
                    // The freed memory may admit a waiting prompt.
                    self.touched.push(from);
                    self.admit(request, to, Work::DecodeOnly);
                }
                SimEvent::Migrated { request, from, to } => {
                    if self.move_stream(request, from, to) {
                        router.migrated(self, request, to);
                    }
                }
                SimEvent::Wakes => router.woken(self),
            }
            self.begin_steps();
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.now
    }

    /// Returns the engine profile that policies assume.
    pub(crate) fn profile(&self, engine: usize) -> &Profile {
        &self.assumed[engine]
    }

    /// Returns the prompt tokens that the engine has cached; at least one token is always computed.
    pub(crate) fn cached(&self, request: usize, engine: usize) -> Tokens {
        let Arrival { prompt, blocks, .. } = &self.trace.arrivals[request];
        let hit = self.caches.get(engine).map_or(Tokens::ZERO, |cache| cache.hit(blocks, *prompt));
        hit.min(*prompt - Tokens(1))
    }

    /// Returns the prompt tokens of a request that its prefill found in the prefix cache.
    pub(crate) fn hit(&self, request: usize) -> Tokens {
        self.requests[request].cached
    }

    /// Returns the number of blocks in the engine's prefix cache.
    pub(crate) fn cached_blocks(&self, engine: usize) -> usize {
        self.caches.get(engine).map_or(0, PrefixCache::len)
    }

    /// Returns the changes of each engine's prefix cache since the previous call.
    pub(crate) fn take_cache_changes(&mut self) -> impl Iterator<Item = (usize, Vec<CacheChange>)> {
        self.caches.iter_mut().map(PrefixCache::take_changes).enumerate()
    }

    /// Returns the share of all prompt tokens served from prefix caches; `None` without prefix
    /// caching.
    pub(crate) fn hit_rate(&self) -> Option<f64> {
        let sum = |of: &dyn Fn(usize) -> Tokens| {
            (0..self.requests.len()).map(|request| of(request).as_f64()).sum::<f64>()
        };
        let prompts = sum(&|request| self.trace.arrivals[request].prompt);
        let cached = sum(&|request| self.requests[request].cached);
        (!self.caches.is_empty()).then_some(cached / prompts.max(1.0))
    }

    /// Returns the distribution of the gaps between tokens.
    pub(crate) fn gaps(&self) -> &GapHistogram {
        &self.gaps
    }

    /// Returns the number of preemptions; `None` if engines do not preempt.
    pub(crate) fn preemptions(&self) -> Option<u64> {
        self.disturbance.preemption.then_some(self.preemptions)
    }

    pub(crate) fn engine(&self, engine: usize) -> &Engine {
        &self.engines[engine]
    }

    pub(crate) fn trace(&self) -> &'a Trace {
        self.trace
    }

    /// Admits a request's prefill leg, decode leg or colocated leg to an engine.
    pub(crate) fn admit(&mut self, request: usize, engine: usize, work: Work) {
        let Arrival { prompt, output, blocks, .. } = &self.trace.arrivals[request];
        let mut cached = Tokens::ZERO;
        if work == Work::DecodeOnly {
            self.pin(request, engine, *prompt);
        } else if let Some(cache) = self.caches.get_mut(engine) {
            let hit = cache.pin_hit(blocks, *prompt);
            cached = hit.min(*prompt - Tokens(1));
            (self.requests[request].cached, self.requests[request].pinned) = (cached, hit);
        }
        self.engines[engine].admit(Sequence {
            id: SeqId(request as u64),
            prompt: *prompt,
            cached,
            output: *output,
            work,
        });
        self.touched.push(engine);
    }

    /// Transfers a prefilled request's KV; decode begins after the transfer. Blocks that the target
    /// has cached are not transferred.
    pub(crate) fn hand_off(&mut self, request: usize, from: usize, to: usize) {
        self.requests[request].from = from;
        let prompt = self.trace.arrivals[request].prompt;
        let tokens = prompt - self.cached(request, to);
        let took = if from == to { Seconds::ZERO } else { self.transfer(from, tokens) };
        self.due.push(Reverse((self.now + took, SimEvent::HandOffEnds { request, to })));
    }

    /// Migrates a decoding stream with its KV. It continues to decode until the KV has been
    /// transferred.
    pub(crate) fn migrate(&mut self, request: usize, from: usize, to: usize) {
        let took = self.transfer(from, self.trace.arrivals[request].prompt);
        self.due.push(Reverse((self.now + took, SimEvent::Migrated { request, from, to })));
    }

    fn transfer(&mut self, from: usize, tokens: Tokens) -> Seconds {
        let profile = self.engines[from].profile();
        if !self.disturbance.shared_link {
            return profile.transfer(tokens);
        }
        let moving = profile.t_xfer * tokens.as_f64();
        self.link_free_at = self.link_free_at.max(self.now) + moving;
        self.link_free_at - self.now + profile.t_handoff
    }

    /// Moves a stream at the end of its transfer. Returns `false` if it has ended during the transfer.
    fn move_stream(&mut self, request: usize, from: usize, to: usize) -> bool {
        let id = SeqId(request as u64);
        let Some((kv, rest)) = self.engines[from].extract(id) else { return false };
        self.pause(request, from);
        self.unpin(request, from);
        self.pin(request, to, self.trace.arrivals[request].prompt);
        self.engines[to].admit(Sequence {
            id,
            prompt: kv,
            cached: Tokens::ZERO,
            output: rest,
            work: Work::DecodeOnly,
        });
        self.touched.extend([from, to]);
        true
    }

    /// Pins the KV of these leading prompt tokens in the engine's prefix cache.
    fn pin(&mut self, request: usize, engine: usize, tokens: Tokens) {
        if let Some(cache) = self.caches.get_mut(engine) {
            cache.pin(&self.trace.arrivals[request].blocks, tokens);
            self.requests[request].pinned = tokens;
            self.evict(engine);
        }
    }

    fn unpin(&mut self, request: usize, engine: usize) {
        if let Some(cache) = self.caches.get_mut(engine) {
            cache.unpin(&self.trace.arrivals[request].blocks, self.requests[request].pinned);
            self.evict(engine);
        }
    }

    fn evict(&mut self, engine: usize) {
        let (profile, used) = (self.engines[engine].profile(), self.engines[engine].kv_used());
        let free = Tokens(profile.kv_capacity.get().saturating_sub(used.get()));
        if let Some(cache) = self.caches.get_mut(engine) {
            cache.evict_beyond(free);
        }
    }

    /// Caches all blocks of the prompt that the engine has computed.
    fn computed(&mut self, request: usize, engine: usize) {
        let prompt = self.trace.arrivals[request].prompt;
        if !self.caches.is_empty() {
            let hit = self.requests[request].pinned;
            self.pin(request, engine, prompt);
            if let Some(cache) = self.caches.get_mut(engine) {
                cache.unpin(&self.trace.arrivals[request].blocks, hit);
            }
        }
    }

    pub(crate) fn refuse(&mut self, request: usize) {
        self.requests[request].refused = true;
        self.open -= 1;
    }

    /// Schedules a call of [`Router::woken`].
    pub(crate) fn wake_at(&mut self, at: Moment) {
        self.due.push(Reverse((at.max(self.now), SimEvent::Wakes)));
    }

    /// Returns the outcome of every request.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.trace
            .arrivals
            .iter()
            .zip(&self.requests)
            .map(|(arrival, progress)| {
                let gaps = arrival.output.get().saturating_sub(1);
                let span = progress.first.zip(progress.last).map(|(first, last)| last - first);
                let done = progress.last.is_some();
                let tokens = match (done, progress.first) {
                    (true, _) => arrival.output,
                    // Tokens of an unfinished answer are not counted individually.
                    (false, Some(_)) => Tokens(1),
                    (false, None) => Tokens::ZERO,
                };
                Outcome {
                    ttft: progress.first.map(|first| first - Moment::from_start(arrival.at)),
                    gap_max: (done && gaps > 0).then_some(progress.gap_max),
                    tpot: span.filter(|_| gaps > 0).map(|span| span / gaps as f64),
                    done,
                    error: progress.refused,
                    tokens,
                }
            })
            .collect()
    }

    fn expect_arrival(&mut self, request: usize) {
        if let Some(arrival) = self.trace.arrivals.get(request) {
            let at = Moment::from_start(arrival.at);
            self.due.push(Reverse((at, SimEvent::Arrives { request })));
        }
    }

    /// Counts the gaps of the engine's step that has just ended: one for each stream with an earlier
    /// token.
    fn count_gaps(&mut self, engine: usize, continuing: u64) {
        let (took, durations) = (self.took[engine], &mut self.durations[engine]);
        if continuing == 0 {
            durations.clear();
        }
        durations.add(self.engines[engine].steps(), took, self.now);
        self.gaps.add(took, continuing);
    }

    /// Includes the gaps of a stream that leaves the engine in its largest gap, and starts a pause until
    /// its next token.
    fn pause(&mut self, request: usize, engine: usize) {
        let (durations, progress) = (&self.durations[engine], &mut self.requests[request]);
        if progress.first.is_some() && progress.paused_at.is_none() {
            let longest = durations.longest_after(progress.gaps_from);
            progress.gap_max = progress.gap_max.max(longest);
            progress.paused_at = Some(durations.ended);
        }
    }

    /// Updates the largest gap of a stream that has emitted its first, its last or, after a pause,
    /// its next token.
    fn close_gaps(&mut self, request: usize, engine: usize, last: bool) {
        let progress = &mut self.requests[request];
        if let Some(paused) = progress.paused_at.take() {
            progress.gap_max = progress.gap_max.max(self.now - paused);
            self.gaps.add(self.now - paused, 1);
            progress.gaps_from = self.engines[engine].steps();
        }
        if last {
            let longest = self.durations[engine].longest_after(progress.gaps_from);
            progress.gap_max = progress.gap_max.max(longest);
        }
    }

    fn deliver(&mut self, router: &mut impl Router, engine: usize, event: Event) {
        match event {
            Event::PrefillDone { id } => {
                self.computed(id.0 as usize, engine);
                router.prefilled(self, id.0 as usize, engine);
            }
            Event::Token { id, last } => {
                let request = id.0 as usize;
                if self.requests[request].first.is_none() {
                    self.requests[request].first = Some(self.now);
                    self.requests[request].gaps_from = self.engines[engine].steps();
                    if self.requests[request].pinned < self.trace.arrivals[request].prompt {
                        self.computed(request, engine);
                    }
                    router.began(self, request, engine);
                }
                self.close_gaps(request, engine, last);
                if last {
                    self.requests[request].last = Some(self.now);
                    self.open -= 1;
                    self.unpin(request, engine);
                    router.ended(self, request, engine);
                }
            }
        }
    }

    fn begin_steps(&mut self) {
        while let Some(engine) = self.touched.pop() {
            if self.busy[engine] {
                continue;
            }
            let took = self.engines[engine].begin_step();
            for id in self.engines[engine].take_preempted() {
                self.preemptions += 1;
                self.pause(id.0 as usize, engine);
            }
            if let Some(took) = took {
                self.busy[engine] = true;
                let took = self.jitter[engine].step(&self.disturbance, took);
                self.took[engine] = took;
                self.due.push(Reverse((self.now + took, SimEvent::StepEnds { engine })));
            }
        }
    }
}
