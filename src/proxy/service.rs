//! What all requests of one proxy share. Built once at start-up; everything in it is either
//! immutable, atomic, or swapped whole.

use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use tidegate_filters::{Chain, Directory};
use tidegate_scheduler::placement::Params as PlacementParams;
use tidegate_settings::HalfClose;
use tidegate_types::{RequestId, Role, Seconds, Tokens};
use tokio::sync::{Notify, mpsc};

use crate::budget::Budget;
use crate::clock::Clock;
use crate::connections::Connections;
use crate::cors::Cors;
use crate::discovery::Discovery;
use crate::fleet::{Fleet, Known, RoutingTable, View};
use crate::heartbeat::Heartbeat;
use crate::hedge::Hedges;
use crate::journal::Journal;
use crate::lanes::Lanes;
use crate::learn::Observation;
use crate::metrics::Metrics;
use crate::models::ModelList;
use crate::queue::Queue;
use crate::reaction::Reaction;
use crate::shapes::Shapes;
use crate::signals::Signals;

/// One proxy.
pub struct Proxy {
    /// The only clock.
    pub clock: Clock,
    /// Keeps requests' timers from being the earliest.
    pub heartbeat: Heartbeat,
    /// The engines.
    pub fleet: Fleet,
    /// The filters, in order.
    pub chain: Chain,
    /// The models that the filters know; replaced by the control loop.
    pub directory: ArcSwap<Directory>,
    /// `/v1/models` over all backends; replaced by the control loop.
    pub models: ArcSwap<ModelList>,
    /// Asks engines for models that no table has.
    pub discovery: Discovery,
    /// What browsers are told, if anything.
    pub cors: Option<Cors>,
    /// How requests are placed.
    pub placement: PlacementParams,
    /// The way to the dispatcher.
    pub queue: Queue,
    /// How fast surges are answered.
    pub reaction: Reaction,
    /// Rung when requests have to wait, or a large one comes: the planner looks at once.
    pub surge: Notify,
    /// What Prometheus reads.
    pub metrics: Metrics,
    /// Open connections of clients.
    pub connections: Arc<Connections>,
    /// What engines tell beside their answers.
    pub signals: Signals,
    /// What the planner decided and why.
    pub journal: Journal,
    /// Largest request body.
    pub body_max: usize,
    /// What all bodies together may hold.
    pub bodies: Arc<Budget>,
    /// Permits to run the filters over a large body, one less than cores: the rest wait in order.
    pub(crate) lanes: Lanes,
    /// How long a request may wait in the queue.
    pub queue_deadline: Seconds,
    /// Backends tried before the first byte.
    pub attempts_max: u32,
    /// Longest time between a prefill's end and its decode; below the engine's lease.
    pub handoff_max: Seconds,
    /// A stream whose engine sends nothing for so long is cut; 0: no limit.
    pub silence_max: Seconds,
    /// Largest share of a pool that may be ejected at once.
    pub ejected_share_max: f64,
    /// A leg without an answer for so long may be tried elsewhere too; 0: never.
    pub hedge_after: Seconds,
    /// Those that are.
    pub hedges: Hedges,
    /// Requests that engines do not prefill for others.
    pub shapes: Shapes,
    /// A stream that has got nothing for so long gets a comment.
    pub keepalive_comment: Option<Seconds>,
    /// A client that closed its sending half: is it still there?
    pub half_close: HalfClose,
    /// A client that takes nothing of its answer for so long loses it.
    pub client_stall: Seconds,
    /// Tokens that a prefix block stands for.
    pub prefix_block: Tokens,
    /// Is the proxy stopping?
    pub draining: AtomicBool,
    /// Has a successor taken the listeners over?
    pub hands_over: AtomicBool,
    /// Clients' keys are this gateway's own and are not forwarded to engines.
    pub keeps_authorization: bool,
    /// Rung by SIGHUP: files are read again.
    pub reload: Notify,
    pub(crate) observations: mpsc::Sender<Observation>,
    pub(crate) requests: AtomicU64,
}

impl Proxy {
    /// The number of a new request.
    pub fn next_request(&self) -> RequestId {
        RequestId(self.requests.fetch_add(1, Relaxed) + 1)
    }

    /// Tell the control loop, unless it is too busy to listen.
    pub fn learn(&self, observation: Observation) {
        // A full channel loses the observation: see learn.rs.
        self.observations.try_send(observation).ok();
    }

    /// The fleet as placement sees it now.
    pub fn view<'a>(&'a self, table: &'a RoutingTable, known: Known<'a>) -> View<'a> {
        View { fleet: &self.fleet, table, known, block: self.prefix_block, now: self.clock.now() }
    }

    /// Seconds since 1970.
    pub fn wall_now(&self) -> f64 {
        self.clock.wall(self.clock.now())
    }

    /// The models that the filters know.
    pub fn directory(&self) -> Guard<Arc<Directory>> {
        self.directory.load()
    }

    /// Would a request be served?
    pub fn is_ready(&self) -> bool {
        self.readiness().is_ok()
    }

    /// Would a request be served? A process that hands its listeners to a successor stays ready:
    /// both answer on the same address until the old one's listeners close.
    ///
    /// # Errors
    /// Why not.
    pub fn readiness(&self) -> Result<(), &'static str> {
        if self.is_draining() && !self.hands_over.load(Relaxed) {
            return Err("the proxy is stopping");
        }
        let table = self.fleet.table();
        let mut placeable = self
            .fleet
            .backends
            .iter()
            .filter(|backend| table.entry(backend.id).role != Role::Draining)
            .peekable();
        if placeable.peek().is_none() {
            return Err("every backend is draining");
        }
        let (mut usable, mut heard) = (false, false);
        for backend in placeable {
            usable |= backend.health.is_usable();
            heard |= backend.health.is_usable() && backend.health.is_up();
        }
        match (usable, heard, table.models.is_empty()) {
            (false, ..) => Err("no backend that takes new work is usable"),
            (true, false, _) => Err("no backend that takes new work has answered yet"),
            (true, true, true) => Err("no backend has said which models it serves yet"),
            (true, true, false) => Ok(()),
        }
    }

    /// Is the proxy stopping?
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
}
