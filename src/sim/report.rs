//! Results of a run: one object per policy, with the field names that external scripts read.

use serde::Serialize;
use tidegate_types::{Seconds, Slo, Tokens};

use crate::classes::ClassReport;
use crate::gaps::GapHistogram;

/// Outcome of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Time from arrival to first token; `None` without a token.
    pub ttft: Option<Seconds>,
    /// (last − first) / (tokens − 1); `None` if the request did not end or had one token.
    pub tpot: Option<Seconds>,
    /// Largest gap between two tokens (ITL); in a live run between two chunks. `None` with fewer
    /// than two.
    pub gap_max: Option<Seconds>,
    /// Whether it ended with all requested tokens.
    pub done: bool,
    /// Whether it ended with an error. A request unfinished at the end of the run has none.
    pub error: bool,
    /// Tokens received.
    pub tokens: Tokens,
}

/// Result of one policy. Times are in seconds, attainment is in 0..1, percentiles use the nearest
/// rank over the requests that have the value. An unfinished request counts as missed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the policy.
    pub policy: String,
    /// Factor on the trace's rate.
    pub rate: f64,
    /// Number of requests in the trace.
    pub requests: usize,
    /// Share that met all targets.
    pub attainment: f64,
    /// Share that met the TTFT target.
    pub ttft_attainment: f64,
    /// Share that met the TPOT target.
    pub tpot_attainment: f64,
    /// Share that met the ITL target; only with such a target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl_attainment: Option<f64>,
    /// Median TTFT.
    pub ttft_p50: f64,
    /// 99th percentile TTFT.
    pub ttft_p99: f64,
    /// Median TPOT.
    pub tpot_p50: f64,
    /// 99th percentile TPOT.
    pub tpot_p99: f64,
    /// 99th percentile of all gaps between two tokens (ITL).
    pub itl_p99: f64,
    /// Largest gap between two tokens.
    pub itl_max: f64,
    /// Number of role changes.
    pub flips: u64,
    /// Share of prompt tokens served from prefix caches; only in runs with prefix caching.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hit_rate: Option<f64>,
    /// Number of preemptions; only in runs whose engines preempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemptions: Option<u64>,
    /// Number of requests that ended with an error; only in live runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<usize>,
    /// Results by service class; only in runs with classes. The figures above then leave batch work out
    /// and judge each request by the targets of its class.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassReport>,
}

impl Outcome {
    /// Returns whether the first token met the TTFT target.
    pub fn meets_ttft(&self, slo: &Slo) -> bool {
        self.ttft.is_some_and(|ttft| ttft <= slo.ttft)
    }

    /// Returns whether the request ended and met the TPOT target. A single token always meets it.
    pub fn meets_tpot(&self, slo: &Slo) -> bool {
        self.done && self.tpot.is_none_or(|tpot| tpot <= slo.tpot)
    }

    /// Returns whether the request ended and met the ITL target, if there is one.
    pub fn meets_itl(&self, slo: &Slo) -> bool {
        self.done && slo.meets_itl(self.gap_max)
    }

    /// Returns the time from arrival to the last token; `None` if the request did not end.
    pub fn took(&self) -> Option<Seconds> {
        let gaps = self.tokens.as_f64() - 1.0;
        let answer = self.tpot.map_or(Seconds::ZERO, |tpot| tpot * gaps.max(0.0));
        self.ttft.filter(|_| self.done).map(|ttft| ttft + answer)
    }

    /// Returns whether the request met all targets.
    pub fn meets(&self, slo: &Slo) -> bool {
        self.meets_ttft(slo) && self.meets_tpot(slo) && self.meets_itl(slo)
    }
}

impl Report {
    /// Computes the result of a run whose requests have the same targets.
    pub fn of(policy: &str, rate: f64, flips: u64, outcomes: &[Outcome], slo: &Slo) -> Report {
        Report::of_each(policy, rate, flips, outcomes.iter().map(|outcome| (outcome, *slo)))
    }

