//! Deviations of real engines from the engine model: noise, stalls, a slow machine, wrong priors, a
//! shared link. All are off by default. Each engine draws from its own seeded stream, so equal
//! inputs give equal runs, and an idle engine does not change another engine's draws.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use tidegate_types::Seconds;

use crate::bursts::Bursts;
use crate::engine::Engine;
use crate::profile::Profile;
use crate::random::SplitMix;

/// Mean time between two stalls of a busy engine, in seconds: about ten a minute in a fleet of eight.
const STALL_EVERY: f64 = 45.0;
/// Shortest and longest stall, in seconds.
const STALL: (f64, f64) = (0.05, 0.5);

/// Deviations from the engine model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Disturbance {
    /// Standard deviation of the logarithm of a step's duration: 0.05 is about 5 %. The mean stays.
    pub noise: f64,
    /// Whether engines stall: each every 45 s of busy time on average, for 50 to 500 ms.
    pub stalls: bool,
    /// Factor on the duration of the first engine's steps. Policies assume 1.
    pub slow: f64,
    /// Factor on the costs that policies assume, relative to the true ones.
    pub prior: f64,
    /// Whether hand-offs share one link, which transfers them one after the other.
    pub shared_link: bool,
    /// Whether engines preempt sequences when their KV memory is exhausted.
    pub preemption: bool,
    /// Mean tokens of each stream in a step: speculative decoding. 1 to 8.
    pub bursts: f64,
}

impl Default for Disturbance {
    fn default() -> Disturbance {
        Disturbance {
            noise: 0.0,
            stalls: false,
            slow: 1.0,
            prior: 1.0,
            shared_link: false,
            preemption: false,
            bursts: 1.0,
        }
    }
}

/// A command-line argument that is no disturbance.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no disturbance: use none, noise:SIGMA, stalls, slow:FACTOR, prior:FACTOR, shared-link, preemption or bursts:MEAN, joined by +"
)]
pub struct DisturbanceError(pub String);

impl FromStr for Disturbance {
    type Err = DisturbanceError;

    fn from_str(text: &str) -> Result<Disturbance, DisturbanceError> {
        let wrong = || DisturbanceError(text.to_owned());
        let mut all = Disturbance::default();
        for part in text.split('+') {
            let (name, value) = part.split_once(':').unwrap_or((part, ""));
            let number = || value.parse().ok().filter(|v: &f64| (0.0..=10.0).contains(v));
            let factor = || number().filter(|factor| *factor > 0.0).ok_or_else(wrong);
            match name {
                "none" => {}
                "noise" => all.noise = number().ok_or_else(wrong)?,
                "stalls" => all.stalls = true,
                "slow" => all.slow = factor()?,
                "prior" => all.prior = factor()?,
                "shared-link" => all.shared_link = true,
                "preemption" => all.preemption = true,
                "bursts" => {
                    let means = 1.0..=Bursts::MEAN_MAX;
                    all.bursts = number().filter(|mean| means.contains(mean)).ok_or_else(wrong)?;
                }
                _ => return Err(wrong()),
            }
        }
        Ok(all)
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = Disturbance::default();
        let parts = [
            (self.noise != none.noise).then(|| format!("noise:{}", self.noise)),
            self.stalls.then(|| "stalls".to_owned()),
            (self.slow != none.slow).then(|| format!("slow:{}", self.slow)),
            (self.prior != none.prior).then(|| format!("prior:{}", self.prior)),
            self.shared_link.then(|| "shared-link".to_owned()),
            self.preemption.then(|| "preemption".to_owned()),
            (self.bursts != none.bursts).then(|| format!("bursts:{}", self.bursts)),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(if parts.is_empty() { "none" } else { "" })?;
        f.write_str(&parts.join("+"))
    }
}

impl Disturbance {
    /// The single disturbances under which the evaluation judges policies.
    pub const SINGLE: &[&str] = &[
        "noise:0.05",
        "noise:0.15",
        "stalls",
        "slow:1.5",
        "slow:2",
        "prior:0.5",
        "prior:2",
        "shared-link",
        "preemption",
        "bursts:2",
    ];

    /// Returns the profile of an engine that policies assume.
    pub(crate) fn assumed(&self, profile: &Profile) -> Profile {
        profile.scaled(self.prior)
    }

    /// Returns engine number `index` as it behaves.
    pub(crate) fn engine(&self, profile: &Profile, index: usize) -> Engine {
        let profile = if index == 0 { profile.scaled(self.slow) } else { *profile };
        let seed = 0x6275_7273 + index as u64;
        let engine = Engine::new(profile).with_bursts(Bursts::new(self.bursts, seed));
        if self.preemption { engine.with_preemption() } else { engine }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Jitter {
    random: SplitMix,
    /// Busy time until the next stall, in seconds.
    until_stall: f64,
}

impl Jitter {
    pub(crate) fn new(engine: usize) -> Jitter {
        let mut random = SplitMix(0x7469_6465 + engine as u64);
        let until_stall = -random.unit().ln() * STALL_EVERY;
        Jitter { random, until_stall }
    }

    /// Returns the actual duration of a step whose modelled duration is `step`.
    pub(crate) fn step(&mut self, disturbance: &Disturbance, step: Seconds) -> Seconds {
        let mut took = step;
        if disturbance.noise > 0.0 {
            let sigma = disturbance.noise;
            took = took * self.random.lognormal((-sigma * sigma / 2.0, sigma));
        }
        if disturbance.stalls {
            self.until_stall -= took.get();
            if self.until_stall <= 0.0 {
                took += Seconds(STALL.0 + (STALL.1 - STALL.0) * self.random.unit());
                self.until_stall = -self.random.unit().ln() * STALL_EVERY;
            }
        }
        took
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disturbance_is_parsed_from_what_it_displays() {
        for part in [
            "none",
            "noise:0.05",
            "stalls",
            "slow:1.5",
            "prior:0.5+shared-link",
            "preemption+bursts:2",
        ] {
            assert_eq!(part.parse::<Disturbance>().unwrap().to_string(), part);
        }
        for part in ["", "slow", "slow:0", "noise:x", "noise:-1", "stall", "bursts:0.5", "bursts:9"]
        {
            assert!(part.parse::<Disturbance>().is_err(), "{part}");
        }
    }

    #[test]
    fn the_evaluation_has_every_kind_of_disturbance() {
        let all: Disturbance = Disturbance::SINGLE.join("+").parse().unwrap();
        let none = Disturbance::default();
        assert!(all.noise != none.noise && all.stalls && all.slow != none.slow);
        assert!(all.prior != none.prior && all.shared_link);
        assert!(all.preemption && all.bursts != none.bursts);
        for part in Disturbance::SINGLE {
            assert_eq!(part.parse::<Disturbance>().unwrap().to_string(), *part);
        }
    }

    #[test]
    fn noise_keeps_the_mean_and_stalls_add_about_six_parts_in_a_thousand() {
        let mean = |part: &str| {
            let disturbance = part.parse().unwrap();
            let mut jitter = Jitter::new(3);
            let steps = 200_000;
            let sum: f64 = (0..steps).map(|_| jitter.step(&disturbance, Seconds(0.02)).get()).sum();
            sum / f64::from(steps) / 0.02
        };
        assert!((mean("none") - 1.0).abs() < 1e-9);
        assert!((mean("noise:0.15") - 1.0).abs() < 0.002, "{}", mean("noise:0.15"));
        assert!((mean("stalls") - 1.006).abs() < 0.003, "{}", mean("stalls"));
    }
}
