//! State of the exchange of loads: this gateway's report, the sum of the others, and the leader's
//! ledger.

use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tidegate_scheduler::gateways::{
    GatewayLoad, GatewayReport, Ledger, ModelArrivals, STALE_AFTER,
};
use tidegate_scheduler::inflight::Balance;
use tidegate_scheduler::planner::ArrivalTotals;
use tidegate_types::{Moment, PoolId, Tokens};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::lines::{SharedRoles, Sum, line};
use super::pacing::Pacing;
use super::token::GatewayToken;
use crate::control::{Leadership, NamedRoles};
use crate::dispatch::context::Proxy;
use crate::upstream::EngineTls;

/// Inputs of an exchange.
pub struct ExchangeParts {
    /// Identity of this process.
    pub identity: String,
    /// Backends and demand.
    pub proxy: Arc<Proxy>,
    /// State of the leader election.
    pub leadership: watch::Sender<Leadership>,
    /// Roles of this gateway while it leads; `None` if a Lease carries them.
    pub plans: Option<watch::Receiver<Option<(u64, NamedRoles)>>>,
    /// Bearer token of all gateways.
    pub token: Option<GatewayToken>,
    /// TLS towards other gateways.
    pub connector: Option<EngineTls>,
}

/// The exchange of one gateway.
pub struct LoadExchange {
    pub(super) parts: ExchangeParts,
    reported: Mutex<Reported>,
    /// Time of the last received sum; `None`: no loads of other gateways are counted.
    counted_at: Mutex<Option<Moment>>,
    hub: Mutex<Hub>,
}

/// The last report of this gateway.
#[derive(Default)]
struct Reported {
    at: Option<Moment>,
    /// Arrival totals of each pool at that time.
    arrivals: HashMap<PoolId, ArrivalTotals>,
}

/// The leader's state.
#[derive(Default)]
struct Hub {
    ledger: Ledger,
    streams: BTreeMap<String, ReportStream>,
    /// Number of the last opened stream.
    number: u64,
    /// Whether a report has arrived since the last sums.
    is_new: bool,
}

struct ReportStream {
    number: u64,
    sums: mpsc::Sender<Bytes>,
    /// Epoch and number of the last sent plan.
    sent: Option<(u64, u64)>,
}

impl LoadExchange {
    /// Creates an exchange before the first report.
    pub fn new(parts: ExchangeParts) -> Arc<LoadExchange> {
        parts.proxy.metrics.other_gateways(0);
        Arc::new(LoadExchange {
            parts,
            reported: Mutex::default(),
            counted_at: Mutex::default(),
            hub: Mutex::default(),
        })
    }

