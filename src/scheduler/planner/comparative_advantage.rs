//! Comparative advantage of each engine in a mixed fleet, and the capacity of every split if each
//! engine takes the role of its advantage. `decide` chooses the split.
//!
//! Prefill is bound by compute and decode by memory bandwidth. An older accelerator is slower at
//! both, in different proportions: an H100 prefills 3.2 times and decodes 1.6 times as fast as an
//! A100 (docs/spec/engine-model.md#constants). The criterion is an engine's ratio of decode to
//! prefill time, relative to the median of its group (comparative advantage, Ricardo).

use crate::tuning::{ALIKE, REFERENCE_STREAMS, REFERENCE_TOKENS};
use tidegate_types::{Seconds, Tokens};

use crate::planner::observation::BackendObservation;

/// The role in which an engine has a comparative advantage within its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Advantage {
    Prefill,
    Either,
    Decode,
}

/// Capacity of each split, by its number of prefill engines, from none to all.
#[derive(Clone, Debug, Default)]
pub(super) struct Splits {
    /// Prefill work per second, in seconds of a mean engine.
    pub(super) prefill_capacity: Vec<f64>,
    /// Decode capacity in streams.
    pub(super) stream_capacity: Vec<f64>,
}

/// Returns the advantage of each engine, in the given order. `stream_capacity` is that of each
/// engine, or empty if unknown. An engine without capacity for one stream within the TPOT target has
/// its advantage in prefill.
pub(super) fn advantages(
    engines: &[&BackendObservation],
    stream_capacity: &[f64],
) -> Vec<Advantage> {
    let ratios: Vec<f64> = engines.iter().map(|engine| ratio(engine)).collect();
    let mut sorted = ratios.clone();
    sorted.sort_by(f64::total_cmp);
    let middle = match sorted.len() {
        0 => return Vec::new(),
        // The geometric mean of the two middle values: in a fleet of two halves the median lies
        // between them.
        len => (sorted[(len - 1) / 2] * sorted[len / 2]).sqrt(),
    };
    let advantage = |(engine, ratio): (usize, &f64)| match ratio / middle {
        _ if stream_capacity.get(engine).is_some_and(|streams| *streams < 1.0) => {
            Advantage::Prefill
        }
        more if more > ALIKE => Advantage::Prefill,
        less if less < 1.0 / ALIKE => Advantage::Decode,
        _ => Advantage::Either,
    };
    ratios.iter().enumerate().map(advantage).collect()
}

/// Ratio of the time of a decode step to that of a prefill: high on engines that are relatively
/// fast at prefill.
fn ratio(engine: &BackendObservation) -> f64 {
    let kv = Tokens(REFERENCE_TOKENS.get() * u64::from(REFERENCE_STREAMS));
    let step = engine.decode_model.step(REFERENCE_STREAMS, kv);
    step / prefill(engine).max(Seconds(1e-9))
}

fn prefill(engine: &BackendObservation) -> Seconds {
    engine.prefill_model.predict(REFERENCE_TOKENS, Tokens::ZERO)
}

impl Splits {
    /// Replaces the capacity of the split in force by that of its actual engines. An inaccurate cost
    /// regression may give a decode engine a quarter of the stream capacity of its peers, and
    /// placement uses the same regression.
    pub(super) fn use_actual_engines(
        &mut self,
        engines: &[&BackendObservation],
        stream_capacity: &[f64],
        in_prefill: &[bool],
    ) {
        let mean = mean_prefill(engines);
        let (mut prefills, mut served, mut placed) = (0, 0.0, 0.0);
        for ((engine, stream_capacity), in_prefill) in
            engines.iter().zip(stream_capacity).zip(in_prefill)
        {
            if *in_prefill {
                prefills += 1;
                served += mean / prefill(engine).get().max(1e-9);
            } else {
                placed += stream_capacity;
            }
        }
        self.prefill_capacity[prefills] = served;
        self.stream_capacity[prefills] = placed;
    }
}

fn mean_prefill(engines: &[&BackendObservation]) -> f64 {
    let sum: f64 = engines.iter().map(|engine| prefill(engine).get()).sum();
    sum / engines.len().max(1) as f64
}

