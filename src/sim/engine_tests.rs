//! Tests of the engine model: step times, order of service, memory.

use super::*;
use proptest::prelude::*;

fn sequence(id: u64, prompt: u64, output: u64, work: Work) -> Sequence {
    Sequence {
        id: SeqId(id),
        prompt: Tokens(prompt),
        cached: Tokens::ZERO,
        output: Tokens(output),
        work,
    }
}

/// Runs until idle; returns each event with its time.
fn run(engine: &mut Engine) -> Vec<(f64, Event)> {
    let (mut now, mut all) = (0.0, Vec::new());
    while let Some(took) = engine.begin_step() {
        now += took.get();
        let mut events = Vec::new();
        engine.end_step(&mut events);
        all.extend(events.into_iter().map(|event| (now, event)));
    }
    all
}

#[test]
fn a_single_prompt_takes_the_time_of_the_formula() {
    let profile = Profile::default();
    let mut engine = Engine::new(profile);
    engine.admit(sequence(1, 3000, 2, Work::Colocated));
    let events = run(&mut engine);
    let (c1, c2) = (2048.0, 952.0);
    let first = 2e-3 + 71e-6 * c1 + 1.33e-9 * c1 * c1 / 2.0;
    let second = 2e-3 + 71e-6 * c2 + 1.33e-9 * (c2 * c1 + c2 * c2 / 2.0);
    assert!((events[0].0 - first - second).abs() < 1e-9, "{events:?}");
    let decode = 2e-3 + 13.1e-3 + 3001.0 * 30.6e-9;
    assert!((events[1].0 - events[0].0 - decode).abs() < 1e-9, "{events:?}");
    assert_eq!(engine.kv_used(), Tokens::ZERO);
}

#[test]
fn a_prefill_holds_its_kv_until_its_release() {
    let mut engine = Engine::new(Profile::default());
    engine.admit(sequence(1, 100, 1, Work::PrefillOnly));
    assert_eq!(run(&mut engine)[0].1, Event::PrefillDone { id: SeqId(1) });
    assert_eq!(engine.kv_used(), Tokens(100));
    assert!(engine.release(SeqId(1)));
    assert!(!engine.release(SeqId(1)));
    assert_eq!(engine.kv_used(), Tokens::ZERO);
}

#[test]
fn a_sequence_emits_with_the_step_after_its_hand_off() {
    let mut engine = Engine::new(Profile::default());
    engine.admit(sequence(1, 1000, 1, Work::DecodeOnly));
    let events = run(&mut engine);
    assert!((events[0].0 - (15.1e-3 + 1000.0 * 30.6e-9)).abs() < 1e-9);
    assert_eq!(events[0].1, Event::Token { id: SeqId(1), last: true });
}

#[test]
fn a_prompt_that_exceeds_the_free_memory_waits() {
    let mut engine = Engine::new(Profile { kv_capacity: Tokens(1500), ..Profile::default() });
    engine.admit(sequence(1, 1000, 3, Work::Colocated));
    engine.admit(sequence(2, 1000, 1, Work::Colocated));
    engine.begin_step();
    assert_eq!((engine.running(), engine.waiting()), (1, 1));
    engine.end_step(&mut Vec::new());
    let order: Vec<_> = run(&mut engine).into_iter().map(|(_, event)| event).collect();
    assert_eq!(order.last(), Some(&Event::Token { id: SeqId(2), last: true }));
}

#[test]
fn the_sequence_that_started_last_is_preempted_and_computed_again() {
    let profile = Profile { kv_capacity: Tokens(2500), ..Profile::default() };
    let mut engine = Engine::new(profile).with_preemption();
    engine.admit(sequence(1, 1000, 400, Work::DecodeOnly));
    engine.admit(sequence(2, 1000, 400, Work::DecodeOnly));
    let (mut now, mut events, mut preempted) = (0.0, Vec::new(), Vec::new());
    let mut tokens = Vec::new();
    while let Some(took) = engine.begin_step() {
        preempted.extend(engine.take_preempted().into_iter().map(|id| (id, now)));
        assert!(engine.kv_used() <= profile.kv_capacity);
        now += took.get();
        engine.end_step(&mut events);
        tokens.extend(events.drain(..).map(|event| (event, now)));
    }
    let of = |wanted: u64| {
        tokens
            .iter()
            .filter(move |(event, _)| matches!(event, Event::Token { id, .. } if id.0 == wanted))
    };
    assert_eq!((of(1).count(), of(2).count()), (400, 400));
    let [(SeqId(2), at)] = preempted[..] else { panic!("{preempted:?}") };
    // Each stream had 250 tokens; the second goes on once the first has ended.
    assert_eq!(of(2).filter(|(_, time)| *time <= at).count(), 250);
    let end = of(1).next_back().unwrap().1;
    let resumed = of(2).nth(250).unwrap().1;
    let recomputed = 2e-3 + 71e-6 * 1250.0 + 1.33e-9 * 1250.0 * 1250.0 / 2.0;
    assert!((resumed - end - recomputed).abs() < 1e-9, "{resumed} {end}");
    assert_eq!(engine.kv_used(), Tokens::ZERO);
}

