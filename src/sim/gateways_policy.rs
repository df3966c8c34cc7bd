//! The policy `tidegate` with several gateways before one fleet. Each request belongs to one gateway,
//! which places it by its own snapshot. The first gateway leads: it plans for all with the sum of their
//! loads, which [`Ledger`] computes as in the proxy.
//!
//! A sum is delivered one interval after the reports that it contains, which is the longest delay of the
//! proxy's exchange. Each gateway learns costs and output lengths, and predicts prefix cache hits, from
//! its own requests.

use tidegate_scheduler::gateways::{Ledger, Share};
use tidegate_scheduler::planner::ArrivalTotals;
use tidegate_types::{Moment, Seconds};

use crate::cluster::{Cluster, Router};
use crate::simulate::SimConfig;
use crate::tidegate_policy::TidegateRouter;
use crate::timeline::Timeline;

/// Router of several gateways.
pub(crate) struct GatewaysRouter {
    gateways: Vec<TidegateRouter>,
    /// By gateway: the arrivals that it has reported.
    reported: Vec<ArrivalTotals>,
    ledger: Ledger,
    /// Sums that are delivered at the next exchange.
    shares: Vec<Share>,
    interval: Seconds,
    due: Moment,
}

impl GatewaysRouter {
    pub(crate) fn new(config: &SimConfig, timeline: Timeline) -> GatewaysRouter {
        let count = config.tidegate.gateways;
        let mut following = *config;
        following.tidegate.flips = false;
        let follower = |_| TidegateRouter::new(&following, timeline.clone());
        let followers: Vec<_> = (1..count).map(follower).collect();
        let leader = TidegateRouter::new(config, timeline);
        GatewaysRouter {
            gateways: std::iter::once(leader).chain(followers).collect(),
            reported: vec![ArrivalTotals::default(); count],
            ledger: Ledger::default(),
            shares: Vec::new(),
            interval: config.tidegate.exchange,
            due: Moment::START,
        }
    }

    /// Returns the leader's timeline.
    pub(crate) fn into_timeline(self) -> Timeline {
        let leader = self.gateways.into_iter().next();
        leader.map(TidegateRouter::into_timeline).unwrap_or_default()
    }

    /// Delivers the sums of the previous exchange and the leader's roles, then takes reports.
    fn exchange(&mut self, cluster: &mut Cluster<'_>) {
        let now = cluster.now();
        if now < self.due {
            return;
        }
        self.due = now.max(self.due + self.interval);
        let roles = self.gateways[0].roles().to_vec();
        for follower in &mut self.gateways[1..] {
            follower.follow(cluster, roles.clone());
        }
        for share in std::mem::take(&mut self.shares) {
            let slot = share.to.parse::<usize>().ok().and_then(|slot| self.gateways.get_mut(slot));
            if let Some(gateway) = slot {
                gateway.count_others(cluster, &share.others);
            }
        }
        for (slot, (gateway, before)) in self.gateways.iter().zip(&mut self.reported).enumerate() {
            self.ledger.report(&slot.to_string(), gateway.report(before, now), now);
        }
        self.shares = self.ledger.shares(now, |_| true);
    }

    fn of(&mut self, request: usize) -> &mut TidegateRouter {
        let count = self.gateways.len();
        &mut self.gateways[request % count]
    }
}

impl Router for GatewaysRouter {
    fn flips(&self) -> u64 {
        self.gateways[0].flips()
    }

    fn arrived(&mut self, cluster: &mut Cluster<'_>, request: usize) {
        self.of(request).arrived(cluster, request);
    }

    fn prefilled(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.of(request).prefilled(cluster, request, engine);
    }

    fn began(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.of(request).began(cluster, request, engine);
    }

    fn ended(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.of(request).ended(cluster, request, engine);
    }

    fn stepped(&mut self, cluster: &mut Cluster<'_>, engine: usize) {
        for gateway in &mut self.gateways {
            gateway.stepped(cluster, engine);
        }
    }

    fn woken(&mut self, cluster: &mut Cluster<'_>) {
        self.exchange(cluster);
        for gateway in &mut self.gateways {
            gateway.woken(cluster);
        }
    }
}
