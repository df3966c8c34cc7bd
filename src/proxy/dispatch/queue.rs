//! Messages between waiting requests and the dispatcher.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::placement::{DecodeRequest, PrefillRequest};
use tidegate_types::{Moment, RequestId};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::dispatch::place::Placed;
use crate::dispatch::reservation::Reservation;
use crate::upstream::failure::Failure;

/// A request that waits for its first leg.
pub struct Offer {
    /// What it is.
    pub job: PrefillRequest,
    /// Who holds its prefix.
    pub matches: Matches,
    /// Channel for the outcome; closed when the client has left.
    pub reply: oneshot::Sender<Result<Placed, Failure>>,
}

/// A prefilled request that waits for a decode backend.
pub struct DecodeOffer {
    /// What it is.
    pub handover: DecodeRequest,
    /// Time at which the prefill ended.
    pub came: Moment,
    /// Deadline after which it takes any backend, whatever its free capacity.
    pub deadline: Moment,
    /// Channel for the outcome; closed when the client has left.
    pub reply: oneshot::Sender<Result<Reservation, Failure>>,
}

/// What reaches the dispatcher.
pub enum Message {
    /// Wait for a first leg.
    Offer(Box<Offer>),
    /// Wait for a decode backend.
    Decode(Box<DecodeOffer>),
    /// The client of a waiting request has left.
    Gone(RequestId),
}

/// Wakes the dispatcher on released capacity while requests are waiting.
#[derive(Debug, Default)]
pub struct Signal {
    waiting: AtomicUsize,
    changed: Notify,
}

/// The requests' end of the queue.
pub struct Queue {
    messages: mpsc::UnboundedSender<Message>,
    signal: Arc<Signal>,
    requests_max: usize,
}

impl Signal {
    /// A charge settled, or the table changed.
    pub fn room_made(&self) {
        if self.waiting.load(Relaxed) > 0 {
            self.changed.notify_one();
        }
    }

    /// Waits until capacity was released since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Number of waiting requests.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }
}

/// Counts one waiting request; its drop tells the dispatcher to forget it.
struct Waiting<'a> {
    queue: &'a Queue,
    id: RequestId,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.queue.signal.waiting.fetch_sub(1, Relaxed);
        if !self.answered {
            // The dispatcher has ended: no entry is left to remove.
            self.queue.messages.send(Message::Gone(self.id)).ok();
        }
    }
}

impl Queue {
    /// A queue for at most `requests_max` waiting requests, and the dispatcher's end of it.
    pub fn new(requests_max: usize) -> (Queue, mpsc::UnboundedReceiver<Message>) {
        // Unbounded as a channel; `requests_max` bounds what may be in it.
        let (messages, inbox) = mpsc::unbounded_channel();
        (Queue { messages, signal: Arc::default(), requests_max }, inbox)
    }

    /// The signal that reservations give when they settle.
    pub fn signal(&self) -> &Arc<Signal> {
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
    ) -> Result<Placed, Failure> {
        if self.signal.waiting.fetch_add(1, Relaxed) >= self.requests_max {
            self.signal.waiting.fetch_sub(1, Relaxed);
            return Err(Failure::Saturated);
        }
        let mut waiting = Waiting { queue: self, id: job.id, answered: false };
        let (reply, answer) = oneshot::channel();
        let offer = Offer { job: job.clone(), matches: *matches, reply };
        self.messages.send(Message::Offer(Box::new(offer))).map_err(|_| Failure::ShuttingDown)?;
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
        handover: &DecodeRequest,
        came: Moment,
        deadline: Moment,
    ) -> Result<Reservation, Failure> {
        self.signal.waiting.fetch_add(1, Relaxed);
        let mut waiting = Waiting { queue: self, id: handover.id, answered: false };
        let (reply, answer) = oneshot::channel();
        let offer = DecodeOffer { handover: handover.clone(), came, deadline, reply };
        self.messages.send(Message::Decode(Box::new(offer))).map_err(|_| Failure::ShuttingDown)?;
        let reservation = answer.await.unwrap_or(Err(Failure::ShuttingDown));
        waiting.answered = true;
        reservation
    }
}
