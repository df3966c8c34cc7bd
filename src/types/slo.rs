//! Service-level objectives.

use crate::Seconds;
use serde::{Deserialize, Serialize};

/// The targets of a request; it counts as attained if it meets all of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// Time from arrival at the proxy to the first token.
    pub ttft: Seconds,
    /// Mean time per output token after the first.
    pub tpot: Seconds,
    /// Largest gap between two tokens (ITL); `None`: no target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub itl: Option<Seconds>,
}

/// The smallest targets of the streams on a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TightestTargets {
    /// Smallest TPOT target; `None` without a stream that has one.
    pub tpot: Option<Seconds>,
    /// Smallest ITL target; `None` without a stream that has one.
    pub itl: Option<Seconds>,
}

/// Number of a service class: 0 is the default class, the others are those of the settings, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub u8);

/// Most configured service classes, without the default class.
pub const CLASSES_MAX: usize = 8;

/// Name of the default class.
pub const DEFAULT_CLASS: &str = "default";

/// The targets of one request, and its service class.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Targets {
    /// The class.
    pub class: ClassId,
    /// Whether the class has targets.
    pub kind: ClassKind,
    /// The latency targets: those of the class, or the request's own.
    pub slo: Slo,
}

/// Whether the requests of a class have targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClassKind {
    /// They have targets.
    #[default]
    Interactive,
    /// They have none, and use the capacity left by interactive requests.
    Batch,
}

impl ClassId {
    /// The class of requests that match no other.
    pub const DEFAULT: ClassId = ClassId(0);
}

impl Targets {
    /// Returns the targets of the default class.
    pub const fn of_default_class(slo: Slo) -> Targets {
        Targets { class: ClassId::DEFAULT, kind: ClassKind::Interactive, slo }
    }

    /// Returns whether the request is batch work.
    pub fn is_batch(&self) -> bool {
        self.kind == ClassKind::Batch
    }
}

impl Slo {
    /// No targets: every answer meets them.
    pub const NONE: Slo =
        Slo { ttft: Seconds(f64::INFINITY), tpot: Seconds(f64::INFINITY), itl: None };

    /// Returns whether an answer with this largest gap meets the ITL target. An answer without a gap
    /// does. The target is for the largest gap instead of a percentile: readers notice pauses, and a 99th
    /// percentile would allow more pauses in longer answers.
    pub fn meets_itl(&self, gap_max: Option<Seconds>) -> bool {
        self.itl.is_none_or(|itl| gap_max.is_none_or(|gap| gap <= itl))
    }
}

impl Default for Slo {
    /// 1 s, 30 ms and no ITL target: the targets of the reference table in
    /// docs/spec/engine-model.md#reference-results.
    fn default() -> Slo {
        Slo { ttft: Seconds(1.0), tpot: Seconds(0.030), itl: None }
    }
}