    /// Whether this gateway leads. The election task may be delayed, for example by SIGSTOP.
    pub(super) fn leads(&self) -> bool {
        let until = self.parts.leadership.borrow().leads_until;
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Sends the sums while this gateway leads, and drops outdated loads, until the process ends.
    pub async fn tick(self: Arc<Self>) {
        let mut pacing = Pacing::new();
        loop {
            pacing.look().await;
            let (began, mark) = (Instant::now(), self.load_mark());
            let is_new = std::mem::take(&mut locked(&self.hub).is_new);
            if pacing.is_due(mark, is_new) {
                match self.leads() {
                    true => self.send_sums(),
                    false => self.close(),
                }
                self.expire();
                pacing.made(mark, began);
            }
        }
    }

    /// Returns a number that changes with each placement and each end of a leg of this gateway.
    pub(super) fn load_mark(&self) -> u64 {
        let backends = self.parts.proxy.fleet.backends();
        backends.iter().fold(0, |mark: u64, backend| {
            let balance = backend.account.balance();
            let legs = u64::from(balance.streams) << 32 | u64::from(balance.prefill_legs);
            let words = [legs, balance.prefill_tokens.get()];
            // FNV-1a, by words.
            words.iter().fold(mark, |mark, word| (mark ^ word).wrapping_mul(0x0100_0000_01B3))
        })
    }

    /// Returns the loads of this gateway's requests, and the arrivals since the last report.
    /// Arrivals during a longer pause are omitted, because they no longer describe the demand.
    pub(super) fn own_report(&self) -> GatewayReport {
        let proxy = &self.parts.proxy;
        let now = proxy.clock.now();
        let mut report = GatewayReport::default();
        for backend in proxy.fleet.backends().iter().filter(|backend| !backend.is_leaving()) {
            let balance = backend.account.balance();
            if !balance.is_settled() {
                let deadline =
                    Some(backend.tpot_deadline()).filter(|deadline| *deadline != Moment::NEVER);
                let load = GatewayLoad::of(&balance, deadline.map(|deadline| deadline - now));
                report.loads.insert(backend.name.to_string(), load);
            }
        }
        let table = proxy.fleet.table();
        let mut reported = locked(&self.reported);
        let is_recent = reported.at.replace(now).is_some_and(|at| now - at <= STALE_AFTER);
        reported.arrivals.retain(|pool, _| table.pool(*pool).is_some());
        for pool in &table.pools {
            let totals = pool.demand.arrivals.totals();
            let before = reported.arrivals.insert(pool.id, totals).unwrap_or_default();
            let arrived = ModelArrivals::between(&pool.model, pool.above, &before, &totals);
            report.arrivals.extend(arrived.filter(|_| is_recent));
        }
        report
    }

    /// Counts the loads of `gateways` other gateways.
    pub(super) fn count(&self, others: &GatewayReport, gateways: usize) {
        let proxy = &self.parts.proxy;
        let now = proxy.clock.now();
        for backend in proxy.fleet.backends().iter() {
            let load = others.loads.get(&*backend.name).filter(|_| !backend.is_leaving());
            match load {
                Some(load) => backend.set_others(&load.balance(), load.tpot_deadline(now)),
                None => backend.set_others(&Balance::default(), Moment::NEVER),
            }
        }
        let table = proxy.fleet.table();
        for arrived in &others.arrivals {
            let above = arrived.above.map(Tokens);
            let same = |pool: &&crate::backends::fleet::PoolEntry| {
                *pool.model == *arrived.model && pool.above == above
            };
            if let Some(pool) = table.pools.iter().find(same) {
                pool.demand.others.count_all(&arrived.totals());
            }
        }
        if proxy.other_gateways.swap(gateways, Relaxed) != gateways {
            proxy.metrics.other_gateways(gateways);
        }
        *locked(&self.counted_at) = Some(now);
        // Other gateways may have released capacity.
        proxy.queue.signal().capacity_released();
    }

    /// Drops the loads of other gateways if they are outdated.
    fn expire(&self) {
        let now = self.parts.proxy.clock.now();
        let mut counted_at = locked(&self.counted_at);
        if counted_at.take_if(|at| now - *at > STALE_AFTER).is_some() {
            drop(counted_at);
            self.count(&GatewayReport::default(), 0);
            *locked(&self.counted_at) = None;
        }
    }

    /// Opens the stream of a gateway and closes its earlier one. Returns the stream's number.
    pub(super) fn open(&self, name: &str, sums: mpsc::Sender<Bytes>) -> u64 {
        let mut hub = locked(&self.hub);
        hub.number += 1;
        let number = hub.number;
        hub.streams.insert(name.to_owned(), ReportStream { number, sums, sent: None });
        number
    }

    /// Returns a report of this many gateways if it is possible. The first refusal of a stream is
    /// logged.
    pub(super) fn checked(
        &self,
        from: &str,
        report: GatewayReport,
        gateways: usize,
        is_refused: &mut bool,
    ) -> Option<GatewayReport> {
        let problem = match report.checked(gateways) {
            Ok(report) => return Some(report),
            Err(problem) => problem,
        };
        self.parts.proxy.metrics.refused_gateway_report();
        if !std::mem::replace(is_refused, true) {
            tracing::warn!(gateway = %from, "reported loads are refused: {problem}");
        }
        None
    }

    /// Takes the report of a gateway. Returns whether its stream is still open.
    pub(super) fn reported(&self, name: &str, number: u64, report: GatewayReport) -> bool {
        let mut hub = locked(&self.hub);
        let is_open = hub.streams.get(name).is_some_and(|stream| stream.number == number);
        if is_open {
            hub.ledger.report(name, report, self.parts.proxy.clock.now());
            hub.is_new = true;
        }
        is_open
    }

    /// Closes the stream of a gateway, whose loads leave the sum.
    pub(super) fn left(&self, name: &str, number: u64) {
        let mut hub = locked(&self.hub);
        if hub.streams.get(name).is_some_and(|stream| stream.number == number) {
            hub.streams.remove(name);
            hub.ledger.leave(name);
        }
    }

    /// Closes all streams, because this gateway does not lead.
    fn close(&self) {
        let mut hub = locked(&self.hub);
        hub.streams.clear();
        hub.ledger.clear();
    }

    /// Takes this gateway's own report, and sends each other gateway the sum of the rest.
    fn send_sums(&self) {
        let own = self.own_report();
        let plan = self.plan();
        let mut mine = None;
        let mut hub = locked(&self.hub);
        let Hub { ledger, streams, .. } = &mut *hub;
        let (identity, now) = (&self.parts.identity, self.parts.proxy.clock.now());
        ledger.report(identity, own, now);
        let takes = |name: &str| {
            name == identity || streams.get(name).is_some_and(|stream| stream.sums.capacity() > 0)
        };
        let shares = ledger.shares(now, takes);
        for share in shares {
            if share.to == *identity {
                mine = Some((share.others, share.gateways));
            } else if let Some(stream) = streams.get_mut(&share.to) {
                let version = plan.as_ref().map(|plan| (plan.epoch, plan.seq));
                let plan = plan.clone().filter(|_| stream.sent != version);
                let sum = Sum { others: share.others, gateways: share.gateways, plan };
                if stream.sums.try_send(line(&sum)).is_ok() {
                    stream.sent = version;
                }
            }
        }
        drop(hub);
        if let Some((others, gateways)) = mine {
            self.count(&others, gateways);
        }
    }

    /// Returns the roles in force, if the exchange carries them.
    fn plan(&self) -> Option<SharedRoles> {
        let (seq, roles) = self.parts.plans.as_ref()?.borrow().clone()?;
        let epoch = self.parts.leadership.borrow().epoch?;
        Some(SharedRoles { epoch, seq, roles: (*roles).clone() })
    }

    /// Adopts the roles of the leader at `address`, unless another gateway leads meanwhile.
    pub(super) fn follow(&self, address: &str, plan: SharedRoles) {
        if self.parts.plans.is_none() {
            return;
        }
        self.parts.leadership.send_if_modified(|shown| {
            let follows = shown.address.as_deref() == Some(address) && shown.leads_until.is_none();
            if follows {
                shown.plan = Some((plan.epoch, plan.seq, Arc::new(plan.roles)));
            }
            follows
        });
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
