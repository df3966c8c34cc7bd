//! Settlement of a request, on every path. The record is made on arrival and travels with the request;
//! its `Drop` settles the registry entry, the metrics, the access log and the events for the control
//! loop. The outcome is `ClientLeft` until a stage sets another one.

mod leg_notes;

pub use leg_notes::{LegNotes, RequestProgress};

use std::sync::Arc;
use tidegate_engine::{Usage, UsageRequest};
use tidegate_filters::Accepted;
use tidegate_scheduler::learn::{PrefillSample, Sample};
use tidegate_scheduler::placement::Considered;
use tidegate_types::{Moment, Seconds, Tokens};

use crate::backends::fleet::{Backend, InflightRequest};
use crate::dispatch::context::Proxy;
use crate::dispatch::prefilling::PrefillInProgress;
use crate::dispatch::reservation::Predicted;
use crate::dispatch::settings_in_force::SettingsInForce;
use crate::signals::FinishedLegs;
use crate::telemetry::access_log;
use crate::telemetry::request_log::{Expected, RequestLog, RequestOutcome};

/// A request from arrival to its end. Stages change it through its methods only.
pub struct RequestRecord {
    /// State shared by all requests.
    pub proxy: Arc<Proxy>,
    /// The request as the filters accepted it.
    pub accepted: Arc<Accepted>,
    /// The request's registry entry.
    pub live: Arc<InflightRequest>,
    outcome: RequestOutcome,
    /// Status sent to the client; 0 before one was sent.
    status: u16,
    notes: LegNotes,
    /// Reason of the failure.
    problem: Option<String>,
    /// Time at which the first leg was placed.
    placed_at: Option<Moment>,
    /// Usage reported by the engine.
    usage: Option<Usage>,
    /// The client's side of the request.
    client: ClientRequest,
}

/// Attributes of the client's request that shape its answer and its log.
pub struct ClientRequest {
    /// Number of choices in the answer.
    pub choices: u32,
    /// The usage that the client requested, where usage injection is in force.
    pub usage_request: Option<UsageRequest>,
    /// The subject of the client's certificate.
    pub subject: Option<Arc<str>>,
    /// The settings that were in force at its arrival.
    pub settings: Arc<SettingsInForce>,
}

impl RequestRecord {
    /// The record of a request that the filters have accepted.
    pub fn new(
        proxy: Arc<Proxy>,
        accepted: Arc<Accepted>,
        live: Arc<InflightRequest>,
        client: ClientRequest,
    ) -> RequestRecord {
        proxy.fleet.registry.insert(Arc::clone(&live));
        proxy.metrics.started();
        RequestRecord {
            proxy,
            accepted,
            live,
            outcome: RequestOutcome::ClientLeft,
            status: 0,
            notes: LegNotes::default(),
            problem: None,
            placed_at: None,
            usage: None,
            client,
        }
    }

