//! One backend's account and the charges against it.
//!
//! Each counter stands alone, so `Relaxed` is enough: a reader may see one counter before and
//! another after a charge, never a wrong sum once all charges are settled.

use crate::word::Word;
use std::sync::{Arc, atomic::AtomicU64};
use tidegate_types::{Seconds, Tokens};

/// What one backend holds. Written by every request that is placed there, read by all.
#[derive(Debug, Default)]
pub struct Account<W = AtomicU64> {
    /// Prefill work sent and unfinished, in nanoseconds: what each prompt adds to a step.
    prefill_nanos: W,
    /// The uncached prompt tokens of that work.
    prefill_tokens: W,
    /// Legs with unfinished prefill work.
    prefill_legs: W,
    /// Streams that decode here or are about to.
    streams: W,
    /// Those of them that have emitted nothing.
    unbegun: W,
    /// KV tokens of those streams and of unfinished prefills.
    kv_tokens: W,
    /// Output tokens ever seen from here; only grows.
    emitted: W,
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
pub struct PrefillCharge<W: Word = AtomicU64> {
    account: Arc<Account<W>>,
    nanos: u64,
    tokens: u64,
}

/// A stream's place on a backend and the KV tokens it holds there. Dropping it settles both.
#[derive(Debug)]
pub struct StreamCharge<W: Word = AtomicU64> {
    account: Arc<Account<W>>,
    kv: u64,
    begun: bool,
}

impl<W: Word> Account<W> {
    /// Charge prefill work if it fits into `room`; an idle backend always has room.
    pub fn try_charge_prefill(
        self: &Arc<Self>,
        work: Seconds,
        tokens: Tokens,
        room: PrefillRoom,
    ) -> Option<PrefillCharge<W>> {
        let (most, nanos) = (nanos(room.work), charged_nanos(work));
        let fits = |present: u64| (present == 0 || present < most).then(|| present + nanos);
        if self.prefill_nanos.update(fits) {
            self.prefill_tokens.fetch_add(tokens.get());
        } else {
            let (own, most) = (tokens.get(), room.tokens.get());
            let joins = |present: u64| (present + own <= most).then_some(present + own);
            if !self.prefill_tokens.update(joins) {
                return None;
            }
            self.prefill_nanos.fetch_add(nanos);
        }
        Some(self.prefill_charged(nanos, tokens))
    }

    /// Charge prefill work whatever is outstanding.
    pub fn charge_prefill(self: &Arc<Self>, work: Seconds, tokens: Tokens) -> PrefillCharge<W> {
        let nanos = charged_nanos(work);
        self.prefill_nanos.fetch_add(nanos);
        self.prefill_tokens.fetch_add(tokens.get());
        self.prefill_charged(nanos, tokens)
    }

    /// Open a stream that holds `kv` tokens if fewer than `streams_max` are open.
    pub fn try_open_stream(
        self: &Arc<Self>,
        kv: Tokens,
        streams_max: u32,
    ) -> Option<StreamCharge<W>> {
        let fits = |present: u64| (present < u64::from(streams_max)).then(|| present + 1);
        self.streams.update(fits).then(|| self.stream_opened(kv))
    }

    /// Open a stream whatever is open.
    pub fn open_stream(self: &Arc<Self>, kv: Tokens) -> StreamCharge<W> {
        self.streams.fetch_add(1);
        self.stream_opened(kv)
    }

    /// The counters now.
    pub fn balance(&self) -> Balance {
        Balance {
            prefill: Seconds(self.prefill_nanos.count() as f64 / 1e9),
            prefill_tokens: Tokens(self.prefill_tokens.count()),
            prefill_legs: self.prefill_legs.count() as u32,
            streams: self.streams.count() as u32,
            unbegun: self.unbegun.count() as u32,
            kv: Tokens(self.kv_tokens.count()),
            emitted: Tokens(self.emitted.count()),
        }
    }

    /// `nanos` and `tokens` are on the account: the rest of the charge, and what will settle it.
    fn prefill_charged(self: &Arc<Self>, nanos: u64, tokens: Tokens) -> PrefillCharge<W> {
        self.prefill_legs.fetch_add(1);
        PrefillCharge { account: Arc::clone(self), nanos, tokens: tokens.get() }
    }

    /// A stream is on the account: the rest of the charge, and what will settle it.
    fn stream_opened(self: &Arc<Self>, kv: Tokens) -> StreamCharge<W> {
        self.unbegun.fetch_add(1);
        self.kv_tokens.fetch_add(kv.get());
        StreamCharge { account: Arc::clone(self), kv: kv.get(), begun: false }
    }
}

impl<W: Word> Drop for PrefillCharge<W> {
    fn drop(&mut self) {
        self.account.prefill_nanos.sub(self.nanos);
        self.account.prefill_tokens.sub(self.tokens);
        self.account.prefill_legs.sub(1);
    }
}

impl<W: Word> StreamCharge<W> {
    /// The stream decodes, whether or not its tokens are seen: those of an answer that is not
    /// streamed are not.
    pub fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.account.unbegun.sub(1);
        }
    }

    /// The stream emitted `tokens` more, and holds as many more KV tokens.
    pub fn emit(&mut self, tokens: u32) {
        if tokens > 0 {
            self.begin();
        }
        self.kv += u64::from(tokens);
        self.account.kv_tokens.fetch_add(u64::from(tokens));
        self.account.emitted.fetch_add(u64::from(tokens));
    }
}

impl<W: Word> Drop for StreamCharge<W> {
    fn drop(&mut self) {
        self.account.streams.sub(1);
        if !self.begun {
            self.account.unbegun.sub(1);
        }
        self.account.kv_tokens.sub(self.kv);
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
