//! The end of a request, on every path. The record is made on arrival and travels with the
//! request; its `Drop` alone settles the registry entry, the metrics, the access log and the
//! observations for the control loop. A drop without a declared end means that the client left.

use std::sync::Arc;
use tidegate_engine::{Usage, UsageRequest};
use tidegate_filters::Accepted;
use tidegate_scheduler::placement::Considered;
use tidegate_types::{Moment, Seconds, Tokens};

use crate::backends::fleet::{Backend, InflightRequest};
use crate::dispatch::context::Proxy;
use crate::dispatch::place::Predicted;
use crate::dispatch::prefilling::Prefilling;
use crate::telemetry::access_log;
use crate::telemetry::control_events::{ControlEvent, PrefillSample};
use crate::telemetry::request_log::{Expected, RequestLog, RequestOutcome};

/// A request from arrival to its end.
pub struct RequestRecord {
    /// What all requests share.
    pub proxy: Arc<Proxy>,
    /// What it is.
    pub accepted: Arc<Accepted>,
    /// Its entry in the registry.
    pub live: Arc<InflightRequest>,
    /// Outcome so far.
    pub outcome: RequestOutcome,
    /// Status sent to the client; 0 before one was sent.
    pub status: u16,
    /// What its legs noted.
    pub notes: Notes,
    /// Reason of the failure.
    pub problem: Option<String>,
    /// Time at which its first leg was placed.
    pub placed_at: Option<Moment>,
    /// Usage reported by the engine.
    pub usage: Option<Usage>,
    /// Number of choices in its answer.
    pub choices: u32,
    /// The usages that the client wished for, if the engine counts every chunk.
    pub usage_request: Option<UsageRequest>,
    /// The subject of the client's certificate.
    pub subject: Option<Arc<str>>,
}

/// What a request's legs note of their course.
#[derive(Default)]
pub struct Notes {
    /// Backends tried.
    pub attempts: u32,
    /// Placement's prediction for its first leg.
    pub predicted: Option<Predicted>,
    /// Backend of its prefill leg.
    pub prefill_on: Option<Arc<Backend>>,
    /// Backend of its decode or colocated leg.
    pub decode_on: Option<Arc<Backend>>,
    /// Cached tokens that the prefill engine reported, for a disaggregated request.
    pub cached: Option<Tokens>,
    /// What the prefill engine of a split request counted.
    pub prefill_usage: Option<Usage>,
    /// The prompt of an answer that was not streamed, and how long all of it took.
    pub whole: Option<PrefillSample>,
    /// Its whole leg's prefill, if its stream began before a token.
    pub prefilling: Option<Prefilling>,
    /// The candidates of the last placement.
    pub considered: Option<Box<[Considered]>>,
    /// Whether prefill and decode ran on two engines.
    pub split: bool,
    /// End of the prefill leg of a split request.
    pub prefilled_at: Option<Moment>,
    /// Predicted decode step of the engine that decodes, with this request in it.
    pub step: Option<Seconds>,
}

/// Where a leg writes its notes: on the request's record, or beside it where a second leg runs.
pub struct Course<'a> {
    pub(crate) accepted: &'a Accepted,
    pub(crate) live: &'a InflightRequest,
    pub(crate) notes: &'a mut Notes,
}

impl RequestRecord {
    /// To be written by the request's legs.
    pub fn course(&mut self) -> Course<'_> {
        Course { accepted: &self.accepted, live: &self.live, notes: &mut self.notes }
    }

    /// A request that a filter has let in.
    pub fn new(
        proxy: Arc<Proxy>,
        accepted: Arc<Accepted>,
        live: Arc<InflightRequest>,
    ) -> RequestRecord {
        proxy.fleet.registry.insert(Arc::clone(&live));
        proxy.metrics.started();
        RequestRecord {
            proxy,
            accepted,
            live,
            outcome: RequestOutcome::ClientLeft,
            status: 0,
            notes: Notes::default(),
            problem: None,
            placed_at: None,
            usage: None,
            choices: 1,
            usage_request: None,
            subject: None,
        }
    }

    /// Whether the client drives hand-offs itself, so that it receives their parameters.
    pub fn trusts_client(&self) -> bool {
        self.accepted.scan.as_ref().is_some_and(|scan| scan.client_handoff)
    }

    /// How long it waited for its first leg.
    pub fn queued(&self) -> Option<Seconds> {
        self.placed_at.map(|placed| placed - self.live.arrived)
    }

    /// Time to first token.
    pub fn ttft(&self) -> Option<Seconds> {
        self.live.first_at().map(|first| first - self.live.arrived)
    }

    /// Mean time per output token after the first.
    pub fn tpot(&self) -> Option<Seconds> {
        let (first, last) = (self.live.first_at()?, self.live.last_at()?);
        let gaps = self.live.emitted().get().checked_sub(1)?;
        (gaps > 0).then(|| (last - first) / gaps as f64)
    }

    /// Output tokens: the engine's count if it gave one, else the chunks seen.
    pub fn output(&self) -> Tokens {
        self.usage.map_or(self.live.emitted(), |usage| usage.completion)
    }

    /// What metrics and the access log read of a request that ends at `now`.
    fn log(&self, now: Moment) -> RequestLog<'_> {
        let Notes { attempts, predicted, prefill_on, decode_on, split, .. } = &self.notes;
        let queued = self.queued();
        let expected = |p: &Predicted| queued.map(|queued| queued + p.ahead + p.prefill);
        RequestLog {
            accepted: &self.accepted,
            live: &self.live,
            subject: self.subject.as_deref(),
            status: self.status,
            outcome: self.outcome,
            problem: self.problem.as_deref(),
            attempts: *attempts,
            prefill_on: prefill_on.as_deref(),
            decode_on: decode_on.as_deref(),
            prompt: self.usage.map_or(self.live.prompt, |usage| usage.prompt),
            cached: predicted.map(|predicted| predicted.cached),
            output: self.output(),
            queued,
            prefilled: self.notes.prefilled_at.map(|at| at - self.live.arrived),
            split: *split,
            predicted: predicted.as_ref().map(|p| Expected {
                backlog: p.ahead,
                prefill: p.prefill,
                cached: p.cached,
                tpot: self.notes.step,
            }),
            expected_ttft: predicted.as_ref().and_then(expected),
            ttft: self.ttft(),
            tpot: self.tpot(),
            duration: now - self.live.arrived,
        }
    }

    fn learn(&self) {
        let generated = self.accepted.endpoint.generates() && self.outcome == RequestOutcome::Done;
        if !generated {
            return;
        }
        if let (Some(read), Some(usage)) = (self.notes.whole, self.usage) {
            let read = PrefillSample { reported_hit: usage.cached, ..read };
            self.proxy.report(ControlEvent::Whole { read, output: usage.completion });
        }
        let scan = self.accepted.scan.as_ref();
        self.proxy.report(ControlEvent::Finished {
            max_tokens: scan.and_then(|scan| scan.max_tokens),
            counted: self.live.prompt,
            output: self.output(),
            prompt: self.usage.map(|usage| usage.prompt),
            features: self.accepted.prompt.features,
        });
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let now = self.proxy.clock.now();
        self.proxy.fleet.registry.remove(self.live.id);
        let considered = self.notes.considered.take();
        let log = self.log(now);
        self.proxy.metrics.settled(&log);
        access_log::write(&log);
        self.proxy.arrivals.note(&log);
        let told = self.usage.and_then(|usage| usage.cached);
        self.proxy.recent.push(&log, considered, told);
        if self.accepted.endpoint.generates() {
            self.proxy.signals.settled(self);
        }
        self.learn();
    }
}
