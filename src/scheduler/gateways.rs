//! In-flight loads and arrivals of several gateways on the same backends. Each gateway reports its
//! own to the leader, which returns the sum of the others. Queued requests, prefix indexes and fitted
//! costs are not exchanged.
//!
//! Loads are absolute: a lost report changes nothing. Arrivals are counts since the previous report:
//! the ledger owes them to each other gateway until its next share. A gateway that does not report for
//! [`STALE_AFTER`] leaves the sum.

use crate::inflight::Balance;
use crate::planner::ArrivalTotals;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;
use tidegate_types::{BACKENDS_MAX, Moment, Seconds, Tokens};

/// Age of a reported load after which it is no longer counted.
pub const STALE_AFTER: Seconds = Seconds(1.0);
/// Most models whose arrivals are owed to one gateway.
const MODELS_MAX: usize = 4096;
/// Most gateways in one sum: four times as many as a list of peers may name.
pub const GATEWAYS_MAX: usize = 128;
/// Most tokens that one gateway can have in flight on a backend, or receive between two reports: more
/// than the KV memory of any engine, and than the bodies that a gateway may hold.
const TOKENS_MAX: u64 = 1 << 30;
/// Longest prefill work that one gateway can have in flight on a backend, or receive between two
/// reports: a day in nanoseconds.
const NANOS_MAX: u64 = 86_400_000_000_000;
/// Most streams, prefill legs, or arrivals between two reports, of one gateway: its most connections.
const REQUESTS_MAX: u64 = 1 << 20;
/// Most backends in a report: twice the most that a gateway serves, because of those that leave.
const LOADS_MAX: usize = 2 * BACKENDS_MAX;

/// In-flight load of one or several gateways on one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayLoad {
    /// Prefill work, in nanoseconds.
    pub prefill_nanos: u64,
    /// Uncached prompt tokens of that work.
    pub prefill_tokens: u64,
    /// Legs with unfinished prefill work.
    pub prefill_legs: u32,
    /// Streams that decode or are reserved.
    pub streams: u32,
    /// Streams among them without a first token.
    pub awaiting_first_token: u32,
    /// KV tokens of streams and unfinished prefills.
    pub kv_tokens: u64,
    /// Smallest TPOT slack of the streams at the time of the report, in nanoseconds; absent without a
    /// stream that has a first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slack_nanos: Option<i64>,
}

/// Requests for one model that arrived since the previous report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelArrivals {
    /// The model; empty: requests without one.
    pub model: String,
    /// Set for requests that need a context of more tokens than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub above: Option<u64>,
    /// Number of requests.
    pub requests: u64,
    /// Their predicted prefill work, in nanoseconds.
    pub prefill_nanos: u64,
    /// Their prompt tokens.
    pub prompt_tokens: u64,
    /// Their expected output tokens.
    pub output_tokens: u64,
}

/// The report of one gateway, or the sum of several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayReport {
    /// By backend name; a backend without load is absent.
    pub loads: BTreeMap<String, GatewayLoad>,
    /// By model; a model without arrivals is absent.
    pub arrivals: Vec<ModelArrivals>,
}

/// Why a report cannot describe the loads of gateways.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Implausible {
    /// A number exceeds what gateways can have.
    #[error("{what} is {value}, at most {most} is possible")]
    Number {
        /// The member.
        what: &'static str,
        /// Its value.
        value: u64,
        /// Its bound.
        most: u64,
    },
    /// It has too many entries.
    #[error("{0} has {1} entries")]
    Entries(&'static str, usize),
}

/// The sum for one gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The gateway.
    pub to: String,
    /// Loads and arrivals of all others.
    pub others: GatewayReport,
    /// Number of others in the sum.
    pub gateways: usize,
}

impl GatewayLoad {
    /// The load of a balance; `slack` of its streams.
    pub fn of(balance: &Balance, slack: Option<Seconds>) -> GatewayLoad {
        GatewayLoad {
            prefill_nanos: (balance.prefill.get() * 1e9) as u64,
            prefill_tokens: balance.prefill_tokens.get(),
            prefill_legs: balance.prefill_legs,
            streams: balance.streams,
            awaiting_first_token: balance.awaiting_first_token,
            kv_tokens: balance.kv.get(),
            slack_nanos: slack.map(|slack| (slack.get() * 1e9) as i64),
        }
    }

    /// Returns the counters, without output tokens.
    pub fn balance(&self) -> Balance {
        Balance {
            prefill: Seconds(self.prefill_nanos as f64 / 1e9),
            prefill_tokens: Tokens(self.prefill_tokens),
            prefill_legs: self.prefill_legs,
            streams: self.streams,
            awaiting_first_token: self.awaiting_first_token,
            kv: Tokens(self.kv_tokens),
            emitted: Tokens::ZERO,
        }
    }

