//! The scheduler keeps model time, in tokio's paused clock.

use std::sync::Arc;
use std::time::Duration;
use tidegate_sim::{Engine, Profile, SeqId, Sequence, Work};
use tidegate_types::{Seconds, Tokens};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, advance};

use crate::scheduler::{Scheduler, SchedulerCommand};
use crate::token_feed::TokenFeed;

fn running() -> (UnboundedSender<SchedulerCommand>, Arc<TokenFeed>, Seconds) {
    // Only reading the weights takes time, so that all steps have equal length.
    let zero = Seconds::ZERO;
    let step = Seconds(0.010);
    let profile = Profile {
        t_base: zero,
        t_weights: step,
        t_kv: zero,
        t_seq: zero,
        t_tok: zero,
        t_att: zero,
        ..Profile::default()
    };
    let (commands, inbox) = unbounded_channel();
    tokio::spawn(Scheduler::new(Engine::new(profile), inbox, Arc::default()).run());
    let feed = Arc::new(TokenFeed::new(true));
    let sequence = Sequence {
        id: SeqId(1),
        prompt: Tokens(10),
        cached: Tokens::ZERO,
        output: Tokens(1000),
        work: Work::Colocated,
    };
    commands
        .send(SchedulerCommand::Admit { sequence, feed: Arc::clone(&feed), reserved: None })
        .unwrap();
    (commands, feed, step)
}

async fn settle() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_follow_model_time() {
    let (_commands, feed, step) = running();
    settle().await;
    let begin = Instant::now();
    std::future::poll_fn(|context| feed.poll_beyond(99, context)).await;
    let took = Seconds::from(begin.elapsed());
    assert!((took - step * 100.0).get().abs() < 0.002, "{took}");
}

#[tokio::test(start_paused = true)]
async fn model_time_does_not_drift_after_a_late_wake_up() {
    let (_commands, feed, _) = running();
    settle().await;
    // The machine pauses repeatedly, for 30 steps each time.
    for round in 1..=4 {
        advance(Duration::from_millis(300)).await;
        settle().await;
        let tokens = feed.progress().tokens;
        assert!((30 * round - 1..=30 * round).contains(&tokens), "{tokens} in round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sequence_whose_reader_disconnected_is_not_admitted() {
    let (commands, _feed, _) = running();
    let feed = Arc::new(TokenFeed::new(true));
    feed.leave();
    let sequence = Sequence {
        id: SeqId(2),
        prompt: Tokens(10),
        cached: Tokens::ZERO,
        output: Tokens(1000),
        work: Work::Colocated,
    };
    commands.send(SchedulerCommand::Cancel(SeqId(2))).unwrap();
    commands
        .send(SchedulerCommand::Admit { sequence, feed: Arc::clone(&feed), reserved: None })
        .unwrap();
    advance(Duration::from_millis(300)).await;
    settle().await;
    assert_eq!(feed.progress().tokens, 0);
}

#[tokio::test(start_paused = true)]
async fn free_memory_is_granted_during_a_step() {
    let (commands, feed, _) = running();
    settle().await;
    let (granted, mut grant) = oneshot::channel();
    commands.send(SchedulerCommand::Reserve { tokens: Tokens(100), granted }).unwrap();
    let begin = Instant::now();
    (&mut grant).await.unwrap();
    assert_eq!((begin.elapsed(), feed.progress().tokens), (Duration::ZERO, 0), "in the first step");
}
