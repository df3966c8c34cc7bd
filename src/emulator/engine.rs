//! State shared by one engine's connections and tasks. No function here blocks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tidegate_sim::SeqId;
use tokio::sync::mpsc::UnboundedSender;

use crate::block_cache::BlockCache;
use crate::config::{EmulatedEngine, EmulatorConfig, SglangMode};
use crate::kv_transfer::PeerConnections;
use crate::lease::Leases;
use crate::pd_role::PdRoleState;
use crate::scheduler::SchedulerCommand;
use crate::shared_kv_store::SharedKvStore;
use crate::stats::EmulatorCounters;
use crate::tokens::TokenizedPrompt;

/// One emulated engine. Its connections hold it; it is dropped with them when it is killed.
pub struct EmulatedState {
    /// Configuration of the engine.
    pub config: EmulatorConfig,
    /// Address on which it listens.
    pub address: SocketAddr,
    /// Host by which other engines reach it.
    pub host: String,
    /// Engine id; it changes with every start.
    pub id: String,
    /// Prefilled KV held for readers.
    pub leases: Leases,
    /// Connections to other engines.
    pub peers: PeerConnections,
    /// KV that all engines of this process share, if the connector uses it.
    pub store: Arc<SharedKvStore>,
    /// Counters of the engine.
    pub counters: Arc<EmulatorCounters>,
    /// The enforced role, if vLLM has one.
    pub pd_role: Option<PdRoleState>,
    prefix: Option<Mutex<BlockCache>>,
    commands: UnboundedSender<SchedulerCommand>,
    sequences: AtomicU64,
    blocks: AtomicU64,
    killed: AtomicBool,
    /// Whether an assertion has failed; the server still answers.
    dead: AtomicBool,
    /// Current mode of an SGLang engine, which can be switched.
    mode: AtomicU8,
    /// Whether SGLang has captured decode graphs: the first switch to decode costs memory.
    pub graphs: AtomicBool,
}

impl EmulatedState {
    /// Creates an engine that listens at `address` and sends `commands` to its scheduler.
    pub fn new(
        config: EmulatorConfig,
        address: SocketAddr,
        commands: UnboundedSender<SchedulerCommand>,
        store: Arc<SharedKvStore>,
    ) -> EmulatedState {
        let reachable = match address.ip() {
            ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
            ip => ip.to_string(),
        };
        EmulatedState {
            address,
            host: config.advertise.clone().unwrap_or(reachable),
            id: uuid(),
            leases: Leases::default(),
            peers: PeerConnections::new(config.connector, config.handshake_timeout.to_duration()),
            counters: Arc::default(),
            pd_role: config.pd_role.map(PdRoleState::new),
            store,
            prefix: config
                .prefix_cache
                .then(|| Mutex::new(BlockCache::new(config.profile.kv_capacity))),
            commands,
            sequences: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            killed: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            mode: AtomicU8::new(match config.kind {
                EmulatedEngine::Sglang(mode) => mode as u8,
                _ => 0,
            }),
            graphs: AtomicBool::new(config.kind == EmulatedEngine::Sglang(SglangMode::Decode)),
            config,
        }
    }

    /// Returns the number of a new sequence.
    pub fn next_sequence(&self) -> SeqId {
        SeqId(self.sequences.fetch_add(1, Relaxed) + 1)
    }

    /// Returns the first of `count` block ids for a hand-off.
    pub fn next_blocks(&self, count: u64) -> u64 {
        self.blocks.fetch_add(count, Relaxed) % BLOCK_IDS + 1
    }

    /// Sends a command to the scheduler; commands to a killed engine are dropped.
    pub fn send_command(&self, command: SchedulerCommand) {
        self.commands.send(command).ok();
    }

    /// Returns the current engine kind, after any role switch.
    pub fn kind(&self) -> EmulatedEngine {
        match self.config.kind {
            EmulatedEngine::Sglang(_) => EmulatedEngine::Sglang(match self.mode.load(Relaxed) {
                1 => SglangMode::Prefill,
                2 => SglangMode::Decode,
                _ => SglangMode::Null,
            }),
            kind => kind,
        }
    }

    /// Sets SGLang's mode.
    pub fn switch(&self, mode: SglangMode) {
        self.mode.store(mode as u8, Relaxed);
    }

    /// Returns the engine id of one of its data-parallel ranks.
    pub fn rank_id(&self, rank: u16) -> String {
        if self.config.ranks > 1 { format!("{}_dp{rank}", self.id) } else { self.id.clone() }
    }

    /// Returns whether this is the id of one of its ranks.
    pub fn has_rank(&self, id: &str) -> bool {
        (0..self.config.ranks.max(1)).any(|rank| self.rank_id(rank) == id)
    }

    /// Records a failed assertion.
    pub fn fail_assertion(&self) {
        EmulatorCounters::add(&self.counters.assertions, 1);
        self.dead.store(true, Relaxed);
    }

    /// Returns whether an assertion has failed.
    pub fn has_failed_assertion(&self) -> bool {
        self.dead.load(Relaxed)
    }

    /// Marks the engine as being killed.
    pub fn kill(&self) {
        self.killed.store(true, Relaxed);
    }

    /// A crashed engine sends no notifications to others.
    pub fn is_killed(&self) -> bool {
        self.killed.load(Relaxed)
    }

    /// Returns the share of the KV memory in use, 0..1.
    pub fn kv_usage(&self) -> f64 {
        let used = self.counters.kv_used.load(Relaxed) as f64;
        used / self.config.profile.kv_capacity.as_f64().max(1.0)
    }

    /// Returns the cached prompt tokens, and caches the whole prompt.
    pub fn cached(&self, prompt: &TokenizedPrompt) -> u64 {
        let Some(prefix) = &self.prefix else { return 0 };
        let mut prefix = prefix.lock().unwrap_or_else(PoisonError::into_inner);
        // The last token is always computed: it yields the first token of the answer.
        prefix.touch(&prompt.chain()).min(prompt.tokens() - 1)
    }
}

/// Block ids wrap around within a memory of this size.
const BLOCK_IDS: u64 = 1 << 15;

/// Returns a random UUID, version 4.
fn uuid() -> String {
    let bits = fastrand::u128(..) & !(0xF << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
