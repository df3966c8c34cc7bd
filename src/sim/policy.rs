//! The policies that are compared, by the words of the command line.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Who decides where requests go, and which engine does what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The live proxy's placement, queue and planner.
    Tidegate,
    /// Whole requests, to the engine with the least predicted work.
    Aggregated,
    /// So many prefill engines; the others decode.
    Static(usize),
    /// The best of all splits, in hindsight.
    BestStatic,
}

/// The word is no policy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no policy: use tidegate, aggregated, static:K or static:best")]
pub struct PolicyError(pub String);

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(word: &str) -> Result<Policy, PolicyError> {
        match word {
            "tidegate" => Ok(Policy::Tidegate),
            "aggregated" => Ok(Policy::Aggregated),
            "static:best" => Ok(Policy::BestStatic),
            _ => word
                .strip_prefix("static:")
                .and_then(|prefills| prefills.parse().ok())
                .map(Policy::Static)
                .ok_or_else(|| PolicyError(word.to_owned())),
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_survives_its_own_word() {
        for word in ["tidegate", "aggregated", "static:3", "static:best"] {
            assert_eq!(word.parse::<Policy>().unwrap().to_string(), word);
        }
        for word in ["static", "static:", "static:-1", "Tidegate", ""] {
            assert!(word.parse::<Policy>().is_err(), "{word}");
        }
    }
}
