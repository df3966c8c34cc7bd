//! One engine's scheduler and the time its steps take: docs/spec/engine-model.md#step-time, vLLM's
//! order of service.
//! No clock: the caller says when a step ends.
//!
//! A step gives each running decode one token, then spends what is left of `chunk` on prefill
//! pieces, first come first served. A prompt that does not fit the KV memory waits, and those behind
//! it with it.
//!
//! Every decode gets a token from every step it is part of, so a stream's progress is the number of
//! steps since its first token: a step without a first or a last token costs the same however many
//! streams run ([`Engine::end_step_quietly`]).

use std::collections::VecDeque;
use tidegate_types::{Seconds, Tokens};

use crate::profile::Profile;

/// One sequence's number, given by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// What an engine does with a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Prefill, then decode.
    Whole,
    /// Prefill; ends with the step of the last prompt token. Its KV stays until [`Engine::release`].
    PrefillOnly,
    /// Its KV is here: it joins the next step, which emits its first token.
    DecodeOnly,
}

/// What a caller hands in.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    /// Its number.
    pub id: SeqId,
    /// Prompt tokens.
    pub prompt: Tokens,
    /// Prompt tokens whose KV is here already.
    pub cached: Tokens,
    /// Tokens to emit, at least 1 unless it is prefill only.
    pub output: Tokens,
    /// What to do.
    pub work: Work,
}

/// What the end of a step brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A sequence emitted a token; `last` ends it.
    Token {
        /// Whose.
        id: SeqId,
        /// Is it the last one?
        last: bool,
    },
    /// A prefill-only sequence is done.
    PrefillDone {
        /// Whose.
        id: SeqId,
    },
}

/// A prompt that is being computed.
#[derive(Clone, Copy, Debug)]
struct Prefilling {
    sequence: Sequence,
    /// Prompt tokens computed or cached.
    computed: u64,
    /// Prompt tokens in the present step.
    piece: u64,
}

/// A stream. Step `n` is the one that made [`Engine::steps`] `n`.
#[derive(Clone, Copy, Debug)]
struct Decoding {
    id: SeqId,
    prompt: u64,
    /// The step that emits its first token.
    first: u64,
    /// The step that emits its last.
    last: u64,
}

/// Which tokens are told of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tell {
    All,
    FirstAndLast,
}

/// One engine.
#[derive(Clone, Debug)]
pub struct Engine {
    profile: Profile,
    waiting: VecDeque<Sequence>,
    /// First come first served; those with a piece in the present step come first.
    prefilling: VecDeque<Prefilling>,
    decoding: Vec<Decoding>,
    /// KV of prefill-only sequences that are done and not yet taken.
    held: Vec<(SeqId, u64)>,
    /// KV in use by anyone.
    kv_used: u64,
    /// KV of the decoding alone.
    kv_decoding: u64,
    /// Steps that ended.
    steps: u64,
    /// The earliest `last` of the decoding, or earlier.
    next_last: u64,
    in_step: bool,
}

impl Engine {
    /// An idle engine.
    pub fn new(profile: Profile) -> Engine {
        Engine {
            profile,
            waiting: VecDeque::new(),
            prefilling: VecDeque::new(),
            decoding: Vec::new(),
            held: Vec::new(),
            kv_used: 0,
            kv_decoding: 0,
            steps: 0,
            next_last: u64::MAX,
            in_step: false,
        }
    }

    /// Its physics.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Take a sequence; it begins with a later step. No prompt is shorter than one token.
    pub fn admit(&mut self, sequence: Sequence) {
        let prompt = sequence.prompt.max(Tokens(1));
        self.waiting.push_back(Sequence { prompt, ..sequence });
    }

