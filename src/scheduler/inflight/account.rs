//! The account of one backend and the charges against it.
//!
//! The counters are independent, so `Relaxed` suffices: a reader may see one counter before a charge
//! and another after it. When all charges are settled, all counters are exact.

use crate::inflight::target_counts::{CountedTargets, StreamTargets};
use crate::shared_u64::SharedU64;
use std::ops::Add;
use std::sync::{Arc, atomic::AtomicU64};
use tidegate_types::{ClassKind, Seconds, Targets, TightestTargets, Tokens};

/// In-flight account of one backend. Every request that is placed there writes it.
#[derive(Debug, Default)]
pub struct Account<W = AtomicU64> {
    own: Counters<W>,
    /// Targets of this gateway's streams.
    targets: StreamTargets<W>,
    /// The part of batch work in the streams of `own`.
    batch: BatchCounters<W>,
    /// In-flight work of other gateways on the backend, by their last reports.
    others: Counters<W>,
}

#[derive(Debug, Default)]
struct Counters<W> {
    /// Prefill work in flight, in nanoseconds: the time that each prompt adds to a step.
    prefill_nanos: W,
    /// The uncached prompt tokens of that work.
    prefill_tokens: W,
    /// Legs with unfinished prefill work.
    prefill_legs: W,
    /// Streams that decode on the backend or are reserved.
    streams: W,
    /// Streams among them without a first token.
    awaiting_first_token: W,
    /// KV tokens of those streams and of unfinished prefills.
    kv_tokens: W,
    /// Output tokens since start; monotonic.
    emitted: W,
}

#[derive(Debug, Default)]
struct BatchCounters<W> {
    streams: W,
    awaiting_first_token: W,
    kv_tokens: W,
}

/// A reading of the part of batch work in this gateway's streams.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchStreams {
    /// Streams that decode on the backend or are reserved.
    pub streams: u32,
    /// Streams among them without a first token.
    pub awaiting_first_token: u32,
    /// KV tokens of those streams.
    pub kv: Tokens,
}

/// A reading of an account's counters, read one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Balance {
    /// Prefill work in flight: the time that each prompt adds to a step. Excludes the fixed cost of
    /// the steps, because prompts share steps.
    pub prefill: Seconds,
    /// Uncached prompt tokens of that work.
    pub prefill_tokens: Tokens,
    /// Legs with unfinished prefill work.
    pub prefill_legs: u32,
    /// Streams that decode on the backend or are reserved.
    pub streams: u32,
    /// Streams among them without a first token.
    pub awaiting_first_token: u32,
    /// KV tokens held by streams and unfinished prefills.
    pub kv: Tokens,
    /// Output tokens since start.
    pub emitted: Tokens,
}

impl Balance {
    /// Returns the balance without the streams of batch work.
    #[must_use]
    pub fn without(&self, batch: &BatchStreams) -> Balance {
        Balance {
            streams: self.streams.saturating_sub(batch.streams),
            awaiting_first_token: self
                .awaiting_first_token
                .saturating_sub(batch.awaiting_first_token),
            kv: self.kv - batch.kv,
            ..*self
        }
    }

    /// Returns whether nothing is in flight.
    pub fn is_settled(&self) -> bool {
        Balance { emitted: Tokens::ZERO, ..*self } == Balance::default()
    }

    /// Returns the streams beside a prefill that is placed now.
    pub fn concurrent_streams(&self) -> ConcurrentStreams {
        ConcurrentStreams { streams: self.streams, kv: self.kv, mid_step: self.prefill_legs == 0 }
    }
}

/// The decode streams on a backend at the placement of a prefill.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConcurrentStreams {
    /// Number of streams.
    pub streams: u32,
    /// Their KV tokens.
    pub kv: Tokens,
    /// Whether the prefill backlog was empty, so that the leg arrived in the middle of a decode step.
    pub mid_step: bool,
}

/// The prefill backlog bound of a backend.
#[derive(Clone, Copy, Debug)]
pub struct BacklogBound {
    /// A prompt is accepted while less work than this is in flight.
    pub work: Seconds,
    /// A prompt is also accepted if at most this many tokens, its own included, are then in flight:
    /// the tokens of one step. 0 for prompts that are not short.
    pub tokens: Tokens,
}

/// The prefill work of one leg on a backend. Dropping it settles the charge.
#[derive(Debug)]
pub struct PrefillCharge<W: SharedU64 = AtomicU64> {
    account: Arc<Account<W>>,
    nanos: u64,
    tokens: u64,
}

/// A stream on a backend and the KV tokens it holds there. Dropping it settles both.
#[derive(Debug)]
pub struct StreamCharge<W: SharedU64 = AtomicU64> {
    account: Arc<Account<W>>,
    kv: u64,
    targets: CountedTargets,
    kind: ClassKind,
    has_first_token: bool,
}

