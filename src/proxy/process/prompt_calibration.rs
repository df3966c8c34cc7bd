//! Calibrates the estimate of prompts without a tokenizer: at most one prompt a second is counted by
//! `/tokenize` of an engine that serves its model, until further samples would not change the model's
//! factor. Requests do not wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tidegate_engine::EngineKind;
use tidegate_filters::{Calibration, Calibrations};
use tidegate_scheduler::cost::ByteFeatures;
use tidegate_types::{Moment, Seconds, Tokens};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::backends::fleet::Backend;
use crate::backends::introspect;
use crate::backends::sampled_prompts::SampledPrompt;
use crate::dispatch::context::Proxy;

/// Shortest time between two samples, over all models.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time limit of one `/tokenize` request.
const TIMEOUT: Seconds = Seconds(2.0);
/// Time without samples after a model's engine gave no count.
const RETRY_AFTER: Seconds = Seconds(300.0);

/// The background task.
pub struct PromptCalibration {
    proxy: Arc<Proxy>,
    prompts: mpsc::Receiver<SampledPrompt>,
    calibrations: Calibrations,
    /// Models whose engine gave no count, and when they are sampled again.
    refused: HashMap<Arc<str>, Moment>,
}

impl PromptCalibration {
    /// `None` if another task calibrates.
    pub fn new(proxy: Arc<Proxy>) -> Option<PromptCalibration> {
        let prompts = proxy.fleet.sampled_prompts.take_receiver()?;
        let (calibrations, refused) = (Calibrations::new(), HashMap::new());
        Some(PromptCalibration { proxy, prompts, calibrations, refused })
    }

    /// Calibrates until the process drains.
    pub async fn run(mut self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.proxy.is_draining() {
            ticks.tick().await;
            self.forget();
            self.proxy.fleet.sampled_prompts.want(self.wants());
            while let Ok(prompt) = self.prompts.try_recv() {
                self.count(prompt).await;
            }
        }
        self.proxy.fleet.sampled_prompts.want(false);
    }

    /// Whether a model without a tokenizer is not settled.
    fn wants(&self) -> bool {
        let now = self.proxy.clock.now();
        let directory = self.proxy.directory();
        directory.models.iter().any(|(model, entry)| {
            entry.tokenizer.is_none()
                && !self.calibrations.get(model).is_some_and(Calibration::is_settled)
                && self.refused.get(model).is_none_or(|until| now >= *until)
        })
    }

    /// Drops the calibrations of models that are no longer served: one of the same name may have another
    /// tokenizer.
    fn forget(&mut self) {
        let directory = self.proxy.directory();
        let before = self.calibrations.len();
        self.calibrations.retain(|model, _| directory.models.contains_key(model));
        self.refused.retain(|model, _| directory.models.contains_key(model));
        drop(directory);
        if self.calibrations.len() != before {
            self.proxy.fleet.sampled_prompts.publish(self.calibrations.clone());
        }
    }

    async fn count(&mut self, prompt: SampledPrompt) {
        let now = self.proxy.clock.now();
        let SampledPrompt { model, body, features } = prompt;
        if self.refused.get(&model).is_some_and(|until| now < *until) {
            return;
        }
        let counted = match self.engine(&model) {
            Some(backend) => introspect::count_tokens(&backend.pool, body, TIMEOUT).await,
            None => return,
        };
        let Some(counted) = counted else {
            tracing::debug!(model = &*model, "no /tokenize counts this model's prompts");
            self.refused.insert(model, now + RETRY_AFTER);
            return;
        };
        self.observe(&model, features, counted);
    }

    fn observe(&mut self, model: &Arc<str>, features: ByteFeatures, counted: Tokens) {
        let estimates = self.proxy.fleet.estimates();
        let calibration = self.calibrations.entry(Arc::clone(model)).or_default();
        calibration.observe(&estimates.bytes, features, counted);
        if calibration.is_settled() {
            let factor = calibration.factor(&estimates.bytes);
            tracing::info!(model = &**model, factor, "the prompt estimate is calibrated");
        }
        drop(estimates);
        self.proxy.fleet.sampled_prompts.publish(self.calibrations.clone());
    }

    /// An engine that serves the model and may have `/tokenize`.
    fn engine(&self, model: &str) -> Option<Arc<Backend>> {
        let (table, backends) = (self.proxy.fleet.table(), self.proxy.fleet.backends());
        let pool = table.pool_for(Some(model))?;
        let usable = |backend: &&Arc<Backend>| {
            backend.health.is_healthy()
                && !backend.is_leaving()
                && matches!(backend.kind, EngineKind::Vllm | EngineKind::Sglang)
        };
        let served = table.backends(pool).iter().map(|id| &backends[id.index()]);
        let mut usable: Vec<_> = served.filter(usable).map(Arc::clone).collect();
        (!usable.is_empty()).then(|| usable.swap_remove(fastrand::usize(..usable.len())))
    }
}
