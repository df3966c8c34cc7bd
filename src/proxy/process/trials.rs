//! Trial hand-offs (`probe.trial_handoffs`): when a backend has started, joined or returned, one
//! short prompt is handed off from a few peers of its group to it, and from it to them. Trials run
//! one at a time, beside the requests. A pair whose trial fails twice receives no hand-offs until a
//! later trial succeeds.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tidegate_engine::trial::{TRIAL_PATH, TrialRequest};
use tidegate_engine::{LegBody, Legs, RendezvousInfo, is_load};
use tidegate_types::{BackendId, Moment, Role, Seconds};
use tokio::time::{sleep, timeout};

use crate::backends::fleet::{Backend, EVERYONE, FailedHandOff, RoutingTable};
use crate::dispatch::context::Proxy;
use crate::upstream::failure::LegProblem;
use crate::upstream::{Outgoing, read_all};

/// Interval of the checks for started backends.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Peers of a backend that are tried in each direction.
const PEERS_MAX: usize = 3;
/// Time-out of one leg.
const LEG_MAX: Duration = Duration::from_secs(10);
/// Words of the prompt: with the number before them, two KV blocks of vLLM.
const WORDS: usize = 20;
/// Delay before a failed pair is tried again, and before a pair with a busy or unreachable engine.
const AGAIN_AFTER: (Seconds, Seconds) = (Seconds(300.0), Seconds(15.0));
/// Largest answer of a leg, in bytes.
const ANSWER_MAX: usize = 1 << 20;

/// Result of one trial.
#[derive(Clone, Debug, PartialEq, Eq)]
enum TrialResult {
    Works,
    Fails(String),
    /// An engine was busy or unreachable.
    Unknown,
}

/// A prefill backend and a decode backend.
type Pair = (BackendId, BackendId);

/// The trials of one proxy and their results.
pub struct Trials {
    proxy: Arc<Proxy>,
    /// By slot: the backend last observed there, whether it was healthy, and how often it became
    /// healthy.
    seen: Vec<ObservedBackend>,
    results: BTreeMap<Pair, TrialRecord>,
}

#[derive(Default)]
struct ObservedBackend {
    backend: Option<Arc<Backend>>,
    healthy: bool,
    starts: u64,
}

struct TrialRecord {
    at: Moment,
    /// Numbers of starts of both backends at that time.
    starts: (u64, u64),
    result: TrialResult,
}

impl Trials {
    /// Creates the state before the first trial.
    pub fn new(proxy: Arc<Proxy>) -> Trials {
        Trials { proxy, seen: Vec::new(), results: BTreeMap::new() }
    }

    /// Tries pairs until the process ends.
    pub async fn run(mut self) {
        while !self.proxy.is_draining() {
            self.record_starts();
            let table = Arc::clone(&self.proxy.fleet.table());
            match self.next(&table) {
                Some((pair, model)) => self.try_pair(pair, &model).await,
                None => sleep(CHECK_INTERVAL).await,
            }
        }
    }

    /// Records started backends, and drops results from before their start.
    fn record_starts(&mut self) {
        let backends = self.proxy.fleet.backends();
        self.seen.resize_with(backends.len(), ObservedBackend::default);
        for (seen, backend) in self.seen.iter_mut().zip(backends.iter()) {
            let healthy = backend.health.is_healthy() && !backend.is_leaving();
            let is_new = !seen.backend.as_ref().is_some_and(|known| Arc::ptr_eq(known, backend));
            if healthy && (is_new || !seen.healthy) {
                seen.starts += 1;
            }
            seen.healthy = healthy;
            // The reference to a backend that has left is dropped, so that its slot becomes free.
            seen.backend = (!backend.has_left()).then(|| Arc::clone(backend));
        }
        let seen = &self.seen;
        let starts = |id: BackendId| seen.get(id.index()).map_or(0, |seen| seen.starts);
        let before = self.results.len();
        self.results.retain(|(from, to), tried| tried.starts == (starts(*from), starts(*to)));
        if self.results.len() != before {
            self.publish();
        }
    }

