//! `/v1/requests?ended=N` and `/v1/requests/{id}`: one request as phases, candidates and predictions
//! beside observations. Member names are stable; see docs/openapi.yaml.

use serde::Serialize;
use std::sync::Arc;
use tidegate_scheduler::placement::Considered;
use tidegate_types::{Role, Seconds};

use crate::dispatch::context::Proxy;
use crate::telemetry::recent::RecentRequest;
use crate::telemetry::request_log::RequestOutcome;

use super::views::RequestView;

/// A request that has ended.
#[derive(Serialize)]
pub struct EndedView {
    id: u64,
    request_id: String,
    model: Option<String>,
    endpoint: &'static str,
    tenant: String,
    class: String,
    /// Always `ended`.
    stage: &'static str,
    ended: &'static str,
    status: u16,
    problem: Option<String>,
    attempts: u32,
    /// Seconds since the Unix epoch.
    arrived_at: f64,
    duration_seconds: f64,
    prompt_tokens: u64,
    prompt_exact: bool,
    output_tokens: u64,
    prefill_backend: Option<String>,
    backend: Option<String>,
    phases: Vec<RequestPhase>,
    targets: RequestTargets,
    predicted: Numbers,
    observed: Numbers,
    /// The choice in one sentence.
    choice: String,
    candidates: Vec<CandidateView>,
}

/// A bar of the waterfall.
#[derive(Serialize)]
struct RequestPhase {
    /// `queue`, `prefill`, `handoff`, `decode`, or `unstreamed`: prefill and decode of an answer that was
    /// not streamed.
    name: &'static str,
    /// Seconds after arrival.
    start_seconds: f64,
    seconds: f64,
    backend: Option<String>,
}

#[derive(Serialize)]
struct RequestTargets {
    ttft_seconds: Option<f64>,
    tpot_seconds: Option<f64>,
    itl_seconds: Option<f64>,
}

#[derive(Default, Serialize)]
struct Numbers {
    queued_seconds: Option<f64>,
    /// Prefill work ahead of the request on its engine.
    backlog_seconds: Option<f64>,
    prefill_seconds: Option<f64>,
    cached_tokens: Option<u64>,
    ttft_seconds: Option<f64>,
    tpot_seconds: Option<f64>,
    /// Largest gap between two chunks.
    gap_max_seconds: Option<f64>,
}

#[derive(Serialize)]
struct CandidateView {
    backend: String,
    role: Role,
    chosen: bool,
    /// Whether it could receive the request.
    open: bool,
    prefill_room: bool,
    decode_room: bool,
    slack: bool,
    streams: u32,
    cached_tokens: u64,
    backlog_seconds: f64,
    /// Predicted time from the placement to the end of the prefill.
    prefill_end_seconds: f64,
}

/// An element of `/v1/requests?ended=N`.
#[derive(Serialize)]
#[serde(untagged)]
pub enum RequestRow {
    /// A request in flight.
    Live(RequestView),
    /// A request that has ended.
    Ended(Box<EndedView>),
}

/// The requests in flight, oldest first, then at most `count` that have ended, the latest first.
pub fn all(proxy: &Proxy, count: usize) -> Vec<RequestRow> {
    let live = super::views::requests(proxy).into_iter().map(RequestRow::Live);
    let ended = proxy.recent.last(count);
    let ended = ended.iter().map(|ended| RequestRow::Ended(Box::new(view(proxy, ended))));
    live.chain(ended).collect()
}

/// The request that ended last with this id.
pub fn find(proxy: &Proxy, id: &str) -> Option<EndedView> {
    proxy.recent.find(id).map(|ended| view(proxy, &ended))
}

/// Returns a target in seconds; `None` for batch work, which has none.
fn finite(target: Seconds) -> Option<f64> {
    Some(target.get()).filter(|seconds| seconds.is_finite())
}

fn view(proxy: &Proxy, of: &RecentRequest) -> EndedView {
    let slo = of.live.targets.slo;
    let name = |name: &Option<Arc<str>>| name.as_deref().map(str::to_owned);
    let phases = phases(of);
    let prefill = phases.iter().find(|phase| phase.name == "prefill").map(|phase| phase.seconds);
    let seconds = |span: Option<Seconds>| span.map(Seconds::get);
    EndedView {
        id: of.live.id.0,
        request_id: of.live.name.to_string(),
        model: of.live.model.as_deref().map(str::to_owned),
        endpoint: of.endpoint,
        tenant: of.tenant.to_string(),
        class: of.class.to_string(),
        stage: "ended",
        ended: of.ended.as_str(),
        status: of.status,
        problem: of.problem.as_deref().map(str::to_owned),
        attempts: of.attempts,
        arrived_at: proxy.clock.wall(of.live.arrived),
        duration_seconds: of.duration.get(),
        prompt_tokens: of.prompt.get(),
        prompt_exact: of.prompt_exact,
        output_tokens: of.output.get(),
        prefill_backend: name(&of.prefill_on).filter(|_| of.split),
        backend: name(&of.decode_on),
        phases,
        targets: RequestTargets {
            ttft_seconds: finite(slo.ttft),
            tpot_seconds: finite(slo.tpot),
            itl_seconds: slo.itl.map(Seconds::get),
        },
        predicted: Numbers {
            queued_seconds: None,
            backlog_seconds: of.predicted.map(|p| p.backlog.get()),
            prefill_seconds: of.predicted.map(|p| p.prefill.get()),
            cached_tokens: of.predicted.map(|p| p.cached.get()),
            ttft_seconds: seconds(of.expected_ttft),
            tpot_seconds: seconds(of.predicted.and_then(|p| p.tpot)),
            gap_max_seconds: None,
        },
        observed: Numbers {
            queued_seconds: seconds(of.queued),
            backlog_seconds: None,
            prefill_seconds: prefill,
            cached_tokens: of.cached.map(tidegate_types::Tokens::get),
            ttft_seconds: seconds(of.ttft),
            tpot_seconds: seconds(of.tpot),
            gap_max_seconds: seconds(of.live.gap_max()),
        },
        choice: choice(of),
        candidates: candidates(of),
    }
}

