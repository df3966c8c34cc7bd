//! The accounts of all engines, as in the proxy: prefill work in flight, streams, their KV tokens
//! and their slack. The simulator's implementation of [`tidegate_scheduler::placement::Fleet`].

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use tidegate_scheduler::cost::{Matches, PrefixIndex};
use tidegate_scheduler::placement::{Choice, Load, PrefillRequest};
use tidegate_scheduler::planner::{BackendObservation, GroupDemand, Observation};
use tidegate_types::{
    BackendId, GroupId, Moment, PoolId, RequestId, Role, RoleCapability, RoleSet, Seconds, Tokens,
};

use crate::prefix_cache::BLOCK_TOKENS;
use crate::profile::Profile;

/// Slack of an engine without streams, longer than any stream waits; same value as in the proxy.
const NO_STREAM: Seconds = Seconds(3600.0);
/// Blocks of the prefix index: 134 million tokens.
const INDEX_BLOCKS: usize = 1 << 18;

/// Account of one engine. `Cell`s, because the queue reserves while it reads.
#[derive(Debug, Default)]
struct Account {
    /// Prefill work in flight, in integer nanoseconds, so that it returns exactly to zero.
    prefill: Cell<u64>,
    /// Uncached tokens of the prompts in flight.
    prefill_tokens: Cell<u64>,
    /// Streams running or reserved.
    streams: Cell<u32>,
    /// Sum of the prompt tokens of those streams.
    prompts: Cell<u64>,
    /// Streams with a first token.
    begun: u64,
    /// Sum of the step numbers of their first tokens.
    first_steps: u64,
    /// Number of completed steps.
    steps: u64,
    /// The role after the switch in progress, and the start of the switch once the engine is idle.
    becoming: Option<(Role, Option<Moment>)>,
    /// By stream: the time at which it would be late had it emitted nothing since step 0, and the
    /// request. A stream whose first token came at `t` with step `s` is on time until `t + (steps +
    /// 1 − s)·TPOT`.
    late: BTreeSet<(i64, usize)>,
}

/// The accounts of all engines.
pub(crate) struct Ledger {
    pool: Vec<BackendId>,
    roles: Vec<Role>,
    accounts: Vec<Account>,
    /// By request: the charged prefill work and tokens.
    charged: BTreeMap<usize, (u64, u64)>,
    /// By request: its key in `late` and its first step.
    begun: BTreeMap<usize, (i64, u64)>,
    /// By engine: its constant properties, without its load.
    models: Vec<Load>,
    /// Prefix index of the sent prompt blocks, if engines cache prefixes.
    index: Option<PrefixIndex>,
    /// By waiting request: the engines that were sent its leading blocks.
    matches: BTreeMap<RequestId, Matches>,
    tpot: Seconds,
    /// How roles can be changed.
    capability: RoleCapability,
}

/// The ledger at one moment.
pub(crate) struct View<'a> {
    ledger: &'a Ledger,
    now: Moment,
}

impl Ledger {
    pub(crate) fn new(fleet: &[Profile], tpot: Seconds, capability: RoleCapability) -> Ledger {
        let engines = fleet.len();
        Ledger {
            pool: (0..engines).map(|engine| BackendId(engine as u16)).collect(),
            roles: vec![Role::Mixed; engines],
            accounts: (0..engines).map(|_| Account::default()).collect(),
            charged: BTreeMap::new(),
            begun: BTreeMap::new(),
            models: fleet
                .iter()
                .map(|profile| Load {
                    role: Role::Mixed,
                    usable: true,
                    last: false,
                    // SGLang, the only engine that switches by itself, answers whole requests with
                    // 400.
                    runs_whole: capability == RoleCapability::Instant,
                    hands_over: true,
                    group: GroupId(0),
                    prefill: Seconds::ZERO,
                    prefill_tokens: Tokens::ZERO,
                    streams: 0,
                    awaiting_first_token: 0,
                    streams_max: profile.max_num_seqs,
                    kv: Tokens::ZERO,
                    kv_capacity: profile.kv_capacity,
                    slack: NO_STREAM,
                    prefill_model: profile.prefill_model(),
                    decode_model: profile.decode_model(),
                    transfer_model: profile.transfer_model(),
                })
                .collect(),
            index: None,
            matches: BTreeMap::new(),
            tpot,
            capability,
        }
    }

