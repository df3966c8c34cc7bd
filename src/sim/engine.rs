//! One engine's scheduler and the time its steps take: engine_model.md, vLLM's order of service.
//! No clock: the caller says when a step ends.
//!
//! A step gives each running decode one token, then spends what is left of `chunk` on prefill
//! pieces, first come first served. A prompt that does not fit the KV memory waits, and those behind
//! it with it.

use std::collections::VecDeque;
use tidegate_terms::{Seconds, Tokens};

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

#[derive(Clone, Copy, Debug)]
struct Running {
    sequence: Sequence,
    /// Prompt tokens computed or cached.
    computed: u64,
    emitted: u64,
    /// Prompt tokens in the present step.
    piece: u64,
}

/// One engine.
#[derive(Clone, Debug)]
pub struct Engine {
    profile: Profile,
    waiting: VecDeque<Sequence>,
    running: Vec<Running>,
    /// KV of prefill-only sequences that are done and not yet taken.
    held: Vec<(SeqId, u64)>,
    kv_used: u64,
    in_step: bool,
}

impl Engine {
    /// An idle engine.
    pub fn new(profile: Profile) -> Engine {
        Engine {
            profile,
            waiting: VecDeque::new(),
            running: Vec::new(),
            held: Vec::new(),
            kv_used: 0,
            in_step: false,
        }
    }

