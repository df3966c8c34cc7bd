//! State of the simulated fleet, as the scheduler reads it: in-flight accounts on plain cells, roles,
//! prefix index, and the slack of the streams. The proxy samples slack; the simulator computes it
//! exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tidegate_scheduler::LocalU64;
use tidegate_scheduler::cost::{DecodeModel, Matches, PrefillModel, PrefixIndex, TransferModel};
use tidegate_scheduler::dispatch::{Accounts, LegReservation, load_of};
use tidegate_scheduler::gateways::GatewayLoad;
use tidegate_scheduler::inflight::{Account, Balance, PrefillCharge, StreamCharge};
use tidegate_scheduler::placement::{BackendLoad, FleetLoads, PrefillRequest};
use tidegate_scheduler::planner::{BackendObservation, GroupDemand, Observation};
use tidegate_types::{
    BackendId, Moment, PoolId, RequestId, Role, RoleCapability, RoleSet, Seconds, Tokens,
};

use crate::prefix_cache::{BLOCK_TOKENS, CacheChange};
use crate::profile::Profile;

/// Blocks of the prefix index: 134 million tokens.
const INDEX_BLOCKS: usize = 1 << 18;

/// One engine: its account, its progress and its role.
#[derive(Debug, Default)]
struct EngineState {
    account: Arc<Account<LocalU64>>,
    /// When the first stream of the other gateways exceeds its TPOT target, as last exchanged.
    others_deadline: Option<Moment>,
    /// Streams with a first token.
    decoding: u64,
    /// Number of completed steps.
    steps: u64,
    /// The role after the switch in progress, and the start of the switch once the engine is idle.
    becoming: Option<(Role, Option<Moment>)>,
    /// By TPOT target in nanoseconds and stream: its TPOT deadline less the steps since step 0, and
    /// the request. A stream whose first token came at `t` with step `s` meets the target until
    /// `t + (steps + 1 − s)·TPOT`; the key is `t − s·TPOT`, which does not change while the stream
    /// runs.
    tpot_keys: BTreeMap<i64, BTreeSet<(i64, usize)>>,
}

/// One stream: its charge, its TPOT target in nanoseconds (`None`: it has none) and, from its first token
/// on, its key in `tpot_keys` and its first step.
#[derive(Debug)]
struct Stream {
    charge: StreamCharge<LocalU64>,
    tpot: Option<i64>,
    decoding: Option<(i64, u64)>,
}

/// State of all engines.
pub(crate) struct FleetState {
    pool: Vec<BackendId>,
    roles: Vec<Role>,
    engines: Vec<EngineState>,
    /// By request: the charge of its prefill.
    prefills: BTreeMap<usize, PrefillCharge<LocalU64>>,
    /// By request: its stream.
    streams: BTreeMap<usize, Stream>,
    /// By engine: its properties, without its load.
    models: Vec<BackendLoad>,
    /// By engine: the share of predicted hits that is real.
    hit_shares: Vec<f64>,
    /// Prefix index of the sent prompt blocks, if engines cache prefixes.
    index: Option<PrefixIndex>,
    /// By waiting request: the engines that were sent its leading blocks.
    matches: BTreeMap<RequestId, Matches>,
    /// How roles can be changed.
    capability: RoleCapability,
}

/// The state at one moment.
pub(crate) struct View<'a> {
    fleet_state: &'a FleetState,
    now: Moment,
}

impl FleetState {
    pub(crate) fn new(fleet: &[Profile], capability: RoleCapability) -> FleetState {
        let engines = fleet.len();
        // SGLang, the only `DrainThenCall` engine, answers colocated requests with 400.
        let colocates = capability == RoleCapability::Instant;
        let properties = |profile: &Profile| BackendLoad {
            colocates,
            streams_max: profile.max_num_seqs,
            kv_capacity: profile.kv_capacity,
            prefill_model: profile.prefill_model(),
            decode_model: profile.decode_model(),
            transfer_model: TransferModel::default(),
            ..BackendLoad::idle(Role::Mixed)
        };
        FleetState {
            pool: (0..engines).map(|engine| BackendId(engine as u16)).collect(),
            roles: vec![Role::Mixed; engines],
            engines: (0..engines).map(|_| EngineState::default()).collect(),
            prefills: BTreeMap::new(),
            streams: BTreeMap::new(),
            models: fleet.iter().map(properties).collect(),
            hit_shares: vec![1.0; engines],
            index: None,
            matches: BTreeMap::new(),
            capability,
        }
    }

