//! Task that steps one engine. Deadlines are absolute: a late wake-up shortens the next wait, so
//! model time does not drift with the load of the machine.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tidegate_sim::{Engine, Event, SeqId, Sequence};
use tidegate_types::Tokens;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::stats::EmulatorCounters;
use crate::token_feed::TokenFeed;

/// Command to the scheduler.
pub enum SchedulerCommand {
    /// Admits a sequence, with `reserved` tokens of memory if they were granted.
    Admit {
        /// The sequence.
        sequence: Sequence,
        /// Destination of its tokens.
        feed: Arc<TokenFeed>,
        /// Memory reserved for it earlier, in tokens.
        reserved: Option<Tokens>,
    },
    /// The client disconnected.
    Cancel(SeqId),
    /// The held KV was read or its lease expired.
    Release(SeqId),
    /// Reserves memory for KV to be fetched. Grants are in FIFO order; a request whose receiver is
    /// gone is skipped.
    Reserve {
        /// Size in tokens.
        tokens: Tokens,
        /// Signalled when the memory is granted.
        granted: oneshot::Sender<()>,
    },
    /// The KV transfer failed; the reservation is returned.
    Unreserve(Tokens),
}

/// One engine's scheduler.
pub struct Scheduler {
    engine: Engine,
    inbox: UnboundedReceiver<SchedulerCommand>,
    feeds: HashMap<SeqId, Arc<TokenFeed>>,
    /// FIFO of hand-offs that wait for memory.
    reserving: VecDeque<(Tokens, oneshot::Sender<()>)>,
    /// Granted memory that no running sequence occupies yet.
    reserved: Tokens,
    /// Part of `reserved` for sequences that begin with the next step.
    filled: Vec<Tokens>,
    /// Grants not yet used.
    fetching: u32,
    counters: Arc<EmulatorCounters>,
}

/// Maximum lag; beyond it lost time is dropped, because the machine cannot catch up.
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// Lag from which a step counts as late.
const LATE: Duration = Duration::from_millis(5);

impl Scheduler {
    /// Creates the scheduler of an idle engine.
    pub fn new(
        engine: Engine,
        inbox: UnboundedReceiver<SchedulerCommand>,
        counters: Arc<EmulatorCounters>,
    ) -> Scheduler {
        Scheduler {
            engine,
            inbox,
            feeds: HashMap::new(),
            reserving: VecDeque::new(),
            reserved: Tokens::ZERO,
            filled: Vec::new(),
            fetching: 0,
            counters,
        }
    }

    /// Steps until the command channel closes.
    pub async fn run(mut self) {
        let mut events = Vec::new();
        let mut at = Instant::now();
        loop {
            self.apply_all();
            for tokens in std::mem::take(&mut self.filled) {
                self.unreserve(tokens);
            }
            let step = self.engine.begin_step();
            let preempted = self.engine.take_preempted().len() as u64;
            EmulatorCounters::add(&self.counters.preemptions, preempted);
            self.grant();
            self.publish();
            let Some(took) = step else {
                match self.inbox.recv().await {
                    Some(command) => self.apply(command),
                    None => return,
                }
                at = Instant::now();
                continue;
            };
            let Some(ended) = self.wait_until(at + took.to_duration()).await else { return };
            at = ended;
            self.engine.end_step(&mut events);
            for event in events.drain(..) {
                self.report(event);
            }
        }
    }

    /// Waits for the end of a step: its deadline, unless the machine is far behind. Commands are
    /// handled meanwhile: free memory is granted during the step, so that a hand-off's duration
    /// counts from its request, as in docs/spec/engine-model.md#first-token. Admitted sequences
    /// begin with the next step.
    async fn wait_until(&mut self, deadline: Instant) -> Option<Instant> {
        let end = sleep_until(deadline);
        tokio::pin!(end);
        loop {
            tokio::select! {
                biased;
                () = &mut end => break,
                command = self.inbox.recv() => self.apply(command?),
            }
            self.apply_all();
            self.grant();
        }
        let late = deadline.elapsed();
        if late < LATE {
            return Some(deadline);
        }
        EmulatorCounters::add(&self.counters.late_steps, 1);
        // Lets streams run while the scheduler catches up.
        tokio::task::yield_now().await;
        if late < BEHIND_MAX {
            return Some(deadline);
        }
        EmulatorCounters::add(&self.counters.lost_micros, late.as_micros() as u64);
        Some(Instant::now())
    }

    fn apply_all(&mut self) {
        while let Ok(command) = self.inbox.try_recv() {
            self.apply(command);
        }
    }

    fn apply(&mut self, command: SchedulerCommand) {
        match command {
            SchedulerCommand::Admit { sequence, feed, reserved } => {
                match reserved {
                    Some(tokens) if feed.is_left() => self.unreserve(tokens),
                    reserved => self.filled.extend(reserved),
                }
                if !feed.is_left() {
                    self.feeds.insert(sequence.id, feed);
                    self.engine.admit(sequence);
                }
            }
            SchedulerCommand::Cancel(id) => {
                self.feeds.remove(&id);
                if self.engine.cancel(id) {
                    EmulatorCounters::add(&self.counters.aborts, 1);
                }
            }
            SchedulerCommand::Release(id) => {
                // A repeated release has no effect.
                self.engine.release(id);
            }
            SchedulerCommand::Reserve { tokens, granted } => {
                self.reserving.push_back((tokens, granted))
            }
            SchedulerCommand::Unreserve(tokens) => self.unreserve(tokens),
        }
    }

    fn unreserve(&mut self, tokens: Tokens) {
        self.reserved = self.reserved - tokens;
        self.fetching = self.fetching.saturating_sub(1);
    }

    /// Grants memory to waiting fetches in FIFO order. A request larger than the whole memory is
    /// granted when no other sequence is present.
    fn grant(&mut self) {
        while let Some((tokens, granted)) = self.reserving.pop_front() {
            if granted.is_closed() {
                continue;
            }
            let used = self.engine.kv_used() + self.reserved;
            let seats = self.engine.running() + self.fetching;
            let fits = used + tokens <= self.engine.profile().kv_capacity
                && seats < self.engine.profile().max_num_seqs;
            let alone = used == Tokens::ZERO && seats == 0;
            if !(fits || alone) {
                self.reserving.push_front((tokens, granted));
                return;
            }
            if granted.send(()).is_ok() {
                self.reserved += tokens;
                self.fetching += 1;
            }
        }
    }

    fn report(&mut self, event: Event) {
        let (id, last) = match event {
            Event::Token { id, last } => (id, last),
            // The token computed by a prefill is the one in its answer.
            Event::PrefillDone { id } => (id, true),
        };
        EmulatorCounters::add(&self.counters.generated, 1);
        let feed = if last { self.feeds.remove(&id) } else { self.feeds.get(&id).cloned() };
        if let Some(feed) = feed {
            feed.push(last);
        }
    }

    fn publish(&self) {
        let deferred = self.reserving.len() as u64 + u64::from(self.fetching);
        let counters = &self.counters;
        counters.running.store(u64::from(self.engine.running()), Relaxed);
        counters.waiting.store(u64::from(self.engine.waiting()) + deferred, Relaxed);
        counters.deferred.store(deferred, Relaxed);
        counters.kv_used.store((self.engine.kv_used() + self.reserved).get(), Relaxed);
    }
}
