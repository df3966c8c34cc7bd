//! The fleet on a terminal, as `top` and `demo` show it: plain values, drawn by `widgets.rs` or
//! written as text where there is no terminal.

pub mod canvas;
mod widgets;

use tidegate_types::Role;

use crate::terminal::{ABSENT, time_text};

pub use widgets::draw;

/// Contents of the screen at one moment.
#[derive(Clone, Debug, Default)]
pub struct Screen {
    /// First line.
    pub title: String,
    pub engines: Vec<EngineRow>,
    pub queue: ChartSeries,
    pub ttft: ChartSeries,
    pub tpot: ChartSeries,
    /// Share of requests that met their targets, 0 to 1.
    pub attainment: ChartSeries,
    /// Role changes, the latest first, one sentence each.
    pub flips: Vec<String>,
    /// Name of the run shown by [`ChartSeries::beside`].
    pub beside: Option<String>,
    /// Last line.
    pub footer: String,
}

/// One engine.
#[derive(Clone, Debug)]
pub struct EngineRow {
    pub name: String,
    pub role: Role,
    /// Prefill backlog or streams as a share of the engine's limit, 0 to 1.
    pub load: f64,
    /// The load as text.
    pub detail: String,
    /// Share of its KV memory in use, 0 to 1.
    pub kv: f64,
    /// Reason why the engine is not healthy; empty if it is healthy.
    pub problem: String,
}

/// A value over time.
#[derive(Clone, Debug, Default)]
pub struct ChartSeries {
    /// Values, the latest last; `None`: nothing was measured.
    pub values: Vec<Option<f64>>,
    /// Upper bound of the values, in their unit.
    pub target: Option<f64>,
    /// The value of the compared run at the same time.
    pub beside: Option<f64>,
}

/// Values that a series keeps: two minutes at five a second.
const KEPT: usize = 600;

impl ChartSeries {
    /// Creates an empty series with a target.
    pub fn with_target(target: f64) -> ChartSeries {
        ChartSeries { target: Some(target), ..ChartSeries::default() }
    }

    /// Adds the latest value; the oldest are dropped.
    pub fn push(&mut self, value: Option<f64>) {
        if self.values.len() == KEPT {
            self.values.remove(0);
        }
        self.values.push(value);
    }

    /// The latest value.
    pub fn now(&self) -> Option<f64> {
        self.values.last().copied().flatten()
    }

    /// Whether the latest value exceeds the target.
    pub fn misses(&self) -> bool {
        matches!((self.now(), self.target), (Some(now), Some(target)) if now > target)
    }
}

impl Screen {
    /// The engines of a role.
    pub fn pool(&self, role: Role) -> impl Iterator<Item = &EngineRow> {
        self.engines.iter().filter(move |engine| engine.role == role)
    }

    /// One line for scripts and logs.
    pub fn line(&self) -> String {
        let pool = |role: Role| self.pool(role).count();
        format!(
            "{}  prefill {} engines, decode {}, mixed {}, draining {}  queue {}  TTFT {}  TPOT {}  in time {}",
            self.title,
            pool(Role::Prefill),
            pool(Role::Decode),
            pool(Role::Mixed),
            pool(Role::Draining),
            self.queue.now().unwrap_or(0.0),
            time_text(self.ttft.now()),
            time_text(self.tpot.now()),
            percent(self.attainment.now()),
        )
    }
}

/// A share in percent.
pub fn percent(share: Option<f64>) -> String {
    share.map_or(ABSENT.to_owned(), |share| format!("{:.0} %", share * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_bounded_and_compared_with_its_target() {
        let mut series = ChartSeries::with_target(1.0);
        assert!(!series.misses() && series.now().is_none());
        for at in 0..=KEPT {
            series.push(Some(at as f64));
        }
        assert_eq!((series.values.len(), series.values[0]), (KEPT, Some(1.0)));
        assert!(series.misses());
        series.push(None);
        assert!(!series.misses(), "nothing was measured");
    }
}