    /// Adds a prefix index: predicted hits come from the prompts that engines were sent, as in the
    /// proxy. Half of the KV memory of an engine is assumed for cached prefixes, the other half for
    /// streams.
    pub(crate) fn with_prefix_index(mut self) -> Ledger {
        let index = PrefixIndex::new(INDEX_BLOCKS);
        for (id, model) in self.pool.iter().zip(&self.models) {
            index.set_capacity(*id, model.kv_capacity.get() / 2 / BLOCK_TOKENS);
        }
        self.index = Some(index);
        self
    }

    /// Looks up a request's prompt. Returns the longest predicted hit on any engine, in tokens.
    pub(crate) fn look_up(&mut self, id: RequestId, blocks: &[u64]) -> Tokens {
        let Some(index) = &self.index else { return Tokens::ZERO };
        let matches = index.matches(blocks);
        let most = Tokens(u64::from(matches.longest()) * BLOCK_TOKENS);
        self.matches.insert(id, matches);
        most
    }

    /// Records that an engine receives a prompt, to compute or with its KV.
    pub(crate) fn sent(&mut self, id: RequestId, on: BackendId, blocks: &[u64], prompt: Tokens) {
        self.matches.remove(&id);
        if let Some(index) = &self.index {
            let full = (prompt.get() / BLOCK_TOKENS) as usize;
            index.insert(on, &blocks[..full.min(blocks.len())]);
        }
    }

