//! Discrete-event simulation of the engine model: compares policies; the emulator serves the model.
//!
//! - [`Profile`]: engines' constants
//! - [`Engine`]: one engine's scheduler and step times
//! - [`Trace`]: arrivals, read or made
//! - [`Report`]: results of a run
//! - [`bound`]: upper bound on the attainment of any scheduler
//! - [`page`], [`live_page`]: a comparison or a live run as one page, drawn by `src/page`
//! - [`Estimate`]: means over draws of a load, with confidence intervals
//! - [`simulate`]: a [`Policy`] on a fleet, over a trace; [`best_split`]: the best fixed split
//!
//! Behind `simulate`: cluster.rs moves time; static_policy.rs and tidegate_policy.rs route requests,
//! the one as operators do it today, the other with the live proxy's own placement and planner,
//! for which fleet_state.rs keeps the accounts and learning.rs feeds the proxy's online regressions.
//!
//! Time comes in as steps' durations: no clock, no sockets; equal inputs give equal outputs.
#![warn(missing_docs)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod agents;
mod bound;
mod bursts;
mod cluster;
mod disturbance;
mod engine;
mod fleet_state;
mod gaps;
mod html_report;
mod learning;
mod mocker;
mod overrides;
mod periodic_policy;
mod policy;
mod prefix_cache;
mod profile;
mod random;
mod report;
mod report_data;
mod resample;
mod rivals;
mod simulate;
mod static_policy;
mod statistics;
mod tidegate_policy;
mod timeline;
mod trace;

pub use bound::bound;
pub use bursts::Bursts;
pub use disturbance::{Disturbance, DisturbanceError};
pub use engine::{Engine, Event, SeqId, Sequence, Work};
pub use gaps::GapHistogram;
pub use html_report::{live_page, page};
pub use overrides::OverrideError;
pub use policy::{Policy, PolicyError};
pub use profile::{Profile, StepCost};
pub use report::{Outcome, Report};
pub use simulate::{Run, SimConfig, best_split, simulate};
pub use statistics::Estimate;
pub use tidegate_policy::TidegateParams;
pub use timeline::Timeline;
pub use trace::{Arrival, Trace, TraceError};
