//! A prefill in progress, and the cost sample that it yields when it ends.

use std::sync::Arc;
use tidegate_filters::Accepted;
use tidegate_scheduler::learn::{PrefillSample, Sample};
use tidegate_types::{Moment, Tokens};

use crate::backends::fleet::Backend;
use crate::dispatch::context::Proxy;
use crate::dispatch::reservation::Predicted;

/// A prefill whose first token has not arrived yet.
pub struct PrefillInProgress {
    pub backend: Arc<Backend>,
    /// Placement's prediction.
    pub predicted: Predicted,
    /// Time at which the leg was sent.
    pub sent: Moment,
}

impl PrefillInProgress {
    /// Reports the sample to the control loop and adds the prompt to the prefix index. `reported_hit`:
    /// cached tokens that the engine reported.
    pub fn ended(
        &self,
        proxy: &Arc<Proxy>,
        accepted: &Arc<Accepted>,
        prompt: Tokens,
        now: Moment,
        reported_hit: Option<Tokens>,
    ) {
        proxy.report(Sample::Prefill(self.sample(prompt, now, reported_hit)));
        proxy.note_prefix(self.backend.id, accepted);
    }

    /// The sample of a prefill that ended at `ended`.
    pub(crate) fn sample(
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
