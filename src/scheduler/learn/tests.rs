//! Learned costs compared with a simulated engine of known cost.

use super::*;
use crate::inflight::ConcurrentStreams;
use proptest::prelude::*;

const CHUNK: Tokens = Tokens(2048);
const ENGINE: BackendId = BackendId(0);

/// The regressions of one backend and the simulated engine that they observe.
struct ObservedEngine {
    regressions: CostRegressions,
    truth: PrefillModel,
    /// Whether the engine has a prefix cache.
    caches: bool,
    now: Moment,
}

impl ObservedEngine {
    fn new(prior: PrefillModel, truth: PrefillModel) -> ObservedEngine {
        let decode = DecodeModel::default();
        let regressions = CostRegressions::new(
            vec![Priors { prefill: prior, decode }],
            Estimates::default(),
            CHUNK,
        );
        ObservedEngine { regressions, truth, caches: false, now: Moment::START }
    }

    fn later(&mut self, span: Seconds) -> Moment {
        self.now = self.now + span;
        self.regressions.end_steps(self.now);
        self.now
    }

    /// A prefill that ran from `sent` to `ended`.
    fn sample(
        &self,
        prompt: u64,
        predicted_hit: u64,
        sent: Moment,
        beside: ConcurrentStreams,
    ) -> PrefillSample {
        let (prompt, predicted_hit, ended) = (Tokens(prompt), Tokens(predicted_hit), self.now);
        PrefillSample {
            backend: ENGINE,
            prompt,
            predicted_hit,
            reported_hit: None,
            sent,
            ended,
            beside,
        }
    }

    fn observe(&mut self, sample: PrefillSample) {
        self.regressions.observe(Sample::Prefill(sample), self.now);
    }

    /// One prompt on an idle engine, half a second after the previous one.
    fn prefill(&mut self, prompt: u64, predicted_hit: u64) {
        let sent = self.later(Seconds(0.5));
        let cached = Tokens(if self.caches { predicted_hit } else { 0 });
        self.later(self.truth.predict(Tokens(prompt) - cached, cached));
        self.observe(self.sample(prompt, predicted_hit, sent, ConcurrentStreams::default()));
        self.later(Seconds(0.5));
    }

    /// Prompts that arrive during a step and are all computed in the next one.
    fn step(&mut self, prompts: u64, tokens: u64) {
        let sent = self.now;
        let each = self.truth.added_time(Tokens(tokens), Tokens::ZERO);
        self.later(self.truth.batch(each * prompts as f64));
        for n in 0..prompts {
            // First tokens arrive one after the other.
            self.now = self.now + Seconds(20e-6 * n as f64);
            self.observe(self.sample(tokens, 0, sent, ConcurrentStreams::default()));
        }
    }

    fn share(&self) -> f64 {
        self.regressions.hit_share(ENGINE).0
    }

    /// Learned duration of a prompt of `tokens` divided by its true duration.
    fn ratio(&self, tokens: u64) -> f64 {
        let (learned, _) = self.regressions.models(ENGINE, std::iter::empty());
        let of = |model: &PrefillModel| model.predict(Tokens(tokens), Tokens::ZERO);
        of(&learned) / of(&self.truth)
    }

    fn assert_learned(&self, tokens: u64, within: f64) {
        let ratio = self.ratio(tokens);
        assert!((ratio - 1.0).abs() < within, "{tokens}: {ratio}");
    }
}

/// Prefills of `tokens` beside streams, with waits from 0 to a whole step.
fn run(engine: &mut ObservedEngine, tokens: u64) {
    let decode = DecodeModel::default();
    for n in 0..200 {
        let new = Tokens(tokens * (1 + n % 7));
        let beside = ConcurrentStreams { streams: 60, kv: Tokens(40_000), mid_step: n % 3 > 0 };
        let steps = new.get().div_ceil(CHUNK.get()) as f64;
        let step = if beside.mid_step { decode.step(60, beside.kv) } else { Seconds::ZERO };
        let waited = step * ((n * 7 % 11) as f64 / 10.0);
        let shared = decode.beside_prefill(beside.streams, beside.kv) * steps;
        let sent = engine.later(Seconds(0.5));
        engine.later(engine.truth.predict(new, Tokens::ZERO) + shared + waited);
        engine.observe(engine.sample(new.get(), 0, sent, beside));
    }
    engine.later(Seconds(1.0));
}

#[test]
fn waits_and_streams_do_not_bias_the_learned_prefill_cost() {
    let truth = PrefillModel::default();
    let mut engine = ObservedEngine::new(PrefillModel { base: truth.base * 3.0, ..truth }, truth);
    run(&mut engine, 2000);
    engine.assert_learned(2000, 0.05);
    engine.assert_learned(8000, 0.05);
}

