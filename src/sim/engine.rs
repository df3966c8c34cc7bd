//! Model of one engine: scheduler and step times of docs/spec/engine-model.md#step-time, with vLLM's
//! order of service. It has no clock: the caller ends each step.
//!
//! A step gives each running decode one token, then uses the rest of `chunk` for prefill chunks in FIFO
//! order. A prompt that exceeds the free KV memory blocks the prompts behind it.
//!
//! Every decode receives the same number of tokens from each of its steps: one, or several with
//! [`Bursts`]. The progress of a stream is therefore the number of these tokens since its first, and
//! the computing time of a step without a first or last token is independent of the number of streams
//! ([`Engine::end_step_quietly`]).

mod preempt;

use std::collections::VecDeque;
use tidegate_types::{Seconds, Tokens};

use crate::bursts::Bursts;
use crate::mocker;
use crate::profile::{Profile, StepCost};

/// Sequence number, assigned by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// The legs of a sequence that the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Prefill, then decode.
    Colocated,
    /// Prefill only; ends with the step of the last prompt token. The KV is held until
    /// [`Engine::release`].
    PrefillOnly,
    /// Decode only, with the KV present. The sequence joins the next step, which emits its first
    /// token.
    DecodeOnly,
}

/// Sequence as admitted by the caller.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    /// Sequence number, unique on the engine.
    pub id: SeqId,
    /// Prompt tokens.
    pub prompt: Tokens,
    /// Prompt tokens whose KV is already present.
    pub cached: Tokens,
    /// Tokens to emit, at least 1 unless the work is prefill only.
    pub output: Tokens,
    /// Legs to run.
    pub work: Work,
}

/// Event at the end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A sequence emitted a token.
    Token {
        /// The sequence.
        id: SeqId,
        /// Whether this token ends the sequence.
        last: bool,
    },
    /// A prefill-only sequence ended.
    PrefillDone {
        /// The sequence.
        id: SeqId,
    },
}

/// Prompt in prefill.
#[derive(Clone, Copy, Debug)]
struct Prefilling {
    sequence: Sequence,
    /// Prompt tokens computed or cached.
    computed: u64,
    /// Prompt tokens in the current step.
    piece: u64,
    /// Position in the order in which sequences started to run.
    started: u64,
}

/// Decoding stream. Token `n` is the one that set [`Engine::tokens`] to `n`.
#[derive(Clone, Copy, Debug)]
struct Decoding {
    id: SeqId,
    prompt: u64,
    /// Its first token.
    first: u64,
    /// Its last token.
    last: u64,
    /// Position in the order in which sequences started to run.
    started: u64,
}

/// Token events to report.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EventDetail {
    All,
    FirstAndLast,
}

/// Model of one engine: its queues, KV memory and step count.
#[derive(Clone, Debug)]
pub struct Engine {
    profile: Profile,
    waiting: VecDeque<Sequence>,
    /// FIFO queue; prompts with a chunk in the current step are at the front.
    prefilling: VecDeque<Prefilling>,
    decoding: Vec<Decoding>,
    /// KV of finished prefill-only sequences that has not been released.
    held: Vec<(SeqId, u64)>,
    /// KV tokens of all sequences.
    kv_used: u64,
    /// KV tokens of decoding streams.
    kv_decoding: u64,
    /// Tokens that a stream would have that decodes since the start; without bursts the number of
    /// completed steps.
    tokens: u64,
    /// Lower bound of the next token number to report: a first or last token of a stream.
    next_last: u64,
    /// Streams that emit their first token in the current or next step.
    fresh: u64,
    in_step: bool,
    /// Number of sequences that have started to run.
    started: u64,
    /// Source of the tokens of each stream in a step; `None`: one token.
    bursts: Option<Bursts>,
    /// Whether sequences are preempted when the KV memory is exhausted.
    preempts: bool,
    /// Sequences preempted since [`Engine::take_preempted`].
    preempted: Vec<SeqId>,
}

