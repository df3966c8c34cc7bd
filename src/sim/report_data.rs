//! The data of a report's page, as `src/page/report.js` reads it, and the charts that are built from
//! outcomes.

use serde::Serialize;
use tidegate_types::Seconds;

use crate::report::Outcome;
use crate::trace::Trace;

/// Number of time bins of a run.
const BINS: usize = 180;
/// Number of steps of a distribution.
const QUANTILES: usize = 200;
/// Largest value in a chart, as a multiple of the target: outliers would compress the rest.
pub(crate) const OFF_SCALE: f64 = 4.0;

#[derive(Debug, Default, Serialize)]
pub(crate) struct ReportPage {
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) sections: Vec<Section>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) charts: Vec<ChartData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<Table>,
}

/// A heading that starts with `>` belongs to a column of numbers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Table {
    pub(crate) head: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct ChartData {
    pub(crate) title: String,
    /// What the axes show.
    pub(crate) axis: &'static str,
    /// Unit of the vertical axis.
    pub(crate) unit: &'static str,
    /// Unit of the horizontal axis.
    pub(crate) x_unit: &'static str,
    /// Whether values are shares of 1.
    pub(crate) percent: bool,
    pub(crate) y_max: Option<f64>,
    pub(crate) y_limit: Option<f64>,
    /// The target.
    pub(crate) level: Option<f64>,
    /// The target on the horizontal axis.
    pub(crate) x_level: Option<f64>,
    /// Positions of role changes on the horizontal axis.
    pub(crate) marks: Vec<f64>,
    pub(crate) series: Vec<Series>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Series {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) style: Option<&'static str>,
    /// `line`, `step` or `dots`.
    pub(crate) kind: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Table {
    /// Removes the last column, the cost.
    pub(crate) fn without_cost(mut self) -> Table {
        self.head.pop();
        for row in &mut self.rows {
            row.pop();
        }
        self
    }
}

impl Series {
    /// A line through `points`.
    pub(crate) fn line(name: impl Into<String>, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.into(), style: None, kind: "line", points }
    }
}

/// Returns the share of requests whose value is at most x, with x up to [`OFF_SCALE`] times
/// `target`; all three in the unit of `value`. Requests without a value count as above.
pub(crate) fn distribution(
    name: &str,
    outcomes: &[Outcome],
    target: f64,
    value: &dyn Fn(&Outcome) -> Option<f64>,
) -> Series {
    let mut values: Vec<f64> = outcomes.iter().filter_map(value).collect();
    values.sort_by(f64::total_cmp);
    let all = outcomes.len().max(1) as f64;
    let point = |step: usize| {
        let x = target * OFF_SCALE * step as f64 / QUANTILES as f64;
        (x, values.partition_point(|value| *value <= x) as f64 / all)
    };
    Series::line(name, (0..=QUANTILES).map(point).collect())
}

/// Returns the median and the 90th percentile of a value by arrival bin.
pub(crate) fn percentiles(
    trace: &Trace,
    end: f64,
    value: &dyn Fn(usize) -> Option<Seconds>,
) -> Vec<Series> {
    let mut bins = vec![Vec::new(); BINS];
    for (i, arrival) in trace.arrivals.iter().enumerate() {
        let bin = (arrival.at.get() / end * BINS as f64) as usize;
        bins[bin.min(BINS - 1)].extend(value(i).map(Seconds::get));
    }
    for bin in &mut bins {
        bin.sort_by(f64::total_cmp);
    }
    let line = |name: &str, share: f64| {
        let filled = bins.iter().enumerate().filter(|(_, bin)| !bin.is_empty());
        let points = filled.map(|(i, bin)| {
            let rank = (share * bin.len() as f64).ceil() as usize;
            ((i as f64 + 0.5) / BINS as f64 * end, bin[rank.saturating_sub(1)])
        });
        Series::line(name, points.collect())
    };
    vec![line("median", 0.5), line("90th percentile", 0.9)]
}

/// Formats a value with its digits; a dash if it is unknown.
pub(crate) fn figure(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "–".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_counts_requests_without_a_value_as_above_every_value() {
        let with = |ttft: Option<f64>| Outcome { ttft: ttft.map(Seconds), ..Outcome::default() };
        let outcomes = [with(Some(0.5)), with(Some(1.0)), with(Some(9.0)), with(None)];
        let series = distribution("x", &outcomes, 1.0, &|o| o.ttft.map(Seconds::get));
        assert_eq!(series.points[0], (0.0, 0.0));
        assert_eq!(series.points[QUANTILES / 4], (1.0, 0.5));
        assert_eq!(series.points.last(), Some(&(4.0, 0.5)));
    }
}