    /// Adds a prefix index, which predicts hits from the prompts that were sent to each engine, as in
    /// the proxy. With `kv_events` the engines report what they store and evict.
    pub(crate) fn with_prefix_index(mut self, kv_events: bool) -> FleetState {
        let index = PrefixIndex::new(INDEX_BLOCKS);
        for (id, model) in self.pool.iter().zip(&self.models) {
            index.set_kv_capacity(*id, model.kv_capacity, Tokens(BLOCK_TOKENS));
            index.set_kv_events(*id, kv_events);
        }
        self.index = Some(index);
        self
    }

    /// Applies an engine's KV events to the prefix index.
    pub(crate) fn apply_kv_events(&self, on: BackendId, changes: &[CacheChange]) {
        let Some(index) = &self.index else { return };
        for change in changes {
            match change {
                CacheChange::Stored(hash) => index.store(on, *hash),
                CacheChange::Removed(hash) => index.remove(on, *hash),
            }
        }
    }

    /// Returns the engines.
    pub(crate) fn engines(&self) -> impl Iterator<Item = BackendId> + Clone + use<> {
        (0..self.pool.len()).map(|slot| BackendId(slot as u16))
    }

    /// Returns the engines' accounts, by slot: of this gateway, and of the others.
    pub(crate) fn balances(&self) -> impl Iterator<Item = (Balance, Balance)> {
        self.engines.iter().map(|engine| (engine.account.balance(), engine.account.others()))
    }

    /// Returns the load of all gateways on an engine.
    pub(crate) fn balance(&self, on: BackendId) -> Balance {
        self.engines[on.index()].account.total()
    }

    /// Returns this gateway's load on an engine, for the other gateways.
    pub(crate) fn load(&self, on: BackendId, now: Moment) -> GatewayLoad {
        let engine = &self.engines[on.index()];
        GatewayLoad::of(&engine.account.balance(), engine.own_slack(now))
    }

    /// Sets the load of the other gateways on an engine.
    pub(crate) fn set_others(&mut self, on: BackendId, load: Option<&GatewayLoad>, now: Moment) {
        let engine = &mut self.engines[on.index()];
        engine.account.set_others(&load.map(GatewayLoad::balance).unwrap_or_default());
        let deadline = load.map(|load| load.tpot_deadline(now));
        engine.others_deadline = deadline.filter(|deadline| *deadline != Moment::NEVER);
    }

    /// Returns the roles.
    pub(crate) fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// Sets the costs of an engine.
    pub(crate) fn set_costs(
        &mut self,
        on: BackendId,
        prefill: PrefillModel,
        decode: DecodeModel,
        transfer: TransferModel,
    ) {
        let model = &mut self.models[on.index()];
        (model.prefill_model, model.decode_model) = (prefill, decode);
        model.transfer_model = transfer;
    }

    /// Sets the share of predicted hits that is real on an engine.
    pub(crate) fn set_hit_share(&mut self, on: BackendId, share: f64) {
        self.hit_shares[on.index()] = share;
    }

    /// Returns the prefill model of the mean engine, by which demand is counted.
    pub(crate) fn mean_prefill(&self) -> PrefillModel {
        PrefillModel::mean(self.models.iter().map(|model| model.prefill_model))
    }

    /// Looks up a request's prompt. Returns the longest expected hit on any engine, in tokens.
    pub(crate) fn look_up(&mut self, id: RequestId, blocks: &[u64]) -> Tokens {
        let Some(index) = &self.index else { return Tokens::ZERO };
        let matches = index.matches(blocks);
        let real = |(on, blocks): &(BackendId, u32)| self.real_hit(*on, *blocks);
        let most = matches.entries().iter().map(real).max().unwrap_or(Tokens::ZERO);
        self.matches.insert(id, matches);
        most
    }

    /// Returns the expected real tokens of a predicted hit.
    fn real_hit(&self, on: BackendId, blocks: u32) -> Tokens {
        let predicted = u64::from(blocks) * BLOCK_TOKENS;
        Tokens((predicted as f64 * self.hit_shares[on.index()]) as u64)
    }