    /// Forget a sequence wherever it is. False if it is not here.
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
            let kv = self.decoding.remove(at).kv_after(self.steps);
            self.kv_used -= kv;
            self.kv_decoding -= kv;
            return true;
        }
        self.release(id)
    }

    /// Removes a stream that decodes, for another engine: its KV and the tokens it has yet to emit.
    /// A step that is under way emits nothing for it.
    pub fn extract(&mut self, id: SeqId) -> Option<(Tokens, Tokens)> {
        let at = self.decoding.iter().position(|stream| stream.id == id)?;
        let stream = self.decoding.remove(at);
        let kv = stream.kv_after(self.steps);
        self.kv_used -= kv;
        self.kv_decoding -= kv;
        Some((Tokens(kv), Tokens(stream.last - self.steps)))
    }

    /// A prefill-only sequence's KV was taken, or is given up. False if none is held.
    pub fn release(&mut self, id: SeqId) -> bool {
        let Some(at) = self.held.iter().position(|(held, _)| *held == id) else { return false };
        let (_, kv) = self.held.swap_remove(at);
        self.kv_used -= kv;
        true
    }

    /// Begin a step: how long it takes. `None` if there is nothing to do.
    pub fn begin_step(&mut self) -> Option<Seconds> {
        self.start_waiting();
        let decodes = self.decoding.len();
        if decodes == 0 && self.prefilling.is_empty() {
            return None;
        }
        let mut budget = self.profile.chunk.get().saturating_sub(decodes as u64);
        let mut compute = self.profile.t_seq * decodes as f64;
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
        let kv = self.profile.t_kv * (self.kv_decoding + self.unwritten().0) as f64;
        Some(self.profile.t_base + compute.max(self.profile.t_weights) + kv)
    }

    /// The step that was begun is over: every token it brought, those of running streams first.
    pub fn end_step(&mut self, events: &mut Vec<Event>) {
        self.end(events, Tell::All);
    }

    /// As [`end_step`](Self::end_step), but only first and last tokens and prefills are told of.
    pub fn end_step_quietly(&mut self, events: &mut Vec<Event>) {
        self.end(events, Tell::FirstAndLast);
    }

    /// Sequences that run.
    pub fn running(&self) -> u32 {
        (self.prefilling.len() + self.decoding.len()) as u32
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.len() as u32
    }

    /// Has it nothing to do, and nothing that is still to be fetched?
    pub fn is_idle(&self) -> bool {
        self.running() == 0 && self.waiting() == 0 && self.held.is_empty()
    }

    /// Streams that decode.
    pub fn decoding(&self) -> u32 {
        self.decoding.len() as u32
    }

    /// KV tokens in use, those of done prefills included.
    pub fn kv_used(&self) -> Tokens {
        Tokens(self.kv_used)
    }

    /// KV tokens of the streams that decode.
    pub fn kv_decoding(&self) -> Tokens {
        Tokens(self.kv_decoding)
    }

    /// Steps that ended so far. Every stream that runs got a token from each since its first one.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    fn end(&mut self, events: &mut Vec<Event>, tell: Tell) {
        if !std::mem::take(&mut self.in_step) {
            return;
        }
        self.steps += 1;
        let emitted = self.decoding.len() as u64;
        self.kv_used += emitted;
        self.kv_decoding += emitted;
        if tell == Tell::All || self.steps >= self.next_last {
            self.end_streams(events, tell);
        }
        while let Some(run) = self.prefilling.front_mut().filter(|run| run.piece > 0) {
            run.computed += std::mem::take(&mut run.piece);
            let sequence = run.sequence;
            if run.computed < sequence.prompt.get() {
                break;
            }
            self.prefilling.pop_front();
            self.end_prefill(sequence, events);
        }
    }

    /// KV tokens that a sequence's answer counts for before any of it is there.
    fn answer_counted(&self, sequence: &Sequence) -> u64 {
        let counts = self.profile.counts_whole_answers && sequence.work != Work::PrefillOnly;
        if counts { sequence.output.get() } else { 0 }
    }

    /// KV tokens of answers that are not there and count all the same: of streams, and of all.
    fn unwritten(&self) -> (u64, u64) {
        if !self.profile.counts_whole_answers {
            return (0, 0);
        }
        let rest = |stream: &Decoding| stream.kv_after(stream.last) - stream.kv_after(self.steps);
        let streams = self.decoding.iter().map(rest).sum();
        let answer = |run: &Prefilling| self.answer_counted(&run.sequence);
        (streams, streams + self.prefilling.iter().map(answer).sum::<u64>())
    }

    /// Tell of the streams' tokens, and let those go that have theirs.
    fn end_streams(&mut self, events: &mut Vec<Event>, tell: Tell) {
        let Engine { decoding, kv_used, kv_decoding, steps, next_last, .. } = self;
        *next_last = u64::MAX;
        decoding.retain(|stream| {
            let last = *steps >= stream.last;
            if last {
                let kv = stream.kv_after(*steps);
                *kv_used -= kv;
                *kv_decoding -= kv;
            } else {
                *next_last = (*next_last).min(stream.next_told(*steps));
            }
            if last || tell == Tell::All || *steps == stream.first {
                events.push(Event::Token { id: stream.id, last });
            }
            !last
        });
    }

    fn end_prefill(&mut self, sequence: Sequence, events: &mut Vec<Event>) {
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
            self.stream(sequence, self.steps);
        }
    }

    /// A stream whose first token comes with step `first`.
    fn stream(&mut self, sequence: Sequence, first: u64) {
        let last = first + sequence.output.get().saturating_sub(1);
        let prompt = sequence.prompt.get();
        let stream = Decoding { id: sequence.id, prompt, first, last };
        self.next_last = self.next_last.min(stream.next_told(self.steps));
        self.decoding.push(stream);
    }

    fn start_waiting(&mut self) {
        while let Some(sequence) = self.waiting.front() {
            let prompt = sequence.prompt.get();
            let needed = prompt + self.answer_counted(sequence);
            let fits = self.kv_used + self.unwritten().1 + needed <= self.profile.kv_capacity.get();
            // A prompt larger than the whole memory would block the engine for ever.
            let alone = self.running() == 0 && self.held.is_empty();
            if self.running() >= self.profile.max_num_seqs || !(fits || alone) {
                return;
            }
            let sequence = *sequence;
            self.waiting.pop_front();
            self.kv_used += prompt;
            if sequence.work == Work::DecodeOnly {
                self.kv_decoding += prompt;
                self.stream(sequence, self.steps + 1);
            } else {
                // At least one prompt token is computed.
                let computed = sequence.cached.get().min(prompt.saturating_sub(1));
                self.prefilling.push_back(Prefilling { sequence, computed, piece: 0 });
            }
        }
    }
}

impl Decoding {
    /// Its KV once `steps` steps have ended.
    fn kv_after(&self, steps: u64) -> u64 {
        self.prompt + (steps + 1).saturating_sub(self.first)
    }

    /// The next step after `steps` whose token is told of even when most are not.
    fn next_told(&self, steps: u64) -> u64 {
        if self.first > steps { self.first } else { self.last }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