    /// Computes the result of a run from each outcome and the targets of its request.
    pub(crate) fn of_each<'a>(
        policy: &str,
        rate: f64,
        flips: u64,
        outcomes: impl Iterator<Item = (&'a Outcome, Slo)>,
    ) -> Report {
        let outcomes: Vec<(&Outcome, Slo)> = outcomes.collect();
        let share = |meets: &dyn Fn(&Outcome, &Slo) -> bool| {
            let met = outcomes.iter().filter(|(outcome, slo)| meets(outcome, slo)).count();
            met as f64 / outcomes.len().max(1) as f64
        };
        let sorted = |value: &dyn Fn(&Outcome) -> Option<Seconds>| {
            let values = outcomes.iter().filter_map(|(outcome, _)| value(outcome));
            let mut all: Vec<f64> = values.map(Seconds::get).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let has_itl = outcomes.iter().any(|(_, slo)| slo.itl.is_some());
        let ttft = sorted(&|o| o.ttft);
        let tpot = sorted(&|o| o.tpot);
        Report {
            policy: policy.to_owned(),
            rate,
            requests: outcomes.len(),
            attainment: share(&Outcome::meets),
            ttft_attainment: share(&Outcome::meets_ttft),
            tpot_attainment: share(&Outcome::meets_tpot),
            itl_attainment: has_itl.then(|| share(&Outcome::meets_itl)),
            ttft_p50: percentile(&ttft, 0.5),
            ttft_p99: percentile(&ttft, 0.99),
            tpot_p50: percentile(&tpot, 0.5),
            tpot_p99: percentile(&tpot, 0.99),
            itl_p99: f64::NAN,
            itl_max: percentile(&sorted(&|o| o.gap_max), 1.0),
            flips,
            hit_rate: None,
            preemptions: None,
            errors: None,
            classes: Vec::new(),
        }
    }

    /// Sets the 99th percentile of the gaps and, where it is larger, the largest gap: the gaps of
    /// unfinished requests count too.
    #[must_use]
    pub fn with_gaps(self, gaps: &GapHistogram) -> Report {
        let itl_max = self.itl_max.max(gaps.max().get());
        Report { itl_p99: gaps.quantile(0.99).map_or(0.0, Seconds::get), itl_max, ..self }
    }

    /// Sets the number of errors, for a live run.
    #[must_use]
    pub fn with_errors(self, outcomes: &[Outcome]) -> Report {
        Report { errors: Some(outcomes.iter().filter(|o| o.error).count()), ..self }
    }
}

/// Nearest-rank percentile; 0 for an empty slice.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_targets_must_be_met_to_the_end() {
        let slo = Slo::default();
        let good = Outcome {
            ttft: Some(Seconds(0.5)),
            tpot: Some(Seconds(0.02)),
            gap_max: Some(Seconds(0.1)),
            done: true,
            error: false,
            tokens: Tokens(5),
        };
        let outcomes = [
            good,
            Outcome { ttft: Some(Seconds(1.5)), ..good },
            Outcome { tpot: Some(Seconds(0.04)), ..good },
            Outcome { done: false, tpot: None, ..good },
            Outcome { tpot: None, gap_max: None, ..good },
        ];
        let report = Report::of("static:3", 1.0, 0, &outcomes, &slo);
        assert_eq!(report.attainment, 0.4);
        assert_eq!((report.ttft_attainment, report.tpot_attainment), (0.8, 0.6));
        assert_eq!((report.ttft_p50, report.ttft_p99), (0.5, 1.5));
        assert_eq!((report.itl_max, report.itl_attainment), (0.1, None));
        let line = serde_json::to_string(&report).unwrap();
        assert!(line.starts_with(
            "{\"policy\":\"static:3\",\"rate\":1.0,\"requests\":5,\"attainment\":0.4,"
        ));
        assert!(!line.contains("errors"));
    }

    #[test]
    fn the_itl_target_counts_the_largest_gap_only_where_it_is_set() {
        let with = |gap: Option<f64>| Outcome {
            ttft: Some(Seconds(0.5)),
            gap_max: gap.map(Seconds),
            done: true,
            ..Outcome::default()
        };
        let outcomes = [with(None), with(Some(0.1)), with(Some(0.3)), Outcome::default()];
        let report = |itl: Option<f64>| {
            let slo = Slo { itl: itl.map(Seconds), ..Slo::default() };
            let report = Report::of("p", 1.0, 0, &outcomes, &slo);
            (report.attainment, report.itl_attainment)
        };
        assert_eq!(report(None), (0.75, None));
        assert_eq!(report(Some(0.2)), (0.5, Some(0.5)));
    }
}