    /// Returns the prompt tokens whose KV an engine is expected to lack before a hand-off.
    pub(crate) fn lacks(&self, on: BackendId, blocks: &[u64], prompt: Tokens) -> Tokens {
        let Some(index) = &self.index else { return prompt };
        prompt - self.real_hit(on, index.matches(blocks).blocks_on(on)).min(prompt - Tokens(1))
    }

    /// Records that an engine receives a prompt: to compute, or with its KV.
    pub(crate) fn sent(&mut self, id: RequestId, on: BackendId, blocks: &[u64], prompt: Tokens) {
        self.matches.remove(&id);
        if let Some(index) = &self.index {
            let full = (prompt.get() / BLOCK_TOKENS) as usize;
            index.insert(on, &blocks[..full.min(blocks.len())]);
        }
    }

    pub(crate) fn view(&self, now: Moment) -> View<'_> {
        View { fleet_state: self, now }
    }

    /// Returns the fleet as the planner's input.
    pub(crate) fn observation(&self, groups: Vec<GroupDemand>) -> Observation {
        let backends = self.pool.iter().map(|id| {
            let (engine, model) = (&self.engines[id.index()], &self.models[id.index()]);
            // Batch streams are no demand.
            let balance = engine.account.total().without(&engine.account.batch_streams());
            BackendObservation {
                id: *id,
                group: model.group,
                allowed: self.allowed(),
                capability: self.capability,
                pinned: None,
                healthy: true,
                role: self.roles[id.index()],
                becoming: engine.becoming.map(|(role, _)| role),
                prefill: model.prefill_model.batch(balance.prefill),
                streams: balance.streams,
                streams_max: model.streams_max,
                kv: balance.kv,
                kv_capacity: model.kv_capacity,
                prefill_model: model.prefill_model,
                decode_model: model.decode_model,
                colocates: model.colocates,
            }
        });
        Observation { backends: backends.collect(), groups }
    }

    fn allowed(&self) -> RoleSet {
        match self.capability {
            RoleCapability::Instant => RoleSet::ANY,
            _ => RoleSet::EMPTY.with(Role::Prefill).with(Role::Decode),
        }
    }

    /// Sets the initial roles.
    pub(crate) fn begin_with(&mut self, roles: Vec<Role>) {
        self.roles = roles;
    }

    /// Sets the roles and returns the number of flips. `DrainThenCall` engines begin to drain.
    pub(crate) fn set_roles(&mut self, roles: Vec<Role>) -> u64 {
        let changes = self.roles.iter_mut().zip(roles).zip(&mut self.engines);
        let mut changed = 0;
        for ((role, new), engine) in changes.filter(|((old, new), _)| **old != *new) {
            changed += 1;
            *role = new;
            if self.capability == RoleCapability::DrainThenCall {
                engine.becoming = Some((new, None));
                *role = Role::Draining;
            }
        }
        changed
    }

    /// Starts the switch of drained engines, and completes the switches that started `takes` ago.
    /// Returns whether one was completed.
    pub(crate) fn switch(
        &mut self,
        now: Moment,
        takes: Seconds,
        is_idle: impl Fn(usize) -> bool,
    ) -> bool {
        let mut switched = false;
        for (slot, (engine, role)) in self.engines.iter_mut().zip(&mut self.roles).enumerate() {
            match engine.becoming {
                Some((new, None)) if engine.account.balance().is_settled() && is_idle(slot) => {
                    engine.becoming = Some((new, Some(now)));
                }
                Some((new, Some(since))) if now - since >= takes => {
                    engine.becoming = None;
                    *role = new;
                    switched = true;
                }
                _ => {}
            }
        }
        switched
    }

    /// Keeps the charges of a request's first leg.
    pub(crate) fn placed(&mut self, request: usize, leg: LegReservation<LocalU64>, tpot: Seconds) {
        self.prefills.insert(request, leg.prefill);
        if let Some(charge) = leg.stream {
            self.decoding(request, charge, tpot);
        }
    }

    /// Keeps the charge of a request's stream, whose TPOT target is `tpot`.
    pub(crate) fn decoding(
        &mut self,
        request: usize,
        charge: StreamCharge<LocalU64>,
        tpot: Seconds,
    ) {
        self.streams.insert(request, Stream { charge, tpot: nanos(tpot), decoding: None });
    }

    /// Settles the prefill charge of a request, if it has one.
    pub(crate) fn settle(&mut self, request: usize) {
        self.prefills.remove(&request);
    }

    /// Records a stream's first token, emitted with the engine's step `steps`.
    pub(crate) fn began(&mut self, request: usize, engine: usize, now: Moment, steps: u64) {
        self.stepped(engine, steps);
        let Some(stream) = self.streams.get_mut(&request) else { return };
        let engine = &mut self.engines[engine];
        stream.charge.emit(1);
        engine.decoding += 1;
        let tpot = stream.tpot.unwrap_or(0);
        let key = (now.0 as i64).saturating_sub((steps as i64).saturating_mul(tpot));
        stream.decoding = Some((key, steps));
        if let Some(tpot) = stream.tpot {
            engine.tpot_keys.entry(tpot).or_default().insert((key, request));
        }
    }

    /// Records the end of a stream.
    pub(crate) fn ended(&mut self, request: usize, engine: usize, steps: u64) {
        self.stepped(engine, steps);
        let Some(Stream { mut charge, tpot, decoding }) = self.streams.remove(&request) else {
            return;
        };
        if let Some((key, first)) = decoding {
            charge.take_over(steps - first);
            let engine = &mut self.engines[engine];
            engine.decoding -= 1;
            if let Some(keys) = tpot.and_then(|tpot| engine.tpot_keys.get_mut(&tpot)) {
                keys.remove(&(key, request));
            }
        }
    }

    /// Records the end of the engine's step `steps`, in which every running stream emitted a token.
    pub(crate) fn stepped(&mut self, engine: usize, steps: u64) {
        let EngineState { account, decoding, steps: known, .. } = &mut self.engines[engine];
        account.emit_for_streams(*decoding * (steps - *known));
        *known = steps;
    }
}

