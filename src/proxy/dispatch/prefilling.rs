//! A prefill under way, and what its end teaches.

use std::sync::Arc;
use tidegate_filters::Accepted;
use tidegate_types::{Moment, Tokens};

use crate::backends::fleet::Backend;
use crate::dispatch::context::Proxy;
use crate::dispatch::place::Predicted;
use crate::telemetry::observations::{Observation, ReadPrompt};

/// A prefill whose end is still to be seen: its stream has begun with something else than a token.
pub struct Prefilling {
    /// Where it runs.
    pub backend: Arc<Backend>,
    /// What placement expected.
    pub predicted: Predicted,
    /// When its leg was sent.
    pub sent: Moment,
}

impl Prefilling {
    /// The prefill ended: reports its duration to the control loop and adds its prefix to the index. `told`: the tokens
    /// that the engine says it had cached.
    pub fn ended(
        &self,
        proxy: &Arc<Proxy>,
        accepted: &Arc<Accepted>,
        prompt: Tokens,
        now: Moment,
        told: Option<Tokens>,
    ) {
        proxy.learn(Observation::Prefill(self.read(prompt, now, told)));
        proxy.note_prefix(self.backend.id, accepted);
    }

    pub(crate) fn read(&self, prompt: Tokens, ended: Moment, told: Option<Tokens>) -> ReadPrompt {
        let Predicted { held, beside, .. } = self.predicted;
        let (backend, sent) = (self.backend.id, self.sent);
        ReadPrompt { backend, prompt, held, told, sent, ended, beside }
    }
}