    /// Returns when the first of its streams exceeds its TPOT target if no further token arrives, for a
    /// report received at `now`.
    pub fn tpot_deadline(&self, now: Moment) -> Moment {
        let slack = self.slack_nanos.map(|nanos| Seconds(nanos as f64 / 1e9));
        slack.map_or(Moment::NEVER, |slack| now + slack)
    }

    /// Numbers with their bounds for one gateway.
    fn numbers(&self) -> [(&'static str, u64, u64); 6] {
        [
            ("prefill_nanos", self.prefill_nanos, NANOS_MAX),
            ("prefill_tokens", self.prefill_tokens, TOKENS_MAX),
            ("prefill_legs", self.prefill_legs.into(), REQUESTS_MAX),
            ("streams", self.streams.into(), REQUESTS_MAX),
            ("awaiting_first_token", self.awaiting_first_token.into(), REQUESTS_MAX),
            ("kv_tokens", self.kv_tokens, TOKENS_MAX),
        ]
    }
}

impl ModelArrivals {
    /// The arrivals between two readings; `None` without one.
    pub fn between(
        model: &str,
        above: Option<Tokens>,
        before: &ArrivalTotals,
        now: &ArrivalTotals,
    ) -> Option<ModelArrivals> {
        let requests = now.requests.saturating_sub(before.requests);
        (requests > 0).then(|| ModelArrivals {
            model: model.to_owned(),
            above: above.map(Tokens::get),
            requests,
            prefill_nanos: ((now.prefill - before.prefill).get().max(0.0) * 1e9) as u64,
            prompt_tokens: (now.prompt - before.prompt).get(),
            output_tokens: (now.output - before.output).get(),
        })
    }

    /// Returns the counts.
    pub fn totals(&self) -> ArrivalTotals {
        ArrivalTotals {
            requests: self.requests,
            prefill: Seconds(self.prefill_nanos as f64 / 1e9),
            prompt: Tokens(self.prompt_tokens),
            output: Tokens(self.output_tokens),
            ..ArrivalTotals::default()
        }
    }

    /// Numbers with their bounds for one gateway.
    fn numbers(&self) -> [(&'static str, u64, u64); 4] {
        [
            ("requests", self.requests, REQUESTS_MAX),
            ("prefill_nanos", self.prefill_nanos, NANOS_MAX),
            ("prompt_tokens", self.prompt_tokens, TOKENS_MAX),
            ("output_tokens", self.output_tokens, TOKENS_MAX),
        ]
    }
}

impl GatewayReport {
    /// Returns the report of this many gateways if its numbers are possible. A gateway that sends
    /// others would distort the demand of all for minutes. Slack is limited instead: that of a stream
    /// without a target is infinite.
    ///
    /// # Errors
    /// The first number that is not.
    pub fn checked(mut self, gateways: usize) -> Result<GatewayReport, Implausible> {
        if gateways > GATEWAYS_MAX {
            return Err(Implausible::Entries("gateways", gateways));
        }
        for (what, entries, most) in
            [("loads", self.loads.len(), LOADS_MAX), ("arrivals", self.arrivals.len(), MODELS_MAX)]
        {
            if entries > most {
                return Err(Implausible::Entries(what, entries));
            }
        }
        let loads = self.loads.values().flat_map(GatewayLoad::numbers);
        let arrivals = self.arrivals.iter().flat_map(ModelArrivals::numbers);
        for (what, value, most) in loads.chain(arrivals) {
            // A gateway whose arrivals are owed may have left.
            let most = most * gateways.max(1) as u64;
            if value > most {
                return Err(Implausible::Number { what, value, most });
            }
        }
        for load in self.loads.values_mut() {
            let most = NANOS_MAX as i64;
            load.slack_nanos = load.slack_nanos.map(|nanos| nanos.clamp(-most, most));
        }
        Ok(self)
    }
}

/// The leader's record of all gateways, its own included.
#[derive(Debug, Default)]
pub struct Ledger {
    gateways: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    at: Moment,
    loads: BTreeMap<String, GatewayLoad>,
    /// Arrivals at the others since its last share.
    owed: BTreeMap<(String, Option<u64>), ModelArrivals>,
}

/// The load of all gateways on one backend.
#[derive(Clone, Copy, Debug, Default)]
struct Total {
    sum: GatewayLoad,
    /// The smallest slack, and the position of the gateway that reported it.
    least: Option<(i64, usize)>,
    /// The smallest slack of the other gateways.
    second: Option<i64>,
}

impl Ledger {
    /// Records a checked report of a gateway, and adds the gateway to the sum.
    pub fn report(&mut self, from: &str, report: GatewayReport, now: Moment) {
        for (name, entry) in &mut self.gateways {
            if name != from {
                entry.owe(&report.arrivals);
            }
        }
        match self.gateways.get_mut(from) {
            Some(entry) => (entry.at, entry.loads) = (now, report.loads),
            None => {
                let entry = Entry { at: now, loads: report.loads, owed: BTreeMap::new() };
                self.gateways.insert(from.to_owned(), entry);
            }
        }
    }

