//! Engines in virtual time, and the requests of a trace on them. It moves time and nothing else:
//! where a request goes is a [`Router`]'s business. Events of one instant come in a fixed order, so
//! equal inputs give equal runs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use tidegate_types::{Moment, Seconds, Tokens};

use crate::engine::{Engine, Event, SeqId, Sequence, Work};
use crate::profile::Profile;
use crate::report::Outcome;
use crate::trace::Trace;

/// A policy at work: it hears what happens and sends requests to engines.
pub(crate) trait Router {
    /// A request came.
    fn arrived(&mut self, cluster: &mut Cluster<'_>, request: usize);
    /// A request's prefill leg ended on `engine`, which keeps the KV.
    fn prefilled(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize);
    /// A request's first token came.
    fn began(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize);
    /// A request's last token came.
    fn ended(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize);
    /// An engine's step ended; its events were told.
    fn stepped(&mut self, _cluster: &mut Cluster<'_>, _engine: usize) {}
    /// A moment asked for with [`Cluster::wake_at`] has come.
    fn woken(&mut self, _cluster: &mut Cluster<'_>) {}
}

/// The order of these is the order of what happens at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    StepEnds { engine: usize },
    HandedOver { request: usize, to: usize },
    Arrives { request: usize },
    Wakes,
}

/// What is known of a request's tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    first: Option<Moment>,
    last: Option<Moment>,
    /// The request was refused.
    refused: bool,
    /// Where its KV is while it is handed over.
    from: usize,
}

/// The engines and the requests.
pub(crate) struct Cluster<'a> {
    trace: &'a Trace,
    engines: Vec<Engine>,
    busy: Vec<bool>,
    /// Engines that may have something to begin once this happening is dealt with.
    touched: Vec<usize>,
    requests: Vec<Progress>,
    /// Requests that neither ended nor were refused.
    open: usize,
    due: BinaryHeap<Reverse<(Moment, Happening)>>,
    now: Moment,
}

impl<'a> Cluster<'a> {
    pub(crate) fn new(trace: &'a Trace, fleet: &[Profile]) -> Cluster<'a> {
        let engines = fleet.len();
        let count = trace.arrivals.len();
        let mut cluster = Cluster {
            trace,
            engines: fleet.iter().map(|profile| Engine::new(*profile)).collect(),
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

    /// Run until every request has ended or been refused, or until `deadline`.
    pub(crate) fn run(&mut self, router: &mut impl Router, deadline: Moment) {
        let mut events = Vec::new();
        while self.open > 0 {
            let Some(Reverse((at, happening))) = self.due.pop() else { return };
            if at > deadline {
                return;
            }
            self.now = at;
            match happening {
                Happening::Arrives { request } => {
                    self.expect_arrival(request + 1);
                    router.arrived(self, request);
                }
                Happening::StepEnds { engine } => {
                    self.busy[engine] = false;
                    self.touched.push(engine);
                    self.engines[engine].end_step_quietly(&mut events);
                    for event in events.drain(..) {
                        self.tell(router, engine, event);
                    }
                    router.stepped(self, engine);
                }
                Happening::HandedOver { request, to } => {
                    let from = self.requests[request].from;
                    self.engines[from].release(SeqId(request as u64));
                    // Room for a prompt that waits for memory.
                    self.touched.push(from);
                    self.admit(request, to, Work::DecodeOnly, Tokens::ZERO);
                }
                Happening::Wakes => router.woken(self),
            }
            self.begin_steps();
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.now
    }

    pub(crate) fn profile(&self, engine: usize) -> &Profile {
        self.engines[engine].profile()
    }

    pub(crate) fn engine(&self, engine: usize) -> &Engine {
        &self.engines[engine]
    }

    pub(crate) fn trace(&self) -> &'a Trace {
        self.trace
    }

    /// Give an engine a request's prefill leg, or all of it.
    pub(crate) fn admit(&mut self, request: usize, engine: usize, work: Work, cached: Tokens) {
        let arrival = &self.trace.arrivals[request];
        self.engines[engine].admit(Sequence {
            id: SeqId(request as u64),
            prompt: arrival.prompt,
            cached,
            output: arrival.output,
            work,
        });
        self.touched.push(engine);
    }

    /// Move a prefilled request's KV; it decodes once it is there. It stays for no time at all.
    pub(crate) fn hand_over(&mut self, request: usize, from: usize, to: usize) {
        self.requests[request].from = from;
        let took = match from == to {
            true => Seconds::ZERO,
            false => self.profile(from).transfer(self.trace.arrivals[request].prompt),
        };
        self.due.push(Reverse((self.now + took, Happening::HandedOver { request, to })));
    }

    /// A request is not served.
    pub(crate) fn refuse(&mut self, request: usize) {
        self.requests[request].refused = true;
        self.open -= 1;
    }

    /// Call [`Router::woken`] then.
    pub(crate) fn wake_at(&mut self, at: Moment) {
        self.due.push(Reverse((at.max(self.now), Happening::Wakes)));
    }

    /// What has come of every request.
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
                    // What came of an unfinished answer is not counted one by one.
                    (false, Some(_)) => Tokens(1),
                    (false, None) => Tokens::ZERO,
                };
                Outcome {
                    ttft: progress.first.map(|first| first - Moment::from_start(arrival.at)),
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
            self.due.push(Reverse((at, Happening::Arrives { request })));
        }
    }

    fn tell(&mut self, router: &mut impl Router, engine: usize, event: Event) {
        match event {
            Event::PrefillDone { id } => router.prefilled(self, id.0 as usize, engine),
            Event::Token { id, last } => {
                let request = id.0 as usize;
                if self.requests[request].first.is_none() {
                    self.requests[request].first = Some(self.now);
                    router.began(self, request, engine);
                }
                if last {
                    self.requests[request].last = Some(self.now);
                    self.open -= 1;
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
            if let Some(took) = self.engines[engine].begin_step() {
                self.busy[engine] = true;
                self.due.push(Reverse((self.now + took, Happening::StepEnds { engine })));
            }
        }
    }
}
