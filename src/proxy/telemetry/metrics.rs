//! The Prometheus metrics. [`descriptions`] lists every name. Handles are created once and kept, so
//! that a request costs a few atomic additions. Label values from clients are bounded: only models
//! that backends serve appear.

use arc_swap::ArcSwap;
use dashmap::DashMap;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{BuildError, PrometheusHandle, PrometheusRecorder};
use std::sync::Arc;
use tidegate_engine::Endpoint;
use tidegate_signals::compatibility::Misfit;
use tidegate_types::{Flip, GroupId, Role, Seconds};

use crate::backends::fleet::{Backend, Fleet, RoutingTable};
use crate::runtime::budget::BodyBudget;
use crate::runtime::connections::ConnectionLimit;
use crate::telemetry::backend_series::BackendSeries;
use crate::telemetry::request_log::{Attained, RequestLog, RequestOutcome};
use crate::telemetry::{descriptions, recorder};
use crate::upstream::failure::LegFailure;

/// Most pairs of a model and a service class with series of their own; the models of further ones are
/// counted as `other`.
const MODELS_MAX: usize = 1024;

/// The metrics of one proxy.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    series: BackendSeries,
    /// By model and service class.
    models: DashMap<(Arc<str>, Arc<str>), Arc<ModelMetrics>>,
    /// By backend slot. Written by the control loop only.
    backends: ArcSwap<Vec<Arc<BackendMetrics>>>,
    queue_requests: Gauge,
    live_requests: Gauge,
    body_bytes: Gauge,
    body_budget: Gauge,
    queue_seconds: Histogram,
    plan_duration: Histogram,
    ttft_ratio: Histogram,
    reaction_table: Histogram,
    reaction_placement: Histogram,
    started: Counter,
    settled: [Counter; 4],
}

struct ModelMetrics {
    ttft: Histogram,
    tpot: Histogram,
    gap_max: Histogram,
    duration: Histogram,
    input: Histogram,
    output: Histogram,
    /// `None` for batch work, which has no targets.
    attainment: Option<AttainmentMetrics>,
}

struct AttainmentMetrics {
    requests: Counter,
    ttft: Counter,
    tpot: Counter,
    itl: Counter,
    all: Counter,
}

struct BackendMetrics {
    roles: [Gauge; 4],
    usable: Gauge,
    prefill_seconds: Gauge,
    hit_share: Gauge,
    prefill_tokens: Gauge,
    streams: Gauge,
    kv_tokens: Gauge,
    misfits: [Gauge; Misfit::LABELS.len()],
}

const OUTCOMES: [RequestOutcome; 4] =
    [RequestOutcome::Done, RequestOutcome::ClientLeft, RequestOutcome::Failed, RequestOutcome::Cut];

/// Label `backend` of the engines that a header names for a prefill (sidecar). They are no backends
/// of the fleet and share one registry.
pub(crate) const NAMED_PREFILL_TARGET: &str = "named-prefill-target";

impl Metrics {
    /// Registers the metrics of a fleet.
    ///
    /// # Errors
    /// [`BuildError`] if a bucket list is empty.
    pub fn new(backends: &[Arc<Backend>]) -> Result<Metrics, BuildError> {
        let recorder = recorder::new()?;
        let handle = recorder.handle();
        let series = BackendSeries::new();
        series.join(&NAMED_PREFILL_TARGET.into());
        let gauges_of = |backend: &Arc<Backend>| {
            series.join(&backend.name);
            Arc::new(series.within(&backend.name, || BackendMetrics::new(&backend.name)))
        };
        let backends: Vec<_> = backends.iter().map(gauges_of).collect();
        let built = with_local_recorder(&recorder, || {
            descriptions::describe();
            (
                OUTCOMES.map(
                    |outcome| counter!("tidegate_requests_settled_total", "ended" => outcome.as_str()),
                ),
                [
                    gauge!("tidegate_queue_requests"),
                    gauge!("tidegate_live_requests"),
                    gauge!("tidegate_body_held_bytes"),
                    gauge!("tidegate_body_budget_bytes"),
                ],
                [
                    histogram!("tidegate_queue_seconds"),
                    histogram!("tidegate_plan_duration_seconds"),
                    histogram!("tidegate_ttft_observed_over_predicted"),
                    histogram!("tidegate_reaction_to_table_seconds"),
                    histogram!("tidegate_reaction_to_placement_seconds"),
                ],
                counter!("tidegate_requests_started_total"),
            )
        });
        let (settled, gauges, histograms, started) = built;
        let [queue_requests, live_requests, body_bytes, body_budget] = gauges;
        let [queue_seconds, plan_duration, ttft_ratio, reaction_table, reaction_placement] =
            histograms;
        Ok(Metrics {
            recorder,
            handle,
            series,
            models: DashMap::new(),
            backends: ArcSwap::new(Arc::new(backends)),
            queue_requests,
            live_requests,
            body_bytes,
            body_budget,
            queue_seconds,
            plan_duration,
            ttft_ratio,
            reaction_table,
            reaction_placement,
            started,
            settled,
        })
    }