/// The phases that the request reached, in order and without gaps.
fn phases(of: &RecentRequest) -> Vec<RequestPhase> {
    let mut phases = Vec::with_capacity(4);
    let mut from = Seconds::ZERO;
    let mut add = |name, until: Seconds, backend: &Option<Arc<str>>| {
        let seconds = (until - from).get().max(0.0);
        let backend = backend.as_deref().map(str::to_owned);
        phases.push(RequestPhase { name, start_seconds: from.get(), seconds, backend });
        from = from.max(until);
    };
    let Some(queued) = of.queued else {
        add("queue", of.duration, &None);
        return phases;
    };
    add("queue", queued, &None);
    let first = of.ttft.unwrap_or(of.duration);
    let in_one_piece = of.ttft.is_none() && of.ended == RequestOutcome::Done;
    if in_one_piece {
        // The end of the prefill is unknown: the answer was not streamed.
        match of.prefilled.filter(|_| of.split) {
            Some(prefilled) => {
                add("prefill", prefilled, &of.prefill_on);
                add("decode", of.duration, &of.decode_on);
            }
            None => add("unstreamed", of.duration, &of.decode_on),
        }
        return phases;
    }
    if of.split {
        add("prefill", of.prefilled.unwrap_or(first), &of.prefill_on);
        if of.prefilled.is_some() {
            add("handoff", first, &of.decode_on);
        }
    } else {
        add("prefill", first, &of.decode_on);
    }
    if of.ttft.is_some() {
        add("decode", of.duration, &of.decode_on);
    }
    phases
}

fn candidates(of: &RecentRequest) -> Vec<CandidateView> {
    let view = |(index, (name, seen)): (usize, &(Arc<str>, Considered))| CandidateView {
        backend: name.to_string(),
        role: seen.role,
        chosen: index == 0,
        open: seen.open,
        prefill_room: seen.prefill_capacity,
        decode_room: seen.decode_capacity,
        slack: seen.slack,
        streams: seen.streams,
        cached_tokens: seen.cached.get(),
        backlog_seconds: seen.backlog.get(),
        prefill_end_seconds: seen.prefill_end.get(),
    };
    of.considered.iter().enumerate().map(view).collect()
}

/// The placement in one sentence.
fn choice(of: &RecentRequest) -> String {
    let waited = match of.queued {
        Some(queued) if queued.get() >= WAITED_MIN => {
            format!("After {} in the queue, because no engine had capacity, ", time_text(queued))
        }
        _ => String::new(),
    };
    let Some((chosen, others)) = of.considered.split_first() else {
        return match (of.queued, of.ended) {
            (None, RequestOutcome::ClientLeft) => {
                "The client left before the request was placed.".into()
            }
            (None, _) => "The request was not placed on an engine.".into(),
            (Some(_), _) => "The request went to an engine without a placement decision.".into(),
        };
    };
    let (on, chosen) = chosen;
    let legs = match (of.split, &of.decode_on) {
        (true, Some(to)) => format!("{on} prefilled and {to} decoded"),
        (true, None) => format!("{on} was to prefill"),
        (false, _) => format!("{on} ran the whole request"),
    };
    format!("{waited}{legs}: {}.", why(of, chosen, others))
}

/// Waits below this count as immediate placement, in seconds.
const WAITED_MIN: f64 = 0.001;

fn why(of: &RecentRequest, chosen: &Considered, others: &[(Arc<str>, Considered)]) -> String {
    let end = format!("its prefill was predicted to end after {}", time_text(chosen.prefill_end));
    let cached = match chosen.cached.get() {
        0 => String::new(),
        tokens => format!(" with {tokens} of {} prompt tokens cached", of.prompt.get()),
    };
    let spilt = if !of.split && chosen.role == Role::Decode {
        ", and the TPOT slack of its streams covers that (spill)"
    } else {
        ""
    };
    let may = |(_, other): &&(Arc<str>, Considered)| {
        other.open && other.prefill_capacity && (other.role != Role::Decode || other.slack)
    };
    let next = others
        .iter()
        .filter(may)
        .min_by(|(_, a), (_, b)| a.prefill_end.0.total_cmp(&b.prefill_end.0));
    let beside = match next {
        Some((name, next)) => {
            format!("; the next candidate was {name} with {}", time_text(next.prefill_end))
        }
        None if others.is_empty() => "; it was the only backend of the model".to_owned(),
        None => "; no other backend of the model could take the prefill".to_owned(),
    };
    format!("{end}{cached}{spilt}{beside}")
}

/// A time in the unit that suits its length.
fn time_text(span: Seconds) -> String {
    match span.get() {
        long if long >= 1.0 => format!("{long:.2} s"),
        _ => format!("{:.0} ms", span.as_millis()),
    }
}
