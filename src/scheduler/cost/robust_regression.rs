//! Robust online linear regression with bounded memory and non-negative, finite coefficients.
//!
//! Minimises relative error by iteratively reweighted least squares with Tukey's bisquare (Maronna,
//! Martin, Yohai: Robust Statistics, ch. 4). The scale is the median absolute deviation of all
//! observations or of those of the size class, whichever is greater
//! (docs/decisions/0015-cost-learning.md). Each refit starts from the last coefficients times the
//! median ratio of observed to predicted values. A prior that is wrong by an order of magnitude is
//! therefore corrected as long as fewer than half of the observations are outliers. Coefficients that
//! the observations do not determine keep their ratio to the others.

/// Number of size classes with separate windows: many short prompts must not displace the
/// observations of long ones.
pub(super) const CLASSES: usize = 4;
/// Observations kept per class.
const CLASS_ROWS_MAX: usize = 32;
/// Half-life of an observation's weight, in later observations.
const HALF_LIFE: f64 = 256.0;
/// Weight of the present coefficients, in observations. A slow first request on a cold engine changes
/// nothing; the fourth observation in agreement does.
const HELD_WEIGHT: f64 = 3.0;
/// Number of observations up to which each one triggers a refit. Beyond it the interval grows in
/// proportion to the count, up to every `REFIT_EVERY_MAX`th. Source: a refit takes 150,000
/// instructions, and at a thousand streams per second a refit for each took a tenth of the proxy's
/// CPU time.
const REFIT_EACH_BELOW: u64 = 32;
const REFIT_EVERY_MAX: u64 = 32;
/// Least relative noise, of timers and step boundaries.
const SCALE_MIN: f64 = 0.02;
/// Tukey's constant: 95 % efficiency under normal noise.
const BISQUARE: f64 = 4.685;
const REWEIGHTINGS: usize = 8;
const SWEEPS_MAX: usize = 300;
/// Regularisation towards the last coefficients, as a share of each feature's weight. It determines
/// directions in which the observations have no spread.
const DAMPING: f64 = 0.002;

/// Online regression of `target ≈ Σ coefficients[i]·features[i]`, every coefficient at least 0.
#[derive(Clone, Debug)]
pub(super) struct RobustRegression<const D: usize> {
    coefficients: [f64; D],
    rows: [Vec<Row<D>>; CLASSES],
    seen: u64,
}

#[derive(Clone, Copy, Debug)]
struct Row<const D: usize> {
    features: [f64; D],
    target: f64,
    class: usize,
    /// Number of observations before this one.
    number: u64,
}

/// Normal equations of a weighted least squares problem.
struct Normal<const D: usize> {
    matrix: [[f64; D]; D],
    vector: [f64; D],
}

impl<const D: usize> RobustRegression<D> {
    pub(super) fn new(prior: [f64; D]) -> RobustRegression<D> {
        let sane = |c: f64| if c.is_finite() && c > 0.0 { c } else { 0.0 };
        RobustRegression { coefficients: prior.map(sane), rows: Default::default(), seen: 0 }
    }

    pub(super) const fn coefficients(&self) -> [f64; D] {
        self.coefficients
    }

    /// Raises a coefficient to a known lower bound.
    pub(super) fn keep_above(&mut self, index: usize, least: f64) {
        if least.is_finite() {
            self.coefficients[index] = self.coefficients[index].max(least);
        }
    }

    pub(super) const fn seen(&self) -> u64 {
        self.seen
    }

    /// Adds an observation. It is ignored unless the target is positive and all values are finite.
    pub(super) fn observe(&mut self, class: usize, features: [f64; D], target: f64) {
        let sane = target.is_finite() && target > 0.0;
        if !sane || features.iter().any(|f| !f.is_finite() || *f < 0.0) {
            return;
        }
        let class = class.min(CLASSES - 1);
        let rows = &mut self.rows[class];
        if rows.len() == CLASS_ROWS_MAX {
            rows.remove(0);
        }
        rows.push(Row { features, target, class, number: self.seen });
        self.seen += 1;
        let every = (self.seen / REFIT_EACH_BELOW).clamp(1, REFIT_EVERY_MAX);
        if self.seen.is_multiple_of(every) {
            self.refit();
        }
    }

    fn refit(&mut self) {
        let rows: Vec<(Row<D>, f64)> =
            self.rows.iter().flatten().map(|row| (*row, self.recency(row))).collect();
        let ratio = self.median_ratio(&rows);
        let start = self.coefficients.map(|c| c * ratio);
        let mut fit = start;
        for _ in 0..REWEIGHTINGS {
            let next = solve(&normal(&rows, &fit, &start), &fit);
            let moved = (0..D).any(|i| (next[i] - fit[i]).abs() > 1e-6 * fit[i]);
            fit = next;
            if !moved {
                break;
            }
        }
        if fit.iter().all(|c| c.is_finite()) && fit.iter().any(|c| *c > 0.0) {
            self.coefficients = fit;
        }
    }

    fn recency(&self, row: &Row<D>) -> f64 {
        (-((self.seen - row.number) as f64) / HALF_LIFE).exp2()
    }