    /// Registers the gauges of a backend that joins.
    pub(crate) fn join(&self, backend: &Backend) {
        self.series.join(&backend.name);
        let gauges =
            Arc::new(self.of_backend(&backend.name, || BackendMetrics::new(&backend.name)));
        let mut next = (**self.backends.load()).clone();
        backend.id.put(&mut next, gauges);
        self.backends.store(Arc::new(next));
    }

    /// Removes the series of a backend that has left. No other backend may have its name.
    pub(crate) fn leave(&self, name: &str) {
        self.series.leave(name);
    }

    /// Runs `make` with the registry of a backend, for handles with a label `backend`.
    pub fn of_backend<T>(&self, name: &str, make: impl FnOnce() -> T) -> T {
        self.series.within(name, make)
    }

    /// Runs `make` with this proxy's recorder, so that handles created in it are exported present.
    pub fn within<T>(&self, make: impl FnOnce() -> T) -> T {
        with_local_recorder(&self.recorder, make)
    }

    /// Counts an admitted request.
    pub fn started(&self) {
        self.started.increment(1);
    }

    /// Records a settled request.
    pub fn settled(&self, log: &RequestLog<'_>) {
        let slot = OUTCOMES.iter().position(|outcome| *outcome == log.outcome).unwrap_or(0);
        self.settled[slot].increment(1);
        if let Some(queued) = log.queued {
            self.queue_seconds.record(queued.get());
        }
        if !log.accepted.endpoint.generates() {
            return;
        }
        let model = self.model(log);
        if let (Some(metrics), Some(attained)) = (&model.attainment, log.attained()) {
            metrics.count(&attained);
        }
        model.duration.record(log.duration.get());
        model.input.record(log.prompt.as_f64());
        model.output.record(log.output.as_f64());
        if let Some(ttft) = log.ttft {
            model.ttft.record(ttft.get());
            if let Some(expected) = log.expected_ttft {
                self.ttft_ratio.record(ttft / expected.max(Seconds(1e-4)));
            }
        }
        if let Some(tpot) = log.tpot {
            model.tpot.record(tpot.get());
        }
        if let Some(gap) = log.live.gap_max() {
            model.gap_max.record(gap.get());
        }
    }

    /// Counts a leg that failed before its first byte.
    pub fn leg_failed(&self, failure: &LegFailure) {
        self.of_backend(&failure.backend, || {
            counter!(
                "tidegate_leg_failures_total",
                "backend" => failure.backend.to_string(),
                "leg" => failure.leg.as_str(),
            )
            .increment(1);
        });
    }

    /// Counts a request that the proxy itself answered with an error.
    pub fn refused(&self, endpoint: Option<Endpoint>, status: u16) {
        with_local_recorder(&self.recorder, || {
            counter!(
                "tidegate_refused_requests_total",
                "endpoint" => endpoint.map_or("unknown", Endpoint::as_str),
                "status" => status.to_string(),
            )
            .increment(1);
        });
    }

    /// Counts a connection refused by a limit.
    pub fn connection_refused(&self, refused: ConnectionLimit) {
        with_local_recorder(&self.recorder, || {
            counter!("tidegate_connections_refused_total", "limit" => refused.as_str())
                .increment(1);
        });
    }

    /// Records the settings in force and the result of the last reload, `at` in Unix time.
    pub fn reloaded(&self, revision: u64, succeeded: bool, at: f64) {
        with_local_recorder(&self.recorder, || {
            gauge!("tidegate_config_revision").set(revision as f64);
            gauge!("tidegate_config_last_reload_success").set(f64::from(u8::from(succeeded)));
            gauge!("tidegate_config_last_reload_timestamp_seconds").set(at);
        });
    }

