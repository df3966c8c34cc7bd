//! Preemption when the KV memory is exhausted: docs/spec/engine-model.md#preemption.

use tidegate_types::Tokens;

use super::{Engine, Sequence, Work};
use crate::bursts::Bursts;

impl Engine {
    /// Frees KV memory for the tokens of the next step: preempts the sequence that started last, until
    /// the others fit or one is left. Returns whether a sequence was preempted; then no sequence starts
    /// with this step, as in vLLM.
    pub(super) fn preempt(&mut self) -> bool {
        // With answers counted in advance, the memory suffices for every running sequence.
        if !self.preempts || self.profile.counts_whole_answers {
            return false;
        }
        let burst = 1 + self.bursts.as_ref().map_or(0, Bursts::drafts);
        let before = self.preempted.len();
        while self.running() > 1
            && self.kv_used + self.decoding.len() as u64 * burst > self.profile.kv_capacity.get()
        {
            self.preempt_last();
        }
        self.preempted.len() > before
    }

    fn preempt_last(&mut self) {
        let streams = self.decoding.iter().enumerate();
        let stream = streams.max_by_key(|(_, stream)| stream.started);
        let stream = stream.map(|(at, stream)| (at, stream.started));
        let prefill = self.prefilling.iter().enumerate().max_by_key(|(_, run)| run.started);
        let prefill = prefill.map(|(at, run)| (at, run.started));
        let sequence = match (stream, prefill) {
            (stream, Some((at, started))) if stream.is_none_or(|(_, other)| other < started) => {
                let Some(run) = self.prefilling.remove(at) else { return };
                self.kv_used -= run.sequence.prompt.get();
                run.sequence
            }
            (Some((at, _)), _) => {
                let (stream, kv) = self.remove_stream(at);
                let output = Tokens(stream.last - self.tokens);
                let (id, cached) = (stream.id, Tokens::ZERO);
                Sequence { id, prompt: Tokens(kv), cached, output, work: Work::Colocated }
            }
            (None, _) => return,
        };
        self.preempted.push(sequence.id);
        self.waiting.push_front(sequence);
    }
}
