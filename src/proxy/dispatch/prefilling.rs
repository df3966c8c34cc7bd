//! A prefill under way, and what its end teaches.

use std::sync::Arc;
use tidegate_filters::Accepted;
use tidegate_types::{Moment, Tokens};

use crate::backends::fleet::Backend;
use crate::dispatch::context::Proxy;
use crate::dispatch::place::Predicted;
use crate::telemetry::control_events::{ControlEvent, PrefillSample};

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
    /// The prefill ended: reports its duration to the control loop and adds its prefix to the index. `reported_hit`: the tokens
    /// that the engine says it had cached.
    pub fn ended(
        &self,
        proxy: &Arc<Proxy>,
        accepted: &Arc<Accepted>,
        prompt: Tokens,
        now: Moment,
        reported_hit: Option<Tokens>,
    ) {
        proxy.report(ControlEvent::Prefill(self.read(prompt, now, reported_hit)));
        proxy.note_prefix(self.backend.id, accepted);
    }

    pub(crate) fn read(
        &self,
        prompt: Tokens,
        ended: Moment,
        reported_hit: Option<Tokens>,
    ) -> PrefillSample {
        let Predicted { predicted_hit, beside, .. } = self.predicted;
        let (backend, sent) = (self.backend.id, self.sent);
        PrefillSample { backend, prompt, predicted_hit, reported_hit, sent, ended, beside }
    }
}
