//! The task that steps one engine. Deadlines are absolute: a wake-up that comes late shortens the
//! wait for the next one, so the model's time does not stretch with the machine's load.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tidegate_sim::{Engine, Event, SeqId, Sequence};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep_until};

use crate::stats::Counters;

/// What a request hears of its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// A token of answer `index`; `last` ends it.
    Token {
        /// Which of `n` answers.
        index: u32,
        /// Is it the last one?
        last: bool,
    },
    /// The prefill is done and its KV is held.
    Prefilled,
}

/// What the engine is told.
pub enum Command {
    /// Take a sequence.
    Admit {
        /// What it is.
        sequence: Sequence,
        /// Which of the request's answers.
        index: u32,
        /// Where its tokens go.
        to: UnboundedSender<Said>,
    },
    /// The client has left.
    Cancel(SeqId),
    /// The held KV was taken, or nobody came for it.
    Release(SeqId),
}

/// Behind by more than this, the model's time is let go: the machine cannot keep up.
const BEHIND_MAX: Duration = Duration::from_millis(250);
/// A step this late shows in the figures.
const LATE: Duration = Duration::from_millis(5);

/// Step `engine` until nobody can command it any more.
pub async fn run(
    mut engine: Engine,
    mut commands: UnboundedReceiver<Command>,
    counters: Arc<Counters>,
) {
    let mut streams: HashMap<SeqId, (u32, UnboundedSender<Said>)> = HashMap::new();
    let mut events = Vec::new();
    let mut at = Instant::now();
    loop {
        while let Ok(command) = commands.try_recv() {
            obey(command, &mut engine, &mut streams, &counters);
        }
        let Some(took) = engine.begin_step() else {
            publish(&engine, &counters);
            match commands.recv().await {
                Some(command) => obey(command, &mut engine, &mut streams, &counters),
                None => return,
            }
            at = Instant::now();
            continue;
        };
        publish(&engine, &counters);
        at += took.to_duration();
        sleep_until(at).await;
        let late = at.elapsed();
        if late > LATE {
            Counters::add(&counters.late_steps, 1);
        }
        if late > BEHIND_MAX {
            at = Instant::now();
        }
        engine.end_step(&mut events);
        for event in events.drain(..) {
            tell(event, &mut streams, &counters);
        }
    }
}

fn obey(
    command: Command,
    engine: &mut Engine,
    streams: &mut HashMap<SeqId, (u32, UnboundedSender<Said>)>,
    counters: &Counters,
) {
    match command {
        Command::Admit { sequence, index, to } => {
            streams.insert(sequence.id, (index, to));
            engine.admit(sequence);
        }
        Command::Cancel(id) => {
            if streams.remove(&id).is_some() && engine.cancel(id) {
                Counters::add(&counters.aborts, 1);
            }
        }
        Command::Release(id) => {
            // Released twice is released once.
            engine.release(id);
        }
    }
}

fn tell(
    event: Event,
    streams: &mut HashMap<SeqId, (u32, UnboundedSender<Said>)>,
    counters: &Counters,
) {
    let (id, ends) = match event {
        Event::Token { id, last } => (id, last),
        Event::PrefillDone { id } => (id, true),
    };
    let Some((index, to)) = streams.get(&id) else { return };
    let said = match event {
        Event::Token { last, .. } => {
            Counters::add(&counters.generated, 1);
            Said::Token { index: *index, last }
        }
        Event::PrefillDone { .. } => Said::Prefilled,
    };
    // A client that has left is cancelled by its own guard.
    to.send(said).ok();
    if ends {
        streams.remove(&id);
    }
}

fn publish(engine: &Engine, counters: &Counters) {
    counters.running.store(u64::from(engine.running()), Relaxed);
    counters.waiting.store(u64::from(engine.waiting()), Relaxed);
    counters.kv_used.store(engine.kv_used().get(), Relaxed);
}