    /// Counts a role change, applied or refused.
    pub fn flipped(&self, flip: &Flip, reason: &'static str, result: &'static str) {
        with_local_recorder(&self.recorder, || {
            counter!(
                "tidegate_role_flips_total",
                "from" => flip.from.as_str(),
                "to" => flip.to.as_str(),
                "reason" => reason,
                "result" => result,
            )
            .increment(1);
        });
    }

    /// Counts an attempt to write a role as a pod label, by result.
    #[cfg(feature = "kubernetes")]
    pub fn role_label(&self, result: &'static str) {
        with_local_recorder(&self.recorder, || {
            counter!("tidegate_role_labels_total", "result" => result).increment(1);
        });
    }

    /// Sets whether this gateway leads, and its epoch. Called only with leader election.
    pub fn leads(&self, epoch: Option<u64>) {
        with_local_recorder(&self.recorder, || {
            gauge!("tidegate_leader").set(f64::from(u8::from(epoch.is_some())));
            if let Some(epoch) = epoch {
                gauge!("tidegate_leader_epoch").set(epoch as f64);
            }
        });
    }

    /// Counts a trial hand-off, by result.
    pub fn tried_hand_off(&self, result: &'static str) {
        with_local_recorder(&self.recorder, || {
            counter!("tidegate_handoff_trials_total", "result" => result).increment(1);
        });
    }

    /// Sets the number of other gateways whose loads are counted.
    pub fn other_gateways(&self, gateways: usize) {
        with_local_recorder(&self.recorder, || {
            gauge!("tidegate_other_gateways").set(gateways as f64);
        });
    }

    /// Counts a report of other gateways with numbers that are not possible.
    pub fn refused_gateway_report(&self) {
        with_local_recorder(&self.recorder, || {
            counter!("tidegate_gateway_reports_refused_total").increment(1);
        });
    }

    /// Records the duration of a planner run.
    pub fn planned(&self, duration: Seconds) {
        self.plan_duration.record(duration.get());
    }

    /// Exports the number of engines that each group needs.
    pub fn engines_wanted(&self, groups: impl Iterator<Item = (GroupId, usize)>) {
        with_local_recorder(&self.recorder, || {
            for (group, wanted) in groups {
                gauge!("tidegate_engines_wanted", "group" => group.index().to_string())
                    .set(wanted as f64);
            }
        });
    }

    /// Records the time from the first unplanned arrival to the table that reassigns engines.
    pub fn demand_planned(&self, elapsed: Seconds) {
        self.reaction_table.record(elapsed.get());
    }

    /// Records the time from that arrival to the first leg placed with that table.
    pub fn demand_placed(&self, elapsed: Seconds) {
        self.reaction_placement.record(elapsed.get());
    }

    /// Renders the metrics page; gauges are set from the current state first.
    pub fn render(
        &self,
        fleet: &Fleet,
        table: &RoutingTable,
        waiting: usize,
        bodies: &BodyBudget,
    ) -> String {
        self.body_bytes.set(bodies.held() as f64);
        self.body_budget.set(bodies.max() as f64);
        self.queue_requests.set(waiting as f64);
        self.live_requests.set(fleet.registry.len() as f64);
        let gauges = self.backends.load();
        let all = fleet.backends();
        // A backend that is being removed may share its name with a new one, which owns the gauges.
        let present = all.iter().filter(|backend| !backend.is_leaving());
        for (backend, gauges) in present.filter_map(|b| Some((b, gauges.get(b.id.index())?))) {
            let balance = backend.account.balance();
            let entry = table.entry(backend.id);
            let role = entry.role;
            for (gauge, of) in gauges.roles.iter().zip(Role::ALL) {
                gauge.set(f64::from(u8::from(of == role)));
            }
            gauges.usable.set(f64::from(u8::from(backend.health.is_usable())));
            gauges.prefill_seconds.set(entry.prefill.batch(balance.prefill).get());
            gauges.hit_share.set(fleet.hit_share(backend));
            gauges.prefill_tokens.set(balance.prefill_tokens.as_f64());
            gauges.streams.set(f64::from(balance.streams));
            gauges.kv_tokens.set(balance.kv.as_f64());
            let report = backend.report.load();
            for (gauge, misfit) in gauges.misfits.iter().zip(Misfit::LABELS) {
                gauge.set(f64::from(u8::from(report.kinds.contains(&misfit))));
            }
        }
        let mut page = self.handle.render();
        self.series.render(&mut page);
        page
    }