    pub(crate) fn view(&self, now: Moment) -> View<'_> {
        View { ledger: self, now }
    }

    /// Returns the fleet as the planner's input.
    pub(crate) fn observation(&self, groups: Vec<GroupDemand>) -> Observation {
        let backends = self.pool.iter().map(|id| {
            let (account, model) = (&self.accounts[id.index()], &self.models[id.index()]);
            BackendObservation {
                id: *id,
                group: model.group,
                allowed: self.allowed(),
                capability: self.capability,
                pinned: None,
                usable: true,
                role: self.roles[id.index()],
                becoming: account.becoming.map(|(role, _)| role),
                prefill: model.prefill_model.batch(account.prefill()),
                streams: account.streams.get(),
                streams_max: model.streams_max,
                kv: account.kv(),
                kv_capacity: model.kv_capacity,
                prefill_model: model.prefill_model,
                decode_model: model.decode_model,
                runs_whole: model.runs_whole,
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

    /// Sets the roles and returns the number of flips. Engines that switch by themselves take no
    /// new work from now on.
    pub(crate) fn set_roles(&mut self, roles: Vec<Role>) -> u64 {
        let changes = self.roles.iter_mut().zip(roles).zip(&mut self.accounts);
        let mut changed = 0;
        for ((role, new), account) in changes.filter(|((old, new), _)| **old != *new) {
            changed += 1;
            *role = new;
            if self.capability == RoleCapability::DrainThenCall {
                account.becoming = Some((new, None));
                *role = Role::Draining;
            }
        }
        changed
    }

    /// Starts the switch of idle engines and completes switches started `takes` ago. Returns
    /// whether one was completed.
    pub(crate) fn switch(
        &mut self,
        now: Moment,
        takes: Seconds,
        is_idle: impl Fn(usize) -> bool,
    ) -> bool {
        let mut switched = false;
        let accounts = self.accounts.iter_mut().zip(&mut self.roles).enumerate();
        for (engine, (account, role)) in accounts {
            match account.becoming {
                Some((new, None)) if account.is_settled() && is_idle(engine) => {
                    account.becoming = Some((new, Some(now)));
                }
                Some((new, Some(since))) if now - since >= takes => {
                    account.becoming = None;
                    *role = new;
                    switched = true;
                }
                _ => {}
            }
        }
        switched
    }

    /// Records the prefill charge of a request.
    pub(crate) fn charge(&mut self, request: usize, predicted: Seconds, uncached: Tokens) {
        self.charged.insert(request, (charged_nanos(predicted), uncached.get()));
    }

    /// Settles the prefill charge of a request, if it has one.
    pub(crate) fn settle(&mut self, request: usize, engine: usize) {
        if let Some((charged, tokens)) = self.charged.remove(&request) {
            let Account { prefill, prefill_tokens, .. } = &self.accounts[engine];
            prefill.set(prefill.get() - charged);
            prefill_tokens.set(prefill_tokens.get() - tokens);
        }
    }

    /// Records a stream's first token, emitted with the engine's step `steps`.
    pub(crate) fn began(&mut self, request: usize, engine: usize, now: Moment, steps: u64) {
        let account = &mut self.accounts[engine];
        account.steps = steps;
        account.begun += 1;
        account.first_steps += steps;
        let late = now.0 as i64 - steps as i64 * nanos(self.tpot) as i64;
        account.late.insert((late, request));
        self.begun.insert(request, (late, steps));
    }

    /// Records the end of a stream.
    pub(crate) fn ended(&mut self, request: usize, engine: usize, prompt: Tokens, steps: u64) {
        let account = &mut self.accounts[engine];
        account.steps = steps;
        account.streams.set(account.streams.get() - 1);
        account.prompts.set(account.prompts.get() - prompt.get());
        if let Some((late, first)) = self.begun.remove(&request) {
            account.begun -= 1;
            account.first_steps -= first;
            account.late.remove(&(late, request));
        }
    }

    /// Records the end of the engine's step `steps`, in which every running stream emitted a token.
    pub(crate) fn stepped(&mut self, engine: usize, steps: u64) {
        self.accounts[engine].steps = steps;
    }
}

impl Account {
    fn is_settled(&self) -> bool {
        self.prefill.get() == 0 && self.streams.get() == 0
    }

    fn prefill(&self) -> Seconds {
        Seconds(self.prefill.get() as f64 / 1e9)
    }

    fn kv(&self) -> Tokens {
        let emitted = self.begun * (self.steps + 1) - self.first_steps;
        Tokens(self.prompts.get() + emitted)
    }

    fn slack(&self, now: Moment, tpot: Seconds) -> Seconds {
        match self.late.first() {
            Some((late, _)) => {
                let late = late + (self.steps as i64 + 1) * nanos(tpot) as i64;
                Seconds((late - now.0 as i64) as f64 / 1e9).min(NO_STREAM)
            }
            // Streams without a first token are not late yet.
            None => NO_STREAM,
        }
    }
}

impl View<'_> {
    /// Charges a choice to its engine.
    pub(crate) fn reserve(&self, choice: Choice, prompt: Tokens) {
        let (on, predicted, cached, whole) = match choice {
            Choice::Prefill { on, predicted, cached } => (on, predicted, cached, false),
            Choice::Whole { on, predicted, cached } => (on, predicted, cached, true),
            Choice::Wait(_) | Choice::Nowhere(_) => return,
        };
        let Account { prefill, prefill_tokens, .. } = &self.ledger.accounts[on.index()];
        prefill.set(prefill.get() + charged_nanos(predicted));
        prefill_tokens.set(prefill_tokens.get() + (prompt - cached).get());
        if whole {
            self.open_stream(on, prompt);
        }
    }

    /// Opens a stream of `kv` tokens on an engine.
    pub(crate) fn open_stream(&self, on: BackendId, kv: Tokens) {
        let account = &self.ledger.accounts[on.index()];
        account.streams.set(account.streams.get() + 1);
        account.prompts.set(account.prompts.get() + kv.get());
    }

    /// Returns the decode engine with the fewest streams, whatever its capacity; `from` only if
    /// there is no other.
    pub(crate) fn fewest_streams(&self, from: BackendId) -> BackendId {
        let key = |on: &&BackendId| {
            let stranger = !self.ledger.roles[on.index()].takes_decode();
            (**on == from, stranger, self.ledger.accounts[on.index()].streams.get())
        };
        self.ledger.pool.iter().min_by_key(key).copied().unwrap_or(from)
    }
}

impl tidegate_scheduler::placement::Fleet for View<'_> {
    fn pool(&self, _: PoolId) -> &[BackendId] {
        &self.ledger.pool
    }

    fn load(&self, on: BackendId) -> Load {
        let account = &self.ledger.accounts[on.index()];
        let model = &self.ledger.models[on.index()];
        Load {
            role: self.ledger.roles[on.index()],
            prefill: model.prefill_model.batch(account.prefill()),
            prefill_tokens: Tokens(account.prefill_tokens.get()),
            streams: account.streams.get(),
            awaiting_first_token: account.streams.get() - account.begun as u32,
            kv: account.kv(),
            slack: account.slack(self.now, self.ledger.tpot),
            ..*model
        }
    }

    fn cached(&self, job: &PrefillRequest, on: BackendId) -> Tokens {
        let blocks = self.ledger.matches.get(&job.id).map_or(0, |matches| matches.blocks_on(on));
        Tokens(u64::from(blocks) * BLOCK_TOKENS).min(job.prompt - Tokens(1))
    }
}

/// At least 1 ns, as in the proxy's account: an engine with a prompt never looks idle.
fn charged_nanos(work: Seconds) -> u64 {
    nanos(work).max(1)
}

fn nanos(span: Seconds) -> u64 {
    (span.get() * 1e9) as u64
}
