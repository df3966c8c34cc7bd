//! Applies one engine's KV cache events to the prefix index. While the event stream is gap-free,
//! the index mirrors the engine's cache exactly. Before the first complete snapshot, and after a
//! gap that a replay cannot close, entries predicted from routed requests are used as well.

use metrics::{Counter, Gauge, counter, gauge};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tidegate_scheduler::cost::PrefixIndex;
use tidegate_settings::BackendSettings;
use tidegate_signals::kv::event::{KvBatch, KvEvent};
use tidegate_signals::kv::follow::{Delivery, EventFollower};
use tidegate_signals::kv::mirror::{BlockChange, KvMirror};
use tidegate_types::BackendId;

use super::zmq::{KvEventMessage, KvEventReplay, KvEventSubscriber, KvStreamError};
use crate::backends::fleet::Backend;
use crate::signals::SignalHost;
use crate::telemetry::metrics::Metrics;

/// Most blocks remembered per engine, about 26 MB. An engine with 1,000,000 tokens of KV has 65,536
/// blocks of 16.
const BLOCKS_MAX: u64 = 1 << 18;
/// Pause after a failure, and between checks while the model is unknown.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Longest silence before a new connection is made: the engine may be idle, or its host may have failed
/// without closing the connection.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Endpoints and counters of one backend's events.
pub struct KvSource {
    events: String,
    replay: Option<String>,
    complete: AtomicBool,
    counted: [Counter; 5],
    lost: Counter,
    blocks: Gauge,
    complete_gauge: Gauge,
}

impl KvSource {
    /// The source that the settings give for a backend; `None` if it publishes no events.
    pub fn of(backend: &BackendSettings, metrics: &Metrics) -> Option<KvSource> {
        let events = backend.kv_events.clone()?;
        let name = || backend.name.clone();
        Some(metrics.of_backend(&backend.name, || {
            KvSource {
            events,
            replay: backend.kv_replay.clone(),
            complete: AtomicBool::new(false),
            counted: ["stored", "removed", "orphan", "unreadable", "forgotten"].map(|kind| {
                counter!("tidegate_kv_event_blocks_total", "backend" => name(), "kind" => kind)
            }),
            lost: counter!("tidegate_kv_event_messages_lost_total", "backend" => name()),
            blocks: gauge!("tidegate_kv_event_blocks", "backend" => name()),
            complete_gauge: gauge!("tidegate_kv_events_complete", "backend" => name()),
        }
        }))
    }

    /// Whether the engine's cache is known completely.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Relaxed)
    }

    fn show(&self, follower: &EventFollower) {
        let tally = follower.mirror().tally();
        let counts =
            [tally.stored, tally.removed, tally.orphans, tally.unreadable, tally.forgotten];
        for (counter, count) in self.counted.iter().zip(counts) {
            counter.absolute(count);
        }
        self.lost.absolute(follower.lost());
        self.blocks.set(follower.mirror().len() as f64);
        self.complete_gauge.set(f64::from(u8::from(follower.is_complete())));
        self.complete.store(follower.is_complete(), Relaxed);
    }
}

/// Reads one backend's event stream.
struct KvEventReader<'a> {
    prefixes: &'a PrefixIndex,
    source: &'a KvSource,
    backend: &'a Backend,
    follower: EventFollower,
}