impl Engine {
    /// Creates an idle engine.
    pub fn new(profile: Profile) -> Engine {
        Engine {
            profile,
            waiting: VecDeque::new(),
            prefilling: VecDeque::new(),
            decoding: Vec::new(),
            held: Vec::new(),
            kv_used: 0,
            kv_decoding: 0,
            tokens: 0,
            next_last: u64::MAX,
            fresh: 0,
            in_step: false,
            started: 0,
            bursts: None,
            preempts: false,
            preempted: Vec::new(),
        }
    }

    /// Returns the engine with bursts of several tokens a step.
    #[must_use]
    pub fn with_bursts(self, bursts: Bursts) -> Engine {
        Engine { bursts: Some(bursts).filter(|bursts| bursts.drafts() > 0), ..self }
    }

    /// Returns the engine with preemption: when the KV of the next step exceeds the memory, the
    /// sequence that started last returns to the front of the queue, and its prompt and its emitted
    /// tokens are computed again.
    #[must_use]
    pub fn with_preemption(self) -> Engine {
        Engine { preempts: true, ..self }
    }

    /// Returns the engine's constants.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Admits a sequence, which starts with a later step. A prompt counts as at least one token.
    pub fn admit(&mut self, sequence: Sequence) {
        let prompt = sequence.prompt.max(Tokens(1));
        self.waiting.push_back(Sequence { prompt, ..sequence });
    }

    /// Removes a sequence in any state. Returns false if it is unknown.
    pub fn cancel(&mut self, id: SeqId) -> bool {
        if let Some(at) = self.waiting.iter().position(|sequence| sequence.id == id) {
            self.waiting.remove(at);
            return true;
        }
        if let Some(at) = self.prefilling.iter().position(|run| run.sequence.id == id) {
            if let Some(run) = self.prefilling.remove(at) {
                self.kv_used -= run.sequence.prompt.get();
            }
            return true;
        }
        if let Some(at) = self.decoding.iter().position(|stream| stream.id == id) {
            self.remove_stream(at);
            return true;
        }
        self.release(id)
    }

    /// Removes a decoding stream for migration, and returns its KV tokens and the tokens left to
    /// emit. A step in progress emits no token for it.
    pub fn extract(&mut self, id: SeqId) -> Option<(Tokens, Tokens)> {
        let at = self.decoding.iter().position(|stream| stream.id == id)?;
        let (stream, kv) = self.remove_stream(at);
        Some((Tokens(kv), Tokens(stream.last - self.tokens)))
    }

    /// Frees a prefill-only sequence's KV, after its transfer or its expiry. Returns false if none
    /// is held.
    pub fn release(&mut self, id: SeqId) -> bool {
        let Some(at) = self.held.iter().position(|(held, _)| *held == id) else { return false };
        let (_, kv) = self.held.swap_remove(at);
        self.kv_used -= kv;
        true
    }

    /// Begins a step and returns its duration; `None` if there is no work.
    pub fn begin_step(&mut self) -> Option<Seconds> {
        if !self.preempt() {
            self.start_waiting();
        }
        let decodes = self.decoding.len();
        if decodes == 0 && self.prefilling.is_empty() {
            return None;
        }
        let most = self.profile.chunk.get().saturating_sub(decodes as u64);
        let mut budget = most;
        let verified = 1 + self.bursts.as_ref().map_or(0, Bursts::drafts);
        let mut compute = self.profile.t_seq * (decodes as u64 * verified) as f64;
        for run in &mut self.prefilling {
            let piece = (run.sequence.prompt.get() - run.computed).min(budget);
            if piece == 0 {
                break;
            }
            budget -= piece;
            run.piece = piece;
            let (c, x) = (piece as f64, run.computed as f64);
            compute += self.profile.t_tok * c + self.profile.t_att * (c * x + c * c / 2.0);
        }
        self.in_step = true;
        let kv = (self.kv_decoding + self.unwritten().0) as f64;
        Some(match self.profile.step {
            StepCost::Roofline => {
                let reading = self.profile.t_kv * kv;
                self.profile.t_base + compute.max(self.profile.t_weights) + reading
            }
            StepCost::Mocker { factor } => {
                let capacity = self.profile.kv_capacity;
                mocker::step((most - budget) as f64, decodes, kv, capacity) * factor
            }
        })
    }

