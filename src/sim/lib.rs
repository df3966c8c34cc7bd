//! Discrete-event simulation of fleets of model engines, to compare policies. The emulator serves the
//! same engine model over HTTP.
//!
//! - [`Profile`]: engines' constants
//! - [`Engine`]: one engine's scheduler and step times
//! - [`Trace`]: arrivals, read from a file or generated
//! - [`Report`]: results of a run; [`Classes`]: service classes of its load
//! - [`bound`]: upper bound on the attainment of any scheduler
//! - [`page`], [`live_page`]: a comparison or a live run as one page, drawn by `src/page`
//! - [`Estimate`]: means over draws of a load, with confidence intervals
//! - [`simulate`]: a [`Policy`] on a fleet, over a trace; [`best_split`]: the best fixed split
//!
//! Modules behind `simulate`: `cluster` advances virtual time and runs the engines. `static_policy`,
//! `periodic_policy` and `rivals` route requests as operators and other systems do. `tidegate_policy`
//! routes them with the live proxy's own placement and planner; `fleet_state` keeps its accounts, and
//! `learning` feeds its online regressions.
//!
//! Virtual time advances by the modelled durations: no clock, no sockets. Equal inputs give equal
//! outputs.
#![warn(missing_docs)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod agents;
mod bound;
mod bursts;
mod classes;
mod cluster;
mod disturbance;
mod engine;
mod fleet_state;
mod gaps;
mod gateways_policy;
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
pub use classes::{ClassReport, Classes};
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
pub use trace::{Arrival, Trace, TraceError, UnusableTrace};
