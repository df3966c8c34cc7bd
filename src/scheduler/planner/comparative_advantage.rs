//! Comparative advantage of each engine in a mixed fleet, and the capacity of every split if
//! engines take the side they are better at. `decide` chooses the split.
//!
//! Prefill is bound by compute and decode by memory, so an older accelerator is slower at both in
//! different proportion: an H100 prefills 3.2 times and decodes 1.6 times as fast as an A100. The
//! criterion is the ratio of the two times, relative to the group's: comparative advantage
//! (Ricardo).

use crate::tuning::{ALIKE, REFERENCE_STREAMS, REFERENCE_TOKENS};
use tidegate_types::{Seconds, Tokens};

use crate::planner::observation::BackendObservation;

/// The side on which an engine has a comparative advantage within its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Aptitude {
    Prefill,
    Either,
    Decode,
}

/// Capacity of each split, by its number of prefill engines, from none to all.
#[derive(Clone, Debug, Default)]
pub(super) struct Splits {
    /// Prefill work per second, in seconds of a mean engine.
    pub(super) serves: Vec<f64>,
    /// Decode capacity in streams.
    pub(super) places: Vec<f64>,
}

/// Returns the aptitude of each engine, in the given order. An engine that carries no stream within
/// the TPOT target is apt for prefill; `carries` is the decode capacity of each engine in streams, or
/// empty if unknown.
pub(super) fn aptitudes(engines: &[&BackendObservation], carries: &[f64]) -> Vec<Aptitude> {
    let ratios: Vec<f64> = engines.iter().map(|engine| ratio(engine)).collect();
    let mut sorted = ratios.clone();
    sorted.sort_by(f64::total_cmp);
    let middle = match sorted.len() {
        0 => return Vec::new(),
        // In a fleet of two equal halves the median lies between them.
        len => (sorted[(len - 1) / 2] * sorted[len / 2]).sqrt(),
    };
    let aptitude = |(engine, ratio): (usize, &f64)| match ratio / middle {
        _ if carries.get(engine).is_some_and(|streams| *streams < 1.0) => Aptitude::Prefill,
        more if more > ALIKE => Aptitude::Prefill,
        less if less < 1.0 / ALIKE => Aptitude::Decode,
        _ => Aptitude::Either,
    };
    ratios.iter().enumerate().map(aptitude).collect()
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
    /// Replaces the capacity of the split in force by that of its actual engines. An inaccurate fit
    /// may leave a decode engine capacity for a quarter of its peers' streams, and placement
    /// follows that fit.
    pub(super) fn put_in_force(
        &mut self,
        engines: &[&BackendObservation],
        carries: &[f64],
        in_prefill: &[bool],
    ) {
        let mean = mean_prefill(engines);
        let (mut prefills, mut served, mut placed) = (0, 0.0, 0.0);
        for ((engine, carries), in_prefill) in engines.iter().zip(carries).zip(in_prefill) {
            if *in_prefill {
                prefills += 1;
                served += mean / prefill(engine).get().max(1e-9);
            } else {
                placed += carries;
            }
        }
        self.serves[prefills] = served;
        self.places[prefills] = placed;
    }
}

fn mean_prefill(engines: &[&BackendObservation]) -> f64 {
    let sum: f64 = engines.iter().map(|engine| prefill(engine).get()).sum();
    sum / engines.len().max(1) as f64
}

/// Returns the capacity of all splits of `engines`; `carries` is the decode capacity of each engine
/// in streams.
pub(super) fn splits(engines: &[&BackendObservation], carries: &[f64]) -> Splits {
    let aptitudes = aptitudes(engines, carries);
    let mut order: Vec<usize> = (0..engines.len()).collect();
    order.sort_by_key(|engine| aptitudes[*engine]);
    let mean = mean_prefill(engines);
    let (mut served, mut placed) = (0.0, carries.iter().sum());
    let mut splits = Splits { serves: vec![served], places: vec![placed] };
    for engine in order {
        served += mean / prefill(engines[engine]).get().max(1e-9);
        placed -= carries[engine];
        splits.serves.push(served);
        splits.places.push(placed.max(0.0));
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

    fn check(engines: &[BackendObservation], expected: &[Aptitude]) {
        let engines: Vec<&BackendObservation> = engines.iter().collect();
        assert_eq!(aptitudes(&engines, &[]), expected);
    }

    #[test]
    fn aptitude_depends_on_the_ratio_of_costs_and_not_on_speed() {
        use Aptitude::{Decode, Either, Prefill};
        // A100 beside H100; then an engine that is equally slower at both, and noise of a fit.
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
        assert_eq!(splits(&engines, &[100.0, 0.0, 100.0]).places, [200.0, 200.0, 100.0, 0.0]);
    }

    #[test]
    fn splits_assign_engines_by_comparative_advantage() {
        let engines = [engine(0, 3.0, 1.5), engine(1, 1.0, 1.0)];
        let engines: Vec<&BackendObservation> = engines.iter().collect();
        let Splits { serves, places } = splits(&engines, &[80.0, 100.0]);
        // The second engine prefills first; a mean prefill takes twice as long as its own.
        assert!((serves[1] - 2.0).abs() < 1e-9 && serves[0] == 0.0, "{serves:?}");
        assert!((serves[2] - 2.0 - 2.0 / 3.0).abs() < 1e-9, "{serves:?}");
        assert_eq!(places, [180.0, 80.0, 0.0]);
    }

    #[test]
    fn the_split_in_force_has_the_capacity_of_its_actual_engines() {
        let engines = [engine(0, 3.0, 1.5), engine(1, 1.0, 1.0)];
        let engines: Vec<&BackendObservation> = engines.iter().collect();
        let carries = [80.0, 100.0];
        let mut splits = splits(&engines, &carries);
        splits.put_in_force(&engines, &carries, &[true, false]);
        let Splits { serves, places } = splits;
        assert_eq!(places, [180.0, 100.0, 0.0]);
        // By aptitude the second engine would prefill: 2 and 80.
        assert!((serves[1] - 2.0 / 3.0).abs() < 1e-9, "{serves:?}");
    }
}
