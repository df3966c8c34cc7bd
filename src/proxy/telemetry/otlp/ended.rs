//! What has ended, as the queue holds it, and the spans of it. The times of a request's spans are those
//! that its access log has.

use std::sync::Arc;
use tidegate_engine::Endpoint;
use tidegate_filters::{Accepted, Traceparent};
use tidegate_types::{Moment, Role, Seconds, Tokens};

use super::encode::{OtlpSpan, SpanAttribute, SpanKind, SpanStatus};
use crate::backends::fleet::InflightRequest;
use crate::runtime::clock::Clock;
use crate::telemetry::journal::JournalEntry;
use crate::telemetry::request_log::{RequestLog, RequestOutcome};

/// An entry of the queue.
pub(crate) enum EndedWork {
    /// A request whose trace is sampled.
    Request(Box<TracedRequest>),
    /// A role change.
    Flip(Box<EndedFlip>),
}

/// Values of a request that has ended.
pub(crate) struct TracedRequest {
    live: Arc<InflightRequest>,
    traceparent: Traceparent,
    endpoint: Endpoint,
    status: u16,
    outcome: RequestOutcome,
    problem: Option<Box<str>>,
    attempts: u32,
    prefill_on: Option<Arc<str>>,
    decode_on: Option<Arc<str>>,
    prompt: Tokens,
    cached: Option<Tokens>,
    output: Tokens,
    phases: Vec<Phase>,
    ended: Moment,
}

/// A part of a request.
#[derive(Clone, Debug, PartialEq)]
struct Phase {
    kind: PhaseKind,
    start: Moment,
    end: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PhaseKind {
    Queue,
    Prefill,
    HandOff,
    Decode,
}

impl PhaseKind {
    /// The name of its span.
    const fn as_str(self) -> &'static str {
        match self {
            PhaseKind::Queue => "queue",
            PhaseKind::Prefill => "prefill",
            PhaseKind::HandOff => "hand_off",
            PhaseKind::Decode => "decode",
        }
    }
}

/// A role change that has ended.
pub(crate) struct EndedFlip {
    backend: String,
    from: Role,
    to: Role,
    cause: &'static str,
    result: &'static str,
    reason: String,
    plan: u64,
    /// Beginning and end in seconds since 1970.
    times: (f64, f64),
}

/// Times of a request, from which its phases follow.
#[derive(Clone, Copy, Debug)]
struct Times {
    arrived: Moment,
    placed: Option<Moment>,
    /// End of the prefill leg of a disaggregated request.
    prefilled: Option<Moment>,
    first: Option<Moment>,
    ended: Moment,
    /// Whether prefill and decode ran on two engines.
    split: bool,
}

impl Times {
    /// The phases in order; each begins where the one before it ends. Answers without a stream show no
    /// first token of their own: their engine's part is one `prefill` or `decode`.
    fn phases(self) -> Vec<Phase> {
        let Times { arrived, placed, prefilled, first, ended, split } = self;
        let mut phases = Vec::with_capacity(4);
        let mut begin = arrived;
        let mut until = |kind, end: Moment| {
            let end = end.clamp(begin, ended.max(begin));
            phases.push(Phase { kind, start: begin, end });
            begin = end;
        };
        let Some(placed) = placed else {
            until(PhaseKind::Queue, ended);
            return phases;
        };
        until(PhaseKind::Queue, placed);
        match (split, prefilled, first) {
            (true, Some(prefilled), Some(first)) => {
                until(PhaseKind::Prefill, prefilled);
                until(PhaseKind::HandOff, first);
                until(PhaseKind::Decode, ended);
            }
            (true, Some(prefilled), None) => {
                until(PhaseKind::Prefill, prefilled);
                until(PhaseKind::HandOff, ended);
            }
            // Colocated, or both legs at once (SGLang): the hand-off is within the prefill.
            (_, _, Some(first)) => {
                until(PhaseKind::Prefill, first);
                until(PhaseKind::Decode, ended);
            }
            (_, _, None) => until(PhaseKind::Prefill, ended),
        }
        phases
    }
}

