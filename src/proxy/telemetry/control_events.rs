//! Events from requests to the control loop, over a bounded channel. An event that finds the channel
//! full is dropped: the regressions do not need every sample.

use tidegate_scheduler::learn::Sample;

/// Capacity of the channel: one second of events at 1,000 requests a second.
pub const CONTROL_EVENTS_MAX: usize = 4096;

/// One event.
#[derive(Clone, Copy, Debug)]
pub enum ControlEvent {
    /// An observation for the regressions.
    Sample(Sample),
    /// The health of a leg's backend has changed. The control loop plans at once; placement reads the
    /// health directly.
    HealthChanged,
}

impl From<Sample> for ControlEvent {
    fn from(sample: Sample) -> ControlEvent {
        ControlEvent::Sample(sample)
    }
}