/// Returns the capacity of all splits of `engines`, given the stream capacity of each engine.
pub(super) fn splits(engines: &[&BackendObservation], stream_capacity: &[f64]) -> Splits {
    let advantages = advantages(engines, stream_capacity);
    let mut order: Vec<usize> = (0..engines.len()).collect();
    order.sort_by_key(|engine| advantages[*engine]);
    let mean = mean_prefill(engines);
    let (mut served, mut placed) = (0.0, stream_capacity.iter().sum());
    let mut splits = Splits { prefill_capacity: vec![served], stream_capacity: vec![placed] };
    for engine in order {
        served += mean / prefill(engines[engine]).get().max(1e-9);
        placed -= stream_capacity[engine];
        splits.prefill_capacity.push(served);
        splits.stream_capacity.push(placed.max(0.0));
    }
    splits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::{DecodeModel, PrefillModel};
    use crate::planner::tests::backend;

    /// An engine with these multiples of the default prefill and decode costs.
    fn engine(slot: u16, prefill: f64, decode: f64) -> BackendObservation {
        let (p, d) = (PrefillModel::default(), DecodeModel::default());
        let prefill_model = PrefillModel {
            base: p.base * prefill,
            per_token: p.per_token * prefill,
            per_attention: p.per_attention * prefill,
        };
        let decode_model = DecodeModel {
            base: d.base * decode,
            per_stream: d.per_stream * decode,
            per_kv_token: d.per_kv_token * decode,
            ..d
        };
        BackendObservation { prefill_model, decode_model, ..backend(slot) }
    }

    fn check(engines: &[BackendObservation], expected: &[Advantage]) {
        let engines: Vec<&BackendObservation> = engines.iter().collect();
        assert_eq!(advantages(&engines, &[]), expected);
    }

    #[test]
    fn advantage_depends_on_the_ratio_of_costs_and_not_on_speed() {
        use Advantage::{Decode, Either, Prefill};
        // A100 beside H100; then an engine that is equally slower at both, and regression noise.
        let (new, old) = (|slot| engine(slot, 1.0, 1.0), |slot| engine(slot, 3.2, 1.6));
        check(&[old(0), new(1), old(2), new(3)], &[Decode, Prefill, Decode, Prefill]);
        check(&[new(0), new(1), new(2), old(3)], &[Either, Either, Either, Decode]);
        check(&[engine(0, 3.0, 3.0), new(1), engine(2, 1.1, 0.95)], &[Either; 3]);
        check(&[], &[]);
    }

    #[test]
    fn an_engine_whose_step_exceeds_the_tpot_target_prefills_first() {
        let engines = [engine(0, 1.0, 1.0), engine(1, 2.0, 2.0), engine(2, 1.0, 1.0)];
        let engines: Vec<&BackendObservation> = engines.iter().collect();
        assert_eq!(
            splits(&engines, &[100.0, 0.0, 100.0]).stream_capacity,
            [200.0, 200.0, 100.0, 0.0]
        );
    }

    #[test]
    fn splits_assign_engines_by_comparative_advantage() {
        let engines = [engine(0, 3.0, 1.5), engine(1, 1.0, 1.0)];
        let engines: Vec<&BackendObservation> = engines.iter().collect();
        let Splits { prefill_capacity, stream_capacity } = splits(&engines, &[80.0, 100.0]);
        // The second engine prefills first; a mean prefill takes twice as long as its own.
        assert!(
            (prefill_capacity[1] - 2.0).abs() < 1e-9 && prefill_capacity[0] == 0.0,
            "{prefill_capacity:?}"
        );
        assert!((prefill_capacity[2] - 2.0 - 2.0 / 3.0).abs() < 1e-9, "{prefill_capacity:?}");
        assert_eq!(stream_capacity, [180.0, 80.0, 0.0]);
    }

    #[test]
    fn the_split_in_force_has_the_capacity_of_its_actual_engines() {
        let engines = [engine(0, 3.0, 1.5), engine(1, 1.0, 1.0)];
        let engines: Vec<&BackendObservation> = engines.iter().collect();
        let stream_capacity = [80.0, 100.0];
        let mut splits = splits(&engines, &stream_capacity);
        splits.use_actual_engines(&engines, &stream_capacity, &[true, false]);
        let Splits { prefill_capacity, stream_capacity } = splits;
        assert_eq!(stream_capacity, [180.0, 100.0, 0.0]);
        // By advantage the second engine would prefill: 2 and 80.
        assert!((prefill_capacity[1] - 2.0 / 3.0).abs() < 1e-9, "{prefill_capacity:?}");
    }
}