    /// Returns the next pair to try, with a model that both serve: a failed one after a while, or one that
    /// a backend with too few trials lacks.
    fn next(&self, table: &RoutingTable) -> Option<(Pair, Arc<str>)> {
        let now = self.proxy.clock.now();
        let again = self.results.iter().filter(|(_, t)| now - t.at >= again_after(&t.result));
        let mut again = again.filter_map(|(pair, _)| self.ready(table, *pair));
        again.next().or_else(|| self.untried(table))
    }

    fn untried(&self, table: &RoutingTable) -> Option<(Pair, Arc<str>)> {
        // Trials of each backend, as the first and as the second.
        let mut counts = vec![(0, 0); self.seen.len()];
        for (from, to) in self.results.keys() {
            counts[from.index()].0 += 1;
            counts[to.index()].1 += 1;
        }
        let healthy = self.seen.iter().filter(|seen| seen.healthy);
        let healthy: Vec<BackendId> =
            healthy.filter_map(|seen| Some(seen.backend.as_ref()?.id)).collect();
        let new = |pair: Pair| match self.results.contains_key(&pair) {
            true => None,
            false => self.ready(table, pair),
        };
        healthy.iter().find_map(|one| {
            let (first, second) = counts[one.index()];
            let mut others = healthy.iter().filter(|other| *other != one);
            let from = || others.clone().find_map(|other| new((*one, *other)));
            let from = if first < PEERS_MAX { from() } else { None };
            from.or_else(|| {
                (second < PEERS_MAX).then(|| others.find_map(|other| new((*other, *one))))?
            })
        })
    }

    /// Returns the pair with a model that both serve, if requests may be split over it.
    fn ready(&self, table: &RoutingTable, pair: Pair) -> Option<(Pair, Arc<str>)> {
        let healthy =
            |id: BackendId| self.seen.get(id.index()).filter(|seen| seen.healthy)?.backend.as_ref();
        let (from, to) = (healthy(pair.0)?, healthy(pair.1)?);
        may_hand_over(table, from, to).then(|| model(table, pair))?.map(|model| (pair, model))
    }

    async fn try_pair(&mut self, (from, to): Pair, model: &str) {
        let of = |id: BackendId| self.seen.get(id.index()).and_then(|seen| seen.backend.clone());
        let (Some(first), Some(second)) = (of(from), of(to)) else { return };
        let mut result = trial(&first, &second, model).await;
        if matches!(result, TrialResult::Fails(_)) {
            result = trial(&first, &second, model).await;
        }
        let (prefill, decode) = (&first.name, &second.name);
        let before = self.results.get(&(from, to)).map(|tried| &tried.result);
        match &result {
            TrialResult::Fails(why) if before != Some(&result) => {
                tracing::warn!(%prefill, %decode, "trial hand-off failed: {why}");
            }
            TrialResult::Works => tracing::info!(%prefill, %decode, "trial hand-off works"),
            _ => tracing::debug!(%prefill, %decode, ?result, "trial hand-off"),
        }
        self.proxy.metrics.tried_hand_off(match result {
            TrialResult::Works => "works",
            TrialResult::Fails(_) => "fails",
            TrialResult::Unknown => "unknown",
        });
        let starts = |id: BackendId| self.seen[id.index()].starts;
        let (at, starts) = (self.proxy.clock.now(), (starts(from), starts(to)));
        self.results.insert((from, to), TrialRecord { at, starts, result });
        self.publish();
    }

    /// Publishes to every backend the results of its pairs.
    fn publish(&self) {
        for backend in self.seen.iter().filter_map(|seen| seen.backend.as_ref()) {
            let id = backend.id;
            let failed = self.results.iter().filter_map(|((from, to), tried)| {
                let TrialResult::Fails(reason) = &tried.result else { return None };
                let name = Arc::clone(&self.proxy.fleet.backend(*to).name);
                (*from == id).then(|| FailedHandOff { to: *to, name, reason: reason.clone() })
            });
            let none = |of: &dyn Fn(&Pair) -> BackendId| {
                let mut tried = self.results.iter().filter(|(pair, _)| of(pair) == id).peekable();
                tried.peek().is_some()
                    && tried.all(|(_, tried)| matches!(tried.result, TrialResult::Fails(_)))
            };
            backend.trials.set(failed.collect(), none(&|pair| pair.0), none(&|pair| pair.1));
        }
    }
}