impl<W: SharedU64> Account<W> {
    /// Charges prefill work within `bound`; an idle backend always accepts. Returns `None`
    /// otherwise.
    pub fn try_charge_prefill(
        self: &Arc<Self>,
        work: Seconds,
        tokens: Tokens,
        bound: BacklogBound,
    ) -> Option<PrefillCharge<W>> {
        let (most, nanos) = (nanos(bound.work), charged_nanos(work));
        let others = self.others.prefill_nanos.load_relaxed();
        let is_free = |all: u64| all == 0 || all < most;
        let fits = |present: u64| is_free(present + others).then(|| present + nanos);
        if self.own.prefill_nanos.update(fits) {
            self.own.prefill_tokens.fetch_add(tokens.get());
        } else {
            let (own, most) = (tokens.get(), bound.tokens.get());
            let others = self.others.prefill_tokens.load_relaxed();
            let joins = |present: u64| (present + others + own <= most).then_some(present + own);
            if !self.own.prefill_tokens.update(joins) {
                return None;
            }
            self.own.prefill_nanos.fetch_add(nanos);
        }
        Some(self.prefill_charged(nanos, tokens))
    }

    /// Charges prefill work without a bound.
    pub fn charge_prefill(self: &Arc<Self>, work: Seconds, tokens: Tokens) -> PrefillCharge<W> {
        let nanos = charged_nanos(work);
        self.own.prefill_nanos.fetch_add(nanos);
        self.own.prefill_tokens.fetch_add(tokens.get());
        self.prefill_charged(nanos, tokens)
    }

    /// Opens a stream with these targets that holds `kv` tokens if fewer than `streams_max` are open.
    /// Returns `None` otherwise.
    pub fn try_open_stream(
        self: &Arc<Self>,
        kv: Tokens,
        targets: &Targets,
        streams_max: u32,
    ) -> Option<StreamCharge<W>> {
        let most = u64::from(streams_max).saturating_sub(self.others.streams.load_relaxed());
        let fits = |present: u64| (present < most).then(|| present + 1);
        self.own.streams.update(fits).then(|| self.stream_opened(kv, targets))
    }

    /// Opens a stream with these targets that holds `kv` tokens, without a bound.
    pub fn open_stream(self: &Arc<Self>, kv: Tokens, targets: &Targets) -> StreamCharge<W> {
        self.own.streams.fetch_add(1);
        self.stream_opened(kv, targets)
    }

    /// Counts `tokens` output tokens of several streams at once. The streams' charges take them over
    /// before they settle ([`StreamCharge::take_over`]). A simulated engine counts a step of all its
    /// streams with one call.
    pub fn emit_for_streams(&self, tokens: u64) {
        self.own.kv_tokens.fetch_add(tokens);
        self.own.emitted.fetch_add(tokens);
    }

    /// Returns the part of batch work in this gateway's streams.
    pub fn batch_streams(&self) -> BatchStreams {
        BatchStreams {
            streams: self.batch.streams.load_relaxed() as u32,
            awaiting_first_token: self.batch.awaiting_first_token.load_relaxed() as u32,
            kv: Tokens(self.batch.kv_tokens.load_relaxed()),
        }
    }

    /// Returns the smallest targets of this gateway's streams. TPOT targets below `step`, the shortest
    /// decode step of the backend, cannot be met and do not count.
    pub fn tightest_targets(&self, step: Seconds) -> TightestTargets {
        self.targets.tightest(step)
    }

    /// Returns the current counters of this gateway.
    pub fn balance(&self) -> Balance {
        self.own.balance()
    }

    /// Returns what the other gateways have in flight; their output tokens are not known.
    pub fn others(&self) -> Balance {
        self.others.balance()
    }

    /// Returns the current counters of all gateways, for every decision about the backend.
    pub fn total(&self) -> Balance {
        self.balance() + self.others()
    }

    /// Replaces what the other gateways have in flight.
    pub fn set_others(&self, others: &Balance) {
        self.others.prefill_nanos.store(nanos(others.prefill));
        self.others.prefill_tokens.store(others.prefill_tokens.get());
        self.others.prefill_legs.store(u64::from(others.prefill_legs));
        self.others.streams.store(u64::from(others.streams));
        self.others.awaiting_first_token.store(u64::from(others.awaiting_first_token));
        self.others.kv_tokens.store(others.kv.get());
    }

    /// Completes a charge whose `nanos` and `tokens` are already counted.
    fn prefill_charged(self: &Arc<Self>, nanos: u64, tokens: Tokens) -> PrefillCharge<W> {
        self.own.prefill_legs.fetch_add(1);
        PrefillCharge { account: Arc::clone(self), nanos, tokens: tokens.get() }
    }