    /// The writer for the request's legs.
    pub fn progress(&mut self) -> RequestProgress<'_> {
        RequestProgress::new(&self.accepted, &self.live, &mut self.notes)
    }

    /// Records an attempt: a leg was placed at `now`, chosen among `considered`.
    pub(crate) fn placed(&mut self, now: Moment, considered: Option<Box<[Considered]>>) {
        self.placed_at.get_or_insert(now);
        self.notes.attempts += 1;
        self.notes.considered = considered;
    }

    /// Replaces the notes by those of a hedge that won. The hedge is not a further attempt.
    pub(crate) fn adopt(&mut self, notes: LegNotes) {
        if let Some(on) = notes.decode_on() {
            self.live.decodes_on(on.id);
        }
        self.notes = LegNotes { attempts: self.notes.attempts, ..notes };
    }

    /// Records the status that the client receives.
    pub fn answered(&mut self, status: u16) {
        self.status = status;
    }

    /// Records the engine's usage; the last report counts.
    pub fn used(&mut self, usage: Option<Usage>) {
        self.usage = usage.or(self.usage);
    }

    /// Sets the outcome. The record settles when it is dropped.
    pub fn end(&mut self, outcome: RequestOutcome) {
        self.outcome = outcome;
    }

    /// Records the reason of a failure.
    pub fn explain(&mut self, problem: impl Into<String>) {
        self.problem = Some(problem.into());
    }

    /// Takes the prefill of a colocated leg whose stream began before its first token.
    pub fn take_prefilling(&mut self) -> Option<PrefillInProgress> {
        self.notes.prefilling.take()
    }

    /// Status sent to the client; 0 before one was sent.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Number of attempts so far.
    pub fn attempts(&self) -> u32 {
        self.notes.attempts
    }

    pub(crate) fn prefill_on(&self) -> Option<&Arc<Backend>> {
        self.notes.prefill_on.as_ref()
    }

    /// Cached tokens that the prefill engine of a disaggregated request reported.
    pub fn cached(&self) -> Option<Tokens> {
        self.notes.cached
    }

    /// Attributes of the client's request that shape its answer and its log.
    pub fn client(&self) -> &ClientRequest {
        &self.client
    }

    /// The settings that were in force at the request's arrival.
    pub fn settings(&self) -> &SettingsInForce {
        &self.client.settings
    }

    /// Whether the client drives hand-offs itself, so that it receives their parameters.
    pub fn trusts_client(&self) -> bool {
        self.accepted.scan.as_ref().is_some_and(|scan| scan.client_handoff)
    }

    /// Time from arrival to the placement of the first leg.
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

    /// The values for metrics and the access log of a request that ends at `now`.
    fn log(&self, now: Moment) -> RequestLog<'_> {
        let LegNotes { attempts, predicted, prefill_on, decode_on, split, .. } = &self.notes;
        let queued = self.queued();
        let expected = |p: &Predicted| queued.map(|queued| queued + p.ahead + p.prefill);
        RequestLog {
            accepted: &self.accepted,
            live: &self.live,
            class: &self.client.settings.classes.class(self.live.targets.class).name,
            subject: self.client.subject.as_deref(),
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

    fn finished_legs(&self) -> FinishedLegs<'_> {
        FinishedLegs {
            prefill_on: self.notes.prefill_on.as_deref(),
            decode_on: self.notes.decode_on.as_deref(),
            first_token: self.live.first_at(),
            predicted_hit: self.notes.predicted.map(|predicted| predicted.predicted_hit),
            prefill_usage: self.notes.prefill_usage,
            usage: self.usage,
        }
    }

    /// Sends the samples of a complete answer to the control loop.
    fn report_samples(&self) {
        let generated = self.accepted.endpoint.generates() && self.outcome == RequestOutcome::Done;
        if !generated {
            return;
        }
        if let (Some(prefill), Some(usage)) = (self.notes.whole, self.usage) {
            let prefill = PrefillSample { reported_hit: usage.cached, ..prefill };
            self.proxy.report(Sample::Colocated { prefill, output: usage.completion });
        }
        let scan = self.accepted.scan.as_ref();
        self.proxy.report(Sample::Finished {
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
        let considered = self.notes.considered.take().unwrap_or_default();
        let backends = self.proxy.fleet.backends();
        let named = |seen: &Considered| (backends[seen.on.index()].name.clone(), *seen);
        let considered = considered.iter().map(named).collect();
        let log = self.log(now);
        self.proxy.metrics.settled(&log);
        access_log::write(&log);
        self.proxy.arrivals.note(&log);
        #[cfg(feature = "otlp")]
        if let Some(spans) = &self.proxy.spans {
            spans.request_ended(&log, &self.accepted, now);
        }
        let reported_hit = self.usage.and_then(|usage| usage.cached);
        self.proxy.recent.push(&log, considered, reported_hit);
        if self.accepted.endpoint.generates()
            && let Some(sample) = self.proxy.signals.request_ended(&self.finished_legs())
        {
            self.proxy.report(sample);
        }
        self.report_samples();
    }
}