#[test]
fn waits_of_short_prompts_do_not_bias_the_cost_of_long_ones() {
    let truth = PrefillModel { base: Seconds(0.002), ..PrefillModel::default() };
    let mut reported = ObservedEngine::new(truth, truth);
    run(&mut reported, 50);
    reported.assert_learned(4000, 0.05);
    let dear = PrefillModel { per_token: truth.per_token * 10.0, ..truth };
    let mut default_prior = ObservedEngine::new(PrefillModel::default(), dear);
    run(&mut default_prior, 50);
    default_prior.assert_learned(300, 0.3);
}

#[test]
fn prompts_that_end_with_one_step_are_one_observation() {
    let truth = PrefillModel { base: Seconds(0.004), ..PrefillModel::default() };
    let mut engine = ObservedEngine::new(PrefillModel::default(), truth);
    for n in 0..100 {
        engine.step(1 + n * 7 % 40, 30);
    }
    engine.later(Seconds(1.0));
    engine.assert_learned(30, 0.15);
    engine.assert_learned(1000, 0.2);
}

#[test]
fn a_wrong_regression_recovers_with_short_prompts() {
    let truth = PrefillModel { base: Seconds(0.004), ..PrefillModel::default() };
    let wrong = PrefillModel {
        base: Seconds(0.044),
        per_token: Seconds::ZERO,
        per_attention: Seconds::ZERO,
    };
    let mut engine = ObservedEngine::new(wrong, truth);
    for n in 0..100 {
        engine.step(1 + n * 7 % 40, 30);
    }
    engine.later(Seconds(1.0));
    engine.assert_learned(30, 0.2);
    engine.assert_learned(1000, 0.2);
}

#[test]
fn costs_are_learned_from_unstreamed_answers() {
    let truth = PrefillModel { base: Seconds(0.002), ..PrefillModel::default() };
    let dear = PrefillModel { per_token: truth.per_token * 8.0, ..truth };
    let mut engine = ObservedEngine::new(dear, truth);
    let whole = |engine: &mut ObservedEngine, prompt: u64, beside: ConcurrentStreams| {
        let sent = engine.later(Seconds(0.5));
        engine.later(truth.predict(Tokens(prompt), Tokens::ZERO));
        let sample = engine.sample(prompt, 0, sent, beside);
        engine
            .regressions
            .observe(Sample::Colocated { prefill: sample, output: Tokens(1) }, engine.now);
    };
    // Beside streams, the whole duration bounds the prefill.
    for _ in 0..40 {
        whole(
            &mut engine,
            1500,
            ConcurrentStreams { streams: 3, kv: Tokens(3000), mid_step: true },
        );
    }
    engine.assert_learned(1500, 0.1);
    let cheap = PrefillModel { per_token: truth.per_token / 8.0, ..truth };
    let mut engine = ObservedEngine::new(cheap, truth);
    for n in 0..40 {
        whole(
            &mut engine,
            500 + n * 97,
            ConcurrentStreams { mid_step: true, ..ConcurrentStreams::default() },
        );
    }
    engine.assert_learned(1500, 0.1);
}

#[test]
fn durations_reveal_an_engine_without_a_prefix_cache() {
    let truth = PrefillModel { per_token: Seconds(90e-6), ..PrefillModel::default() };
    let mut engine = ObservedEngine::new(PrefillModel::default(), truth);
    engine.prefill(2000, 0);
    for n in 0..20 {
        engine.prefill(2000 + n * 10, 1900);
    }
    assert!(engine.share() < 0.15, "{}", engine.share());
    // The regression attributes the durations to full prefills, not to a higher cost per token.
    engine.assert_learned(2000, 0.1);
    // Restart with a prefix cache.
    engine.caches = true;
    for _ in 0..30 {
        engine.prefill(2000, 1900);
    }
    assert!(engine.share() > 0.9, "{}", engine.share());
}

#[test]
fn real_hits_keep_the_share_and_do_not_bias_the_cost() {
    let truth = PrefillModel { per_token: Seconds(90e-6), ..PrefillModel::default() };
    let mut engine = ObservedEngine::new(PrefillModel::default(), truth);
    engine.caches = true;
    for n in 0..4 {
        engine.prefill(1500 + n * 300, 0);
    }
    for n in 0..40 {
        engine.prefill(2000 + n * 10, 1900);
    }
    assert!(engine.share() > 0.99, "{}", engine.share());
    engine.assert_learned(2000, 0.1);
}

#[test]
fn a_slower_engine_keeps_its_hit_share() {
    let truth = PrefillModel::default();
    let mut engine = ObservedEngine::new(PrefillModel { base: truth.base * 0.9, ..truth }, truth);
    engine.caches = true;
    engine.prefill(2000, 1900);
    engine.truth =
        PrefillModel { base: truth.base * 20.0, per_token: truth.per_token * 20.0, ..truth };
    for n in 0..40 {
        engine.prefill(2000 + n, if n % 4 == 0 { 0 } else { 1900 });
    }
    assert!(engine.share() > 0.7, "{}", engine.share());
}

