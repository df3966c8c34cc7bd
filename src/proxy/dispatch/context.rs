//! State shared by all requests of one proxy. Built once at start-up; every field is immutable,
//! atomic or swapped as a whole.

use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use tidegate_filters::{Accepted, Directory, Sampler};
use tidegate_scheduler::learn::Sample;
use tidegate_scheduler::planner::GroupOutlook;
use tidegate_types::{BackendId, RequestId, Role, Tokens};
use tokio::sync::{Notify, mpsc};

use crate::backends::fleet::{Fleet, KnownPrefixes, PlacementView, RoutingTable};
use crate::dispatch::discovery::ModelDiscovery;
use crate::dispatch::hedge_limit::HedgeLimit;
use crate::dispatch::model_list::ModelList;
use crate::dispatch::queue::Queue;
use crate::dispatch::settings_in_force::{SettingsInForce, SettingsSlot};
use crate::dispatch::shapes::Shapes;
use crate::dispatch::sidecar::Sidecar;
use crate::runtime::budget::BodyBudget;
use crate::runtime::clock::Clock;
use crate::runtime::connections::Connections;
use crate::runtime::timer_coalescing::TimerCoalescing;
use crate::signals::{EngineSignals, SignalHost};
use crate::telemetry::arrivals::ArrivalLog;
use crate::telemetry::control_events::ControlEvent;
use crate::telemetry::history::History;
use crate::telemetry::journal::Journal;
use crate::telemetry::metrics::Metrics;
#[cfg(feature = "otlp")]
use crate::telemetry::otlp::SpanQueue;
use crate::telemetry::reaction_time::ReactionTimer;
use crate::telemetry::recent::Recent;

/// Blocks of a prompt that are inserted into the prefix index on a reactor thread: about 0.1 ms.
const INSERTED_INLINE_MAX: usize = 1024;

/// State of one proxy, shared by all requests.
pub struct Proxy {
    /// The only clock.
    pub clock: Clock,
    /// Timer coalescing.
    pub timer_coalescing: TimerCoalescing,
    /// Backends, routing table, prefix index, registry.
    pub fleet: Fleet,
    /// The settings in force; replaced by the control loop after a reload.
    pub settings: SettingsSlot,
    /// Models known to the filters; replaced by the control loop.
    pub directory: ArcSwap<Directory>,
    /// `/v1/models` over all backends; replaced by the control loop.
    pub models: ArcSwap<ModelList>,
    /// Queries engines for models that no table contains.
    pub discovery: ModelDiscovery,
    /// Sidecar mode for llm-d's hand-offs, if configured.
    pub sidecar: Option<Sidecar>,
    /// Channel to the dispatcher.
    pub queue: Queue,
    /// Measures the reaction time.
    pub reaction: ReactionTimer,
    /// Demand notification: wakes the planner when requests queue, or a large request arrives.
    pub replan: Notify,
    /// The Prometheus metrics.
    pub metrics: Metrics,
    /// Open client connections.
    pub connections: Arc<Connections>,
    /// Signals from engines and GPUs.
    pub signals: EngineSignals,
    /// Recent role changes and their causes.
    pub journal: Journal,
    /// The planner's view of each group; replaced by the control loop every second.
    pub outlook: ArcSwap<Vec<GroupOutlook>>,
    /// Arrivals of the last hour and latencies by model.
    pub arrivals: ArrivalLog,
    /// Engine time, queue and attainment by second.
    pub history: History,
    /// Requests that ended recently.
    pub recent: Recent,
    /// Decides which traces are sampled.
    pub sampler: Sampler,
    /// Queue of the span export, if it is on.
    #[cfg(feature = "otlp")]
    pub(crate) spans: Option<SpanQueue>,
    /// Byte budget of all request bodies.
    pub bodies: Arc<BodyBudget>,
    /// Limit on hedges in flight.
    pub hedge_limit: HedgeLimit,
    /// Request shapes that engines refuse to prefill for a hand-off.
    pub shapes: Shapes,
    /// Tokens per block of the prefix index.
    pub prefix_block: Tokens,
    /// Number of other gateways whose loads are counted.
    pub other_gateways: AtomicUsize,
    /// Whether the proxy is stopping.
    pub draining: AtomicBool,
    /// Whether a successor has taken over the listeners.
    pub has_successor: AtomicBool,
    /// Notified by SIGHUP: certificates and settings are reloaded.
    pub reload: Notify,
    /// Channel to the control loop.
    pub(crate) control_events: mpsc::Sender<ControlEvent>,
    /// Number of the last request.
    pub(crate) requests: AtomicU64,
}

