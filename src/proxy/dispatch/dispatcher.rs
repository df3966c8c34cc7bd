//! The dispatcher: the only task that owns the EDF queue. It wakes when a request is queued, capacity
//! is released, a deadline passes or the routing table changes, and places the requests that fit.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::placement::{EdfQueue, Outcome, Reserved};
use tidegate_types::{Moment, RequestId, Seconds};
use tokio::sync::{mpsc, oneshot};

use crate::backends::fleet::Known;
use crate::dispatch::context::Proxy;
use crate::dispatch::place::{force_decode, reserve, try_place_decode};
use crate::dispatch::queue::{DispatcherMessage, QueuedDecode, QueuedPrefill};
use crate::dispatch::reservation::Placed;
use crate::upstream::failure::Failure;

type Replies = HashMap<RequestId, oneshot::Sender<Result<Placed, Failure>>>;

/// The dispatcher's private state.
pub struct Dispatcher {
    proxy: Arc<Proxy>,
    inbox: mpsc::UnboundedReceiver<DispatcherMessage>,
    queue: EdfQueue,
    /// Prefix matches of the waiting requests.
    matches: HashMap<RequestId, Matches>,
    replies: Replies,
    /// Prefilled requests, oldest first: they hold KV memory on their prefill backend.
    decodes: VecDeque<QueuedDecode>,
}

impl Dispatcher {
    /// A dispatcher with an empty queue.
    pub fn new(proxy: Arc<Proxy>, inbox: mpsc::UnboundedReceiver<DispatcherMessage>) -> Dispatcher {
        Dispatcher {
            inbox,
            queue: EdfQueue::with_limit(proxy.placement.queue_max),
            matches: HashMap::new(),
            replies: HashMap::new(),
            decodes: VecDeque::new(),
            proxy,
        }
    }

    /// Runs until all senders are dropped or, at shutdown, `replies` is empty.
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
                _ = stop.changed() => if self.replies.is_empty() { return },
            }
            while let Ok(message) = self.inbox.try_recv() {
                self.take(message);
            }
            self.place_waiting();
            self.publish_demand();
        }
    }

    /// Returns the next wake-up, within [`IDLE_PASS`], which bounds the cost of a lost wake-up.
    fn next_deadline(&self) -> Moment {
        let now = self.proxy.clock.now();
        let idle = now + IDLE_PASS;
        let queue = self.queue.next_deadline().unwrap_or(Moment::NEVER);
        let decode = self.decodes.iter().map(|offer| offer.deadline).min();
        idle.min(queue).min(decode.unwrap_or(Moment::NEVER)).max(now + SHORTEST_PASS)
    }

    fn take(&mut self, message: DispatcherMessage) {
        match message {
            DispatcherMessage::Prefill(offer) => self.enqueue(*offer),
            DispatcherMessage::Decode(offer) => self.decodes.push_back(*offer),
            DispatcherMessage::Cancel(id) => {
                self.queue.cancel(id);
                self.matches.remove(&id);
                self.replies.remove(&id);
                self.decodes.retain(|offer| offer.handover.id != id);
            }
        }
    }

    fn enqueue(&mut self, offer: QueuedPrefill) {
        let id = offer.job.id;
        match self.queue.offer(offer.job) {
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
        if self.decodes.is_empty() && self.replies.is_empty() {
            return;
        }
        let began = self.proxy.clock.now();
        // Prefilled requests first: they hold KV memory.
        let decodes = self.place_decodes(began);
        let offers = self.place_offers();
        if !decodes && !offers {
            self.proxy.reaction.scan_placed_none(began, self.proxy.clock.now());
        }
    }

    /// Returns whether a request was placed.
    fn place_decodes(&mut self, now: Moment) -> bool {
        let mut placed = false;
        for _ in 0..self.decodes.len() {
            let Some(offer) = self.decodes.pop_front() else { return placed };
            if offer.reply.is_closed() {
                continue;
            }
            let reservation = match try_place_decode(&self.proxy, &offer.handover, offer.arrived) {
                Some(reservation) => Ok(reservation),
                None if now < offer.deadline => {
                    self.decodes.push_back(offer);
                    continue;
                }
                None => force_decode(&self.proxy, &offer.handover).ok_or(Failure::NoBackend),
            };
            placed |= reservation.is_ok();
            // If the client has left, dropping the reservation settles it.
            drop(offer.reply.send(reservation));
        }
        placed
    }

    /// Returns whether a request was placed.
    fn place_offers(&mut self) -> bool {
        let Dispatcher { proxy, queue, matches, replies, .. } = self;
        let table = proxy.fleet.table();
        let view = proxy.view(&table, Known::Many(matches));
        let (mut settled, mut any) = (Vec::new(), false);
        queue.poll(&proxy.placement, view.now, &view, |outcome| {
            let (id, answer) = match outcome {
                Outcome::Place(job, choice) => match reserve(proxy, &view, job, choice) {
                    Some(placed) => {
                        any = true;
                        (job.id, Ok(placed))
                    }
                    None => return Reserved::No,
                },
                Outcome::Expired(job) => {
                    (job.id, Err(Failure::QueueDeadline { waited: view.now - job.arrived }))
                }
                Outcome::Nowhere(job, _) => (job.id, Err(Failure::NoBackend)),
            };
            if let Some(reply) = replies.remove(&id) {
                // If the client has left, dropping the reservation settles it.
                drop(reply.send(answer));
            }
            settled.push(id);
            Reserved::Yes
        });
        for id in settled {
            self.matches.remove(&id);
        }
        any
    }

    /// Publishes the queue lengths as demand and notifies the planner while requests are waiting.
    fn publish_demand(&self) {
        let table = self.proxy.fleet.table();
        for pool in &table.pools {
            pool.demand.set_waiting(self.queue.waiting(pool.id));
        }
        if !self.replies.is_empty() || !self.decodes.is_empty() {
            self.proxy.surge.notify_one();
        }
    }
}

/// Longest sleep without an event.
const IDLE_PASS: Seconds = Seconds(0.25);
/// Shortest sleep, so that a passed deadline without an outcome does not spin.
const SHORTEST_PASS: Seconds = Seconds(0.001);