#[test]
fn reported_hits_take_precedence_over_durations() {
    let truth = PrefillModel::default();
    let mut engine = ObservedEngine::new(PrefillModel { base: truth.base * 0.9, ..truth }, truth);
    for _ in 0..30 {
        let hit = Sample::Hit { backend: ENGINE, predicted_hit: Tokens(1900), cached: Tokens(950) };
        engine.regressions.observe(hit, engine.now);
        engine.prefill(2000, 1900);
    }
    assert!((engine.share() - 0.5).abs() < 0.1, "{}", engine.share());
    assert_eq!(engine.regressions.hit_share(ENGINE).1, HitSource::Usage);
    // Restart without `--enable-prompt-tokens-details` and without a prefix cache.
    engine.later(Seconds(100.0));
    for _ in 0..30 {
        engine.prefill(2000, 1900);
    }
    assert!(engine.share() < 0.1, "{}", engine.share());
    assert_eq!(engine.regressions.hit_share(ENGINE).1, HitSource::Durations);
}

#[test]
fn the_hit_share_follows_the_engines_counters() {
    let truth = PrefillModel::default();
    let mut engine = ObservedEngine::new(truth, truth);
    engine.caches = true;
    let mut hits = 500.0;
    for _ in 0..12 {
        engine.regressions.observe(Sample::Counted { backend: ENGINE, hits }, engine.now);
        for _ in 0..5 {
            engine.prefill(2000, 1900);
        }
        hits += 5.0 * 1900.0 * 0.25;
    }
    let (share, source) = engine.regressions.hit_share(ENGINE);
    assert!((share - 0.25).abs() < 0.05 && source == HitSource::Counters, "{share} {source:?}");
    // After a restart the counter begins at 0, which is no evidence.
    engine.regressions.observe(Sample::Counted { backend: ENGINE, hits: 0.0 }, engine.now);
    assert!((engine.share() - 0.25).abs() < 0.05);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Durations alone detect predicted hits that are not real, and confirm those that are,
    /// whatever else the engine computes.
    #[test]
    fn durations_determine_share_and_cost(
        caches: bool,
        prompts in prop::collection::vec((1000u64..6000, 0.0..1.0f64, 0.9..1.1f64), 60..120),
        (base, token) in (0.002..0.02, 20e-6..200e-6),
    ) {
        let truth = PrefillModel {
            base: Seconds(base), per_token: Seconds(token), per_attention: Seconds(1e-9),
        };
        let mut engine = ObservedEngine::new(PrefillModel::default(), truth);
        engine.caches = caches;
        for (prompt, share, noise) in prompts {
            // One prompt in four shares no prefix.
            let predicted_hit = if share < 0.25 { 0 } else { (prompt as f64 * (0.5 + share * 0.49)) as u64 };
            engine.truth = PrefillModel {
                base: truth.base * noise, per_token: truth.per_token * noise, ..truth
            };
            engine.prefill(prompt, predicted_hit);
        }
        let share = engine.share();
        prop_assert!(if caches { share > 0.8 } else { share < 0.2 }, "{caches}: {share}");
        engine.truth = truth;
        prop_assert!((engine.ratio(3000) - 1.0).abs() < 0.2, "{}", engine.ratio(3000));
    }
}

#[test]
fn the_costs_of_all_backends_equal_those_of_each_backend() {
    let truth = PrefillModel { base: Seconds(0.02), ..PrefillModel::default() };
    let prior = Priors { prefill: PrefillModel::default(), decode: DecodeModel::default() };
    // Slots 2 and 3 have observations; slot 1 is in the group of slot 3. Slots 5 to 7 have three
    // that differ: slot 8 of their group takes the median.
    let groups = [0, 1, 0, 1, 2, 3, 3, 3, 3].map(GroupId);
    let mut engine = ObservedEngine::new(prior.prefill, truth);
    engine.regressions =
        CostRegressions::new(vec![prior; groups.len()], Estimates::default(), CHUNK);
    for _ in 0..20 {
        let sent = engine.later(Seconds(0.5));
        engine.later(truth.predict(Tokens(500), Tokens::ZERO));
        for slot in [2, 3] {
            let sample = engine.sample(500, 0, sent, ConcurrentStreams::default());
            engine.observe(PrefillSample { backend: BackendId(slot), ..sample });
        }
        for (slot, times) in [(5, 3.0), (6, 1.0), (7, 2.0)] {
            let sample = engine.sample(500, 0, sent, ConcurrentStreams::default());
            let ended = sample.sent + (sample.ended - sample.sent) * times;
            engine.observe(PrefillSample { backend: BackendId(slot), ended, ..sample });
        }
    }
    engine.later(Seconds(1.0));
    let costs = engine.regressions.costs(&groups);
    for (slot, group) in groups.iter().enumerate() {
        let peers = (0..9).map(BackendId).filter(|peer| groups[peer.index()] == *group);
        assert_eq!(costs[slot], engine.regressions.models(BackendId(slot as u16), peers), "{slot}");
    }
    assert_ne!(costs[0].0, prior.prefill, "slot 0 takes the costs of slot 2");
    assert_eq!(costs[4].0, prior.prefill, "slot 4 is alone");
    assert_eq!(costs[8].0, costs[7].0, "slot 8 takes the costs of the median peer");
}