#[test]
fn a_step_with_bursts_verifies_the_drafts_and_ends_streams_at_their_last_token() {
    let mut engine = Engine::new(Profile::default()).with_bursts(Bursts::new(2.0, 5));
    for id in 0..200 {
        engine.admit(sequence(id, 100, 1000, Work::DecodeOnly));
    }
    // Three tokens a stream: one and two drafts.
    let first = engine.begin_step().unwrap().get();
    assert!((first - 2e-3 - 200.0 * (3.0 * 72e-6 + 100.0 * 30.6e-9)).abs() < 1e-9, "{first}");
    let mut steps = 1;
    let mut events = Vec::new();
    engine.end_step(&mut events);
    while engine.begin_step().is_some() {
        engine.end_step(&mut events);
        steps += 1;
    }
    assert_eq!(events.len(), 200_000);
    assert!((450..550).contains(&steps), "{steps}");
}

#[test]
fn kv_counts_as_it_grows_or_whole_answers_from_the_start() {
    let capacity = Tokens(2150);
    let of = |profile| {
        let mut engine = Engine::new(Profile { kv_capacity: capacity, ..profile });
        engine.admit(sequence(1, 1000, 101, Work::DecodeOnly));
        engine.admit(sequence(2, 1000, 101, Work::DecodeOnly));
        let first = engine.begin_step().unwrap().get();
        let beside = engine.running();
        engine.end_step(&mut Vec::new());
        assert!(engine.cancel(SeqId(2)));
        let ends: Vec<f64> = run(&mut engine).into_iter().map(|(end, _)| end).collect();
        (first, beside, ends[99] - ends[98])
    };
    let takes = |kv: f64| move |got: f64| (got - 15.1e-3 - kv * 30.6e-9).abs() < 1e-9;
    let (first, beside, last) = of(Profile::default());
    assert!(takes(2000.0)(first) && beside == 2 && takes(1100.0)(last), "{first} {beside} {last}");
    let (first, beside, last) = of(Profile::default().counting_whole_answers());
    assert!(takes(1101.0)(first) && beside == 1 && takes(1101.0)(last), "{first} {beside} {last}");
}

#[test]
fn streams_slow_each_other_by_the_kv_that_each_step_reads() {
    let step = |streams: u64| {
        let mut engine = Engine::new(Profile::default());
        for id in 0..streams {
            engine.admit(sequence(id, 1000, 10, Work::DecodeOnly));
        }
        engine.begin_step().unwrap().get()
    };
    // With up to 100 decodes, compute takes less time than reading the weights.
    assert!((step(100) - step(1) - 99.0 * 1000.0 * 30.6e-9).abs() < 1e-9);
    // With 256 decodes, it takes more.
    assert!((step(256) - 2e-3 - 256.0 * (72e-6 + 1000.0 * 30.6e-9)).abs() < 1e-9);
}

#[test]
fn a_chunk_is_shared_first_come_first_served_after_the_streams() {
    let mut engine = Engine::new(Profile::default());
    engine.admit(sequence(1, 10, 9, Work::DecodeOnly));
    engine.admit(sequence(2, 2000, 1, Work::PrefillOnly));
    engine.admit(sequence(3, 2000, 1, Work::PrefillOnly));
    let took = engine.begin_step().unwrap().get();
    let (first, second) = (2000.0, 47.0);
    let attention = 1.33e-9 * (first * first + second * second) / 2.0;
    assert!((took - 2e-3 - 2047.0 * 71e-6 - 72e-6 - attention - 10.0 * 30.6e-9).abs() < 1e-9);
    let mut events = Vec::new();
    engine.end_step(&mut events);
    let token = Event::Token { id: SeqId(1), last: false };
    assert_eq!(events, [token, Event::PrefillDone { id: SeqId(2) }]);
}