impl Proxy {
    /// Turns the export of spans on, if there is a queue.
    #[cfg(feature = "otlp")]
    pub(crate) fn with_spans(self, spans: Option<SpanQueue>) -> Proxy {
        let sampler = spans.as_ref().map_or(self.sampler, SpanQueue::sampler);
        Proxy { sampler, spans, ..self }
    }

    /// Adds a prompt's blocks to the prefix index of a backend; a long prompt on a blocking thread.
    pub fn note_prefix(self: &Arc<Self>, on: BackendId, accepted: &Arc<Accepted>) {
        if accepted.prompt.chain.len() <= INSERTED_INLINE_MAX {
            return self.fleet.prefixes.insert(on, &accepted.prompt.chain);
        }
        let (proxy, accepted) = (Arc::clone(self), Arc::clone(accepted));
        tokio::task::spawn_blocking(move || {
            proxy.fleet.prefixes.insert(on, &accepted.prompt.chain);
        });
    }

    /// Puts another version of the settings in force. Called by the control loop only.
    pub(crate) fn put_in_force(&self, next: SettingsInForce) {
        let server = &next.values.server;
        self.bodies.set_max(next.body_budget);
        self.connections.set_limits(server.connections_max, server.connections_per_address_max);
        self.settings.store(Arc::new(next));
    }

    /// A new request number.
    pub fn next_request(&self) -> RequestId {
        RequestId(self.requests.fetch_add(1, Relaxed) + 1)
    }

    /// Sends an event to the control loop.
    pub fn report(&self, event: impl Into<ControlEvent>) {
        // A full channel drops the event (control_events.rs).
        self.control_events.try_send(event.into()).ok();
    }

    /// Placement's view of the fleet at this moment.
    pub fn view<'a>(
        &'a self,
        table: &'a RoutingTable,
        known: KnownPrefixes<'a>,
    ) -> PlacementView<'a> {
        PlacementView {
            fleet: &self.fleet,
            backends: self.fleet.backends(),
            table,
            known,
            block: self.prefix_block,
            now: self.clock.now(),
            records_candidates: self.recent.is_on(),
        }
    }

    /// Seconds since the Unix epoch.
    pub fn wall_now(&self) -> f64 {
        self.clock.wall(self.clock.now())
    }

    /// The models that the filters know.
    pub fn directory(&self) -> Guard<Arc<Directory>> {
        self.directory.load()
    }

    /// Whether a request would be served.
    pub fn is_ready(&self) -> bool {
        self.readiness().is_ok()
    }

    /// Checks whether a request would be served. A process that hands its listeners to a successor
    /// stays ready: both serve the same address until the listeners of the old process close.
    ///
    /// # Errors
    /// The reason why not.
    pub fn readiness(&self) -> Result<(), &'static str> {
        if self.is_draining() && !self.has_successor.load(Relaxed) {
            return Err("the proxy is stopping");
        }
        let table = self.fleet.table();
        let backends = self.fleet.backends();
        let mut placeable = backends
            .iter()
            .filter(|backend| table.entry(backend.id).role != Role::Draining)
            .peekable();
        if placeable.peek().is_none() {
            return Err(match backends.iter().any(|backend| !backend.is_leaving()) {
                true => "every backend is draining",
                false => "no backend is known",
            });
        }
        let (mut usable, mut up) = (false, false);
        for backend in placeable {
            usable |= backend.health.is_usable();
            up |= backend.health.is_usable() && backend.health.is_up();
        }
        match (usable, up, table.models.is_empty()) {
            (false, ..) => Err("no backend that takes new work is usable"),
            (true, false, _) => Err("no backend that takes new work has answered yet"),
            (true, true, true) => Err("no backend has reported its models yet"),
            (true, true, false) => Ok(()),
        }
    }

    /// Whether the proxy is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
}

impl SignalHost for Proxy {
    fn clock(&self) -> Clock {
        self.clock
    }

    fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn signals(&self) -> &EngineSignals {
        &self.signals
    }

    fn tokenizes(&self, model: &str) -> bool {
        let directory = self.directory();
        directory.models.get(model).is_some_and(|entry| entry.tokenizer.is_some())
    }

    fn prefix_block(&self) -> Tokens {
        self.prefix_block
    }

    fn report_sample(&self, sample: Sample) {
        self.report(sample);
    }
}
