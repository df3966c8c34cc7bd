//! One backend's account and the charges against it.
//!
//! Each counter stands alone, so `Relaxed` is enough: a reader may see one counter before and
//! another after a charge, never a wrong sum once all charges are settled.

use crate::atomics::{Arc, AtomicU64, Ordering::Relaxed};
use tidegate_terms::{Seconds, Tokens};

/// What one backend holds. Written by every request that is placed there, read by all.
#[derive(Debug, Default)]
pub struct Account {
    /// Prefill work sent and unfinished, in nanoseconds: what each prompt adds to a step.
    prefill_nanos: AtomicU64,
    /// The uncached prompt tokens of that work.
    prefill_tokens: AtomicU64,
    /// Legs with unfinished prefill work.
    prefill_legs: AtomicU64,
    /// Streams that decode here or are about to.
    streams: AtomicU64,
    /// Those of them that have emitted nothing.
    unbegun: AtomicU64,
    /// KV tokens of those streams and of unfinished prefills.
    kv_tokens: AtomicU64,
    /// Output tokens ever seen from here; only grows.
    emitted: AtomicU64,
}

/// An account's counters, read one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Balance {
    /// Prefill work sent and unfinished: what each prompt adds to a step. The fixed cost of the
    /// steps is not in it, because prompts share steps.
    pub prefill: Seconds,
    /// Uncached prompt tokens of that work.
    pub prefill_tokens: Tokens,
    /// Legs with unfinished prefill work.
    pub prefill_legs: u32,
    /// Streams that decode here or are about to.
    pub streams: u32,
    /// Those of them that have emitted nothing yet.
    pub unbegun: u32,
    /// KV tokens held by streams and unfinished prefills.
    pub kv: Tokens,
    /// Output tokens ever seen from here.
    pub emitted: Tokens,
}

impl Balance {
    /// Is nothing outstanding?
    pub fn is_settled(&self) -> bool {
        Balance { emitted: Tokens::ZERO, ..*self } == Balance::default()
    }
}

/// How much prefill work may be outstanding on a backend.
#[derive(Clone, Copy, Debug)]
pub struct PrefillRoom {
    /// A prompt fits while less work than this is outstanding.
    pub work: Seconds,
    /// It also fits if not more tokens than this are outstanding with its own: those of one step.
    /// 0 for a prompt to which this does not apply.
    pub tokens: Tokens,
}

/// Prefill work that one leg put on a backend. Dropping it settles it.
#[derive(Debug)]
pub struct PrefillCharge {
    account: Arc<Account>,
    nanos: u64,
    tokens: u64,
}

/// A stream's place on a backend and the KV tokens it holds there. Dropping it settles both.
#[derive(Debug)]
pub struct StreamCharge {
    account: Arc<Account>,
    kv: u64,
    begun: bool,
}

impl Account {
    /// Charge prefill work if it fits into `room`; an idle backend always has room.
    pub fn try_charge_prefill(
        self: &Arc<Self>,
        work: Seconds,
        tokens: Tokens,
        room: PrefillRoom,
    ) -> Option<PrefillCharge> {
        let (most, nanos) = (nanos(room.work), charged_nanos(work));
        let fits = |present: u64| (present == 0 || present < most).then(|| present + nanos);
        if self.prefill_nanos.fetch_update(Relaxed, Relaxed, fits).is_ok() {
            self.prefill_tokens.fetch_add(tokens.get(), Relaxed);
        } else {
            let (own, most) = (tokens.get(), room.tokens.get());
            let joins = |present: u64| (present + own <= most).then_some(present + own);
            self.prefill_tokens.fetch_update(Relaxed, Relaxed, joins).ok()?;
            self.prefill_nanos.fetch_add(nanos, Relaxed);
        }
        Some(self.prefill_charged(nanos, tokens))
    }

    /// Charge prefill work whatever is outstanding.
    pub fn charge_prefill(self: &Arc<Self>, work: Seconds, tokens: Tokens) -> PrefillCharge {
        let nanos = charged_nanos(work);
        self.prefill_nanos.fetch_add(nanos, Relaxed);
        self.prefill_tokens.fetch_add(tokens.get(), Relaxed);
        self.prefill_charged(nanos, tokens)
    }

    /// Open a stream that holds `kv` tokens if fewer than `streams_max` are open.
    pub fn try_open_stream(self: &Arc<Self>, kv: Tokens, streams_max: u32) -> Option<StreamCharge> {
        let fits = |present: u64| (present < u64::from(streams_max)).then(|| present + 1);
        self.streams.fetch_update(Relaxed, Relaxed, fits).ok()?;
        Some(self.stream_opened(kv))
    }

    /// Open a stream whatever is open.
    pub fn open_stream(self: &Arc<Self>, kv: Tokens) -> StreamCharge {
        self.streams.fetch_add(1, Relaxed);
        self.stream_opened(kv)
    }

    /// The counters now.
    pub fn balance(&self) -> Balance {
        Balance {
            prefill: Seconds(self.prefill_nanos.load(Relaxed) as f64 / 1e9),
            prefill_tokens: Tokens(self.prefill_tokens.load(Relaxed)),
            prefill_legs: self.prefill_legs.load(Relaxed) as u32,
            streams: self.streams.load(Relaxed) as u32,
            unbegun: self.unbegun.load(Relaxed) as u32,
            kv: Tokens(self.kv_tokens.load(Relaxed)),
            emitted: Tokens(self.emitted.load(Relaxed)),
        }
    }

    /// `nanos` and `tokens` are on the account: the rest of the charge, and what will settle it.
    fn prefill_charged(self: &Arc<Self>, nanos: u64, tokens: Tokens) -> PrefillCharge {
        self.prefill_legs.fetch_add(1, Relaxed);
        PrefillCharge { account: Arc::clone(self), nanos, tokens: tokens.get() }
    }

    /// A stream is on the account: the rest of the charge, and what will settle it.
    fn stream_opened(self: &Arc<Self>, kv: Tokens) -> StreamCharge {
        self.unbegun.fetch_add(1, Relaxed);
        self.kv_tokens.fetch_add(kv.get(), Relaxed);
        StreamCharge { account: Arc::clone(self), kv: kv.get(), begun: false }
    }
}

impl Drop for PrefillCharge {
    fn drop(&mut self) {
        self.account.prefill_nanos.fetch_sub(self.nanos, Relaxed);
        self.account.prefill_tokens.fetch_sub(self.tokens, Relaxed);
        self.account.prefill_legs.fetch_sub(1, Relaxed);
    }
}

impl StreamCharge {
    /// The stream decodes, whether or not its tokens are seen: those of an answer that is not
    /// streamed are not.
    pub fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.account.unbegun.fetch_sub(1, Relaxed);
        }
    }

    /// The stream emitted `tokens` more, and holds as many more KV tokens.
    pub fn emit(&mut self, tokens: u32) {
        if tokens > 0 {
            self.begin();
        }
        self.kv += u64::from(tokens);
        self.account.kv_tokens.fetch_add(u64::from(tokens), Relaxed);
        self.account.emitted.fetch_add(u64::from(tokens), Relaxed);
    }
}

impl Drop for StreamCharge {
    fn drop(&mut self) {
        self.account.streams.fetch_sub(1, Relaxed);
        if !self.begun {
            self.account.unbegun.fetch_sub(1, Relaxed);
        }
        self.account.kv_tokens.fetch_sub(self.kv, Relaxed);
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
