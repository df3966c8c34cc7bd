//! JSON views of the admin addresses. They are separate from the internal types, so that internal
//! changes do not break scripts.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use tidegate_scheduler::cost::PrefillModel;
use tidegate_scheduler::inflight::Balance;
use tidegate_types::{Moment, Plan, Role, Seconds};

use crate::backends::fleet::{Backend, FailedHandOff};
use crate::dispatch::context::Proxy;
use crate::telemetry::journal::JournalEntry;

/// `/v1/fleet`
#[derive(Serialize)]
pub struct FleetView {
    plan: u64,
    ready: bool,
    waiting_requests: usize,
    live_requests: usize,
    /// Number of other gateways whose loads are counted.
    other_gateways: usize,
    backends: Vec<BackendView>,
}

#[derive(Serialize)]
struct BackendView {
    name: String,
    url: String,
    group: u16,
    engine: &'static str,
    version: Option<String>,
    misfits: Vec<String>,
    role: Role,
    /// Whether it was removed and is draining.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    leaving: bool,
    /// Whether an operator pinned the role.
    pinned: bool,
    /// Remaining seconds of the hold of an operator's flip.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_seconds: Option<f64>,
    /// End of that hold in seconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_until: Option<f64>,
    allowed: Vec<Role>,
    health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_reason: Option<String>,
    prefill_seconds: f64,
    prefill_tokens: u64,
    prefill_legs: u32,
    streams: u32,
    streams_max: u32,
    kv_tokens: u64,
    kv_capacity_tokens: u64,
    emitted_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    others: Option<OthersView>,
    /// Backends to which every trial hand-off failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed_hand_offs: Vec<String>,
    prefix_source: &'static str,
    prefix_hit_share: f64,
    prefix_hit_source: &'static str,
    alerts: Vec<&'static str>,
    costs: CostsView,
}

#[derive(Serialize)]
struct CostsView {
    prefill_base_seconds: f64,
    prefill_token_seconds: f64,
    prefill_attention_seconds: f64,
    decode_base_seconds: f64,
    decode_stream_seconds: f64,
    decode_kv_token_seconds: f64,
    hand_off_base_seconds: f64,
    hand_off_token_seconds: f64,
}

/// `/v1/plan`
#[derive(Serialize)]
pub struct PlanView {
    number: u64,
    roles: BTreeMap<String, Role>,
    /// Seconds for which the requested change is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<JournalEntry>,
}

/// Work in flight through other gateways
#[derive(Serialize)]
struct OthersView {
    prefill_seconds: f64,
    prefill_tokens: u64,
    prefill_legs: u32,
    streams: u32,
    kv_tokens: u64,
}

/// An element of `/v1/requests`
#[derive(Serialize)]
pub struct RequestView {
    id: u64,
    request_id: String,
    model: Option<String>,
    stage: &'static str,
    age_seconds: f64,
    prompt_tokens: u64,
    output_tokens: u64,
    prefill_backend: Option<String>,
    backend: Option<String>,
}

/// All backends with their loads and costs.
pub fn fleet(proxy: &Proxy) -> FleetView {
    let table = proxy.fleet.table();
    let now = proxy.clock.now();
    let all = proxy.fleet.backends();
    let backends = all.iter().filter(|backend| !backend.has_left()).map(|backend| {
        let entry = table.entry(backend.id);
        let balance = backend.account.balance();
        let report = backend.report.load();
        let failed = backend.trials.failed();
        BackendView {
            name: backend.name.to_string(),
            url: backend.pool.address().to_string(),
            group: entry.group.0,
            engine: backend.kind.as_str(),
            version: report.version.clone(),
            misfits: misfits(&report.misfits, &failed),
            role: entry.role,
            leaving: backend.is_leaving(),
            pinned: backend.pin().is_some_and(|pin| pin.until.is_none()),
            held_seconds: held(backend, now),
            held_until: held(backend, now).map(|left| proxy.clock.wall(now) + left),
            allowed: backend.allowed.iter().collect(),
            health: backend.health.as_str(now),
            health_reason: backend.health.reason(now),
            prefill_seconds: entry.prefill.batch(balance.prefill).get(),
            prefill_tokens: balance.prefill_tokens.get(),
            prefill_legs: balance.prefill_legs,
            streams: balance.streams,
            streams_max: backend.streams_max,
            kv_tokens: balance.kv.get(),
            kv_capacity_tokens: backend.kv_capacity().get(),
            emitted_tokens: balance.emitted.get(),
            failed_hand_offs: failed.iter().map(|failed| failed.name.to_string()).collect(),
            others: others(&backend.account.others(), &entry.prefill),
            prefix_source: proxy.signals.prefix_source(backend.id),
            prefix_hit_share: proxy.fleet.hit_share(backend),
            prefix_hit_source: proxy.fleet.hit_source(backend),
            alerts: proxy.signals.alerts(backend.id),
            costs: CostsView {
                prefill_base_seconds: entry.prefill.base.get(),
                prefill_token_seconds: entry.prefill.per_token.get(),
                prefill_attention_seconds: entry.prefill.per_attention.get(),
                decode_base_seconds: entry.decode.base.get(),
                decode_stream_seconds: entry.decode.per_stream.get(),
                decode_kv_token_seconds: entry.decode.per_kv_token.get(),
                hand_off_base_seconds: entry.transfer.base.get(),
                hand_off_token_seconds: entry.transfer.per_token.get(),
            },
        }
    });
    FleetView {
        plan: table.plan.number().0,
        ready: proxy.is_ready(),
        waiting_requests: proxy.queue.signal().waiting(),
        live_requests: proxy.fleet.registry.len(),
        other_gateways: proxy.other_gateways.load(Relaxed),
        backends: backends.collect(),
    }
}