impl EndedWork {
    /// Number of its spans.
    pub(crate) fn spans(&self) -> usize {
        match self {
            EndedWork::Request(request) => 1 + request.phases.len(),
            EndedWork::Flip(_) => 1,
        }
    }

    /// Makes its spans. `id` returns random bits.
    pub(crate) fn visit(
        &self,
        clock: Clock,
        id: &mut dyn FnMut() -> u64,
        see: &mut dyn FnMut(&OtlpSpan<'_>),
    ) {
        match self {
            EndedWork::Request(request) => request.visit(clock, id, see),
            EndedWork::Flip(flip) => flip.visit(id, see),
        }
    }
}

impl TracedRequest {
    pub(super) fn new(
        log: &RequestLog<'_>,
        accepted: &Arc<Accepted>,
        now: Moment,
    ) -> TracedRequest {
        let arrived = log.live.arrived;
        let at = |after: Option<Seconds>| after.map(|after| arrived + after);
        let times = Times {
            arrived,
            placed: at(log.queued),
            prefilled: at(log.prefilled),
            first: log.live.first_at(),
            ended: now,
            split: log.split,
        };
        TracedRequest {
            live: Arc::clone(log.live),
            traceparent: accepted.traceparent.clone(),
            endpoint: accepted.endpoint,
            status: log.status,
            outcome: log.outcome,
            problem: log.problem.map(Into::into),
            attempts: log.attempts,
            prefill_on: log.prefill_on.map(|backend| Arc::clone(&backend.name)),
            decode_on: log.decode_on.map(|backend| Arc::clone(&backend.name)),
            prompt: log.prompt,
            cached: log.cached,
            output: log.output,
            phases: times.phases(),
            ended: now,
        }
    }

    fn visit(&self, clock: Clock, id: &mut dyn FnMut() -> u64, see: &mut dyn FnMut(&OtlpSpan<'_>)) {
        let trace = self.traceparent.trace_id();
        let parent = self.traceparent.parent().map(|parent| format!("{parent:016x}"));
        let operation = self.endpoint.as_str();
        let name = match &self.live.model {
            Some(model) => format!("{operation} {model}"),
            None => operation.to_owned(),
        };
        see(&OtlpSpan {
            trace,
            id: self.traceparent.span_id(),
            parent: parent.as_deref(),
            name: &name,
            kind: SpanKind::Server,
            start: clock.wall_nanos(self.live.arrived),
            end: clock.wall_nanos(self.ended),
            attributes: self.attributes(),
            status: self.error(),
        });
        for phase in &self.phases {
            let (kind, on) = match phase.kind {
                PhaseKind::Queue => (SpanKind::Internal, None),
                PhaseKind::Prefill => {
                    (SpanKind::Client, self.prefill_on.as_ref().or(self.decode_on.as_ref()))
                }
                PhaseKind::HandOff => (SpanKind::Internal, self.decode_on.as_ref()),
                PhaseKind::Decode => (SpanKind::Client, self.decode_on.as_ref()),
            };
            let on = on.map(|backend| SpanAttribute::text("tidegate.backend", backend));
            see(&OtlpSpan {
                trace,
                id: &format!("{:016x}", id().max(1)),
                parent: Some(self.traceparent.span_id()),
                name: phase.kind.as_str(),
                kind,
                start: clock.wall_nanos(phase.start),
                end: clock.wall_nanos(phase.end),
                attributes: on.into_iter().collect(),
                status: None,
            });
        }
    }

    fn attributes(&self) -> Vec<SpanAttribute<'_>> {
        let mut all = vec![
            SpanAttribute::text("gen_ai.operation.name", self.endpoint.as_str()),
            SpanAttribute::text("tidegate.request_id", &self.live.name),
            SpanAttribute::text("tidegate.outcome", self.outcome.as_str()),
            SpanAttribute::number("tidegate.attempts", u64::from(self.attempts)),
            SpanAttribute::number("gen_ai.usage.input_tokens", self.prompt.get()),
            SpanAttribute::number("gen_ai.usage.output_tokens", self.output.get()),
        ];
        let model = self.live.model.as_deref();
        all.extend(model.map(|model| SpanAttribute::text("gen_ai.request.model", model)));
        let status = Some(self.status).filter(|status| *status > 0);
        all.extend(
            status.map(|status| SpanAttribute::number("http.response.status_code", status.into())),
        );
        let cached = self.cached.map(Tokens::get);
        all.extend(
            cached.map(|cached| SpanAttribute::number("tidegate.predicted_cached_tokens", cached)),
        );
        all
    }