    /// Removes a gateway from the sum.
    pub fn leave(&mut self, name: &str) {
        self.gateways.remove(name);
    }

    /// Removes every gateway.
    pub fn clear(&mut self) {
        self.gateways.clear();
    }

    /// Returns the sums for the gateways that can take one now. For the others, arrivals accumulate
    /// until a later call. Gateways that have not reported for [`STALE_AFTER`] are removed first.
    pub fn shares(&mut self, now: Moment, takes: impl Fn(&str) -> bool) -> Vec<Share> {
        self.gateways.retain(|_, entry| now - entry.at <= STALE_AFTER);
        let totals = self.totals();
        let gateways = self.gateways.len().saturating_sub(1);
        let mut shares = Vec::new();
        for (position, (name, entry)) in self.gateways.iter_mut().enumerate() {
            if takes(name) {
                let others = GatewayReport {
                    loads: others(&totals, entry, position),
                    arrivals: std::mem::take(&mut entry.owed).into_values().collect(),
                };
                shares.push(Share { to: name.clone(), others, gateways });
            }
        }
        shares
    }

    fn totals(&self) -> BTreeMap<String, Total> {
        let mut totals: BTreeMap<String, Total> = BTreeMap::new();
        for (position, entry) in self.gateways.values().enumerate() {
            for (name, load) in &entry.loads {
                match totals.get_mut(name) {
                    Some(total) => total.add(load, position),
                    None => {
                        let mut total = Total::default();
                        total.add(load, position);
                        totals.insert(name.clone(), total);
                    }
                }
            }
        }
        totals
    }
}

impl Entry {
    fn owe(&mut self, arrivals: &[ModelArrivals]) {
        for arrived in arrivals {
            let key = (arrived.model.clone(), arrived.above);
            if self.owed.len() >= MODELS_MAX && !self.owed.contains_key(&key) {
                continue;
            }
            let none = || ModelArrivals {
                model: arrived.model.clone(),
                above: arrived.above,
                ..ModelArrivals::default()
            };
            let owed = self.owed.entry(key).or_insert_with(none);
            owed.requests = owed.requests.saturating_add(arrived.requests);
            owed.prefill_nanos = owed.prefill_nanos.saturating_add(arrived.prefill_nanos);
            owed.prompt_tokens = owed.prompt_tokens.saturating_add(arrived.prompt_tokens);
            owed.output_tokens = owed.output_tokens.saturating_add(arrived.output_tokens);
        }
    }
}

impl Total {
    fn add(&mut self, load: &GatewayLoad, position: usize) {
        let sum = &mut self.sum;
        sum.prefill_nanos = sum.prefill_nanos.saturating_add(load.prefill_nanos);
        sum.prefill_tokens = sum.prefill_tokens.saturating_add(load.prefill_tokens);
        sum.prefill_legs = sum.prefill_legs.saturating_add(load.prefill_legs);
        sum.streams = sum.streams.saturating_add(load.streams);
        sum.awaiting_first_token =
            sum.awaiting_first_token.saturating_add(load.awaiting_first_token);
        sum.kv_tokens = sum.kv_tokens.saturating_add(load.kv_tokens);
        let Some(slack) = load.slack_nanos else { return };
        match self.least {
            Some((least, _)) if slack >= least => {
                self.second = Some(self.second.map_or(slack, |second| second.min(slack)));
            }
            least => {
                self.second = least.map(|(slack, _)| slack).or(self.second);
                self.least = Some((slack, position));
            }
        }
    }

    /// The load without that of the gateway at `position`.
    fn without(&self, own: &GatewayLoad, position: usize) -> GatewayLoad {
        let sum = &self.sum;
        GatewayLoad {
            prefill_nanos: sum.prefill_nanos.saturating_sub(own.prefill_nanos),
            prefill_tokens: sum.prefill_tokens.saturating_sub(own.prefill_tokens),
            prefill_legs: sum.prefill_legs.saturating_sub(own.prefill_legs),
            streams: sum.streams.saturating_sub(own.streams),
            awaiting_first_token: sum.awaiting_first_token.saturating_sub(own.awaiting_first_token),
            kv_tokens: sum.kv_tokens.saturating_sub(own.kv_tokens),
            slack_nanos: match self.least {
                Some((_, of)) if of == position => self.second,
                least => least.map(|(slack, _)| slack),
            },
        }
    }
}

fn others(
    totals: &BTreeMap<String, Total>,
    entry: &Entry,
    position: usize,
) -> BTreeMap<String, GatewayLoad> {
    let without = |(name, total): (&String, &Total)| {
        let own = entry.loads.get(name).copied().unwrap_or_default();
        let others = total.without(&own, position);
        (others != GatewayLoad::default()).then(|| (name.clone(), others))
    };
    totals.iter().filter_map(without).collect()
}

#[cfg(test)]
#[path = "gateways_tests.rs"]
mod tests;