/// Follows the events of `backend` while the runtime lives.
pub async fn run(host: Arc<dyn SignalHost>, backend: Arc<Backend>) {
    let signals = host.signals().of(backend.id);
    let Some(source) = &signals.kv else { return };
    let mut warned = false;
    while !backend.has_left() {
        match model_of(&*host, backend.id) {
            Some(model) => listen(&*host, &backend, source, &model).await,
            None if !warned && signals.model.load().is_some() => {
                warned = true;
                tracing::warn!(
                    backend = %backend.name,
                    "KV events unused: no tokenizer for the backend's model, so prompts cannot be matched"
                );
            }
            None => {}
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// The base model, once known, if prompts for it are tokenized by the host.
fn model_of(host: &dyn SignalHost, backend: BackendId) -> Option<Arc<String>> {
    let model = host.signals().of(backend).model.load_full()?;
    host.tokenizes(&model).then_some(model)
}

/// Follows the events while the backend serves `model`.
async fn listen(host: &dyn SignalHost, backend: &Backend, source: &KvSource, model: &str) {
    let block = host.prefix_block().get() as usize;
    let blocks_max = backend.kv_capacity().get().min(BLOCKS_MAX) as usize;
    let follower = EventFollower::new(KvMirror::new(model, block, blocks_max));
    let mut reader = KvEventReader { prefixes: &host.fleet().prefixes, source, backend, follower };
    let mut failed = false;
    let serves = || model_of(host, backend.id).is_some_and(|now| *now == model);
    while serves() && !backend.has_left() {
        match reader.session().await {
            Ok(()) => failed = false,
            // Logged once per outage; health probes report an engine that is down.
            Err(error) if !failed => {
                failed = true;
                tracing::warn!(backend = %backend.name, "KV events: {error}");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    reader.prefixes.set_kv_events(backend.id, false);
}

impl KvEventReader<'_> {
    /// One connection, until it ends or is silent for too long.
    async fn session(&mut self) -> Result<(), KvStreamError> {
        let mut subscriber = KvEventSubscriber::at(&self.source.events).await?;
        // Events published before the subscription.
        self.replay(self.follower.next()).await?;
        tracing::info!(
            backend = %self.backend.name, complete = self.follower.is_complete(), "KV events: subscribed"
        );
        while let Ok(message) = tokio::time::timeout(SILENCE_MAX, subscriber.next()).await {
            self.take(&message?).await?;
        }
        Ok(())
    }

    async fn take(&mut self, published: &KvEventMessage) -> Result<(), KvStreamError> {
        let Some(batch) = self.read(published) else { return Ok(()) };
        if let Delivery::Missing(from) = self.apply(published.number, &batch) {
            self.replay(from).await?;
            self.apply_anyway(published.number, &batch);
        }
        Ok(())
    }

    /// Requests missing events from `from` on, if the engine has a replay endpoint.
    async fn replay(&mut self, from: u64) -> Result<(), KvStreamError> {
        let Some(endpoint) = &self.source.replay else { return Ok(()) };
        let mut replay = KvEventReplay::from(endpoint, from).await?;
        while let Some(published) = replay.next().await? {
            if let Some(batch) = self.read(&published) {
                self.apply_anyway(published.number, &batch);
            }
        }
        Ok(())
    }

    fn read(&mut self, published: &KvEventMessage) -> Option<KvBatch> {
        match KvBatch::decode(&published.payload) {
            Ok(batch) => Some(batch),
            Err(error) => {
                tracing::debug!(backend = %self.backend.name, "KV events: unreadable message: {error}");
                self.follower.unreadable(published.number);
                self.publish_state();
                None
            }
        }
    }

    /// Applies a message even if earlier ones are lost.
    fn apply_anyway(&mut self, number: u64, batch: &KvBatch) {
        if let Delivery::Missing(_) = self.apply(number, batch) {
            self.follower.give_up(number);
            self.apply(number, batch);
        }
    }

    fn apply(&mut self, number: u64, batch: &KvBatch) -> Delivery {
        let (prefixes, id) = (self.prefixes, self.backend.id);
        let taken = self.follower.take(number, batch, &mut |change| match change {
            BlockChange::Held(hash) => prefixes.store(id, hash),
            BlockChange::Gone(hash) => prefixes.remove(id, hash),
            BlockChange::Cleared => prefixes.forget(id),
        });
        if let Some(KvEvent::Stored(stored)) = batch.events.first() {
            self.backend.set_kv_block(stored.block_size);
        }
        self.publish_state();
        taken
    }

    fn publish_state(&self) {
        self.prefixes.set_kv_events(self.backend.id, self.follower.is_complete());
        self.source.show(&self.follower);
    }
}
