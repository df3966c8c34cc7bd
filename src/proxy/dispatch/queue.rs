//! Messages between waiting requests and the dispatcher.

use std::sync::Arc;
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::placement::{DecodeRequest, PrefillRequest};
use tidegate_types::{Moment, RequestId};
use tokio::sync::{mpsc, oneshot};

use crate::dispatch::capacity_signal::CapacitySignal;
use crate::dispatch::reservation::{Reservation, ReservedLeg};
use crate::upstream::failure::Failure;

/// A request queued for its first leg.
pub struct QueuedPrefill {
    /// The request as placement sees it.
    pub job: PrefillRequest,
    /// Backends that hold a prefix of the prompt.
    pub matches: Matches,
    /// Channel for the outcome; closed when the client has left.
    pub reply: oneshot::Sender<Result<ReservedLeg, Failure>>,
}

/// A prefilled request queued for a decode backend.
pub struct QueuedDecode {
    /// The decode leg as placement sees it.
    pub request: DecodeRequest,
    /// Time at which the prefill ended.
    pub arrived: Moment,
    /// Hand-off deadline, after which the best backend is taken even if it is full.
    pub deadline: Moment,
    /// Channel for the outcome; closed when the client has left.
    pub reply: oneshot::Sender<Result<Reservation, Failure>>,
}

/// Message to the dispatcher.
pub enum DispatcherMessage {
    /// Queue a request for its first leg.
    Prefill(Box<QueuedPrefill>),
    /// Queue a prefilled request for a decode backend.
    Decode(Box<QueuedDecode>),
    /// Remove a request whose client has left.
    Cancel(RequestId),
}

/// Sender side of the queue, used by requests.
pub struct Queue {
    messages: mpsc::UnboundedSender<DispatcherMessage>,
    signal: Arc<CapacitySignal>,
}

/// One waiting request. Dropped without an answer, it removes the request from the queue.
struct QueueEntry<'a> {
    queue: &'a Queue,
    id: RequestId,
    answered: bool,
}

impl Drop for QueueEntry<'_> {
    fn drop(&mut self) {
        self.queue.signal.leave();
        if !self.answered {
            // Fails if the dispatcher has ended, and with it the queue.
            self.queue.messages.send(DispatcherMessage::Cancel(self.id)).ok();
        }
    }
}

impl Queue {
    /// Creates an empty queue and the dispatcher's receiver.
    pub fn new() -> (Queue, mpsc::UnboundedReceiver<DispatcherMessage>) {
        // `requests_max` of each request bounds the messages in the unbounded channel.
        let (messages, inbox) = mpsc::unbounded_channel();
        (Queue { messages, signal: Arc::default() }, inbox)
    }

    /// Capacity signal raised when a reservation settles.
    pub fn signal(&self) -> &Arc<CapacitySignal> {
        &self.signal
    }

    /// Waits for a reservation.
    ///
    /// # Errors
    /// [`Failure::Saturated`] if `requests_max` requests are waiting; otherwise the dispatcher's error.
    pub async fn wait_for_place(
        &self,
        job: &PrefillRequest,
        matches: &Matches,
        requests_max: usize,
    ) -> Result<ReservedLeg, Failure> {
        if self.signal.enter() >= requests_max {
            self.signal.leave();
            return Err(Failure::Saturated);
        }
        let mut waiting = QueueEntry { queue: self, id: job.id, answered: false };
        let (reply, answer) = oneshot::channel();
        let offer = QueuedPrefill { job: job.clone(), matches: *matches, reply };
        self.messages
            .send(DispatcherMessage::Prefill(Box::new(offer)))
            .map_err(|_| Failure::ShuttingDown)?;
        let placed = answer.await.unwrap_or(Err(Failure::ShuttingDown));
        waiting.answered = true;
        placed
    }

    /// Waits for a decode backend. Exempt from `requests_max`: the prefill is already done.
    ///
    /// # Errors
    /// The dispatcher's error.
    pub async fn wait_for_decode(
        &self,
        request: &DecodeRequest,
        arrived: Moment,
        deadline: Moment,
    ) -> Result<Reservation, Failure> {
        self.signal.enter();
        let mut waiting = QueueEntry { queue: self, id: request.id, answered: false };
        let (reply, answer) = oneshot::channel();
        let offer = QueuedDecode { request: request.clone(), arrived, deadline, reply };
        self.messages
            .send(DispatcherMessage::Decode(Box::new(offer)))
            .map_err(|_| Failure::ShuttingDown)?;
        let reservation = answer.await.unwrap_or(Err(Failure::ShuttingDown));
        waiting.answered = true;
        reservation
    }
}
