//! Means with confidence intervals over independent draws of a load, and paired differences between
//! two policies on the same draws. Deterministic.

use std::fmt;

/// 97.5 % quantiles of Student's t distribution with 1 to 30 degrees of freedom.
const STUDENT_T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];

/// A mean and the half width of its 95 % confidence interval by Student's t distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Arithmetic mean; NaN without values.
    pub mean: f64,
    /// Half width of the interval; infinite with fewer than two values.
    pub half_width: f64,
}

impl Estimate {
    /// Returns the mean of `values` with its interval.
    pub fn of(values: &[f64]) -> Estimate {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        if values.len() < 2 {
            return Estimate { mean, half_width: f64::INFINITY };
        }
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let standard_error = (squares / (count - 1.0) / count).sqrt();
        Estimate { mean, half_width: quantile(values.len() - 1) * standard_error }
    }

    /// Returns the mean difference of pairs, first minus second. Both values of a pair come from
    /// the same draw, so that the variance between draws cancels.
    pub fn paired(pairs: impl IntoIterator<Item = (f64, f64)>) -> Estimate {
        let differences: Vec<f64> = pairs.into_iter().map(|(a, b)| a - b).collect();
        Estimate::of(&differences)
    }

    /// Lower and upper bound of the interval.
    pub fn interval(&self) -> (f64, f64) {
        (self.mean - self.half_width, self.mean + self.half_width)
    }

    /// Returns the estimate with mean and interval multiplied by `factor`.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Estimate {
        Estimate { mean: self.mean * factor, half_width: self.half_width * factor.abs() }
    }
}

/// `mean ± half width`, with the precision of the format; the mean alone if there is no interval,
/// `none` without values.
/// The sign `+` of the format applies to the mean.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mean.is_nan() {
            return f.write_str("none");
        }
        let digits = f.precision().unwrap_or(3);
        match f.sign_plus() {
            true => write!(f, "{:+.digits$}", self.mean)?,
            false => write!(f, "{:.digits$}", self.mean)?,
        }
        if self.half_width.is_finite() {
            write!(f, " ± {:.digits$}", self.half_width)?;
        }
        Ok(())
    }
}

/// Returns the 97.5 % quantile; above 30 degrees of freedom by two terms of the Cornish–Fisher
/// expansion, within .0001 of the exact value.
fn quantile(freedom: usize) -> f64 {
    if let Some(exact) = freedom.checked_sub(1).and_then(|index| STUDENT_T.get(index)) {
        return *exact;
    }
    let (z, n): (f64, f64) = (1.96, freedom as f64);
    let first = (z.powi(3) + z) / (4.0 * n);
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n * n);
    z + first + second
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_students_t() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(estimate.mean, 3.0);
        // Standard error √(2.5 / 5); t(4) = 2.776.
        assert!((estimate.half_width - 2.776 * 0.5_f64.sqrt()).abs() < 1e-9);
        let (low, high) = estimate.interval();
        assert!((low + high - 6.0).abs() < 1e-9 && low < high);
        assert_eq!(Estimate::of(&[0.5; 20]), Estimate { mean: 0.5, half_width: 0.0 });
    }

    #[test]
    fn quantiles_fall_towards_the_normal_distribution() {
        assert_eq!((quantile(1), quantile(19)), (12.706, 2.093));
        // Exact: 2.0395 for 31, 2.0086 for 50 degrees of freedom.
        assert!((quantile(31) - 2.0395).abs() < 2e-4 && (quantile(50) - 2.0086).abs() < 2e-4);
        for freedom in 1..100 {
            assert!(quantile(freedom + 1) <= quantile(freedom), "{freedom}");
        }
    }

    #[test]
    fn one_value_has_no_interval() {
        let one = Estimate::of(&[0.75]);
        assert_eq!(one.mean, 0.75);
        assert!(one.half_width.is_infinite());
        assert_eq!(one.to_string(), "0.750");
        assert!(Estimate::of(&[]).mean.is_nan());
        assert_eq!(Estimate::of(&[]).to_string(), "none");
    }

    #[test]
    fn pairing_removes_the_variance_between_draws() {
        let draws = [0.5, 0.9, 0.7, 0.6];
        let better: Vec<f64> = draws.iter().map(|value| value + 0.01).collect();
        let paired = Estimate::paired(better.iter().copied().zip(draws));
        assert!((paired.mean - 0.01).abs() < 1e-12 && paired.half_width < 1e-12);
        assert!(Estimate::of(&better).half_width > 0.1);
        let reversed = Estimate::paired(draws.into_iter().zip(better));
        assert!((reversed.mean + 0.01).abs() < 1e-12);
    }

    #[test]
    fn an_estimate_is_printed_with_its_interval() {
        let estimate = Estimate { mean: 0.9871, half_width: 0.0012 };
        assert_eq!(format!("{estimate:.3}"), "0.987 ± 0.001");
        assert_eq!(format!("{:+.2}", estimate.scaled(-100.0)), "-98.71 ± 0.12");
    }
}