    /// Completes the charge of a stream that is already counted.
    fn stream_opened(self: &Arc<Self>, kv: Tokens, targets: &Targets) -> StreamCharge<W> {
        self.own.awaiting_first_token.fetch_add(1);
        self.own.kv_tokens.fetch_add(kv.get());
        let (account, kind, kv) = (Arc::clone(self), targets.kind, kv.get());
        if kind == ClassKind::Batch {
            self.batch.streams.fetch_add(1);
            self.batch.awaiting_first_token.fetch_add(1);
            self.batch.kv_tokens.fetch_add(kv);
        }
        let targets = self.targets.add(&targets.slo);
        StreamCharge { account, kv, targets, kind, has_first_token: false }
    }
}

impl<W: SharedU64> Drop for PrefillCharge<W> {
    fn drop(&mut self) {
        self.account.own.prefill_nanos.subtract(self.nanos);
        self.account.own.prefill_tokens.subtract(self.tokens);
        self.account.own.prefill_legs.subtract(1);
    }
}

impl<W: SharedU64> StreamCharge<W> {
    /// Marks the stream as decoding. Tokens are not needed for that: an answer that is not streamed
    /// shows none.
    pub fn begin(&mut self) {
        if !std::mem::replace(&mut self.has_first_token, true) {
            self.account.own.awaiting_first_token.subtract(1);
            if let Some(batch) = self.batch() {
                batch.awaiting_first_token.subtract(1);
            }
        }
    }

    /// Returns the counters of batch work if the stream is part of it.
    fn batch(&self) -> Option<&BatchCounters<W>> {
        (self.kind == ClassKind::Batch).then(|| &self.account.batch)
    }

    /// Counts `tokens` more output tokens and as many more KV tokens.
    pub fn emit(&mut self, tokens: u32) {
        if tokens > 0 {
            self.begin();
        }
        self.kv += u64::from(tokens);
        self.account.own.kv_tokens.fetch_add(u64::from(tokens));
        self.account.own.emitted.fetch_add(u64::from(tokens));
        if let Some(batch) = self.batch() {
            batch.kv_tokens.fetch_add(u64::from(tokens));
        }
    }

    /// Takes over the stream's part of the tokens that [`Account::emit_for_streams`] counted.
    pub fn take_over(&mut self, tokens: u64) {
        self.kv += tokens;
        if let Some(batch) = self.batch() {
            batch.kv_tokens.fetch_add(tokens);
        }
    }
}

impl<W: SharedU64> Drop for StreamCharge<W> {
    fn drop(&mut self) {
        self.account.own.streams.subtract(1);
        if !self.has_first_token {
            self.account.own.awaiting_first_token.subtract(1);
        }
        if let Some(batch) = self.batch() {
            batch.streams.subtract(1);
            if !self.has_first_token {
                batch.awaiting_first_token.subtract(1);
            }
            batch.kv_tokens.subtract(self.kv);
        }
        self.account.own.kv_tokens.subtract(self.kv);
        self.account.targets.remove(self.targets);
    }
}

impl<W: SharedU64> Counters<W> {
    fn balance(&self) -> Balance {
        Balance {
            prefill: Seconds(self.prefill_nanos.load_relaxed() as f64 / 1e9),
            prefill_tokens: Tokens(self.prefill_tokens.load_relaxed()),
            prefill_legs: self.prefill_legs.load_relaxed() as u32,
            streams: self.streams.load_relaxed() as u32,
            awaiting_first_token: self.awaiting_first_token.load_relaxed() as u32,
            kv: Tokens(self.kv_tokens.load_relaxed()),
            emitted: Tokens(self.emitted.load_relaxed()),
        }
    }
}

impl Add for Balance {
    type Output = Balance;

    fn add(self, other: Balance) -> Balance {
        Balance {
            prefill: self.prefill + other.prefill,
            prefill_tokens: self.prefill_tokens + other.prefill_tokens,
            prefill_legs: self.prefill_legs.saturating_add(other.prefill_legs),
            streams: self.streams.saturating_add(other.streams),
            awaiting_first_token: self
                .awaiting_first_token
                .saturating_add(other.awaiting_first_token),
            kv: self.kv + other.kv,
            emitted: self.emitted + other.emitted,
        }
    }
}

/// At least 1 ns, so that a backend with a leg never looks idle.
fn charged_nanos(work: Seconds) -> u64 {
    nanos(work).max(1)
}

fn nanos(span: Seconds) -> u64 {
    // `as` saturates, and turns NaN and negative spans into 0; a day bounds the sum.
    (span.get().min(86_400.0) * 1e9) as u64
}
