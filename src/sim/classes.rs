//! Service classes of a load: the targets of each class, and the results by class.

use serde::Serialize;
use tidegate_types::{CLASSES_MAX, ClassId, ClassKind, Seconds, Slo, Targets};

use crate::random::SplitMix;
use crate::report::{Outcome, percentile};
use crate::trace::Trace;

/// The classes of a load besides the default class, whose targets are those of the fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Classes([Option<Targets>; CLASSES_MAX]);

/// Results of one class. Percentiles use the nearest rank over the requests that have the value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassReport {
    /// Number of the class; 0 is the default class.
    pub class: u8,
    /// Number of requests.
    pub requests: usize,
    /// Share that met all targets; `None` for batch work, which has none.
    pub attainment: Option<f64>,
    /// Share that ended before the last arrival of the trace.
    pub done: f64,
    /// Median TTFT.
    pub ttft_p50: f64,
    /// 99th percentile TTFT.
    pub ttft_p99: f64,
    /// 99th percentile TPOT.
    pub tpot_p99: f64,
}

impl Classes {
    /// Adds a class with targets; `None` if there are [`CLASSES_MAX`] already.
    #[must_use]
    pub fn with_interactive(self, slo: Slo) -> Option<Classes> {
        self.with(ClassKind::Interactive, slo)
    }

    /// Adds a class of batch work; `None` if there are [`CLASSES_MAX`] already.
    #[must_use]
    pub fn with_batch(self) -> Option<Classes> {
        self.with(ClassKind::Batch, Slo::NONE)
    }

    fn with(mut self, kind: ClassKind, slo: Slo) -> Option<Classes> {
        let free = self.0.iter().position(Option::is_none)?;
        self.0[free] = Some(Targets { class: ClassId(free as u8 + 1), kind, slo });
        Some(self)
    }

    /// Returns whether there is no class but the default one.
    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    /// Returns the number of classes besides the default one.
    pub fn len(&self) -> usize {
        self.all().count()
    }

    /// Returns the targets of a class; those of the default class, `default`, for an unknown one.
    pub fn targets(&self, class: ClassId, default: Slo) -> Targets {
        let own = usize::from(class.0).checked_sub(1).and_then(|index| *self.0.get(index)?);
        own.unwrap_or(Targets::of_default_class(default))
    }

    /// Returns the smallest TPOT target; infinite without classes.
    pub fn smallest_tpot(&self) -> Seconds {
        self.all().map(|targets| targets.slo.tpot).fold(Seconds(f64::INFINITY), Seconds::min)
    }

    fn all(&self) -> impl Iterator<Item = &Targets> {
        self.0.iter().flatten()
    }
}

impl ClassReport {
    /// Computes the results of each class that has requests.
    pub fn of(
        trace: &Trace,
        outcomes: &[Outcome],
        targets: impl Fn(ClassId) -> Targets,
    ) -> Vec<ClassReport> {
        let classes = (0..=CLASSES_MAX as u8).map(ClassId);
        let report = |class: ClassId| {
            let all = trace.arrivals.iter().zip(outcomes);
            let own: Vec<_> = all.filter(|(arrival, _)| arrival.class == class).collect();
            let count = own.len();
            let share = |holds: &dyn Fn(&Seconds, &Outcome) -> bool| {
                own.iter().filter(|(arrival, o)| holds(&arrival.at, o)).count() as f64
                    / count as f64
            };
            let sorted = |value: &dyn Fn(&Outcome) -> Option<Seconds>| {
                let values = own.iter().filter_map(|(_, outcome)| value(outcome));
                let mut values: Vec<f64> = values.map(Seconds::get).collect();
                values.sort_by(f64::total_cmp);
                values
            };
            let (targets, ttft) = (targets(class), sorted(&|o| o.ttft));
            (count > 0).then(|| ClassReport {
                class: class.0,
                requests: count,
                attainment: (!targets.is_batch()).then(|| share(&|_, o| o.meets(&targets.slo))),
                done: share(&|at, o| o.took().is_some_and(|took| *at + took <= trace.end())),
                ttft_p50: percentile(&ttft, 0.5),
                ttft_p99: percentile(&ttft, 0.99),
                tpot_p99: percentile(&sorted(&|o| o.tpot), 0.99),
            })
        };
        classes.filter_map(report).collect()
    }
}

impl Trace {
    /// Returns the trace with all requests in one class.
    #[must_use]
    pub fn of_class(mut self, class: ClassId) -> Trace {
        for arrival in &mut self.arrivals {
            arrival.class = class;
        }
        self
    }

    /// Returns the trace with a share of its requests, drawn at random, in a class. Equal seeds give
    /// equal draws.
    #[must_use]
    pub fn with_class(mut self, class: ClassId, share: f64, seed: u64) -> Trace {
        let mut random = SplitMix(seed);
        for arrival in &mut self.arrivals {
            if random.unit() <= share {
                arrival.class = class;
            }
        }
        self
    }

    /// Returns the trace without the requests of a class.
    #[must_use]
    pub fn without_class(mut self, class: ClassId) -> Trace {
        self.arrivals.retain(|arrival| arrival.class != class);
        self
    }
}