    /// Ends the current step and appends an event for every token, those of running streams first.
    pub fn end_step(&mut self, events: &mut Vec<Event>) {
        self.end(events, EventDetail::All);
    }

    /// Ends the current step like [`end_step`](Self::end_step), but appends only events of first and
    /// last tokens and of ended prefills.
    pub fn end_step_quietly(&mut self, events: &mut Vec<Event>) {
        self.end(events, EventDetail::FirstAndLast);
    }

    /// Returns the number of running sequences.
    pub fn running(&self) -> u32 {
        (self.prefilling.len() + self.decoding.len()) as u32
    }

    /// Returns the number of waiting sequences.
    pub fn waiting(&self) -> u32 {
        self.waiting.len() as u32
    }

    /// Returns whether the engine has neither work nor held KV.
    pub fn is_idle(&self) -> bool {
        self.running() == 0 && self.waiting() == 0 && self.held.is_empty()
    }

    /// Returns the number of decoding streams.
    pub fn decoding(&self) -> u32 {
        self.decoding.len() as u32
    }

    /// Returns the number of streams to which the current step gives a token after their first.
    pub fn continuing(&self) -> u64 {
        self.decoding.len() as u64 - self.fresh
    }

    /// Returns the KV tokens in use, including those of finished prefills.
    pub fn kv_used(&self) -> Tokens {
        Tokens(self.kv_used)
    }

    /// Returns the KV tokens of decoding streams.
    pub fn kv_decoding(&self) -> Tokens {
        Tokens(self.kv_decoding)
    }

    /// Returns the number of tokens that a stream would have that decodes since the start: it
    /// increases by one per step, or with bursts by several.
    pub fn steps(&self) -> u64 {
        self.tokens
    }

    /// Returns the sequences preempted since the last call. Each runs again later on this engine.
    pub fn take_preempted(&mut self) -> Vec<SeqId> {
        std::mem::take(&mut self.preempted)
    }

    /// Removes a stream, and returns it with its KV tokens.
    fn remove_stream(&mut self, at: usize) -> (Decoding, u64) {
        let stream = self.decoding.remove(at);
        let kv = stream.kv_after(self.tokens);
        self.kv_used -= kv;
        self.kv_decoding -= kv;
        self.fresh -= u64::from(stream.first > self.tokens);
        (stream, kv)
    }

    fn end(&mut self, events: &mut Vec<Event>, detail: EventDetail) {
        if !std::mem::take(&mut self.in_step) {
            return;
        }
        let burst = self.bursts.as_mut().map_or(1, Bursts::draw);
        self.tokens += burst;
        self.fresh = 0;
        let emitted = self.decoding.len() as u64 * burst;
        self.kv_used += emitted;
        self.kv_decoding += emitted;
        if detail == EventDetail::All || self.tokens >= self.next_last {
            self.end_streams(burst, events, detail);
        }
        while let Some(run) = self.prefilling.front_mut().filter(|run| run.piece > 0) {
            run.computed += std::mem::take(&mut run.piece);
            if run.computed < run.sequence.prompt.get() {
                break;
            }
            let run = *run;
            self.prefilling.pop_front();
            self.end_prefill(&run, events);
        }
    }

    /// Returns the answer tokens counted in advance as KV (`counts_whole_answers`).
    fn answer_counted(&self, sequence: &Sequence) -> u64 {
        let counts = self.profile.counts_whole_answers && sequence.work != Work::PrefillOnly;
        if counts { sequence.output.get() } else { 0 }
    }

