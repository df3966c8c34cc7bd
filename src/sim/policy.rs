//! Compared policies, by their names on the command line.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Policy that routes requests and assigns engine roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The live proxy's placement, queue and planner.
    Tidegate,
    /// Colocated requests, to the engine with the least predicted work.
    Aggregated,
    /// Fixed split with this number of prefill engines; the others decode.
    Static(usize),
    /// Best fixed split in hindsight.
    BestStatic,
    /// Upper bound on the attainment of any policy; it has no other figures.
    Bound,
    /// Periodic controller; an engine that changes role is unavailable for `restart`.
    Interval {
        /// Planning interval, in milliseconds.
        every: u64,
        /// Unavailability of an engine after a role change, in milliseconds.
        restart: u64,
    },
    /// Dynamo's conditional disaggregation with this number of prefill engines.
    Conditional(usize),
    /// Dynamo's KV router, aggregated.
    DynamoKv,
    /// llm-d's default, aggregated: the engine with the session's prefix until it is saturated.
    Sticky,
    /// SGLang's router, aggregated.
    CacheAware,
    /// Llumnix's adaptive prefill and decode.
    Llumnix {
        /// With live migration, which requires an agent in the engine.
        migrates: bool,
    },
    /// xLLM-service, after Arrow.
    Xllm,
    /// TokenScale on a fleet of fixed size.
    TokenScale,
}

impl Policy {
    /// Returns whether a fleet of this size has an engine for each pool that the policy requires.
    pub fn runs_on(&self, engines: usize) -> bool {
        match self {
            Policy::Static(prefills) | Policy::Conditional(prefills) => {
                (1..engines).contains(prefills)
            }
            Policy::BestStatic
            | Policy::Interval { .. }
            | Policy::Llumnix { .. }
            | Policy::Xllm
            | Policy::TokenScale => engines > 1,
            Policy::Tidegate
            | Policy::Aggregated
            | Policy::DynamoKv
            | Policy::Sticky
            | Policy::CacheAware
            | Policy::Bound => engines > 0,
        }
    }
}

/// A command-line argument that is no policy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no policy: use tidegate, aggregated, static:K, static:best, interval:SECONDS[:RESTART], \
     conditional:K, dynamo_kv, sticky, cache_aware, llumnix[:migrate], xllm, tokenscale or bound"
)]
pub struct PolicyError(pub String);

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(name: &str) -> Result<Policy, PolicyError> {
        match name {
            "tidegate" => Ok(Policy::Tidegate),
            "aggregated" => Ok(Policy::Aggregated),
            "static:best" => Ok(Policy::BestStatic),
            "bound" => Ok(Policy::Bound),
            "dynamo_kv" => Ok(Policy::DynamoKv),
            "sticky" => Ok(Policy::Sticky),
            "cache_aware" => Ok(Policy::CacheAware),
            "llumnix" => Ok(Policy::Llumnix { migrates: false }),
            "llumnix:migrate" => Ok(Policy::Llumnix { migrates: true }),
            "xllm" => Ok(Policy::Xllm),
            "tokenscale" => Ok(Policy::TokenScale),
            _ if name.starts_with("interval:") => {
                interval(&name["interval:".len()..]).ok_or_else(|| PolicyError(name.to_owned()))
            }
            _ => {
                let count = |prefix| name.strip_prefix(prefix).and_then(|count| count.parse().ok());
                count("static:")
                    .map(Policy::Static)
                    .or_else(|| count("conditional:").map(Policy::Conditional))
                    .ok_or_else(|| PolicyError(name.to_owned()))
            }
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Tidegate => f.write_str("tidegate"),
            Policy::Aggregated => f.write_str("aggregated"),
            Policy::Static(prefills) => write!(f, "static:{prefills}"),
            Policy::BestStatic => f.write_str("static:best"),
            Policy::Bound => f.write_str("bound"),
            Policy::Conditional(prefills) => write!(f, "conditional:{prefills}"),
            Policy::DynamoKv => f.write_str("dynamo_kv"),
            Policy::Sticky => f.write_str("sticky"),
            Policy::CacheAware => f.write_str("cache_aware"),
            Policy::Llumnix { migrates: false } => f.write_str("llumnix"),
            Policy::Llumnix { migrates: true } => f.write_str("llumnix:migrate"),
            Policy::Xllm => f.write_str("xllm"),
            Policy::TokenScale => f.write_str("tokenscale"),
            Policy::Interval { every, restart: 0 } => write!(f, "interval:{}", seconds(*every)),
            Policy::Interval { every, restart } => {
                write!(f, "interval:{}:{}", seconds(*every), seconds(*restart))
            }
        }
    }
}

/// Parses `SECONDS[:RESTART]`, each at most one day.
fn interval(name: &str) -> Option<Policy> {
    let millis = |name: &str| {
        let seconds = name.parse::<f64>().ok().filter(|s| (0.0..=86_400.0).contains(s))?;
        Some((seconds * 1e3).round() as u64)
    };
    let (every, restart) = name.split_once(':').unwrap_or((name, "0"));
    let (every, restart) = (millis(every)?, millis(restart)?);
    (every > 0).then_some(Policy::Interval { every, restart })
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_parsed_from_what_it_displays() {
        for name in [
            "tidegate",
            "aggregated",
            "static:3",
            "static:best",
            "bound",
            "conditional:3",
            "dynamo_kv",
            "sticky",
            "cache_aware",
            "llumnix",
            "llumnix:migrate",
            "xllm",
            "tokenscale",
            "interval:5",
            "interval:0.5:30",
        ] {
            assert_eq!(name.parse::<Policy>().unwrap().to_string(), name);
        }
        for name in [
            "static",
            "static:",
            "static:-1",
            "Tidegate",
            "",
            "interval:0",
            "interval:",
            "interval:5:x",
        ] {
            assert!(name.parse::<Policy>().is_err(), "{name}");
        }
    }
}
