//! Tests of the regressions against synthetic data.

use super::*;
use proptest::prelude::*;

/// A size in `[lo, hi)`, log-uniform, from a number in 0..1.
fn log_between(lo: f64, hi: f64, at: f64) -> u64 {
    (lo * (hi / lo).powf(at)) as u64
}

/// 3 % noise either way; one in twenty is 10 to 300 times too slow.
fn disturb(truth: Seconds, noise: f64, outlier: f64) -> Seconds {
    let slow = if outlier < 0.05 { 10.0 + outlier * 5800.0 } else { 1.0 };
    truth * (1.0 + 0.06 * (noise - 0.5)) * slow
}

fn within(predicted: Seconds, truth: Seconds, share: f64) -> bool {
    (predicted / truth - 1.0).abs() <= share
}

fn draws() -> impl Strategy<Value = Vec<[f64; 4]>> {
    prop::collection::vec(prop::array::uniform4(0.0..1.0), 150..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_prefill_regression_predicts_within_a_tenth_despite_outliers(
        draws in draws(),
        (base, token, attention) in (0.001..0.03, 5e-6..300e-6, 1e-11..5e-9),
    ) {
        // No engine has cheaper tokens: see TOKEN_SHARE_MIN.
        let token = f64::max(token, base * TOKEN_SHARE_MIN * 1.2);
        let truth = PrefillModel {
            base: Seconds(base), per_token: Seconds(token), per_attention: Seconds(attention),
        };
        let mut fit = PrefillRegression::default();
        for [size, cached, noise, outlier] in draws {
            let new = Tokens(log_between(64.0, 32_000.0, size));
            let context = Tokens(if cached < 0.5 { 0 } else { (cached * 8000.0) as u64 });
            fit.observe(new, context, disturb(truth.predict(new, context), noise, outlier));
        }
        let model = fit.model();
        for (new, context) in [(64, 0), (500, 0), (500, 6000), (4000, 0), (30_000, 0)] {
            let (new, context) = (Tokens(new), Tokens(context));
            let (seen, want) = (model.predict(new, context), truth.predict(new, context));
            prop_assert!(within(seen, want, 0.10), "{new} after {context}: {seen:?} {want:?}");
        }
    }

    #[test]
    fn a_decode_regression_predicts_within_a_tenth_despite_outliers(
        draws in draws(),
        (base, stream, kv, free) in (0.004..0.03, 5e-6..150e-6, 2e-9..80e-9, 0..100_u32),
    ) {
        let truth = DecodeModel {
            base: Seconds(base), per_stream: Seconds(stream), free_streams: free,
            per_kv_token: Seconds(kv),
        };
        let mut fit = DecodeRegression::new(DecodeModel { free_streams: free, ..DecodeModel::default() });
        for [size, each, noise, outlier] in draws {
            let streams = log_between(1.0, 256.0, size) as u32;
            let held = Tokens(u64::from(streams) * log_between(300.0, 4000.0, each));
            fit.observe(streams, held, disturb(truth.step(streams, held), noise, outlier));
        }
        for (streams, held) in [(1, 1000), (30, 40_000), (200, 250_000)] {
            let held = Tokens(held);
            let (seen, want) = (fit.model().step(streams, held), truth.step(streams, held));
            prop_assert!(within(seen, want, 0.10), "{streams} {held}: {seen:?} {want:?}");
        }
    }

    #[test]
    fn no_observation_makes_a_coefficient_negative_or_infinite(
        seen in prop::collection::vec((0..u64::MAX, 0..u64::MAX, prop::num::f64::ANY), 0..100),
    ) {
        let mut fit = PrefillRegression::default();
        for (new, context, took) in seen {
            fit.observe(Tokens(new), Tokens(context), Seconds(took));
            fit.observe(Tokens(new % 10_000), Tokens(context % 10_000), Seconds(took));
            let PrefillModel { base, per_token, per_attention } = fit.model();
            for coefficient in [base, per_token, per_attention] {
                prop_assert!(coefficient.get() >= 0.0 && coefficient.get().is_finite());
            }
        }
    }
}

#[test]
fn a_regression_follows_an_engine_that_becomes_twice_as_slow() {
    let old = PrefillModel::default();
    let new = PrefillModel { per_token: old.per_token * 2.0, base: old.base * 2.0, ..old };
    let mut fit = PrefillRegression::default();
    let size = |i: u64| Tokens(100 + i * 997 % 9000);
    for i in 0..1000 {
        fit.observe(size(i), Tokens(0), old.predict(size(i), Tokens(0)));
    }
    for i in 0..200 {
        fit.observe(size(i), Tokens(0), new.predict(size(i), Tokens(0)));
    }
    let (seen, want) =
        (fit.model().predict(Tokens(3000), Tokens(0)), new.predict(Tokens(3000), Tokens(0)));
    assert!(within(seen, want, 0.10), "{seen:?} {want:?}");
}

#[test]
fn short_prompts_do_not_displace_observations_of_long_ones() {
    let truth = PrefillModel {
        base: Seconds(0.004),
        per_token: Seconds(20e-6),
        per_attention: Seconds(3e-9),
    };
    let mut fit = PrefillRegression::default();
    for i in 0..20 {
        let new = Tokens(20_000 + i * 500);
        fit.observe(new, Tokens(0), truth.predict(new, Tokens(0)));
    }
    for i in 0..2000 {
        let (new, wave) = (Tokens(100 + i % 300), 1.0 + 0.03 * ((i % 7) as f64 - 3.0) / 3.0);
        fit.observe(new, Tokens(0), truth.predict(new, Tokens(0)) * wave);
    }
    let (seen, want) =
        (fit.model().predict(Tokens(30_000), Tokens(0)), truth.predict(Tokens(30_000), Tokens(0)));
    assert!(within(seen, want, 0.25), "{seen:?} {want:?}");
}

#[test]
fn short_prompts_do_not_change_the_attention_coefficient() {
    let truth = PrefillModel {
        base: Seconds(0.002),
        per_token: Seconds(71e-6),
        per_attention: Seconds(1.33e-9),
    };
    let mut fit = PrefillRegression::new(truth);
    for i in 0..500 {
        // An engine reads its weights for a short prompt too, and timers are late.
        let (new, late) = (Tokens(20 + i * 37 % 900), Seconds((i * 7 % 11) as f64 * 0.0003));
        fit.observe(new, Tokens(0), truth.predict(new, Tokens(0)).max(Seconds(0.0151)) + late);
    }
    let (seen, want) =
        (fit.model().predict(Tokens(8000), Tokens(0)), truth.predict(Tokens(8000), Tokens(0)));
    assert!(within(seen, want, 0.15), "{seen:?} {want:?}");
}

#[test]
fn a_transfer_regression_learns_base_and_cost_per_token() {
    let truth = TransferModel { base: Seconds(0.010), per_token: Seconds(2e-6) };
    let mut fit = TransferRegression::default();
    for i in 0..100 {
        let tokens = Tokens(50 + i * 613 % 30_000);
        fit.observe(tokens, truth.predict(tokens));
    }
    assert!(within(fit.model().base, truth.base, 0.02), "{:?}", fit.model());
    assert!(within(fit.model().per_token, truth.per_token, 0.02), "{:?}", fit.model());
    assert_eq!(fit.observations(), 100);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Short prompts in steps of 1 to 60 of them. The observed duration of each is that of its
    /// step.
    #[test]
    fn prompts_in_shared_steps_determine_the_cost_of_a_token(
        sizes in prop::collection::vec((8u64..60, 0.0..1.0f64), 120..300),
        (base, token) in (0.002..0.02, 30e-6..150e-6),
        history in prop::collection::vec(0.0..1.0f64, 0..60),
    ) {
        let truth = PrefillModel {
            base: Seconds(base), per_token: Seconds(token), per_attention: Seconds(1e-9),
        };
        let mut fit = PrefillRegression::default();
        for noise in history {
            // Prompts of one size only, on an engine that was slower then.
            let took = truth.predict(Tokens(1500), Tokens::ZERO) * 2.0;
            fit.observe(Tokens(1500), Tokens::ZERO, disturb(took, noise, 1.0));
        }
        for (index, (tokens, noise)) in sizes.into_iter().enumerate() {
            let count = 1 + index * 7 % 40;
            let mut batch = PrefillBatch::default();
            (0..count).for_each(|_| batch.add(PrefillBatch::of(Tokens(tokens), Tokens::ZERO)));
            fit.observe_batch(&batch, disturb(batch.predicted(&truth), noise, 1.0));
        }
        for tokens in [30, 300] {
            let prompt = PrefillBatch::of(Tokens(tokens), Tokens::ZERO);
            let (seen, want) = (prompt.predicted(&fit.model()), prompt.predicted(&truth));
            prop_assert!(within(seen, want, 0.25), "{tokens}: {seen:?} {want:?}");
        }
    }

    #[test]
    fn the_cost_of_a_token_stays_above_its_lower_bound(
        observations in prop::collection::vec((1u64..4000, 0.0..0.2f64), 1..200),
    ) {
        let mut fit = PrefillRegression::default();
        for (tokens, took) in observations {
            fit.observe(Tokens(tokens), Tokens::ZERO, Seconds(took));
            let model = fit.model();
            prop_assert!(model.per_token.get() > 0.0);
            prop_assert!(model.per_token.get() * 2049.0 > model.base.get());
        }
    }
}

#[test]
fn an_interval_observation_changes_only_a_model_outside_it() {
    let batch = PrefillBatch::of(Tokens(1000), Tokens::ZERO);
    let fit_after = |least: f64, most: f64| {
        let mut fit = PrefillRegression::default();
        (0..40).for_each(|_| fit.observe_between(&batch, Seconds(least), Seconds(most)));
        batch.predicted(&fit.model())
    };
    let prior = batch.predicted(&PrefillModel::default());
    assert_eq!(fit_after(0.0, 1.0), prior);
    assert!(within(fit_after(0.0, 0.02), Seconds(0.02), 0.05));
    assert!(within(fit_after(0.2, 1.0), Seconds(0.2), 0.05));
}