fn again_after(result: &TrialResult) -> Seconds {
    match result {
        TrialResult::Works => Seconds(f64::INFINITY),
        TrialResult::Fails(_) => AGAIN_AFTER.0,
        TrialResult::Unknown => AGAIN_AFTER.1,
    }
}

/// Returns whether requests may be disaggregated over this pair, by groups, families and launch
/// flags.
fn may_hand_over(table: &RoutingTable, from: &Backend, to: &Backend) -> bool {
    let roles = (table.entry(from.id).role, table.entry(to.id).role);
    from.family.can_split()
        && table.entry(from.id).group == table.entry(to.id).group
        && from.allowed.contains(Role::Prefill)
        && to.may_decode()
        // An engine in a PD mode runs only legs of its current role.
        && (from.family.serves_colocated() || roles == (Role::Prefill, Role::Decode))
}

/// Returns a model that both backends serve.
fn model(table: &RoutingTable, (from, to): Pair) -> Option<Arc<str>> {
    let of_both = table.pools.iter().find(|pool| {
        pool.id != EVERYONE && pool.backends.contains(&from) && pool.backends.contains(&to)
    });
    of_both.map(|pool| Arc::clone(&pool.model))
}

/// Tries one direction of a pair.
async fn trial(from: &Backend, to: &Backend, model: &str) -> TrialResult {
    match attempt(from, to, model).await {
        Ok(()) => TrialResult::Works,
        Err(result) => result,
    }
}

async fn attempt(from: &Backend, to: &Backend, model: &str) -> Result<(), TrialResult> {
    let id = fastrand::u64(..);
    let request = TrialRequest::new(model, id, WORDS).map_err(|_| TrialResult::Unknown)?;
    let peer = from.bootstrap.peer(from.family, &from.pool, id).await;
    let peer = peer.map_err(|problem| failed(from, &problem))?;
    let key = from.key.as_deref();
    let rendezvous = RendezvousInfo {
        host: from.pool.address().authority.host(),
        port: from.rendezvous_port,
        id,
        peer: peer.as_ref(),
        key,
    };
    match request.legs(from.family, &rendezvous) {
        Legs::Colocated => Err(TrialResult::Unknown),
        Legs::PrefillFirst { prefill } => {
            let answer = leg(from, Role::Prefill, prefill.into()).await?;
            let decode = request.decode_leg(from.family, &answer, key);
            let decode =
                decode.map_err(|why| TrialResult::Fails(format!("{}: {why}", from.name)))?;
            leg(to, Role::Decode, decode).await.map(drop)
        }
        Legs::Concurrent(pair) => {
            let (prefill, decode) = tokio::join!(
                leg(from, Role::Prefill, pair.prefill),
                leg(to, Role::Decode, pair.decode)
            );
            prefill.and(decode).map(drop)
        }
    }
}

/// Sends a leg and reads its answer.
async fn leg(on: &Backend, role: Role, leg: LegBody) -> Result<Bytes, TrialResult> {
    let admission = on.epoch.get().map(|epoch| (role, epoch));
    let request = || Outgoing::own_leg(on.pool.address(), TRIAL_PATH, &leg, admission);
    let exchange = async {
        let answer = on.pool.send(request).await?;
        let status = answer.head.status;
        Ok::<_, LegProblem>((status, read_all(answer.body, ANSWER_MAX).await?))
    };
    match timeout(LEG_MAX, exchange).await {
        Ok(Ok((status, body))) if status.is_success() => Ok(body),
        Ok(Ok((status, _))) if is_load(status.as_u16()) => Err(TrialResult::Unknown),
        Ok(Ok((status, body))) => {
            let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
            Err(TrialResult::Fails(format!("{} answers {status}: {text}", on.name)))
        }
        Ok(Err(problem)) => Err(failed(on, &problem)),
        Err(_) => Err(TrialResult::Fails(format!("{}: no answer within {LEG_MAX:?}", on.name))),
    }
}

fn failed(on: &Backend, problem: &LegProblem) -> TrialResult {
    match problem.is_unreachable() {
        true => TrialResult::Unknown,
        false => TrialResult::Fails(format!("{}: {problem}", on.name)),
    }
}