impl EngineState {
    /// Returns the smallest slack of the streams of all gateways.
    fn slack(&self, now: Moment) -> Option<Seconds> {
        let others = self.others_deadline.map(|deadline| deadline - now);
        self.own_slack(now).into_iter().chain(others).reduce(Seconds::min)
    }

    /// Returns the smallest slack of this gateway's streams with a first token.
    fn own_slack(&self, now: Moment) -> Option<Seconds> {
        let deadline = |(tpot, keys): (&i64, &BTreeSet<(i64, usize)>)| {
            let (key, _) = keys.first()?;
            Some(key + (self.steps as i64 + 1) * tpot)
        };
        let first = self.tpot_keys.iter().filter_map(deadline).min()?;
        Some(Seconds((first - now.0 as i64) as f64 / 1e9))
    }
}

impl FleetLoads for View<'_> {
    fn pool(&self, _: PoolId) -> &[BackendId] {
        &self.fleet_state.pool
    }

    fn load(&self, on: BackendId) -> BackendLoad {
        let engine = &self.fleet_state.engines[on.index()];
        let role = self.fleet_state.roles[on.index()];
        let slack = engine.slack(self.now);
        let fixed = BackendLoad { role, ..self.fleet_state.models[on.index()] };
        load_of(fixed, &engine.account, slack)
    }

    fn cached(&self, job: &PrefillRequest, on: BackendId) -> Tokens {
        self.fleet_state.real_hit(on, self.blocks(job, on)).min(job.prompt - Tokens(1))
    }
}

impl Accounts for View<'_> {
    type Counter = LocalU64;

    fn account(&self, on: BackendId) -> &Arc<Account<LocalU64>> {
        &self.fleet_state.engines[on.index()].account
    }

    fn predicted_hit(&self, job: &PrefillRequest, on: BackendId) -> Tokens {
        Tokens(u64::from(self.blocks(job, on)) * BLOCK_TOKENS).min(job.prompt - Tokens(1))
    }
}

impl View<'_> {
    /// Returns the number of leading prompt blocks of a request that an engine is predicted to hold.
    fn blocks(&self, job: &PrefillRequest, on: BackendId) -> u32 {
        self.fleet_state.matches.get(&job.id).map_or(0, |matches| matches.blocks_on(on))
    }
}

/// Returns a TPOT target in nanoseconds; `None` for batch work, whose target is infinite.
fn nanos(tpot: Seconds) -> Option<i64> {
    tpot.get().is_finite().then_some((tpot.get() * 1e9) as i64)
}