    /// Returns the answer tokens counted in advance that are not yet emitted: of streams, and of
    /// all sequences.
    fn unwritten(&self) -> (u64, u64) {
        if !self.profile.counts_whole_answers {
            return (0, 0);
        }
        let rest = |stream: &Decoding| stream.kv_after(stream.last) - stream.kv_after(self.tokens);
        let streams = self.decoding.iter().map(rest).sum();
        let answer = |run: &Prefilling| self.answer_counted(&run.sequence);
        (streams, streams + self.prefilling.iter().map(answer).sum::<u64>())
    }

    /// Reports the streams' `burst` tokens and removes the streams that have ended; tokens after a
    /// stream's last are discarded.
    fn end_streams(&mut self, burst: u64, events: &mut Vec<Event>, detail: EventDetail) {
        let Engine { decoding, kv_used, kv_decoding, tokens, next_last, .. } = self;
        *next_last = u64::MAX;
        let before = *tokens - burst;
        decoding.retain(|stream| {
            let last = *tokens >= stream.last;
            if last {
                let kv = stream.kv_after(*tokens);
                *kv_used -= kv;
                *kv_decoding -= kv;
            } else {
                *next_last = (*next_last).min(stream.next_reported(*tokens));
            }
            let id = stream.id;
            if detail == EventDetail::All {
                let more = stream.last.min(*tokens) - before - u64::from(last);
                events.extend((0..more).map(|_| Event::Token { id, last: false }));
            }
            if last || (detail == EventDetail::FirstAndLast && stream.first > before) {
                events.push(Event::Token { id, last });
            }
            !last
        });
    }

    fn end_prefill(&mut self, run: &Prefilling, events: &mut Vec<Event>) {
        let sequence = run.sequence;
        let (id, prompt) = (sequence.id, sequence.prompt.get());
        if sequence.work == Work::PrefillOnly {
            self.held.push((id, prompt));
            events.push(Event::PrefillDone { id });
            return;
        }
        let last = sequence.output.get() <= 1;
        events.push(Event::Token { id, last });
        if last {
            self.kv_used -= prompt;
        } else {
            self.kv_used += 1;
            self.kv_decoding += prompt + 1;
            self.stream(sequence, self.tokens, run.started);
        }
    }

    /// Adds a stream whose first token is number `first`.
    fn stream(&mut self, sequence: Sequence, first: u64, started: u64) {
        let last = first + sequence.output.get().saturating_sub(1);
        let prompt = sequence.prompt.get();
        let stream = Decoding { id: sequence.id, prompt, first, last, started };
        self.next_last = self.next_last.min(stream.next_reported(self.tokens));
        self.decoding.push(stream);
    }

    fn start_waiting(&mut self) {
        while let Some(sequence) = self.waiting.front() {
            let prompt = sequence.prompt.get();
            let needed = prompt + self.answer_counted(sequence);
            let fits = self.kv_used + self.unwritten().1 + needed <= self.profile.kv_capacity.get();
            // An idle engine accepts a prompt larger than its memory, which would otherwise block the
            // queue permanently.
            let alone = self.running() == 0 && self.held.is_empty();
            if self.running() >= self.profile.max_num_seqs || !(fits || alone) {
                return;
            }
            let sequence = *sequence;
            self.waiting.pop_front();
            self.kv_used += prompt;
            self.started += 1;
            if sequence.work == Work::DecodeOnly {
                self.kv_decoding += prompt;
                self.fresh += 1;
                self.stream(sequence, self.tokens + 1, self.started);
            } else {
                // At least one prompt token is computed.
                let computed = sequence.cached.get().min(prompt.saturating_sub(1));
                self.prefilling.push_back(Prefilling {
                    sequence,
                    computed,
                    piece: 0,
                    started: self.started,
                });
            }
        }
    }
}

impl Decoding {
    /// Returns its KV tokens after token number `tokens`.
    fn kv_after(&self, tokens: u64) -> u64 {
        self.prompt + (tokens + 1).saturating_sub(self.first)
    }

    /// Returns the number of the next token after `tokens` that is a first or last one.
    fn next_reported(&self, tokens: u64) -> u64 {
        if self.first > tokens { self.first } else { self.last }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
