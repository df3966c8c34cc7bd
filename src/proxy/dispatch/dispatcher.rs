//! The dispatcher: the only task that owns the EDF queue. It wakes when a request is queued, capacity
//! is released, a deadline passes or the routing table changes, and places the requests that fit.

use std::collections::HashMap;
use std::sync::Arc;
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::dispatch::{DispatchOutcome, DispatchQueue, Refusal, WaitingDecode};
use tidegate_types::{Moment, RequestId, Seconds};
use tokio::sync::{mpsc, oneshot};

use crate::backends::fleet::KnownPrefixes;
use crate::dispatch::context::Proxy;
use crate::dispatch::place::{decoding, placed};
use crate::dispatch::queue::{DispatcherMessage, QueuedDecode, QueuedPrefill};
use crate::dispatch::reservation::{Reservation, ReservedLeg};
use crate::upstream::failure::Failure;

/// Reply channels of waiting requests.
type Replies<T> = HashMap<RequestId, oneshot::Sender<Result<T, Failure>>>;

/// The dispatcher's private state.
pub struct Dispatcher {
    proxy: Arc<Proxy>,
    inbox: mpsc::UnboundedReceiver<DispatcherMessage>,
    queue: DispatchQueue,
    /// Prefix matches of the requests that wait for their first leg.
    matches: HashMap<RequestId, Matches>,
    replies: Replies<ReservedLeg>,
    decode_replies: Replies<Reservation>,
}

impl Dispatcher {
    /// A dispatcher with an empty queue.
    pub fn new(proxy: Arc<Proxy>, inbox: mpsc::UnboundedReceiver<DispatcherMessage>) -> Dispatcher {
        Dispatcher {
            inbox,
            // `queue.rs` applies the limit.
            queue: DispatchQueue::with_limit(usize::MAX),
            matches: HashMap::new(),
            replies: HashMap::new(),
            decode_replies: HashMap::new(),
            proxy,
        }
    }

    /// Runs until all senders are dropped or, at shutdown, until no request is queued.
    pub async fn run(mut self, mut stop: pingora_core::server::ShutdownWatch) {
        loop {
            let deadline = self.proxy.clock.instant(self.next_deadline());
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                () = self.proxy.queue.signal().changed() => {}
                () = tokio::time::sleep_until(deadline) => {}
                _ = stop.changed() => if self.queue.is_empty() { return },
            }
            while let Ok(message) = self.inbox.try_recv() {
                self.take(message);
            }
            self.place_waiting();
            self.publish_demand();
        }
    }

    /// Returns the next wake-up without an event.
    fn next_deadline(&self) -> Moment {
        let now = self.proxy.clock.now();
        self.queue.next_deadline(now).max(now + SHORTEST_PASS)
    }

    fn take(&mut self, message: DispatcherMessage) {
        match message {
            DispatcherMessage::Prefill(offer) => self.enqueue(*offer),
            DispatcherMessage::Decode(offer) => {
                let QueuedDecode { request, arrived, deadline, reply } = *offer;
                self.decode_replies.insert(request.id, reply);
                self.queue.push_decode(WaitingDecode { request, arrived, deadline });
            }
            DispatcherMessage::Cancel(id) => {
                self.queue.cancel(id);
                self.matches.remove(&id);
                self.replies.remove(&id);
                self.decode_replies.remove(&id);
            }
        }
    }

    fn enqueue(&mut self, offer: QueuedPrefill) {
        let id = offer.job.id;
        match self.queue.push(offer.job) {
            Ok(()) => {
                self.matches.insert(id, offer.matches);
                self.replies.insert(id, offer.reply);
            }
            // The send fails if the client has left.
            Err(_) => drop(offer.reply.send(Err(Failure::Saturated))),
        }
    }

    /// Places the requests that fit now.
    fn place_waiting(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        let Dispatcher { proxy, queue, matches, replies, decode_replies, .. } = self;
        let table = proxy.fleet.table();
        let view = proxy.view(&table, KnownPrefixes::Many(matches));
        let began = view.now;
        let mut answered = Vec::new();
        let settings = proxy.settings.load();
        let any = queue.pass(&settings.placement, began, &view, |outcome| {
            // A send fails if the client has left; dropping the reservation then settles it.
            match outcome {
                DispatchOutcome::Reserved(job, leg) => {
                    answered.push(job.id);
                    reply(replies, job.id, Ok(placed(proxy, &view, job, leg)));
                }
                DispatchOutcome::Decoding(leg, on, stream) => {
                    let reservation = decoding(proxy, &view, leg.arrived, on, stream);
                    reply(decode_replies, leg.request.id, Ok(reservation));
                }
                DispatchOutcome::Refused(id, refusal) => {
                    answered.push(id);
                    reply(replies, id, Err(failure(refusal)));
                    reply(decode_replies, id, Err(failure(refusal)));
                }
            }
        });
        for id in answered {
            self.matches.remove(&id);
        }
        if !any {
            self.proxy.reaction.scan_placed_none(began, self.proxy.clock.now());
        }
    }

    /// Publishes the queue lengths as demand and notifies the planner while requests are waiting.
    fn publish_demand(&self) {
        let table = self.proxy.fleet.table();
        for pool in &table.pools {
            let (interactive, batch) =
                (self.queue.waiting(pool.id), self.queue.waiting_batch(pool.id));
            pool.demand.set_waiting(interactive, batch);
        }
        if self.queue.has_interactive() {
            self.proxy.replan.notify_one();
        }
    }
}

/// Answers a waiting request; does nothing if it waits for a leg of the other kind.
fn reply<T>(replies: &mut Replies<T>, id: RequestId, answer: Result<T, Failure>) {
    if let Some(reply) = replies.remove(&id) {
        drop(reply.send(answer));
    }
}

fn failure(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::QueueDeadline { waited } => Failure::QueueDeadline { waited },
        Refusal::Late { waited } => Failure::Late { waited },
        Refusal::NoBackend => Failure::NoBackend,
    }
}

/// Shortest sleep, which prevents a busy loop when a deadline has passed without an outcome.
const SHORTEST_PASS: Seconds = Seconds(0.001);
