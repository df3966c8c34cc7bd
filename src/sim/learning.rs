//! The scheduler's online regressions in the policy `tidegate`. They start from the assumed costs and
//! receive the same observations at the same events as in the proxy.

use std::collections::BTreeMap;
use tidegate_scheduler::cost::OutputEstimate;
use tidegate_scheduler::dispatch::Predicted;
use tidegate_scheduler::inflight::Balance;
use tidegate_scheduler::learn::{
    CostRegressions, Estimates, HandOffSample, PUBLISH_EVERY, PrefillSample, Priors, Sample,
};
use tidegate_types::{BackendId, GroupId, Moment, Tokens};

use crate::fleet_state::FleetState;
use crate::profile::Profile;
use crate::trace::Arrival;

/// The group of all engines.
const GROUP: GroupId = GroupId(0);

/// The regressions and the requests that they will observe.
pub(crate) struct Learning {
    regressions: CostRegressions,
    /// The length estimates as last published.
    estimates: Estimates,
    /// Whether engines report the cached tokens of each request, as vLLM does with
    /// `--enable-prompt-tokens-details`.
    reports_cached: bool,
    /// By request: the prefill in progress.
    prefills: BTreeMap<usize, PendingPrefill>,
    /// By request: the decode leg whose first token is due.
    hand_offs: BTreeMap<usize, PendingHandOff>,
    /// By request: where it was prefilled, and the predicted hit there.
    predicted_hits: BTreeMap<usize, (BackendId, Tokens)>,
    published_at: Moment,
}

#[derive(Clone, Copy, Debug)]
struct PendingPrefill {
    on: BackendId,
    sent: Moment,
    predicted: Predicted,
}

#[derive(Clone, Copy, Debug)]
struct PendingHandOff {
    on: BackendId,
    tokens: Tokens,
    sent: Moment,
    /// The engine's account with the request's own stream.
    balance: Balance,
}

impl Learning {
    /// Returns regressions that start from the costs of `assumed`.
    pub(crate) fn new(assumed: &[Profile], chunk: Tokens, reports_cached: bool) -> Learning {
        let priors = assumed.iter().map(|profile| Priors {
            prefill: profile.prefill_model(),
            decode: profile.decode_model(),
        });
        let mut regressions = CostRegressions::new(priors.collect(), Estimates::default(), chunk);
        regressions.regroup(assumed.iter().map(|_| GROUP));
        Learning {
            regressions,
            estimates: Estimates::default(),
            reports_cached,
            prefills: BTreeMap::new(),
            hand_offs: BTreeMap::new(),
            predicted_hits: BTreeMap::new(),
            published_at: Moment::START,
        }
    }

    /// Returns the published estimate of answer lengths.
    pub(crate) fn output(&self) -> &OutputEstimate {
        &self.estimates.output
    }

    /// Records that a first leg was sent.
    pub(crate) fn prefill_sent(
        &mut self,
        request: usize,
        on: BackendId,
        predicted: Predicted,
        sent: Moment,
    ) {
        self.prefills.insert(request, PendingPrefill { on, sent, predicted });
        if self.reports_cached {
            self.predicted_hits.insert(request, (on, predicted.predicted_hit));
        }
    }

    /// Observes the end of a prefill leg, whose answer reports `cached` tokens.
    pub(crate) fn prefilled(
        &mut self,
        request: usize,
        prompt: Tokens,
        cached: Tokens,
        now: Moment,
    ) {
        self.observe_prefill(request, prompt, Some(cached).filter(|_| self.reports_cached), now);
    }

    /// Records that a decode leg was sent to an engine that lacks `tokens` of the prompt.
    pub(crate) fn decode_sent(
        &mut self,
        request: usize,
        on: BackendId,
        tokens: Tokens,
        fleet_state: &FleetState,
        sent: Moment,
    ) {
        let balance = fleet_state.balance(on);
        self.hand_offs.insert(request, PendingHandOff { on, tokens, sent, balance });
    }

    /// Observes the first token of a request: the end of its hand-off, or of its prefill if it is
    /// colocated. The usage of a streamed answer comes with its end.
    pub(crate) fn began(&mut self, request: usize, prompt: Tokens, now: Moment) {
        let Some(PendingHandOff { on, tokens, sent, balance }) = self.hand_offs.remove(&request)
        else {
            return self.observe_prefill(request, prompt, None, now);
        };
        let sample = HandOffSample {
            backend: on,
            tokens,
            took: now - sent,
            streams: balance.streams,
            kv: balance.kv,
            prefilling: balance.prefill_legs > 0,
        };
        self.regressions.observe(Sample::HandOff(sample), now);
    }

    /// Observes the end of an answer, whose usage reports `cached` tokens.
    pub(crate) fn ended(
        &mut self,
        request: usize,
        max_tokens: Option<Tokens>,
        arrival: &Arrival,
        cached: Tokens,
        now: Moment,
    ) {
        if let Some((backend, predicted_hit)) = self.predicted_hits.remove(&request) {
            self.regressions.observe(Sample::Hit { backend, predicted_hit, cached }, now);
        }
        let finished = Sample::Finished {
            max_tokens,
            counted: arrival.prompt,
            output: arrival.output,
            prompt: Some(arrival.prompt),
            features: None,
        };
        self.regressions.observe(finished, now);
    }

    /// Ends the observation of steps that no further prompt can belong to, samples decode work and
    /// gives `fleet_state` the share of predicted hits that is real.
    pub(crate) fn settle(&mut self, fleet_state: &mut FleetState, now: Moment) {
        self.regressions.end_steps(now);
        self.regressions.sample_decodes(fleet_state.balances(), now);
        for on in fleet_state.engines() {
            fleet_state.set_hit_share(on, self.regressions.hit_share(on).0);
        }
    }

    /// Gives `fleet_state` the learned models, once per [`PUBLISH_EVERY`].
    pub(crate) fn publish(&mut self, fleet_state: &mut FleetState, now: Moment) {
        if now - self.published_at < PUBLISH_EVERY {
            return;
        }
        self.published_at = now;
        self.estimates = self.regressions.estimates().clone();
        let costs = self.regressions.costs(&vec![GROUP; fleet_state.engines().count()]);
        for (on, (prefill, decode)) in fleet_state.engines().zip(costs) {
            fleet_state.set_costs(on, prefill, decode, self.regressions.transfer(GROUP));
        }
    }

    fn observe_prefill(
        &mut self,
        request: usize,
        prompt: Tokens,
        reported_hit: Option<Tokens>,
        now: Moment,
    ) {
        let Some(pending) = self.prefills.remove(&request) else { return };
        let sample = PrefillSample {
            backend: pending.on,
            prompt,
            predicted_hit: pending.predicted.predicted_hit,
            reported_hit,
            sent: pending.sent,
            ended: now,
            beside: pending.predicted.beside,
        };
        self.regressions.observe(Sample::Prefill(sample), now);
    }
}