    fn median_ratio(&self, rows: &[(Row<D>, f64)]) -> f64 {
        let ratios = rows.iter().map(|(row, weight)| {
            (row.target / predict(&self.coefficients, &row.features), *weight)
        });
        let held = std::iter::once((1.0, HELD_WEIGHT));
        median(ratios.chain(held).filter(|(ratio, _)| ratio.is_finite()).collect())
    }
}

fn predict<const D: usize>(coefficients: &[f64; D], features: &[f64; D]) -> f64 {
    let sum: f64 = coefficients.iter().zip(features).map(|(c, f)| c * f).sum();
    sum.max(1e-12)
}

/// Returns the weighted median; 1 for an empty list.
fn median(mut values: Vec<(f64, f64)>) -> f64 {
    values.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let half = values.iter().map(|(_, weight)| weight).sum::<f64>() / 2.0;
    let mut below = 0.0;
    for (value, weight) in &values {
        below += weight;
        if below >= half {
            return *value;
        }
    }
    1.0
}

/// Returns the normal equations of one reweighting: rows far from `fit` receive little or no weight,
/// the others count by relative error.
fn normal<const D: usize>(rows: &[(Row<D>, f64)], fit: &[f64; D], start: &[f64; D]) -> Normal<D> {
    let residual = |row: &Row<D>| row.target / predict(fit, &row.features) - 1.0;
    let spread = |class: Option<usize>| {
        let held = std::iter::once((0.0, HELD_WEIGHT));
        let rows = rows.iter().filter(|(row, _)| class.is_none_or(|class| row.class == class));
        let spread = rows.map(|(row, weight)| (residual(row).abs(), *weight)).chain(held);
        1.4826 * median(spread.collect())
    };
    // The greater one: the majority of a class are no outliers, even if the other classes agree.
    let whole = spread(None).max(SCALE_MIN);
    let cutoffs: [f64; CLASSES] =
        std::array::from_fn(|class| BISQUARE * spread(Some(class)).max(whole));

    let mut normal = Normal { matrix: [[0.0; D]; D], vector: [0.0; D] };
    let mut unweighted = [0.0; D];
    for (row, recency) in rows {
        let predicted = predict(fit, &row.features);
        let far = residual(row) / cutoffs[row.class];
        let weight = recency * (1.0 - far * far).max(0.0).powi(2);
        let scaled = row.features.map(|f| f / predicted);
        for i in 0..D {
            unweighted[i] += recency * scaled[i] * scaled[i];
            normal.vector[i] += weight * scaled[i] * row.target / predicted;
            for j in 0..D {
                normal.matrix[i][j] += weight * scaled[i] * scaled[j];
            }
        }
    }
    for i in 0..D {
        let damping = DAMPING * unweighted[i] + f64::MIN_POSITIVE;
        normal.matrix[i][i] += damping;
        normal.vector[i] += damping * start[i];
    }
    normal
}

/// Solves non-negative least squares by coordinate descent, which converges to the unique minimum
/// because the matrix is positive definite.
fn solve<const D: usize>(normal: &Normal<D>, from: &[f64; D]) -> [f64; D] {
    let mut x = *from;
    for _ in 0..SWEEPS_MAX {
        let mut moved = false;
        for i in 0..D {
            let others: f64 = (0..D).filter(|j| *j != i).map(|j| normal.matrix[i][j] * x[j]).sum();
            let best = ((normal.vector[i] - others) / normal.matrix[i][i]).max(0.0);
            moved |= (best - x[i]).abs() > 1e-9 * best.max(x[i]);
            x[i] = best;
        }
        if !moved {
            break;
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outlier_at_the_start_changes_no_coefficient() {
        let mut fit = RobustRegression::new([0.01, 0.001]);
        fit.observe(0, [1.0, 100.0], 30.0);
        assert_eq!(fit.coefficients(), [0.01, 0.001]);
    }

    #[test]
    fn a_prior_wrong_by_a_factor_of_a_hundred_is_corrected() {
        let mut fit = RobustRegression::new([1.0, 0.1]);
        for n in 0..40 {
            let size = f64::from(n % 7) * 100.0;
            fit.observe(0, [1.0, size], 0.01 + 0.001 * size);
        }
        let [base, slope] = fit.coefficients();
        assert!((base - 0.01).abs() < 1e-3 && (slope - 0.001).abs() < 1e-5, "{base} {slope}");
    }

    #[test]
    fn the_majority_of_a_size_class_are_no_outliers() {
        let mut fit = RobustRegression::new([0.01, 0.0]);
        for n in 0..96 {
            fit.observe(0, [1.0, 0.0], 0.01);
            if n % 4 == 0 {
                fit.observe(3, [1.0, 100.0], 0.02);
            }
        }
        let [base, slope] = fit.coefficients();
        assert!((base - 0.01).abs() < 5e-4 && (slope - 1e-4).abs() < 1e-5, "{base} {slope}");
    }

    #[test]
    fn invalid_observations_are_not_counted() {
        let mut fit = RobustRegression::new([1.0, f64::NAN]);
        for target in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            fit.observe(0, [1.0, 1.0], target);
        }
        fit.observe(0, [1.0, f64::INFINITY], 1.0);
        assert_eq!((fit.seen(), fit.coefficients()), (0, [1.0, 0.0]));
    }
}
