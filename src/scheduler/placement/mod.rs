//! Where a request goes, and in which order those go that must wait.
//!
//! - [`Job`], [`Handover`]: what has to be placed; [`Excluded`]: where it has failed before
//! - [`Fleet`], [`Load`]: the engines as the caller knows them, live or simulated
//! - [`Params`]: what the operator may set
//! - [`place`]: a backend for a request, or why it must wait
//! - [`place_decode`]: a decode backend for a request that is prefilled
//! - [`DeadlineQueue`]: those that wait
//!
//! Pure: the time is an argument and the only randomness is a job's seed. It reserves nothing and
//! remembers nothing of the fleet: the caller's [`Fleet`] shows a reservation before the next ask.

mod candidate;
mod decode;
#[cfg(test)]
mod fixture;
mod fleet;
mod job;
mod order;
mod params;
mod place;
mod queue;

pub use decode::place_decode;
pub use fleet::{Fleet, Load};
pub use job::{EXCLUDED_MAX, Excluded, Handover, Job, Split};
pub use params::Params;
pub use place::{Choice, NowhereReason, WaitReason, place};
pub use queue::{DeadlineQueue, Outcome, QueueFull, Took};
