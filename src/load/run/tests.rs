//! The load against emulated engines: requests sent, values measured, end of the run.

use super::*;
use tidegate_emulator::{EmulatorConfig, RunningEmulator, start};
use tidegate_sim::Profile;

fn fast() -> EmulatorConfig {
    EmulatorConfig { profile: Profile::named("fast").unwrap(), ..EmulatorConfig::default() }
}

async fn one() -> (RunningEmulator, Target) {
    let engine = start(fast()).await.unwrap();
    let target = Target::parse(&format!("http://{}", engine.addresses()[0])).unwrap();
    (engine, target)
}

fn arrival(at: f64, prompt: u64, output: u64) -> Arrival {
    Arrival {
        at: Seconds(at),
        prompt: Tokens(prompt),
        output: Tokens(output),
        ..Arrival::default()
    }
}

fn config(target: Target, trace: Trace, drain: f64) -> LoadConfig {
    LoadConfig { target, model: "emulated".to_owned(), trace, drain: Seconds(drain) }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_arrival_receives_its_tokens_from_an_emulated_engine() {
    let (engine, target) = one().await;
    let trace = Trace::bursts(3, Seconds(1.0), 20.0, Seconds(0.5)).scale_output(0.05);
    let output: u64 = trace.arrivals.iter().map(|arrival| arrival.output.get()).sum();
    let prompt: u64 = trace.arrivals.iter().map(|arrival| arrival.prompt.get()).sum();
    let count = trace.arrivals.len() as u64;
    for target in [target.clone(), target.completions()] {
        let before = engine.stats(0);
        let progress = Arc::new(LoadProgress::default());
        let outcomes = run(config(target, trace.clone(), 15.0), Arc::clone(&progress)).await;
        assert!(outcomes.iter().all(|outcome| outcome.done && !outcome.error), "{outcomes:?}");
        let snapshot = progress.snapshot();
        assert_eq!((snapshot.sent, snapshot.done), (count, count));
        assert_eq!(snapshot.tokens, output);
        for outcome in &outcomes {
            assert!(outcome.gap_max >= outcome.tpot, "{outcome:?}");
        }
        assert!((1..=output - count).contains(&progress.gaps().count()));
        let after = engine.stats(0);
        assert_eq!(after.prompt_computed - before.prompt_computed, prompt, "as the engine counts");
        assert_eq!(after.generated - before.generated, output);
    }
    engine.stop().await;
}

#[tokio::test]
async fn chunks_of_several_tokens_count_as_the_engine_reports_them() {
    let engine = start(EmulatorConfig { bursts: 3.0, ..fast() }).await.unwrap();
    let target = Target::parse(&format!("http://{}", engine.addresses()[0])).unwrap();
    let progress = Arc::new(LoadProgress::default());
    let trace = Trace { arrivals: vec![arrival(0.0, 10, 90)] };
    let outcomes = run(config(target, trace, 10.0), Arc::clone(&progress)).await;
    assert!(outcomes[0].done && outcomes[0].tokens == Tokens(90), "{outcomes:?}");
    assert_eq!(progress.snapshot().tokens, 90);
    assert!(progress.gaps().count() < 89);
    engine.stop().await;
}

#[tokio::test]
async fn an_unreachable_target_is_an_error_at_once() {
    let trace = Trace { arrivals: vec![arrival(0.0, 10, 5), arrival(0.01, 10, 5)] };
    let target = Target::parse("http://127.0.0.1:9").unwrap();
    let progress = Arc::new(LoadProgress::default());
    let outcomes = run(config(target, trace, 5.0), Arc::clone(&progress)).await;
    assert!(outcomes.iter().all(|outcome| outcome.error));
    assert_eq!(progress.failures(), [(RequestFailure::Connect, 2)]);
}

#[tokio::test]
async fn a_refusal_is_counted_by_its_status() {
    let (engine, target) = one().await;
    let trace = Trace { arrivals: vec![arrival(0.0, 200_000, 5)] };
    let progress = Arc::new(LoadProgress::default());
    let outcomes = run(config(target, trace, 5.0), Arc::clone(&progress)).await;
    assert!(outcomes[0].error && !outcomes[0].done);
    assert_eq!(progress.failures(), [(RequestFailure::Status(400), 1)]);
    engine.stop().await;
}

#[tokio::test]
async fn requests_unfinished_after_the_drain_are_cancelled_without_an_error() {
    let (engine, target) = one().await;
    let trace = Trace { arrivals: vec![arrival(0.0, 10, 100_000), arrival(0.01, 10, 2)] };
    let outcomes = run(config(target, trace, 0.3), Arc::default()).await;
    assert!(!outcomes[0].done && !outcomes[0].error);
    assert!(outcomes[0].ttft.is_some() && outcomes[0].tpot.is_none());
    assert!(outcomes[0].tokens.get() > 0);
    assert!(outcomes[1].done);
    while engine.stats(0).aborts == 0 {
        tokio::task::yield_now().await;
    }
    engine.stop().await;
}

#[tokio::test]
async fn a_killed_engine_breaks_its_streams() {
    let (mut engine, target) = one().await;
    let trace = Trace { arrivals: vec![arrival(0.0, 10, 100_000)] };
    let progress = Arc::new(LoadProgress::default());
    let loading = tokio::spawn(run(config(target, trace, 30.0), Arc::clone(&progress)));
    while progress.snapshot().tokens == 0 {
        tokio::task::yield_now().await;
    }
    engine.kill(0).await;
    let outcomes = loading.await.unwrap();
    assert!(outcomes[0].error);
    assert_eq!(progress.failures(), [(RequestFailure::Broken, 1)]);
    engine.stop().await;
}

#[tokio::test]
async fn a_request_on_a_connection_closed_by_the_server_is_retried() {
    let short = EmulatorConfig { keep_alive: Seconds(0.05), ..fast() };
    let engine = start(short).await.unwrap();
    let target = Target::parse(&format!("http://{}", engine.addresses()[0])).unwrap();
    let arrivals = (0..6).map(|i| arrival(0.05 * f64::from(i), 10, 2)).collect();
    let outcomes = run(config(target, Trace { arrivals }, 5.0), Arc::default()).await;
    assert!(outcomes.iter().all(|outcome| outcome.done), "{outcomes:?}");
    engine.stop().await;
}
