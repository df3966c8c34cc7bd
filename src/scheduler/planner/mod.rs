//! The planner: computes the role of each engine, with a reason for each change, from demand and
//! capacity.
//!
//! - [`observation`]: the input
//! - [`params`]: the parameters
//! - [`outlook`]: losses of every split, and the demand, for operators
//! - [`state`]: the state between two runs
//! - [`arrivals`]: counters of arrived work
//! - [`demand`]: rates from counts
//! - `capacity`: load of a group at prefill and at decode, and the stream capacity of an engine
//! - `comparative_advantage`: the role of comparative advantage of each engine in a mixed fleet
//! - `counterfactual`: the counterfactual losses of every split
//! - [`decide`]: the roles, and the reasons
//! - [`engines_wanted`]: the fewest engines that would have lost nothing, for autoscalers
//! - [`reason`]: cause and numbers of a flip, for the journal
//! - [`recording`]: recorded inputs and decisions, and their replay
//!
//! The planner is deterministic: it reads no clock, draws no random number, and its state is an
//! argument. The live proxy, the simulator and the replay of a recording therefore get the same
//! decisions from the same inputs.

pub mod arrivals;
mod capacity;
mod comparative_advantage;
mod counterfactual;
pub mod decide;
pub mod demand;
pub mod engines_wanted;
pub mod observation;
pub mod outlook;
pub mod params;
pub mod reason;
pub mod recording;
pub mod state;

#[cfg(test)]
mod tests;

pub use arrivals::{ArrivalCounters, ArrivalTotals};
pub use decide::{Decision, initial, plan};
pub use engines_wanted::EnginesWanted;
pub use observation::{BackendObservation, GroupDemand, Observation};
pub use outlook::{GroupOutlook, SplitOutlook};
pub use params::Params;
pub use reason::{Cause, Reason};
pub use state::State;