    /// Drains histograms into their buckets; called every few seconds.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
        self.series.upkeep();
    }

    fn model(&self, log: &RequestLog<'_>) -> Arc<ModelMetrics> {
        let class = Arc::clone(log.class);
        let key = match &log.live.model {
            Some(model) => (Arc::clone(model), class),
            None => ("none".into(), class),
        };
        if let Some(known) = self.models.get(&key) {
            return Arc::clone(&known);
        }
        let key = match self.models.len() < MODELS_MAX {
            true => key,
            false => ("other".into(), key.1),
        };
        if let Some(known) = self.models.get(&key) {
            return Arc::clone(&known);
        }
        let batch = log.live.targets.is_batch();
        let make = || ModelMetrics::new(&key.0, &key.1, batch);
        let made = Arc::new(with_local_recorder(&self.recorder, make));
        Arc::clone(&self.models.entry(key).or_insert(made))
    }
}

impl ModelMetrics {
    fn new(model: &str, class: &str, batch: bool) -> ModelMetrics {
        let labels = |kind: Option<&'static str>| {
            let mut labels = vec![
                metrics::Label::new("gen_ai_request_model", model.to_owned()),
                metrics::Label::new("gen_ai_operation_name", "generate"),
                metrics::Label::new("class", class.to_owned()),
            ];
            labels.extend(kind.map(|kind| metrics::Label::new("gen_ai_token_type", kind)));
            labels
        };
        ModelMetrics {
            ttft: histogram!("gen_ai_server_time_to_first_token_seconds", labels(None)),
            tpot: histogram!("gen_ai_server_time_per_output_token_seconds", labels(None)),
            gap_max: histogram!("tidegate_largest_gap_seconds", labels(None)),
            duration: histogram!("gen_ai_server_request_duration_seconds", labels(None)),
            input: histogram!("gen_ai_client_token_usage", labels(Some("input"))),
            output: histogram!("gen_ai_client_token_usage", labels(Some("output"))),
            attainment: (!batch).then(|| AttainmentMetrics::new(model, class)),
        }
    }
}

impl AttainmentMetrics {
    fn new(model: &str, class: &str) -> AttainmentMetrics {
        let attained = |target: &'static str| {
            counter!(
                "tidegate_slo_attained_total",
                "gen_ai_request_model" => model.to_owned(),
                "class" => class.to_owned(),
                "target" => target,
            )
        };
        AttainmentMetrics {
            requests: counter!(
                "tidegate_slo_requests_total",
                "gen_ai_request_model" => model.to_owned(),
                "class" => class.to_owned(),
            ),
            ttft: attained("ttft"),
            tpot: attained("tpot"),
            itl: attained("itl"),
            all: attained("all"),
        }
    }

    fn count(&self, attained: &Attained) {
        self.requests.increment(1);
        for (met, counter) in [
            (attained.ttft, &self.ttft),
            (attained.tpot, &self.tpot),
            (attained.itl, &self.itl),
            (attained.all(), &self.all),
        ] {
            counter.increment(u64::from(met));
        }
    }
}

impl BackendMetrics {
    fn new(name: &str) -> BackendMetrics {
        let of = |metric: &'static str| gauge!(metric, "backend" => name.to_owned());
        BackendMetrics {
            roles: Role::ALL.map(|role| {
                gauge!("tidegate_backend_role", "backend" => name.to_owned(), "role" => role.as_str())
            }),
            usable: of("tidegate_backend_usable"),
            prefill_seconds: of("tidegate_backend_prefill_seconds"),
            hit_share: of("tidegate_prefix_hit_share"),
            prefill_tokens: of("tidegate_backend_prefill_tokens"),
            streams: of("tidegate_backend_streams"),
            kv_tokens: of("tidegate_backend_kv_tokens"),
            misfits: Misfit::LABELS.map(|misfit| {
                gauge!("tidegate_backend_misfit", "backend" => name.to_owned(), "reason" => misfit)
            }),
        }
    }
}
