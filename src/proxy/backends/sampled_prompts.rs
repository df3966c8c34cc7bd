//! Prompts without a tokenizer that the engine's `/tokenize` counts in the background, and the models'
//! calibrations from them. The request path reads a snapshot and offers at most one prompt per request of
//! the background task; it never waits.

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tidegate_filters::{Accepted, Calibration, Calibrations, tokenize_body};
use tidegate_scheduler::cost::ByteFeatures;
use tokio::sync::mpsc;

/// Largest body from which a prompt is taken, in bytes.
const BODY_MAX: usize = 64 << 10;

/// A prompt to count.
#[derive(Debug)]
pub struct SampledPrompt {
    /// The model.
    pub model: Arc<str>,
    /// Body of the `/tokenize` request.
    pub body: Bytes,
    /// Features of the request's estimate.
    pub features: ByteFeatures,
}

/// Channel from requests to the background task.
pub struct SampledPrompts {
    /// Written by the background task only.
    calibrations: ArcSwap<Calibrations>,
    /// Whether the background task accepts a prompt.
    is_wanted: AtomicBool,
    sender: mpsc::Sender<SampledPrompt>,
    /// Taken by the background task.
    receiver: Mutex<Option<mpsc::Receiver<SampledPrompt>>>,
}

impl Default for SampledPrompts {
    fn default() -> SampledPrompts {
        let (sender, receiver) = mpsc::channel(1);
        SampledPrompts {
            calibrations: ArcSwap::default(),
            is_wanted: AtomicBool::new(false),
            sender,
            receiver: Mutex::new(Some(receiver)),
        }
    }
}

impl SampledPrompts {
    /// The models' calibrations. Never blocks.
    pub fn calibrations(&self) -> Guard<Arc<Calibrations>> {
        self.calibrations.load()
    }

    /// Sends an estimated prompt to the background task if it accepts one and the model is not settled.
    pub fn offer(&self, accepted: &Accepted, body: &[u8]) {
        if !self.is_wanted.load(Relaxed) || body.len() > BODY_MAX {
            return;
        }
        let (Some(features), Some(model)) = (accepted.prompt.features, &accepted.model) else {
            return;
        };
        let calibrations = self.calibrations();
        if calibrations.get(model).is_some_and(Calibration::is_settled) {
            return;
        }
        // One prompt is looked at each time, also one that cannot be counted.
        if !self.is_wanted.swap(false, Relaxed) {
            return;
        }
        if let Some(body) = tokenize_body(accepted, body) {
            let prompt = SampledPrompt { model: Arc::clone(model), body: body.into(), features };
            // The channel still holds the previous prompt: the task takes one at a time.
            self.sender.try_send(prompt).ok();
        }
    }

    /// Sets whether a prompt is accepted. Called by the background task only.
    pub(crate) fn want(&self, is_wanted: bool) {
        self.is_wanted.store(is_wanted, Relaxed);
    }

    /// Replaces the calibrations. Called by the background task only.
    pub(crate) fn publish(&self, calibrations: Calibrations) {
        self.calibrations.store(Arc::new(calibrations));
    }

    /// The background task's end; `None` when it was taken before.
    pub(crate) fn take_receiver(&self) -> Option<mpsc::Receiver<SampledPrompt>> {
        let mut receiver = self.receiver.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        receiver.take()
    }
}