#[test]
fn of_a_cached_prompt_only_the_last_token_is_computed() {
    let took = |cached| {
        let mut engine = Engine::new(Profile::default());
        let cached = Tokens(cached);
        engine.admit(Sequence { cached, ..sequence(1, 1001, 1, Work::Colocated) });
        engine.begin_step().unwrap().get()
    };
    assert!((took(800) - 2e-3 - 201.0 * 71e-6 - 1.33e-9 * (201.0 * 800.0 + 20_200.5)).abs() < 1e-9);
    assert!((took(1001) - 15.1e-3).abs() < 1e-9, "one token hides behind the weights");
}

proptest! {
    #[test]
    fn everyone_gets_its_tokens_and_all_memory_comes_back(
        jobs in prop::collection::vec((1..5000_u64, 1..40_u64, 0..3_u8, any::<bool>()), 1..40),
        preempts in any::<bool>(),
        mean in 1.0..4.0_f64,
    ) {
        let mut engine = Engine::new(Profile { kv_capacity: Tokens(20_000), ..Profile::default() })
            .with_bursts(Bursts::new(mean, 1));
        engine.preempts = preempts;
        let mut owed = std::collections::BTreeMap::new();
        for (id, (prompt, output, work, cancel)) in jobs.into_iter().enumerate() {
            let work = [Work::Colocated, Work::PrefillOnly, Work::DecodeOnly][usize::from(work)];
            engine.admit(sequence(id as u64, prompt, output, work));
            if cancel {
                engine.begin_step();
                prop_assert!(engine.cancel(SeqId(id as u64)) || engine.running() > 0);
                let mut events = Vec::new();
                engine.end_step(&mut events);
                count(&events, &mut engine, &mut owed);
            } else {
                owed.insert(id as u64, if work == Work::PrefillOnly { 0 } else { output });
            }
        }
        while engine.begin_step().is_some() {
            let mut events = Vec::new();
            engine.end_step(&mut events);
            count(&events, &mut engine, &mut owed);
        }
        prop_assert!(owed.values().all(|left| *left == 0), "{owed:?}");
        prop_assert_eq!(engine.kv_used(), Tokens::ZERO);
    }
}

fn count(events: &[Event], engine: &mut Engine, owed: &mut std::collections::BTreeMap<u64, u64>) {
    for event in events {
        match event {
            Event::Token { id, .. } => {
                if let Some(left) = owed.get_mut(&id.0) {
                    *left -= 1;
                }
            }
            Event::PrefillDone { id } => assert!(engine.release(*id)),
        }
    }
}

proptest! {
    #[test]
    fn quiet_steps_take_the_same_time_and_report_first_and_last_tokens(
        jobs in prop::collection::vec((1..5000_u64, 1..40_u64, 0..3_u8), 1..30),
        mean in 1.0..4.0_f64,
    ) {
        let run = |quiet: bool| {
            let mut engine = Engine::new(Profile { kv_capacity: Tokens(20_000), ..Profile::default() })
                .with_bursts(Bursts::new(mean, 1));
            let (mut now, mut events, mut all) = (0.0, Vec::new(), Vec::new());
            for (id, (prompt, output, work)) in jobs.iter().enumerate() {
                let work = [Work::Colocated, Work::PrefillOnly, Work::DecodeOnly][usize::from(*work)];
                engine.admit(sequence(id as u64, *prompt, *output, work));
                if let Some(took) = engine.begin_step() {
                    now += took.get();
                    if quiet { engine.end_step_quietly(&mut events) } else { engine.end_step(&mut events) }
                }
            }
            loop {
                for event in events.drain(..) {
                    if let Event::PrefillDone { id } = event {
                        engine.release(id);
                    }
                    all.push((now, event));
                }
                let Some(took) = engine.begin_step() else { break };
                now += took.get();
                if quiet { engine.end_step_quietly(&mut events) } else { engine.end_step(&mut events) }
            }
            (all, engine.kv_used(), engine.kv_decoding())
        };
        let (all, kv, decoding) = run(false);
        prop_assert_eq!((kv, decoding), (Tokens::ZERO, Tokens::ZERO));
        let mut begun = std::collections::BTreeSet::new();
        let expected: Vec<_> = all.into_iter().filter(|(_, event)| match event {
            Event::Token { id, last } => begun.insert(*id) || *last,
            Event::PrefillDone { .. } => true,
        }).collect();
        // A quiet run reports a first and a last token of one step once.
        let once = |events: Vec<(f64, Event)>| -> Vec<(f64, Event)> {
            let last = |at: f64, of: SeqId| events.contains(&(at, Event::Token { id: of, last: true }));
            let kept = events.iter().filter(|(at, event)| match event {
                Event::Token { id, last: false } => !last(*at, *id),
                _ => true,
            });
            kept.copied().collect()
        };
        prop_assert_eq!(once(expected), once(run(true).0));
    }
}