    /// Its physics.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Take a sequence; it begins with a later step.
    pub fn admit(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Forget a sequence wherever it is. False if it is not here.
    pub fn cancel(&mut self, id: SeqId) -> bool {
        if let Some(at) = self.waiting.iter().position(|sequence| sequence.id == id) {
            self.waiting.remove(at);
            return true;
        }
        if let Some(at) = self.running.iter().position(|run| run.sequence.id == id) {
            let run = self.running.remove(at);
            self.kv_used -= reserved(&run.sequence) + run.emitted;
            return true;
        }
        self.release(id)
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
        let mut budget = self.profile.chunk.get();
        let (mut decodes, mut context) = (0_u64, 0_u64);
        for run in &mut self.running {
            run.piece = 0;
            if run.computed >= run.sequence.prompt.get() {
                decodes += 1;
                context += run.sequence.prompt.get() + run.emitted;
            }
        }
        budget = budget.saturating_sub(decodes);
        let mut compute = self.profile.t_seq * decodes as f64;
        let mut prefilled = 0;
        for run in &mut self.running {
            let piece = run.sequence.prompt.get().saturating_sub(run.computed).min(budget);
            if piece == 0 {
                continue;
            }
            budget -= piece;
            prefilled += piece;
            run.piece = piece;
            let (c, x) = (piece as f64, run.computed as f64);
            compute += self.profile.t_tok * c + self.profile.t_att * (c * x + c * c / 2.0);
        }
        if decodes + prefilled == 0 {
            return None;
        }
        self.in_step = true;
        let kv = self.profile.t_kv * context as f64;
        Some(self.profile.t_base + compute.max(self.profile.t_weights) + kv)
    }

    /// The step that was begun is over: what it brought, in the order in which sequences came.
    pub fn end_step(&mut self, events: &mut Vec<Event>) {
        if !std::mem::take(&mut self.in_step) {
            return;
        }
        let (held, kv_used) = (&mut self.held, &mut self.kv_used);
        self.running.retain_mut(|run| {
            let prompt = run.sequence.prompt.get();
            let decoded = run.computed >= prompt;
            run.computed += run.piece;
            if run.computed < prompt || (!decoded && run.piece == 0) {
                return true;
            }
            let id = run.sequence.id;
            if run.sequence.work == Work::PrefillOnly {
                events.push(Event::PrefillDone { id });
                held.push((id, prompt));
                return false;
            }
            run.emitted += 1;
            *kv_used += 1;
            let last = run.emitted >= run.sequence.output.get();
            events.push(Event::Token { id, last });
            if last {
                *kv_used -= prompt + run.emitted;
            }
            !last
        });
    }

    /// Sequences that run.
    pub fn running(&self) -> u32 {
        self.running.len() as u32
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.len() as u32
    }

    /// KV tokens in use, those of done prefills included.
    pub fn kv_used(&self) -> Tokens {
        Tokens(self.kv_used)
    }

    fn start_waiting(&mut self) {
        while let Some(sequence) = self.waiting.front() {
            let fits = self.kv_used + reserved(sequence) <= self.profile.kv_capacity.get();
            // A prompt larger than the whole memory would block the engine for ever.
            let alone = self.running.is_empty() && self.held.is_empty();
            if self.running.len() >= self.profile.max_num_seqs as usize || !(fits || alone) {
                return;
            }
            let sequence = *sequence;
            self.waiting.pop_front();
            self.kv_used += reserved(&sequence);
            // At least one prompt token is computed, unless all of the KV was handed over.
            let computed = match sequence.work {
                Work::DecodeOnly => sequence.prompt.get(),
                _ => sequence.cached.get().min(sequence.prompt.get().saturating_sub(1)),
            };
            self.running.push(Running { sequence, computed, emitted: 0, piece: 0 });
        }
    }
}

fn reserved(sequence: &Sequence) -> u64 {
    sequence.prompt.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sequence(id: u64, prompt: u64, output: u64, work: Work) -> Sequence {
        Sequence {
            id: SeqId(id),
            prompt: Tokens(prompt),
            cached: Tokens::ZERO,
            output: Tokens(output),
            work,
        }
    }

    /// Run until idle: when each event came.
    fn run(engine: &mut Engine) -> Vec<(f64, Event)> {
        let (mut now, mut all) = (0.0, Vec::new());
        while let Some(took) = engine.begin_step() {
            now += took.get();
            let mut events = Vec::new();
            engine.end_step(&mut events);
            all.extend(events.into_iter().map(|event| (now, event)));
        }
        all
    }

    #[test]
    fn a_lone_prompt_takes_what_the_formula_says() {
        let profile = Profile::default();
        let mut engine = Engine::new(profile);
        engine.admit(sequence(1, 3000, 2, Work::Whole));
        let events = run(&mut engine);
        let (c1, c2) = (2048.0, 952.0);
        let first = 2e-3 + 71e-6 * c1 + 1.33e-9 * c1 * c1 / 2.0;
        let second = 2e-3 + 71e-6 * c2 + 1.33e-9 * (c2 * c1 + c2 * c2 / 2.0);
        assert!((events[0].0 - first - second).abs() < 1e-9, "{events:?}");
        let decode = 2e-3 + 13.1e-3 + 3001.0 * 30.6e-9;
        assert!((events[1].0 - events[0].0 - decode).abs() < 1e-9, "{events:?}");
        assert_eq!(engine.kv_used(), Tokens::ZERO);
    }

    #[test]
    fn a_prefill_holds_its_kv_until_it_is_taken() {
        let mut engine = Engine::new(Profile::default());
        engine.admit(sequence(1, 100, 1, Work::PrefillOnly));
        assert_eq!(run(&mut engine)[0].1, Event::PrefillDone { id: SeqId(1) });
        assert_eq!(engine.kv_used(), Tokens(100));
        assert!(engine.release(SeqId(1)));
        assert!(!engine.release(SeqId(1)));
        assert_eq!(engine.kv_used(), Tokens::ZERO);
    }

    #[test]
    fn a_handed_over_sequence_emits_with_the_next_step() {
        let mut engine = Engine::new(Profile::default());
        engine.admit(sequence(1, 1000, 1, Work::DecodeOnly));
        let events = run(&mut engine);
        assert!((events[0].0 - (15.1e-3 + 1000.0 * 30.6e-9)).abs() < 1e-9);
        assert_eq!(events[0].1, Event::Token { id: SeqId(1), last: true });
    }

    #[test]
    fn a_prompt_that_does_not_fit_waits() {
        let mut engine = Engine::new(Profile { kv_capacity: Tokens(1500), ..Profile::default() });
        engine.admit(sequence(1, 1000, 3, Work::Whole));
        engine.admit(sequence(2, 1000, 1, Work::Whole));
        engine.begin_step();
        assert_eq!((engine.running(), engine.waiting()), (1, 1));
        engine.end_step(&mut Vec::new());
        let order: Vec<_> = run(&mut engine).into_iter().map(|(_, event)| event).collect();
        assert_eq!(order.last(), Some(&Event::Token { id: SeqId(2), last: true }));
    }

    proptest! {
        #[test]
        fn everyone_gets_its_tokens_and_all_memory_comes_back(
            jobs in prop::collection::vec((1..5000_u64, 1..40_u64, 0..3_u8, any::<bool>()), 1..40)
        ) {
            let mut engine = Engine::new(Profile { kv_capacity: Tokens(20_000), ..Profile::default() });
            let mut owed = std::collections::BTreeMap::new();
            for (id, (prompt, output, work, cancel)) in jobs.into_iter().enumerate() {
                let work = [Work::Whole, Work::PrefillOnly, Work::DecodeOnly][usize::from(work)];
                engine.admit(sequence(id as u64, prompt, output, work));
                if cancel {
                    engine.begin_step();
                    prop_assert!(engine.cancel(SeqId(id as u64)) || engine.running() > 0);
                    let mut events = Vec::new();
                    engine.end_step(&mut events);
                    count(&events, &mut engine, &mut owed);
                } else {
                    owed.insert(id as u64, if work == Work::PrefillOnly { 0 } else { output });
                }
            }
            while engine.begin_step().is_some() {
                let mut events = Vec::new();
                engine.end_step(&mut events);
                count(&events, &mut engine, &mut owed);
            }
            prop_assert!(owed.values().all(|left| *left == 0), "{owed:?}");
            prop_assert_eq!(engine.kv_used(), Tokens::ZERO);
        }
    }

    fn count(
        events: &[Event],
        engine: &mut Engine,
        owed: &mut std::collections::BTreeMap<u64, u64>,
    ) {
        for event in events {
            match event {
                Event::Token { id, .. } => {
                    if let Some(left) = owed.get_mut(&id.0) {
                        *left -= 1;
                    }
                }
                Event::PrefillDone { id } => assert!(engine.release(*id)),
            }
        }
    }
}