/// The misfits of a backend and its failed trial hand-offs, one sentence each.
fn misfits(misfits: &[String], failed: &[FailedHandOff]) -> Vec<String> {
    let trial = |f: &FailedHandOff| format!("trial hand-off to {} failed: {}", f.name, f.reason);
    misfits.iter().cloned().chain(failed.iter().map(trial)).collect()
}

fn others(balance: &Balance, prefill: &PrefillModel) -> Option<OthersView> {
    (!balance.is_settled()).then(|| OthersView {
        prefill_seconds: prefill.batch(balance.prefill).get(),
        prefill_tokens: balance.prefill_tokens.get(),
        prefill_legs: balance.prefill_legs,
        streams: balance.streams,
        kv_tokens: balance.kv.get(),
    })
}

/// Remaining seconds of the hold of an operator's flip.
fn held(backend: &Backend, now: Moment) -> Option<f64> {
    let until = backend.pin()?.until?;
    Some((until - now).get().max(0.0))
}

/// `/v1/backends`
#[derive(Serialize)]
pub struct BackendsView {
    backends: Vec<BackendView>,
}

/// All backends, including those that are being removed.
pub fn backends(proxy: &Proxy) -> BackendsView {
    BackendsView { backends: fleet(proxy).backends }
}

/// A plan after an operator changed `backend`.
pub fn changed(proxy: &Proxy, plan: &Plan, backend: &Backend) -> PlanView {
    let held_seconds = held(backend, proxy.clock.now());
    PlanView { held_seconds, ..plan_of(proxy, plan) }
}

/// The plan in force, with the journal entries of the roles it changed.
pub fn plan(proxy: &Proxy) -> PlanView {
    let plan = proxy.fleet.table().plan.clone();
    let mut view = plan_of(proxy, &plan);
    view.reasons = proxy.journal.entries();
    view.reasons.retain(|entry| entry.plan == plan.number());
    view
}

/// A plan's number and roles.
pub fn plan_of(proxy: &Proxy, plan: &Plan) -> PlanView {
    let all = proxy.fleet.backends();
    let named = all.iter().filter(|backend| !backend.is_leaving());
    PlanView {
        number: plan.number().0,
        roles: named.map(|b| (b.name.to_string(), plan.role(b.id))).collect(),
        held_seconds: None,
        reasons: Vec::new(),
    }
}

/// The request in flight with this `x-request-id`, or this number.
pub fn request(proxy: &Proxy, id: &str) -> Option<RequestView> {
    let mut views = requests(proxy);
    let number: Option<u64> = id.parse().ok();
    let by_name = views.iter().position(|view| view.request_id == id);
    let at = by_name.or_else(|| views.iter().position(|view| Some(view.id) == number))?;
    Some(views.swap_remove(at))
}

/// In-flight requests, oldest first.
pub fn requests(proxy: &Proxy) -> Vec<RequestView> {
    let now = proxy.clock.now();
    let name = |id: tidegate_types::BackendId| proxy.fleet.backend(id).name.to_string();
    let mut views = Vec::new();
    proxy.fleet.registry.for_each(|live| {
        let age: Seconds = now - live.arrived;
        views.push(RequestView {
            id: live.id.0,
            request_id: live.name.to_string(),
            model: live.model.as_deref().map(str::to_owned),
            stage: live.stage().as_str(),
            age_seconds: age.get(),
            prompt_tokens: live.prompt.get(),
            output_tokens: live.emitted().get(),
            prefill_backend: live.prefill_backend().map(name),
            backend: live.decode_backend().map(name),
        });
    });
    views.sort_by_key(|view| view.id);
    views
}