    /// The status of a request that failed. A client that leaves is no error of the server.
    fn error(&self) -> Option<SpanStatus<'_>> {
        let failed = matches!(self.outcome, RequestOutcome::Failed | RequestOutcome::Cut);
        failed.then(|| SpanStatus { message: self.problem.as_deref().unwrap_or_default() })
    }
}

impl EndedFlip {
    pub(super) fn new(entry: &JournalEntry, start: f64) -> EndedFlip {
        EndedFlip {
            backend: entry.backend.clone(),
            from: entry.from,
            to: entry.to,
            cause: entry.cause,
            result: entry.result,
            reason: entry.reason.clone(),
            plan: entry.plan.0,
            times: (start.min(entry.at), entry.at),
        }
    }

    fn visit(&self, id: &mut dyn FnMut() -> u64, see: &mut dyn FnMut(&OtlpSpan<'_>)) {
        let failed = matches!(self.result, "restored" | "quarantined");
        let nanos = |seconds: f64| (seconds * 1e9) as u64;
        see(&OtlpSpan {
            trace: &format!("{:016x}{:016x}", id(), id().max(1)),
            id: &format!("{:016x}", id().max(1)),
            parent: None,
            name: "flip",
            kind: SpanKind::Internal,
            start: nanos(self.times.0),
            end: nanos(self.times.1),
            attributes: vec![
                SpanAttribute::text("tidegate.backend", &self.backend),
                SpanAttribute::text("tidegate.from", self.from.as_str()),
                SpanAttribute::text("tidegate.to", self.to.as_str()),
                SpanAttribute::text("tidegate.cause", self.cause),
                SpanAttribute::text("tidegate.result", self.result),
                SpanAttribute::text("tidegate.reason", &self.reason),
                SpanAttribute::number("tidegate.plan", self.plan),
            ],
            status: failed.then_some(SpanStatus { message: &self.reason }),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases(split: bool, marks: [Option<u64>; 3]) -> Vec<(&'static str, u64, u64)> {
        let [placed, prefilled, first] = marks.map(|mark| mark.map(Moment));
        let times =
            Times { arrived: Moment(10), placed, prefilled, first, ended: Moment(100), split };
        times
            .phases()
            .into_iter()
            .map(|phase| (phase.kind.as_str(), phase.start.0, phase.end.0))
            .collect()
    }

    #[test]
    fn phases_follow_each_other_without_gaps() {
        assert_eq!(phases(false, [None; 3]), [("queue", 10, 100)]);
        let colocated = [("queue", 10, 20), ("prefill", 20, 50), ("decode", 50, 100)];
        assert_eq!(phases(false, [Some(20), None, Some(50)]), colocated);
        assert_eq!(phases(true, [Some(20), None, Some(50)]), colocated, "both legs at once");
        let split =
            [("queue", 10, 20), ("prefill", 20, 40), ("hand_off", 40, 50), ("decode", 50, 100)];
        assert_eq!(phases(true, [Some(20), Some(40), Some(50)]), split);
        let failed = [("queue", 10, 20), ("prefill", 20, 40), ("hand_off", 40, 100)];
        assert_eq!(phases(true, [Some(20), Some(40), None]), failed);
        assert_eq!(
            phases(false, [Some(20), None, None]),
            [("queue", 10, 20), ("prefill", 20, 100)]
        );
        // A mark of an earlier attempt, or one after the end, moves no phase out of the request.
        let odd = phases(true, [Some(60), Some(40), Some(200)]);
        assert_eq!(
            odd,
            [("queue", 10, 60), ("prefill", 60, 60), ("hand_off", 60, 100), ("decode", 100, 100)]
        );
    }
}
