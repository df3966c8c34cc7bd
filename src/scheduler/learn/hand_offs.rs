//! Hand-off cost per compatibility group, learned from the decode legs of disaggregated requests.

use crate::cost::{DecodeModel, TransferModel, TransferRegression};
use crate::learn::HandOffSample;
use std::collections::BTreeMap;
use tidegate_types::{GroupId, Seconds};

/// The regressions of all groups.
#[derive(Default)]
pub(super) struct HandOffRegressions {
    /// Group by backend slot, as in the routing table.
    groups: Vec<GroupId>,
    regressions: BTreeMap<GroupId, TransferRegression>,
}

impl HandOffRegressions {
    /// Takes the groups of a new routing table, by backend slot. Groups are numbered afresh when
    /// backends join or leave; a new number keeps the regression that its first backend had.
    pub fn regroup(&mut self, groups: impl Iterator<Item = GroupId> + Clone) {
        if groups.clone().eq(self.groups.iter().copied()) {
            return;
        }
        let groups: Vec<GroupId> = groups.collect();
        let mut regressions = BTreeMap::new();
        for (group, before) in groups.iter().zip(&self.groups) {
            if let Some(fit) = self.regressions.get(before) {
                regressions.entry(*group).or_insert_with(|| fit.clone());
            }
        }
        (self.groups, self.regressions) = (groups, regressions);
    }

    /// Learns from one hand-off to a backend with the decode cost `decode`. The KV arrives while
    /// another step runs, and the first token comes at the end of the next one: the hand-off took
    /// the measured time less one to two steps. Beside a prefill only the upper bound is known.
    pub fn observe(&mut self, sample: &HandOffSample, decode: &DecodeModel) {
        let Some(group) = self.groups.get(sample.backend.index()) else { return };
        let step = decode.step(sample.streams.max(1), sample.kv);
        let most = sample.took - step;
        let least = if sample.prefilling { Seconds::ZERO } else { most - step };
        self.regressions.entry(*group).or_default().observe_between(sample.tokens, least, most);
    }

    /// Returns the model of a group; the default before its first hand-off.
    pub fn model(&self, group: GroupId) -> TransferModel {
        self.regressions.get(&group).map_or_else(TransferModel::default, TransferRegression::model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_types::{BackendId, Tokens};

    fn sample(backend: u16, tokens: u64, took: Seconds, prefilling: bool) -> HandOffSample {
        let (backend, tokens) = (BackendId(backend), Tokens(tokens));
        HandOffSample { backend, tokens, took, streams: 1, kv: tokens, prefilling }
    }

    /// Hand-offs of this cost into a backend, whose first token comes after 1.5 steps.
    fn learn(
        regressions: &mut HandOffRegressions,
        backend: u16,
        cost: TransferModel,
        prefilling: bool,
    ) {
        let decode = DecodeModel::default();
        for tokens in [200, 900, 4000, 300, 12_000, 2500].into_iter().cycle().take(120) {
            let took = cost.predict(Tokens(tokens)) + decode.step(1, Tokens(tokens)) * 1.5;
            regressions.observe(&sample(backend, tokens, took, prefilling), &decode);
        }
    }

    fn near(
        regressions: &HandOffRegressions,
        group: u16,
        cost: TransferModel,
        within: Seconds,
    ) -> bool {
        [500, 4000, 10_000].into_iter().map(Tokens).all(|tokens| {
            let error = regressions.model(GroupId(group)).predict(tokens) - cost.predict(tokens);
            error.get().abs() <= within.get()
        })
    }

    #[test]
    fn each_group_learns_its_own_cost() {
        let slow = TransferModel { base: Seconds(0.02), per_token: Seconds(100e-6) };
        let fast = TransferModel { base: Seconds(0.001), per_token: Seconds(1e-6) };
        let mut regressions = HandOffRegressions::default();
        regressions.regroup([0, 0, 1].into_iter().map(GroupId));
        learn(&mut regressions, 1, slow, false);
        learn(&mut regressions, 2, fast, false);
        // One step is the width of the interval that a sample leaves open.
        let step = DecodeModel::default().step(1, Tokens(12_000));
        assert!(near(&regressions, 0, slow, step * 2.0), "{:?}", regressions.model(GroupId(0)));
        assert!(near(&regressions, 1, fast, step * 2.0), "{:?}", regressions.model(GroupId(1)));
        // The second group becomes the first one.
        regressions.regroup([1, 1, 0].into_iter().map(GroupId));
        assert!(near(&regressions, 1, slow, step * 2.0) && near(&regressions, 0, fast, step * 2.0));
    }

    #[test]
    fn beside_prefills_a_hand_off_bounds_the_cost_from_above_only() {
        let mut regressions = HandOffRegressions::default();
        regressions.regroup([GroupId(0)].into_iter());
        let slow = TransferModel { base: Seconds(0.5), per_token: Seconds(1e-3) };
        learn(&mut regressions, 0, slow, true);
        assert_eq!(regressions.model(GroupId(0)), TransferModel::default());
        let fast = TransferModel { base: Seconds::ZERO, per_token: Seconds(1e-7) };
        learn(&mut regressions, 0, fast, true);
        let model = regressions.model(GroupId(0));
        assert!(model.predict(Tokens(10_000)) < TransferModel::default().predict(Tokens(10_000)));
    }
}
