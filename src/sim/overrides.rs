//! Parameters of the policy `tidegate` by name, for ablations.

use std::str::FromStr;
use thiserror::Error;
use tidegate_scheduler::placement::LatePolicy;
use tidegate_types::{Seconds, Tokens};

use crate::tidegate_policy::TidegateParams;

/// A failed override.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OverrideError {
    /// No parameter has this name.
    #[error("no parameter is called {0:?}; there are {names}", names = TidegateParams::NAMES.join(", "))]
    Name(String),
    /// The text is not `NAME=NUMBER`, joined by `+` or `,`.
    #[error("{0:?} is no override: use NAME=NUMBER, joined by + or ,")]
    Syntax(String),
}

impl TidegateParams {
    /// Names that [`set`](TidegateParams::set) takes.
    pub const NAMES: &[&str] = &[
        "prefill_backlog_max",
        "late_class_share",
        "trunk_reservation_share",
        "refuse_late",
        "colocate_below",
        "spill",
        "demand_window",
        "plan_interval",
        "tells_output",
        "reports_cached",
        "kv_events",
        "knows_classes",
        "batch_engine_share",
        "switch",
        "flips",
        "start",
        "queue_deadline",
        "gateways",
        "exchange",
    ];

    /// Sets the parameter `name` to `value`: durations in seconds, lengths in tokens, flags 0 or 1.
    ///
    /// # Errors
    /// No parameter has this name.
    pub fn set(&mut self, name: &str, value: f64) -> Result<(), OverrideError> {
        let (placement, planner) = (&mut self.placement, &mut self.planner);
        match name {
            "prefill_backlog_max" => placement.prefill_backlog_max = Seconds(value),
            "late_class_share" => placement.late_class_share = value,
            "trunk_reservation_share" => placement.trunk_reservation_share = value,
            "refuse_late" if value > 0.0 => placement.late = LatePolicy::Refuse,
            "refuse_late" => placement.late = LatePolicy::Serve,
            "colocate_below" => placement.colocate_below = Tokens(value as u64),
            "spill" => (placement.spill, planner.spill) = (value > 0.0, value > 0.0),
            "demand_window" => planner.demand_window = Seconds(value),
            "plan_interval" => self.plan_interval = Seconds(value),
            "tells_output" => self.tells_output = value > 0.0,
            "reports_cached" => self.reports_cached = value > 0.0,
            "knows_classes" => self.knows_classes = value > 0.0,
            "batch_engine_share" => placement.batch_engine_share = value,
            "kv_events" => self.kv_events = value > 0.0,
            "switch" => self.switch = Some(Seconds(value)),
            "flips" => self.flips = value > 0.0,
            "start" => self.start = Some(value as usize),
            "gateways" => self.gateways = value.max(1.0) as usize,
            "exchange" => self.exchange = Seconds(value),
            "queue_deadline" => self.queue_deadline = Seconds(value),
            _ => return Err(OverrideError::Name(name.to_owned())),
        }
        Ok(())
    }

    /// Returns these parameters with the overrides of `text`: `NAME=NUMBER`, joined by `+` or `,`.
    ///
    /// # Errors
    /// A part in another form, or an unknown name.
    pub fn with(mut self, text: &str) -> Result<TidegateParams, OverrideError> {
        for part in text.split(['+', ',']) {
            let syntax = || OverrideError::Syntax(part.to_owned());
            let (name, value) = part.split_once('=').ok_or_else(syntax)?;
            let value = f64::from_str(value).ok().filter(|v| v.is_finite()).ok_or_else(syntax)?;
            self.set(name, value)?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_changes_its_own_parameter() {
        let off = TidegateParams::default()
            .with("flips=0,spill=0,tells_output=0,reports_cached=0,knows_classes=0")
            .unwrap();
        let mut seen = vec![off];
        for name in TidegateParams::NAMES {
            let mut params = off;
            params.set(name, 7.0).unwrap();
            assert!(!seen.contains(&params), "{name}");
            seen.push(params);
        }
    }

    #[test]
    fn overrides_are_joined_and_errors_name_the_part() {
        let params = TidegateParams::default().with("flips=0+start=5").unwrap();
        assert_eq!((params.flips, params.start), (false, Some(5)));
        let error = |text| TidegateParams::default().with(text).unwrap_err();
        assert_eq!(error("flips"), OverrideError::Syntax("flips".to_owned()));
        assert_eq!(
            error("prefill_backlog_max=x"),
            OverrideError::Syntax("prefill_backlog_max=x".to_owned())
        );
        assert_eq!(error("prefill_backlog_max=1+rom=2"), OverrideError::Name("rom".to_owned()));
        assert!(error("rom=2").to_string().contains("prefill_backlog_max, late_class_share"));
    }
}
